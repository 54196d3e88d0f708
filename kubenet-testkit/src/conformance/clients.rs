//! The clients of a world, as far as the datapath says that it serves them.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use kubenet_core::{model::Protocol, route::Origin};

use super::{
    fixture::HERE,
    world::{Between, Got, Live, World},
};
use crate::place::Place;

/// What a client is to the node under test.
pub(super) fn origin(place: &Place) -> Origin {
    match place {
        Place::Pod(_) => Origin::Pod,
        Place::Node(node) if *node == HERE => Origin::Node,
        Place::Node(_) | Place::Outside => Origin::Outside,
    }
}

/// Notes who asked that is not served: a case with such a client says nothing of the datapath.
pub(super) struct Clients<'w> {
    world: &'w dyn World,
    served: BTreeSet<Origin>,
    others_asked: AtomicBool,
}

impl<'w> Clients<'w> {
    pub(super) fn new(world: &'w dyn World, served: BTreeSet<Origin>) -> Self {
        Self { world, served, others_asked: AtomicBool::new(false) }
    }

    /// Whether somebody asked, since the last time, who is not served.
    pub(super) fn others_asked(&self) -> bool {
        self.others_asked.swap(false, Ordering::Relaxed)
    }

    fn serves(&self, from: &Place) -> bool {
        let serves = self.served.contains(&origin(from));
        if !serves {
            self.others_asked.store(true, Ordering::Relaxed);
        }
        serves
    }
}

impl Between for Clients<'_> {
    fn world(&self) -> &dyn World {
        self.world
    }

    fn ask(&self, from: &Place, to: SocketAddr, protocol: Protocol, timeout: Duration) -> Got {
        if self.serves(from) { self.world.ask(from, to, protocol, timeout) } else { Got::Silence }
    }

    fn open(
        &self,
        from: (&Place, u16),
        to: SocketAddr,
        protocol: Protocol,
        timeout: Duration,
    ) -> Result<Box<dyn Live>, Got> {
        if self.serves(from.0) { self.world.open(from, to, protocol, timeout) } else { Err(Got::Silence) }
    }
}
