//! [E3]: whether the hints of the endpoints are followed, and to whom they lead.

use std::sync::Arc;

use crate::model::{Hints, NodeInfo};

/// Which of the ready endpoints of a cluster set are used ([E3]).
///
/// [E3]: crate::resolve
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topology {
    /// All of them: there are no hints that could be followed.
    Everywhere,
    /// Those that are meant for this node.
    SameNode,
    /// Those that are meant for this node's zone.
    SameZone,
}

impl Topology {
    pub(super) fn admits(self, node: &NodeInfo, hints: Option<&Hints>) -> bool {
        match self {
            Topology::Everywhere => true,
            Topology::SameNode => hints.is_some_and(|hints| is_for_node(node, hints)),
            Topology::SameZone => hints.is_some_and(|hints| is_for_zone(node, hints)),
        }
    }
}

/// Hints count only if every ready endpoint has one and at least one is for us; those for nodes come first.
pub(super) fn choose<'a>(node: &NodeInfo, ready: impl Iterator<Item = Option<&'a Hints>>) -> Topology {
    let (mut all_nodes, mut all_zones, mut our_node, mut our_zone) = (true, true, false, false);
    for hints in ready {
        let Some(hints) = hints else { return Topology::Everywhere };
        all_nodes &= !hints.nodes.is_empty();
        all_zones &= !hints.zones.is_empty();
        our_node |= is_for_node(node, hints);
        our_zone |= is_for_zone(node, hints);
    }
    if all_nodes && our_node {
        Topology::SameNode
    } else if all_zones && our_zone {
        Topology::SameZone
    } else {
        Topology::Everywhere
    }
}

fn is_for_node(node: &NodeInfo, hints: &Hints) -> bool {
    holds(&hints.nodes, node.name())
}

fn is_for_zone(node: &NodeInfo, hints: &Hints) -> bool {
    node.zone().is_some_and(|zone| holds(&hints.zones, zone))
}

fn holds(names: &[Arc<str>], wanted: &str) -> bool {
    names.iter().any(|name| **name == *wanted)
}
