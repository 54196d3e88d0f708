//! From our chains in the kernel back to routes. Pure.
//!
//! The comments say what the routes are; then the plan of these routes is compared with the chains that were
//! found. A route whose rules are not exactly what it needs is not served, and is left out.
//!
//! Frontends that no rules of ours serve may be a kube-proxy's: see [`kube_proxy`].

mod kube_proxy;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    num::NonZeroU16,
    sync::Arc,
};

use kubenet_core::{
    model::{IpFamily, Protocol},
    route::{Backend, Frontend, NodeRouting, Revision, Route, RouteTable, Target as RouteTarget},
};

use crate::{
    plan::{Context, Planner, shared_port},
    record::{self, CONTINUED, RouteRecord},
    rule::{ChainKey, ChainName, Chains, Does, Rule, Table, Target},
    save::Saved,
    work,
};

/// The routes that these families serve. Families that hold nothing of ours, and nothing of a kube-proxy, serve
/// nothing.
pub(crate) fn table(context: &Arc<Context>, saved: &BTreeMap<IpFamily, Saved>) -> RouteTable {
    let mut ours: Option<(Revision, Arc<NodeRouting>)> = None;
    let mut theirs = kube_proxy::Found::default();
    let mut routes = Vec::new();
    for (family, saved) in saved {
        let mut chains = saved.known();
        for (_, rules) in chains.iter_mut().filter(|((_, name), _)| context.names.is_part(name)) {
            if let Some(each) = shared_port::unfold(rules) {
                *rules = each.into();
            }
        }
        let state = state(context, &chains);
        theirs.add(&context.names, *family, saved, state.is_some());
        let Some((of_family, facts)) = state else { continue };
        if !jumps_are_there(context, &facts, *family, saved) {
            continue;
        }
        let facts = Arc::new(facts);
        if ours.as_ref().is_none_or(|(revision, _)| of_family >= *revision) {
            ours = Some((of_family, Arc::clone(&facts)));
        }
        let found = Decoder { context, chains: &chains }.routes(*family);
        let candidate = RouteTable::new(of_family, facts, found);
        routes.extend(served(context, *family, saved, candidate));
    }
    let (revision, node) = ours.unwrap_or_else(|| (Revision::default(), Arc::new(theirs.node())));
    // Of two for one frontend the later counts.
    RouteTable::new(revision, node, theirs.into_routes().into_iter().chain(routes))
}

fn state(context: &Context, chains: &Chains) -> Option<(Revision, NodeRouting)> {
    let rules = chains.get(&(Table::Nat, context.names.state.clone()))?;
    record::parse_state(rules.iter().map(|rule| rule.comment.as_str()))
}

/// Whether every jump is where packets get to it.
fn jumps_are_there(context: &Context, node: &NodeRouting, family: IpFamily, saved: &Saved) -> bool {
    let mut wanted = context.jumps(node);
    wanted.retain(|jump| jump.is_for(family));
    wanted.iter().all(|one| {
        let (table, chain) = (one.table, one.chain);
        let wanted: Vec<_> =
            wanted.iter().filter(|jump| (jump.table, jump.chain) == (table, chain)).collect();
        let found: Vec<_> = saved.jumps.iter().filter(|j| j.table == table && j.chain == chain).collect();
        work::works(&found, &wanted)
    })
}

/// The routes of a candidate whose chains are as planned.
fn served(context: &Arc<Context>, family: IpFamily, saved: &Saved, candidate: RouteTable) -> Vec<Arc<Route>> {
    let planner = Planner::new(Arc::clone(context), candidate.clone());
    let Some(planned) = planner.chains(family) else { return Vec::new() };
    let actual = |key: &ChainKey| saved.chains.get(key).and_then(Option::as_ref);
    let wrong: BTreeSet<&ChainKey> =
        planned.iter().filter(|(key, rules)| actual(key) != Some(*rules)).map(|(key, _)| key).collect();
    if wrong.is_empty() {
        return candidate.routes().cloned().collect();
    }
    // A wrong chain breaks every route that may pass it. Of a dispatch chain the rules are looked at one by one;
    // but one there that was not planned and is not about a single frontend may stop any packet.
    let found: BTreeMap<&ChainKey, HashSet<&Rule>> = planner
        .dispatch_keys(family)
        .iter()
        .filter_map(|key| {
            let (found, planned) = (actual(key)?, planned.get_key_value(key)?);
            let expected: HashSet<&Rule> = planned.1.iter().collect();
            let stops = found.iter().any(|rule| rule.port.is_none() && !expected.contains(rule));
            (!stops).then(|| (planned.0, found.iter().collect()))
        })
        .collect();
    let held = saved.held();
    let mut theirs = kube_proxy::Sets::new(&context.names, family, &held);
    let ours = Decoder { context, chains: planned };
    // While a kube-proxy's rules are taken over, its chain may still pick what ours will.
    let mut picks_alike = |key: &ChainKey, route: &Route| {
        let (Some(set), Some(backends)) = (theirs.get(&key.1), ours.backends(&key.1)) else { return false };
        let both = set.backends.iter().zip(backends.iter());
        set.is_whole
            && set.affinity == route.affinity
            && set.backends.len() == backends.len()
            && both.into_iter().all(|(a, b)| a.socket_addr() == b.socket_addr())
    };
    candidate
        .routes()
        .filter(|route| {
            planner.chains_of(route).iter().all(|key| !wrong.contains(key) || picks_alike(key, route))
                && planner.dispatch_of(&route.frontend).iter().all(|(key, rules)| {
                    found.get(key).is_some_and(|found| rules.iter().all(|rule| found.contains(rule)))
                })
        })
        .cloned()
        .collect()
}

type Backends = Arc<[Backend]>;

struct Decoder<'a> {
    context: &'a Context,
    chains: &'a Chains,
}

impl Decoder<'_> {
    /// The rules of a table that dispatch.
    fn dispatch(&self, table: Table) -> impl Iterator<Item = &Rule> {
        let names = &self.context.names;
        let chains = self.chains.iter().filter(move |((of, name), _)| {
            *of == table && ([&names.services, &names.node_ports].contains(&name) || names.is_part(name))
        });
        chains.flat_map(|(_, rules)| rules.iter())
    }

    fn routes(&self, family: IpFamily) -> Vec<Arc<Route>> {
        // A cluster IP's record is not with the rule that leads to its backends.
        let ways: HashMap<Frontend, &Rule> = self
            .dispatch(Table::Nat)
            .filter(|rule| self.leads(rule))
            .filter_map(|rule| Some((frontend(family, rule, None)?, rule)))
            .collect();
        let mut routes = Vec::new();
        for table in Table::ALL {
            let mut begun = String::new();
            for rule in self.dispatch(table) {
                if let Some(part) = rule.comment.strip_prefix(CONTINUED) {
                    begun.push_str(part);
                    continue;
                }
                let text = std::mem::take(&mut begun) + &rule.comment;
                let Some(record) = RouteRecord::parse(&text) else { continue };
                let Some(frontend) = frontend(family, rule, record.port) else { continue };
                let way = if record.port.is_some() { ways.get(&frontend).copied() } else { Some(rule) };
                let backend = record::parse_backend(&text);
                routes.extend(self.route(frontend, way, backend, record));
            }
        }
        routes.into_iter().map(Arc::new).collect()
    }

    /// Whether a rule leads to backends.
    fn leads(&self, rule: &Rule) -> bool {
        let names = &self.context.names;
        match &rule.target {
            Some(Target::Dnat(_)) => true,
            Some(Target::Jump(to)) => names.is_set(to) || names.is_entry(to) || names.is_firewall(to),
            _ => false,
        }
    }

    fn route(
        &self,
        frontend: Frontend,
        way: Option<&Rule>,
        backend: Option<Backend>,
        record: RouteRecord,
    ) -> Option<Route> {
        let (internal, external) = match way.and_then(|rule| rule.target.as_ref()) {
            Some(Target::Jump(chain)) => self.sets(chain)?,
            Some(Target::Dnat(_)) => {
                let only: Backends = [backend.or(way.and_then(backend_of))?].into();
                (Arc::clone(&only), only)
            }
            _ => (Arc::from([]), Arc::from([])),
        };
        let internal = RouteTarget { backends: internal, when_empty: record.internal_empty };
        let external = RouteTarget { backends: external, when_empty: record.external_empty };
        let mut route = Route::new(frontend, record.kind, record.service_port, internal, record.masquerade);
        route.on_cluster_ip = record.on_cluster_ip;
        route.external = external;
        route.affinity = record.affinity;
        route.source_ranges = record.source_ranges;
        Some(route)
    }

    fn rules(&self, chain: &ChainName) -> Option<&Arc<[Rule]>> {
        self.chains.get(&(Table::Nat, chain.clone()))
    }

    /// The internal and the external backends behind a chain.
    fn sets(&self, chain: &ChainName) -> Option<(Backends, Backends)> {
        let names = &self.context.names;
        let rules = self.rules(chain)?;
        if names.is_firewall(chain) {
            // All that are admitted are led alike.
            return rules.iter().find_map(|rule| match &rule.target {
                Some(Target::Goto(to)) => self.sets(to),
                _ => self.set(rule).map(|set| (Arc::clone(&set), set)),
            });
        }
        if !names.is_entry(chain) {
            let backends = self.backends(chain)?;
            return Some((Arc::clone(&backends), backends));
        }
        let by_origin =
            |rule: &&Rule| rule.source.is_some() || rule.source_is_local || rule.interface.is_some();
        let internal = rules.iter().filter(by_origin).find_map(|rule| self.set(rule));
        let external = rules.iter().filter(|r| !by_origin(r)).find_map(|rule| self.set(rule));
        Some((internal.unwrap_or_default(), external.unwrap_or_default()))
    }

    /// The backends that a rule leads to.
    fn set(&self, rule: &Rule) -> Option<Backends> {
        match &rule.target {
            Some(Target::Jump(chain)) if self.context.names.is_set(chain) => self.backends(chain),
            Some(Target::Dnat(_)) => Some([backend_of(rule)?].into()),
            _ => None,
        }
    }

    fn backends(&self, chain: &ChainName) -> Option<Backends> {
        let rules = self.rules(chain)?;
        let mut backends = Vec::with_capacity(rules.len());
        if !rules.iter().any(|rule| self.part(rule).is_some()) {
            return Some(rules.iter().filter(|rule| picks(rule)).filter_map(backend_of).collect());
        }
        self.collect(chain, 0, &mut backends);
        backends.sort_unstable();
        Some(backends.into())
    }

    /// The chain of a part that a rule picks.
    fn part<'r>(&self, rule: &'r Rule) -> Option<&'r ChainName> {
        match &rule.target {
            Some(Target::Goto(part)) if self.context.names.is_set_part(part) => Some(part),
            _ => None,
        }
    }

    /// The backends behind a chain and the chains of its parts. Whatever was found: no deeper than a kernel goes.
    fn collect(&self, chain: &ChainName, depth: u8, backends: &mut Vec<Backend>) {
        for rule in self.rules(chain).into_iter().flat_map(|rules| rules.iter()).filter(|rule| picks(rule)) {
            match self.part(rule) {
                Some(part) if depth < 16 => self.collect(part, depth + 1, backends),
                Some(_) => {}
                None => backends.extend(backend_of(rule)),
            }
        }
    }
}

/// The frontend that a rule is about.
fn frontend(family: IpFamily, rule: &Rule, port: Option<(Protocol, NonZeroU16)>) -> Option<Frontend> {
    let (protocol, port) = port.or(rule.protocol.zip(rule.port))?;
    Some(match rule.destination {
        Some(net) => Frontend::ip(net.addr(), port, protocol),
        None => Frontend::node_port(family, port, protocol),
    })
}

/// Whether a rule of a chain that picks is one for clients that have no backend yet.
fn picks(rule: &Rule) -> bool {
    rule.recent.as_ref().is_none_or(|recent| recent.does == Does::Set)
}

/// What a rule says about the backend that it leads to.
fn backend_of(rule: &Rule) -> Option<Backend> {
    record::parse_backend(&rule.comment).or_else(|| match rule.target {
        Some(Target::Dnat(to)) => Some(Backend::new(to.ip(), to.port().try_into().ok()?, false)),
        _ => None,
    })
}
