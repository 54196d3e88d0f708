//! What the datapath's thread does: plans, transactions, and what to do when one fails.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Close, DatapathError, DatapathEvent, DrainStatus, ErrorKind, EventHub,
        FailedRoute,
    },
    model::IpFamily,
    route::{NodeRouting, Route, RouteDelta, RouteTable},
};

use crate::{
    conntrack::{self, Cut},
    exec::{ExecError, Tools},
    names::Names,
    plan::{Context, Planner},
    probe, read, refusal,
    registry::Claim,
    rule::Chains,
    save::Saved,
    work::Work,
};

mod canary;
mod execute;
mod localnet;

/// The state of a datapath. Lives on its worker thread, which is in the right network namespace.
#[derive(Debug)]
pub(crate) struct Engine {
    name: &'static str,
    context: Arc<Context>,
    tools: Vec<Tools>,
    /// The programs of the other variant.
    other: Vec<Tools>,
    /// Whether flows can be cut.
    conntrack: bool,
    capabilities: Capabilities,
    claim: Claim,
    events: EventHub,
    /// The plan that the kernel holds, while this datapath serves.
    planner: Option<Planner>,
    /// Families of which the kernel may hold something else: look before the next update.
    unsure: BTreeSet<IpFamily>,
    /// Families whose canary was set.
    canaries: BTreeSet<IpFamily>,
    /// Families that cannot have one.
    no_canary: BTreeSet<IpFamily>,
    closed: bool,
    /// Whether somebody else had set `route_localnet`: then it stays. Later runs know it by a chain.
    localnet_is_foreign: Cell<bool>,
}

impl Engine {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        name: &'static str,
        context: Arc<Context>,
        tools: Vec<Tools>,
        other: Vec<Tools>,
        conntrack: bool,
        capabilities: Capabilities,
        claim: Claim,
        events: EventHub,
    ) -> Self {
        Self {
            name,
            context,
            tools,
            other,
            conntrack,
            capabilities,
            claim,
            events,
            planner: None,
            unsure: BTreeSet::new(),
            canaries: BTreeSet::new(),
            no_canary: BTreeSet::new(),
            closed: false,
            localnet_is_foreign: Cell::new(false),
        }
    }

    fn error(&self, operation: &'static str, kind: ErrorKind, message: impl Into<String>) -> DatapathError {
        DatapathError::new(self.name, operation, kind, message)
    }

    fn check_open(&self, operation: &'static str) -> Result<(), DatapathError> {
        if self.closed {
            let message = "the datapath is closed; build a new one";
            return Err(self.error(operation, ErrorKind::Unavailable, message));
        }
        Ok(())
    }

    fn check_node(&self, operation: &'static str, node: &NodeRouting) -> Result<(), DatapathError> {
        self.capabilities.check_node(node).map_err(|why| self.error(operation, ErrorKind::Unsupported, why))
    }

    fn exec_error(&self, operation: &'static str, family: IpFamily, error: ExecError) -> DatapathError {
        let message = format!("{family}: {}", error.message);
        match error.source {
            Some(source) => DatapathError::with_source(self.name, operation, error.kind, message, source),
            None => self.error(operation, error.kind, message),
        }
    }

    pub(crate) fn replace(&mut self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        let begun = Instant::now();
        self.check_open("replace")?;
        self.check_node("replace", table.node())?;
        if !self.claim.take() {
            let message = "another datapath of this process programs the same chains (network namespace, variant and \
                           prefix): drain or close it first, or choose another prefix with \
                           IptablesDatapath::builder().chain_prefix(..)";
            return Err(self.error("replace", ErrorKind::Conflict, message));
        }
        let result = self.replace_owned(&table, begun);
        if result.is_err() && self.planner.is_none() {
            self.claim.give_back();
        }
        result
    }

    fn replace_owned(
        &mut self,
        table: &Arc<RouteTable>,
        begun: Instant,
    ) -> Result<ApplyReport, DatapathError> {
        let mut report = ApplyReport::new(table.revision());
        let (served, failed) = refusal::divide(self.name, &self.capabilities, table);
        report.failed = failed;
        let planner = Planner::new(Arc::clone(&self.context), served);
        if tracing::enabled!(tracing::Level::DEBUG) {
            tracing::debug!(rules = planner.longest_walk(), "longest walk of a first packet in one table");
        }
        let saved = self.save_all("replace")?;
        let node = Arc::clone(table.node());
        let jumps = self.context.jumps(&node);
        self.prepare_localnet("replace", &node)?;
        let none = Chains::new();
        let works = saved.iter().map(|(family, saved)| {
            Work::towards(*family, saved, planner.chains(*family).unwrap_or(&none), &jumps)
        });
        let works = works.collect();
        let unsure = self
            .execute("replace", works, &|family| planner.chains(family).cloned(), &jumps)
            .inspect_err(|_| self.restore_localnet())?;

        let old = match self.planner.take() {
            Some(old) => old.table().clone(),
            // From an earlier run, or another process.
            None => read::table(&self.context, &saved),
        };
        let new = planner.table();
        report.upserted = new.len();
        report.removed = old.routes().filter(|r| new.get(&r.frontend).is_none()).count();
        let mut cut = Cut::default();
        for route in old.routes().chain(new.routes()) {
            cut.add(&route.frontend, Some(&old), new);
        }
        self.cut(&cut);
        self.unsure = unsure;
        // Everything was written: whoever flushed the tables before took it, too.
        self.canaries.clear();
        self.no_canary.clear();
        self.set_canaries();
        self.planner = Some(planner);
        self.open_localnet("replace", &node)?;
        Ok(self.done(report, begun))
    }

    pub(crate) fn apply(&mut self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        let begun = Instant::now();
        self.check_open("apply")?;
        let Some(planner) = &self.planner else {
            let message = "no table is programmed; call replace first";
            return Err(self.error("apply", ErrorKind::Conflict, message));
        };
        let at = planner.table().revision();
        if delta.base != at {
            let message =
                format!("the delta starts from {}, the datapath is at {at}; call replace", delta.base);
            return Err(self.error("apply", ErrorKind::Conflict, message));
        }
        if let Some(node) = &delta.node {
            self.check_node("apply", node)?;
        }
        let mut report = ApplyReport::new(delta.revision);
        let delta = self.servable(delta, &mut report);
        let step = planner.step(Arc::clone(&delta));

        let node = Arc::clone(delta.node.as_ref().unwrap_or(planner.table().node()));
        let jumps = self.context.jumps(&node);
        let moved = jumps != self.context.jumps(planner.table().node());
        if delta.node.is_some() {
            self.prepare_localnet("apply", &node)?;
        }
        let wanted = |family| {
            let mut chains = planner.chains(family)?.clone();
            for (key, rules) in step.changes.get(&family).into_iter().flatten() {
                match rules {
                    Some(rules) => chains.insert(key.clone(), Arc::clone(rules)),
                    None => chains.remove(key),
                };
            }
            Some(chains)
        };
        let mut works = Vec::new();
        for tools in &self.tools {
            let family = tools.family;
            if moved || self.unsure.contains(&family) {
                let saved = self.save("apply", tools)?;
                works.push(Work::towards(family, &saved, &wanted(family).unwrap_or_default(), &jumps));
            } else if let (Some(changes), Some(chains)) = (step.changes.get(&family), planner.chains(family))
            {
                works.push(Work::step(family, chains, changes));
            }
        }
        self.unsure = match self.execute_all("apply", works, &wanted, &jumps) {
            Ok(unsure) => unsure,
            Err(failure) => {
                self.unsure.extend(failure.unsure);
                self.restore_localnet();
                return Err(failure.error);
            }
        };

        report.upserted = delta.upserts.len();
        report.removed = delta.removals.len();
        let old_node = delta.node.is_some().then(|| planner.table().clone());
        let changed: Vec<_> =
            delta.upserts.iter().map(|r| r.frontend).chain(delta.removals.iter().copied()).collect();
        // What the changed frontends had, without copying the whole table.
        let had = RouteTable::new(
            at,
            Arc::clone(planner.table().node()),
            changed.iter().filter_map(|f| planner.table().get(f)).cloned(),
        );
        if let Some(planner) = &mut self.planner {
            planner.commit(step);
            let mut cut = Cut::default();
            for frontend in &changed {
                cut.add(frontend, Some(&had), planner.table());
            }
            if let Some(old) = &old_node {
                for route in planner.table().routes() {
                    cut.add(&route.frontend, Some(old), planner.table());
                }
            }
            self.cut(&cut);
        }
        self.set_canaries();
        self.open_localnet("apply", &node)?;
        Ok(self.done(report, begun))
    }

    pub(crate) fn read(&mut self) -> Result<RouteTable, DatapathError> {
        self.check_open("read")?;
        let table = read::table(&self.context, &self.save_all("read")?);
        if self.has_localnet(table.node()) {
            return Ok(table);
        }
        let mut node = NodeRouting::clone(table.node());
        node.loopback_node_ports.clear();
        Ok(RouteTable::new(table.revision(), Arc::new(node), table.routes().cloned()))
    }

    pub(crate) fn drain(&mut self) -> Result<DrainStatus, DatapathError> {
        self.check_open("drain")?;
        if self.claim.is_owner() {
            let node = self.planner.as_ref().map(|planner| Arc::clone(planner.table().node()));
            let node = node.unwrap_or_default();
            let chains =
                |family| -> Chains { self.context.draining_chains(&node, family).into_iter().collect() };
            let of_family: BTreeMap<IpFamily, Chains> =
                self.tools.iter().map(|tools| (tools.family, chains(tools.family))).collect();
            let none = Chains::new();
            let wanted = |family| of_family.get(&family).unwrap_or(&none);
            let jumps = self.context.draining_jumps(&node);
            let saved = self.save_all("drain")?;
            let works = saved
                .iter()
                .map(|(family, saved)| Work::towards(*family, saved, wanted(*family), &jumps))
                .collect();
            self.execute("drain", works, &|family| Some(wanted(family).clone()), &jumps)?;
            self.planner = None;
            self.claim.drain();
            self.events.emit(&DatapathEvent::Draining);
        }
        let mut flows = 0;
        for tools in &self.tools {
            flows += self.flows(tools)?;
        }
        Ok(DrainStatus { flows })
    }

    /// The translated flows of a family that would end with our last rule. The kernel's connection tracking
    /// knows how to translate a flow until the flow ends; but its hooks are there only while some rule in
    /// the network namespace uses them.
    fn flows(&self, tools: &Tools) -> Result<u64, DatapathError> {
        let saved = self.save("drain", tools)?;
        let succeeded = saved.chains.keys().any(|(_, name)| *name == self.context.names.services);
        if saved.others_track || succeeded || self.other_variant_tracks(tools.family) {
            return Ok(0);
        }
        if !self.conntrack {
            let message = "draining, but the flows cannot be counted: that needs the kernel's nf_conntrack_netlink; \
                           close it when you no longer want to wait for them";
            return Err(self.error("drain", ErrorKind::Unsupported, message));
        }
        conntrack::translated_flows(tools.family).map_err(|source| {
            let message = "the flows could not be listed";
            DatapathError::with_source(self.name, "drain", ErrorKind::Unavailable, message, source)
        })
    }

    fn other_variant_tracks(&self, family: IpFamily) -> bool {
        // Chains of no prefix are ours here: all count as somebody else's.
        let nobody = Names::new("");
        let is_legacy = self.name == "iptables-nft";
        self.other.iter().filter(|tools| tools.family == family).any(|tools| {
            if is_legacy && !["filter", "nat"].iter().all(|table| probe::legacy_table_exists(family, table)) {
                return false;
            }
            tools.save().is_ok_and(|text| Saved::parse(&text, &nobody).others_track)
        })
    }

    pub(crate) fn close(&mut self, how: Close) -> Result<(), DatapathError> {
        self.check_open("close")?;
        if how == Close::Remove && self.claim.may_remove() {
            self.remove()?;
        }
        self.closed = true;
        self.planner = None;
        self.claim.release();
        self.events.emit(&DatapathEvent::Closed);
        self.events.end();
        Ok(())
    }

    /// Removes all our chains from all families, carrying on after failures.
    fn remove(&mut self) -> Result<(), DatapathError> {
        let mut failures: Vec<(ErrorKind, String)> = Vec::new();
        if let Err(error) = self.close_localnet() {
            failures.push((error.kind, error.message));
        }
        for tools in &self.tools {
            let family = tools.family;
            let removed = tools.save().and_then(|text| {
                let saved = Saved::parse(&text, &self.context.names);
                if let Some(left) =
                    Work::towards(family, &saved, &Chains::new(), &[]).run(tools, &self.context.names)?
                {
                    return Err(left);
                }
                canary::take_away(tools, &self.context.names.canary)?;
                canary::take_away(tools, &self.context.names.localnet_stays)?;
                Ok(saved.referenced_by_others())
            });
            match removed {
                Ok(left) => failures.extend(left.into_iter().map(|(table, chain)| {
                    let table = table.as_str();
                    let message = format!(
                        "{family}: chain {chain} of table {table} is empty but could not be removed: a rule that is \
                         not ours leads to it"
                    );
                    (ErrorKind::Conflict, message)
                })),
                Err(error) => failures.push((error.kind, format!("{family}: {}", error.message))),
            }
        }
        // Whatever happened: the plan in memory no longer holds.
        self.planner = None;
        match failures.first() {
            None => Ok(()),
            Some((kind, _)) => {
                let messages: Vec<_> = failures.iter().map(|(_, message)| message.as_str()).collect();
                Err(self.error("close", *kind, messages.join("; ")))
            }
        }
    }

    fn save(&self, operation: &'static str, tools: &Tools) -> Result<Saved, DatapathError> {
        let text = tools.save().map_err(|error| self.exec_error(operation, tools.family, error))?;
        Ok(Saved::parse(&text, &self.context.names))
    }

    fn save_all(&self, operation: &'static str) -> Result<BTreeMap<IpFamily, Saved>, DatapathError> {
        self.tools.iter().map(|tools| Ok((tools.family, self.save(operation, tools)?))).collect()
    }

    /// A delta without the routes that cannot be served, which go into the report. Their frontends are removed.
    fn servable(&self, delta: Arc<RouteDelta>, report: &mut ApplyReport) -> Arc<RouteDelta> {
        report.failed = delta.upserts.iter().filter_map(|route| self.refuse(route)).collect();
        if report.failed.is_empty() {
            return delta;
        }
        let mut delta = Arc::unwrap_or_clone(delta);
        let failed: BTreeSet<_> = report.failed.iter().map(|failed| failed.frontend).collect();
        delta.upserts.retain(|route| !failed.contains(&route.frontend));
        delta.removals.extend(failed);
        Arc::new(delta)
    }

    fn refuse(&self, route: &Route) -> Option<FailedRoute> {
        refusal::refuse(self.name, &self.capabilities, route)
    }

    fn done(&self, mut report: ApplyReport, begun: Instant) -> ApplyReport {
        for failed in &report.failed {
            self.events.emit(&DatapathEvent::RouteFailed {
                frontend: failed.frontend,
                service_port: failed.service_port.clone(),
                error: failed.error.clone(),
            });
        }
        self.events.emit(&DatapathEvent::Applied { revision: report.revision });
        report.took = begun.elapsed();
        report
    }

    fn cut(&self, cut: &Cut) {
        if cut.is_empty() || !self.conntrack {
            return;
        }
        // The rules are right already: a failure here must not undo them.
        match cut.run() {
            Ok(flows) => tracing::debug!(flows, "cut stale UDP flows"),
            Err(error) => {
                tracing::warn!(%error, "stale UDP flows could not be cut; they end by their timeout")
            }
        }
    }
}

#[cfg(test)]
mod tests;
