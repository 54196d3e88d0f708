//! From our chains in the kernel back to routes. Pure.
//!
//! The comments say what the routes are; then the plan of these routes is compared with the chains that were
//! found. A route whose rules are not exactly what it needs is not served, and is left out.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    num::NonZeroU16,
    sync::Arc,
};

use kubenet_core::{
    model::IpFamily,
    route::{Backend, Frontend, NodeRouting, Revision, Route, RouteTable, Target as RouteTarget},
};

use crate::{
    plan::{Context, Planner},
    record::{self, CONTINUED, RouteRecord},
    rule::{ChainKey, ChainName, Chains, Rule, Table, Target},
    save::Saved,
};

/// The routes that these families serve. Families that hold nothing of ours serve nothing.
pub(crate) fn table(context: &Arc<Context>, saved: &BTreeMap<IpFamily, Saved>) -> RouteTable {
    let mut revision = Revision::default();
    let mut node = Arc::new(NodeRouting::default());
    let mut routes = Vec::new();
    for (family, saved) in saved {
        let chains = saved.known();
        let Some((of_family, facts)) = state(context, &chains) else { continue };
        if !jumps_are_there(context, saved) {
            continue;
        }
        let facts = Arc::new(facts);
        if of_family >= revision {
            (revision, node) = (of_family, Arc::clone(&facts));
        }
        let found = Decoder { context, chains: &chains }.routes(*family);
        let candidate = RouteTable::new(of_family, facts, found);
        routes.extend(served(context, *family, saved, candidate));
    }
    RouteTable::new(revision, node, routes)
}

fn state(context: &Context, chains: &Chains) -> Option<(Revision, NodeRouting)> {
    let rules = chains.get(&(Table::Nat, context.names.state.clone()))?;
    record::parse_state(rules.iter().map(|rule| rule.comment.as_str()))
}

fn jumps_are_there(context: &Context, saved: &Saved) -> bool {
    context.jumps().iter().all(|wanted| {
        saved.jumps.iter().any(|found| {
            found.table == wanted.table
                && found.chain == wanted.chain
                && found.rule.as_ref() == Some(&wanted.rule)
        })
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
    candidate
        .routes()
        .filter(|route| {
            planner.chains_of(route).iter().all(|key| !wrong.contains(key))
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
    fn routes(&self, family: IpFamily) -> Vec<Arc<Route>> {
        let names = &self.context.names;
        let dispatches =
            |chain: &ChainName| [&names.services, &names.node_ports].contains(&chain) || names.is_part(chain);
        let mut routes = Vec::new();
        for (_, rules) in self.chains.iter().filter(|((_, name), _)| dispatches(name)) {
            let mut begun = String::new();
            for rule in rules.iter() {
                if let Some(part) = rule.comment.strip_prefix(CONTINUED) {
                    begun.push_str(part);
                    continue;
                }
                let text = std::mem::take(&mut begun) + &rule.comment;
                routes.extend(RouteRecord::parse(&text).and_then(|record| self.route(family, rule, record)));
            }
        }
        routes.into_iter().map(Arc::new).collect()
    }

    fn route(&self, family: IpFamily, rule: &Rule, record: RouteRecord) -> Option<Route> {
        let (port, protocol): (NonZeroU16, _) = (rule.port?, rule.protocol?);
        let frontend = match rule.destination {
            Some(net) => Frontend::ip(net.addr(), port, protocol),
            None => Frontend::node_port(family, port, protocol),
        };
        let (internal, external) = match &rule.target {
            Some(Target::Jump(chain)) => self.sets(chain)?,
            _ => (Arc::from([]), Arc::from([])),
        };
        let internal = RouteTarget { backends: internal, when_empty: record.internal_empty };
        let external = RouteTarget { backends: external, when_empty: record.external_empty };
        let mut route = Route::new(frontend, record.kind, record.service_port, internal, record.masquerade);
        route.on_cluster_ip = record.on_cluster_ip;
        route.external = external;
        route.source_ranges = record.source_ranges;
        Some(route)
    }

    fn rules(&self, chain: &ChainName) -> Option<&Arc<[Rule]>> {
        self.chains.get(&(Table::Nat, chain.clone()))
    }

    /// The chain that a chain of source ranges leads to; any other is meant itself.
    fn behind<'c>(&'c self, chain: &'c ChainName) -> Option<&'c ChainName> {
        let guarded = self.rules(chain)?.iter().find_map(|rule| match &rule.target {
            Some(Target::Goto(to)) => Some(to),
            _ => None,
        });
        Some(guarded.unwrap_or(chain))
    }

    /// The internal and the external backends behind a chain: it picks itself, or decides by origin.
    fn sets(&self, chain: &ChainName) -> Option<(Backends, Backends)> {
        let chain = self.behind(chain)?;
        let backends = self.backends(chain)?;
        if !backends.is_empty() {
            return Some((Arc::clone(&backends), backends));
        }
        let by_origin =
            |rule: &&Rule| rule.source.is_some() || rule.source_is_local || rule.interface.is_some();
        let rules = self.rules(chain)?;
        let set = |rule: &Rule| match &rule.target {
            Some(Target::Jump(set)) if *set != self.context.names.mark_masq => {
                self.backends(set).filter(|backends| !backends.is_empty())
            }
            _ => None,
        };
        let external = rules.iter().filter(|r| !by_origin(r)).find_map(set);
        if !rules.iter().any(|rule| by_origin(&rule)) {
            let both = external?;
            return Some((Arc::clone(&both), both));
        }
        let internal = rules.iter().filter(by_origin).find_map(set);
        Some((internal.unwrap_or_default(), external.unwrap_or_default()))
    }

    fn backends(&self, chain: &ChainName) -> Option<Backends> {
        Some(self.rules(chain)?.iter().filter_map(|rule| record::parse_backend(&rule.comment)).collect())
    }
}
