//! A cluster in front of a datapath, as a router has it, but with nothing that waits or coalesces.

use std::{
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use kubenet_core::{
    cluster::{Change, Cluster},
    datapath::{ApplyReport, Close, Datapath},
    model::{NodeInfo, Protocol},
    route::{Frontend, Route, RouteTable},
};

use crate::{Failure, frontend};

/// A cluster and the datapath that keeps the kernel equal to it.
#[derive(Debug)]
pub struct Driver {
    cluster: Cluster,
    datapath: Arc<dyn Datapath>,
}

impl Driver {
    /// An empty cluster.
    pub fn new(node: NodeInfo, datapath: Arc<dyn Datapath>) -> Self {
        Self { cluster: Cluster::new(node), datapath }
    }

    /// The datapath.
    pub fn datapath(&self) -> &Arc<dyn Datapath> {
        &self.datapath
    }

    /// All routes.
    pub fn table(&self) -> &RouteTable {
        self.cluster.table()
    }

    /// The route of Service number `i`.
    pub fn route(&self, i: u32) -> Option<Arc<Route>> {
        let at = frontend(i);
        let port = NonZeroU16::new(at.port())?;
        self.cluster.table().get(&Frontend::ip(at.ip(), port, Protocol::Tcp)).cloned()
    }

    /// Declares and resolves, and tells the datapath nothing.
    pub fn declare(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.cluster.change(change));
        self.cluster.take_delta();
    }

    /// Programs everything that is declared. The time is the datapath's; resolving is done.
    ///
    /// # Errors
    /// The datapath's, or a route that it could not serve.
    pub fn program(&mut self) -> Result<Duration, Failure> {
        let begin = Instant::now();
        let report = block_on(self.datapath.replace(Arc::clone(self.cluster.table())))?;
        let took = begin.elapsed();
        check(&report)?;
        Ok(took)
    }

    /// From the change of objects to the kernel that has it, resolving included.
    ///
    /// # Errors
    /// The datapath's, a route that it could not serve, or changes that change nothing.
    pub fn update(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<Duration, Failure> {
        let changes: Vec<_> = changes.into_iter().collect();
        let begin = Instant::now();
        changes.into_iter().for_each(|change| self.cluster.change(change));
        let delta = self.cluster.take_delta().ok_or("the change changes no route")?;
        let report = block_on(self.datapath.apply(Arc::new(delta)))?;
        let took = begin.elapsed();
        check(&report)?;
        Ok(took)
    }

    /// Removes everything from the kernel.
    ///
    /// # Errors
    /// The datapath's.
    pub fn close(self) -> Result<(), Failure> {
        Ok(block_on(self.datapath.close(Close::Remove))?)
    }
}

fn check(report: &ApplyReport) -> Result<(), Failure> {
    match report.failed.first() {
        None => Ok(()),
        Some(first) => {
            let count = report.failed.len();
            Err(format!("{count} routes could not be served, the first for: {}", first.error).into())
        }
    }
}
