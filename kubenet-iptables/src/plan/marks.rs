//! Who is masqueraded: the bit of the packet mark that `KUBE-POSTROUTING` looks for.
//!
//! Nearly all routes masquerade the same origins: what is not from a pod. A rule for each of them would double
//! the rules of `nat`. So `KUBE-SERVICES` marks these flows before it looks for their frontend, and takes the
//! mark away from what has found none. Only routes that masquerade others have rules of their own.

use kubenet_core::{
    model::LocalDetector,
    route::{Frontend, FrontendAddress, Masquerade, NodeRouting, Origin},
};

use super::{Context, group::Group};
use crate::rule::{Rule, Target};

const ORIGINS: [Origin; 3] = [Origin::Pod, Origin::Node, Origin::Outside];

impl Context {
    /// Whose flows have the mark when they come to the rules of a frontend.
    pub(super) fn marked_before(&self, node: &NodeRouting, frontend: &Frontend) -> Masquerade {
        match frontend.address {
            FrontendAddress::Ip(_) => usual(node),
            FrontendAddress::NodePort(_) => Masquerade::NEVER,
        }
    }

    /// Puts the marking and its taking back around the rules that look for an address in nat.
    pub(super) fn between_marks(&self, node: &NodeRouting, rules: Vec<Rule>) -> Vec<Rule> {
        let usual = usual(node);
        if usual == Masquerade::NEVER || rules.is_empty() {
            return rules;
        }
        let mark =
            Rule::jump(&self.names.masquerade(usual)).comment("kubernetes masquerade unless from a pod");
        let unmark = Rule::to(Target::Unmark).comment("kubernetes no service portal");
        [mark].into_iter().chain(rules).chain([unmark]).collect()
    }

    /// The chain that `KUBE-SERVICES` marks with, if any.
    pub(super) fn usual_masquerade(&self, node: &NodeRouting) -> Option<Masquerade> {
        Some(usual(node)).filter(|masquerade| *masquerade != Masquerade::NEVER)
    }
}

/// Whom most routes masquerade. With no way to tell pods they masquerade nobody.
fn usual(node: &NodeRouting) -> Masquerade {
    match node.local_detector {
        LocalDetector::None => Masquerade::NEVER,
        _ => Masquerade { pods: false, node: true, outside: true },
    }
}

impl Group<'_> {
    /// Targets that make the mark right for a route, where flows of `before` have it.
    pub(super) fn remark(&mut self, before: Masquerade, masquerade: Masquerade) -> Vec<Target> {
        if before == masquerade {
            return Vec::new();
        }
        let names = &self.context.names;
        let too_many = ORIGINS.iter().any(|o| before.applies_to(*o) && !masquerade.applies_to(*o));
        let unmark = too_many.then_some(Target::Unmark);
        let mark = match masquerade {
            Masquerade::NEVER => None,
            Masquerade::ALWAYS => Some(Target::Jump(names.mark_masq.clone())),
            some => {
                self.plan.masquerades.insert(some);
                Some(Target::Jump(names.masquerade(some)))
            }
        };
        unmark.into_iter().chain(mark).collect()
    }
}
