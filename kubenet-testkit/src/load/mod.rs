//! Clusters of as many Services as you like, with endless plausible churn, from a seed.
//!
//! A mixture of what clusters hold: all types, both families and both at once, TCP, UDP and SCTP, policies,
//! affinity, topology hints, several slices, external IPs, load balancers with and without source ranges. No
//! two Services ever claim one frontend. The same options give the same objects and the same churn.
//!
//! ```
//! use kubenet_core::cluster::Cluster;
//! use kubenet_testkit::load::{Load, LoadOptions};
//!
//! let mut load = Load::new(LoadOptions { services: 20, endpoints: 5, ..LoadOptions::default() })?;
//! let mut cluster = Cluster::new(load.node().clone());
//! load.objects().for_each(|change| cluster.change(change));
//! assert!(cluster.take_delta().is_some());
//! for change in load.churn().take(100) {
//!     cluster.change(change);
//! }
//! assert!(cluster.take_delta().is_some());
//! # Ok::<_, kubenet_testkit::load::InvalidLoad>(())
//! ```

mod churn;
mod names;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use kubenet_core::{
    cluster::Change,
    model::{InvalidObject, IpFamily, NodeInfo},
};

use self::{
    churn::Todo,
    names::{Nodes, Numbers},
    plan::Plan,
};

/// How large a [`Load`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Number of Services. Churn deletes and re-creates some. Default 100.
    pub services: u32,
    /// Endpoints of each Service at the beginning. Churn scales some, up to twice as many. Default 10.
    pub endpoints: u32,
    /// Nodes that the endpoints run on, in three zones; the first of them is ours. Default 10.
    pub nodes: u32,
    /// Another seed gives other choices. Default 1.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { services: 100, endpoints: 10, nodes: 10, seed: 1 }
    }
}

/// Options that no cluster can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} must be {rule}")]
#[non_exhaustive]
pub struct InvalidLoad {
    /// The option.
    pub option: &'static str,
    /// The rule that it breaks, in words.
    pub rule: String,
}

/// A cluster as it is now. See the [module](self).
#[derive(Clone, Debug)]
pub struct Load {
    endpoints: u32,
    node: NodeInfo,
    nodes: Nodes,
    plans: Vec<Plan>,
    /// Addresses of Services.
    addresses: Numbers,
    node_ports: Numbers,
    pods: Numbers,
    /// What has begun and is to go on.
    todo: VecDeque<Todo>,
    /// Seconds since the Unix epoch.
    now: i64,
    random: fastrand::Rng,
}

impl Load {
    /// Declares the cluster.
    ///
    /// # Errors
    /// No nodes, or more Services or endpoints than there are addresses for.
    pub fn new(options: LoadOptions) -> Result<Self, InvalidLoad> {
        let LoadOptions { services, endpoints, nodes, seed } = options;
        let invalid = |option, rule| InvalidLoad { option, rule };
        if !(1..=names::MAX_NODES).contains(&nodes) {
            return Err(invalid("nodes", format!("1 to {}", names::MAX_NODES)));
        }
        if services > names::MAX_SERVICES {
            return Err(invalid("services", format!("at most {}", names::MAX_SERVICES)));
        }
        let most = u64::from(services) * (u64::from(plan::most_pods(endpoints)) + 1);
        if most > u64::from(names::MAX_PODS) {
            let rule = format!("fewer: churn may need {most} pods, of {}", names::MAX_PODS);
            return Err(invalid("services and endpoints", rule));
        }
        let nodes = Nodes::new(nodes);
        let node = nodes.ours().map_err(|error| invalid("nodes", error.to_string()))?;
        let mut load = Self {
            endpoints,
            node,
            nodes,
            plans: Vec::with_capacity(services as usize),
            addresses: Numbers::new(1..names::MAX_SERVICES * 2),
            node_ports: Numbers::new(30_000..32_768),
            pods: Numbers::new(1..names::MAX_PODS * 2),
            todo: VecDeque::new(),
            now: 1_767_225_600,
            random: fastrand::Rng::with_seed(seed),
        };
        for number in 0..services {
            let mut plan = Plan::absent(number);
            load.declare(&mut plan);
            load.plans.push(plan);
        }
        Ok(load)
    }

    /// The node that routes are resolved for.
    pub fn node(&self) -> &NodeInfo {
        &self.node
    }

    /// All that exists now, made as it is asked for: each Service, then its slices.
    pub fn objects(&self) -> impl Iterator<Item = Change> + '_ {
        self.plans.iter().filter(|plan| plan.exists).flat_map(|plan| {
            let slices = plan.slices().flat_map(|slice| self.slice(plan, slice));
            plan.service().and_then(valid).into_iter().chain(slices)
        })
    }

    /// The next thing that happens in the cluster, as the changes that an API server would tell. Never empty,
    /// unless there are no Services. Afterwards [`Load::objects`] are those that the changes lead to.
    pub fn step(&mut self) -> Vec<Change> {
        churn::step(self)
    }

    /// What happens in the cluster from now on: [`Load::step`] after step, without end unless there are no
    /// Services.
    pub fn churn(&mut self) -> impl Iterator<Item = Change> + '_ {
        std::iter::from_fn(|| Some(self.step()).filter(|step| !step.is_empty())).flatten()
    }

    /// The objects of one slice of a Service, one for each family.
    fn slice<'a>(&'a self, plan: &'a Plan, index: usize) -> impl Iterator<Item = Change> + 'a {
        plan.families.iter().filter_map(move |family| plan.slice(&self.nodes, index, *family).and_then(valid))
    }
}

/// A built object as a change. What this module writes is valid; what would not be is left out.
fn valid(object: Result<impl Into<Change>, InvalidObject>) -> Option<Change> {
    debug_assert!(object.is_ok(), "{:?}", object.err());
    object.ok().map(Into::into)
}

const BOTH: &[IpFamily] = &[IpFamily::V4, IpFamily::V6];
