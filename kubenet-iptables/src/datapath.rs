use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Close, Counters, Datapath, DatapathError, DatapathEvent, DrainStatus,
        ErrorKind, EventHub,
    },
    route::{RouteDelta, RouteTable},
    worker::Worker,
};

use crate::{
    builder::{IptablesBuilder, Probe},
    engine::Engine,
};

/// Routes Services with rules of iptables, legacy or nf_tables.
///
/// Each update is one `iptables-restore --noflush` per address family, which the kernel takes whole. The last
/// plan is kept in memory, so an update costs what it changes. When one family fails, the other is put back;
/// an error says so where even that failed, and the next call looks at what the kernel holds and sets it
/// right.
///
/// Only one datapath of a process may program a set of chains (network namespace, variant and prefix) at a
/// time: [`replace`](Datapath::replace) of a second one is a [`Conflict`](ErrorKind::Conflict) until the first
/// was drained or closed. Closing one leaves the chains alone while another serves, and while another still drains:
/// the last of them removes them. Dropping one leaves its rules, as [`Close::Keep`] does. [`Close::Remove`] also
/// removes what an earlier run left under the same prefix.
#[derive(Debug)]
pub struct IptablesDatapath {
    pub(crate) name: &'static str,
    pub(crate) capabilities: Capabilities,
    pub(crate) worker: Worker<Engine>,
    pub(crate) events: EventHub,
}

impl IptablesDatapath {
    /// Begins a configuration.
    pub fn builder() -> IptablesBuilder {
        IptablesBuilder::default()
    }

    /// Finds out what this machine offers, with the default configuration. See [`IptablesBuilder::probe`].
    ///
    /// # Errors
    /// Those of [`IptablesBuilder::probe`].
    pub fn probe() -> Result<Probe, DatapathError> {
        Self::builder().probe()
    }

    async fn run<R: Send + 'static>(
        &self,
        operation: &'static str,
        job: impl FnOnce(&mut Engine) -> Result<R, DatapathError> + Send + 'static,
    ) -> Result<R, DatapathError> {
        self.worker.run(job).await.unwrap_or_else(|gone| {
            let message = "a mistake in this library ended the worker thread; build a new datapath";
            Err(DatapathError::with_source(self.name, operation, ErrorKind::Internal, message, gone))
        })
    }
}

#[async_trait]
impl Datapath for IptablesDatapath {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn replace(&self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        self.run("replace", move |engine| engine.replace(table)).await
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        self.run("apply", move |engine| engine.apply(delta)).await
    }

    /// A look at one empty chain. After a `false`, the next [`apply`](Datapath::apply) or
    /// [`replace`](Datapath::replace) puts everything back.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] before the first [`replace`](Datapath::replace), [`ErrorKind::Unsupported`] where
    /// the kernel has no table `mangle`, [`ErrorKind::Unavailable`] where the chain could not be made so far.
    async fn is_intact(&self) -> Result<bool, DatapathError> {
        self.run("is_intact", Engine::intact).await
    }

    /// A route of ours counts when its rules are exactly as planned, and comes back as it was given. What a
    /// kube-proxy left in the chains of the prefix is read, too, until [`replace`](Datapath::replace) takes it over,
    /// with frontends, endpoints, affinity, source ranges and masquerading as its rules have them. What its rules do
    /// not say is filled in:
    ///
    /// - The Service port's name is that of the comment where the chain's name is the hash of it, and otherwise the
    ///   hash. A frontend without endpoints has no such chain, and is called what the comment says.
    /// - An endpoint is local where a chain of local endpoints (`KUBE-SVL-…`) of some Service has it, and not local
    ///   otherwise. It is ready, and weighs what the others weigh.
    /// - An address without endpoints that is no cluster IP is an external IP: only comments of rules that lead to
    ///   endpoints tell a load balancer's.
    /// - A frontend without endpoints masquerades nobody. A set without endpoints, and without a rule in filter
    ///   that answers, drops.
    /// - Where nothing tells pods from others, pods are led where the node is.
    /// - The revision is 0. Of the node, the way to tell pods is known, and the addresses that node ports answer on
    ///   where there is a rule for each.
    ///
    /// While rules of both are there, as when a take-over was interrupted, what ours serve counts, also where its
    /// endpoints are still picked by chains of the kube-proxy. Of other frontends those are read whose rules are
    /// certainly a kube-proxy's, by their comments and the names of their chains.
    async fn read(&self) -> Result<RouteTable, DatapathError> {
        self.run("read", |engine| engine.read()).await
    }

    async fn counters(&self) -> Result<Counters, DatapathError> {
        let message = "this datapath counts nothing; see Capabilities::counters";
        Err(DatapathError::new(self.name, "counters", ErrorKind::Unsupported, message))
    }

    async fn drain(&self) -> Result<DrainStatus, DatapathError> {
        self.run("drain", Engine::drain).await
    }

    async fn close(&self, how: Close) -> Result<(), DatapathError> {
        self.run("close", move |engine| engine.close(how)).await
    }

    fn events(&self) -> BoxStream<'static, DatapathEvent> {
        self.events.subscribe()
    }
}
