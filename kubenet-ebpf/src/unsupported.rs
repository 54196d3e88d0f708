//! In place of `kernel` where there is no Linux: says so.

use std::{path::Path, time::Duration};

use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Counters, DatapathError, DatapathEvent, DrainStatus, ErrorKind, EventHub,
    },
    route::{RouteDelta, RouteTable},
};

use crate::{BackendEntry, Connection, EbpfBuilder, Metrics, Probe, StickyClient, error::error};

pub(crate) enum Engine {}

fn unsupported<T>(operation: &'static str) -> Result<T, DatapathError> {
    Err(error(operation, ErrorKind::Unsupported, "eBPF needs Linux: choose another datapath on this system"))
}

/// There is nothing to look into.
#[derive(Debug)]
pub(crate) enum Inspection {}

impl Inspection {
    pub(crate) fn open(_: &Path) -> Result<Self, DatapathError> {
        unsupported("inspect")
    }

    pub(crate) fn table(&self) -> Result<RouteTable, DatapathError> {
        match *self {}
    }

    pub(crate) fn backends(&self) -> Vec<BackendEntry> {
        match *self {}
    }

    pub(crate) fn connections(&self) -> Result<Vec<Connection>, DatapathError> {
        match *self {}
    }

    pub(crate) fn clients(&self) -> Result<Vec<StickyClient>, DatapathError> {
        match *self {}
    }

    pub(crate) fn metrics(&self) -> Result<Metrics, DatapathError> {
        match *self {}
    }

    pub(crate) fn counters(&self) -> Result<Counters, DatapathError> {
        match *self {}
    }

    pub(crate) fn follow(&self) -> Result<Follower, DatapathError> {
        match *self {}
    }

    pub(crate) fn is_draining(&self) -> bool {
        match *self {}
    }
}

/// There is nobody to follow.
#[derive(Debug)]
pub(crate) enum Follower {}

impl Follower {
    pub(crate) fn next(&mut self, _: Duration) -> Result<Option<DatapathEvent>, DatapathError> {
        match *self {}
    }
}

/// There is nothing to pin.
pub(crate) enum Pins {}

pub(crate) fn open_pins(_: &EbpfBuilder) -> Result<Option<Pins>, DatapathError> {
    Ok(None)
}

pub(crate) fn remove_pins(_: &Path) -> Result<(), DatapathError> {
    unsupported("remove_pins")
}

pub(crate) fn probe() -> Result<Probe, DatapathError> {
    unsupported("probe")
}

pub(crate) fn cuts_udp_sockets(_: Option<&Path>) -> bool {
    false
}

impl Engine {
    pub(crate) fn start(
        _: EbpfBuilder,
        _: Option<Pins>,
        _: Capabilities,
        _: EventHub,
    ) -> Result<Self, DatapathError> {
        unsupported("build")
    }

    pub(crate) fn replace(&mut self, _: &RouteTable) -> Result<ApplyReport, DatapathError> {
        match *self {}
    }

    pub(crate) fn apply(&mut self, _: &RouteDelta) -> Result<ApplyReport, DatapathError> {
        match *self {}
    }

    pub(crate) fn read(&mut self) -> Result<RouteTable, DatapathError> {
        match *self {}
    }

    pub(crate) fn cut_late(&mut self) {
        match *self {}
    }

    pub(crate) fn is_intact(&mut self) -> bool {
        match *self {}
    }

    pub(crate) fn drain(&mut self) -> Result<DrainStatus, DatapathError> {
        match *self {}
    }

    pub(crate) fn listen(&mut self) {
        match *self {}
    }

    pub(crate) fn counters(&self) -> Counters {
        match *self {}
    }

    pub(crate) fn metrics(&mut self) -> Result<Metrics, DatapathError> {
        match *self {}
    }

    pub(crate) fn attach_pod(&mut self, _: &str) -> Result<(), DatapathError> {
        match *self {}
    }

    pub(crate) fn detach_pod(&mut self, _: &str) -> Result<(), DatapathError> {
        match *self {}
    }

    pub(crate) fn is_pinned(&self) -> bool {
        match *self {}
    }

    pub(crate) fn remove(self) -> Vec<String> {
        match self {}
    }
}
