//! From a kube-proxy's chains in the kernel to routes. Pure.
//!
//! The rules say nearly all: who is dialled, which endpoints are picked, who is admitted, whose address is
//! replaced. Comments are data: they name the Service port, and tell an external IP from a load balancer's. A
//! name counts only where the chain's name is its hash; without one, the chain's own name stands for it.
//!
//! What no rule says is filled in: an endpoint counts as local where it is in a set of local endpoints of some
//! Service, as ready, and as of equal weight; an address without endpoints that is no cluster IP counts as an
//! external IP; and a set that is empty, with no rule that answers, drops.

mod set;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use kubenet_core::{
    model::{IpFamily, LocalDetector},
    route::{
        Frontend, FrontendAddress, FrontendKind, Masquerade, NodeRouting, Route, ServicePortName,
        SourceRanges, Target as RouteTarget, WhenEmpty,
    },
};

pub(super) use self::set::{Set, Sets};
use crate::{
    names::{NameHash, Names},
    record::RouteRecord,
    rule::{ChainName, Interface, Rule, State, Table, Target},
    save::{self, Loose, Saved},
};

/// What a kube-proxy's rules of some families say.
#[derive(Debug, Default)]
pub(super) struct Found {
    routes: Vec<Arc<Route>>,
    node_port_addresses: BTreeSet<IpAddr>,
    /// How pods are told, by address or by interface.
    pods: BTreeSet<IpNet>,
    interface: Option<Interface>,
}

impl Found {
    /// Reads one more family. Where our rules are there, too, only what is certainly a kube-proxy's counts.
    pub(super) fn add(&mut self, names: &Names, family: IpFamily, saved: &Saved, beside_ours: bool) {
        let (from, to) = (["PREROUTING", "OUTPUT"], &names.services);
        if !from.iter().all(|from| is_led(saved, Table::Nat, from, to)) {
            return;
        }
        let chains = saved.held();
        let sets = Sets::new(names, family, &chains);
        Reader { names, family, saved, beside_ours, sets, found: self, ways: BTreeMap::new() }.read();
    }

    /// The node's facts, as far as rules say them.
    pub(super) fn node(&self) -> NodeRouting {
        let mut node = NodeRouting::default();
        node.node_port_addresses = self.node_port_addresses.iter().copied().collect();
        node.local_detector = match &self.interface {
            _ if !self.pods.is_empty() => LocalDetector::Cidrs(self.pods.iter().copied().collect()),
            Some(Interface::Named(name)) => LocalDetector::Bridge(name.to_string()),
            Some(Interface::Prefix(name)) => LocalDetector::InterfacePrefix(name.to_string()),
            None => LocalDetector::None,
        };
        node
    }

    pub(super) fn into_routes(self) -> Vec<Arc<Route>> {
        self.routes
    }
}

/// Whether packets of a built-in chain get to a chain.
fn is_led(saved: &Saved, table: Table, from: &str, to: &ChainName) -> bool {
    saved.jumps.iter().any(|jump| {
        let plain = jump.rule.as_ref().is_some_and(|rule| {
            let state = rule.state.filter(|state| *state == State::New);
            *rule == Rule { state, comment: rule.comment.clone(), ..Rule::jump(to) }
        });
        plain && jump.table == table && jump.chain == from && !jump.shadowed
    })
}

/// Where a rule of the dispatch leads a frontend.
#[derive(Debug)]
struct Way {
    to: ChainName,
    kind: FrontendKind,
    name: ServicePortName,
}

/// An answer of the table filter.
#[derive(Debug)]
struct Answer {
    when_empty: WhenEmpty,
    kind: FrontendKind,
    name: ServicePortName,
}

/// What is behind a chain.
#[derive(Clone, Debug, Default)]
struct Behind {
    internal: Option<Arc<Set>>,
    external: Option<Arc<Set>>,
    masquerade: Masquerade,
    source_ranges: Option<Arc<SourceRanges>>,
}

/// What comments of the dispatch say after the name.
const KINDS: [(&str, FrontendKind); 3] = [
    (" cluster IP", FrontendKind::ClusterIp),
    (" external IP", FrontendKind::ExternalIp),
    (" loadbalancer IP", FrontendKind::LoadBalancer),
];
/// What comments of answers say after the name.
const ANSWERS: [&str; 2] = [" has no endpoints", " has no local endpoints"];

struct Reader<'a> {
    names: &'a Names,
    family: IpFamily,
    saved: &'a Saved,
    beside_ours: bool,
    sets: Sets<'a>,
    found: &'a mut Found,
    ways: BTreeMap<Frontend, Way>,
}

impl Reader<'_> {
    fn read(mut self) {
        self.dispatch();
        let answers = self.answers();
        let ways = std::mem::take(&mut self.ways);
        // The node reaches its own load balancer from the address of that.
        let mut guarded: HashMap<&ChainName, BTreeSet<IpAddr>> = HashMap::new();
        for (frontend, way) in &ways {
            guarded.entry(&way.to).or_default().extend(address(frontend));
        }
        let mut behind: HashMap<&ChainName, Option<Behind>> = HashMap::new();
        for (frontend, way) in &ways {
            let known = behind.entry(&way.to).or_insert_with(|| self.behind(&way.to, &guarded[&way.to]));
            let Some(known) = known else { continue };
            let mut route = self.route(frontend, way.kind, &way.name, known, answers.get(frontend));
            if way.kind == FrontendKind::ClusterIp {
                route.masquerade = self.marked(frontend, known.internal.as_deref());
            }
            self.found.routes.push(Arc::new(route));
        }
        for (frontend, answer) in answers.iter().filter(|(frontend, _)| !ways.contains_key(frontend)) {
            let nothing = Behind::default();
            let route = self.route(frontend, answer.kind, &answer.name, &nothing, Some(answer));
            self.found.routes.push(Arc::new(route));
        }
    }

    fn route(
        &self,
        frontend: &Frontend,
        kind: FrontendKind,
        name: &ServicePortName,
        behind: &Behind,
        answer: Option<&Answer>,
    ) -> Route {
        let target = |set: &Option<Arc<Set>>| {
            let backends = set.as_ref().map(|set| Arc::clone(&set.backends)).unwrap_or_default();
            let when_empty = match answer {
                _ if !backends.is_empty() => WhenEmpty::Reject,
                Some(answer) => answer.when_empty,
                None => WhenEmpty::Drop,
            };
            RouteTarget { backends, when_empty }
        };
        let mut route =
            Route::new(*frontend, kind, name.clone(), target(&behind.internal), behind.masquerade);
        route.external = target(&behind.external);
        let sets = [&behind.internal, &behind.external];
        route.affinity = sets.into_iter().flatten().find_map(|set| set.affinity);
        route.source_ranges.clone_from(&behind.source_ranges);
        route
    }

    /// The rules of a dispatching chain up to the one that no packet gets past.
    fn rules(&self, table: Table, chain: &ChainName) -> Vec<Loose> {
        let rules = self.sets.rules(table, chain).iter();
        rules.take_while(|rule| !save::ends_all(rule)).filter_map(save::loose).collect()
    }

    fn dispatch(&mut self) {
        let mut node_ports = false;
        for Loose { rule, to_node, .. } in self.rules(Table::Nat, &self.names.services) {
            let Some(Target::Jump(to)) = &rule.target else { continue };
            if *to == self.names.node_ports {
                let address = rule.destination.filter(is_host).map(|net| net.addr());
                let only = Rule { destination: rule.destination, ..Rule::jump(to).comment(&*rule.comment) };
                if rule == only && (to_node || address.is_some()) {
                    node_ports = true;
                    let loopback = |address: &IpAddr| address.is_loopback();
                    self.found.node_port_addresses.extend(address.filter(|address| !loopback(address)));
                }
            } else if let Some(frontend) = self.frontend(&rule, false)
                && frontend_is_address(&frontend)
            {
                self.way(frontend, to, &rule.comment);
            }
        }
        if !node_ports {
            return;
        }
        // Those that count what comes in for loopback addresses lead where the others do.
        for Loose { rule, to_node, .. } in self.rules(Table::Nat, &self.names.node_ports) {
            if let (Some(Target::Jump(to)), Some(frontend)) = (&rule.target, self.frontend(&rule, true))
                && !to_node
            {
                self.way(frontend, to, &rule.comment);
            }
        }
    }

    fn way(&mut self, frontend: Frontend, to: &ChainName, comment: &str) {
        let names = self.names;
        let says = KINDS.iter().find_map(|(end, kind)| Some((comment.strip_suffix(end)?, *kind)));
        let (text, said) = match says {
            Some((text, kind)) => (text, Some(kind)),
            None => (comment, None),
        };
        let kind = match said {
            _ if !frontend_is_address(&frontend) => FrontendKind::NodePort,
            _ if names.is_set(to) => FrontendKind::ClusterIp,
            _ if names.is_firewall(to) => FrontendKind::LoadBalancer,
            _ if !names.is_entry(to) => return,
            Some(FrontendKind::LoadBalancer) => FrontendKind::LoadBalancer,
            _ => FrontendKind::ExternalIp,
        };
        if kind == FrontendKind::NodePort && !names.is_set(to) && !names.is_entry(to) {
            return;
        }
        let hash = NameHash::of(&[text, frontend.protocol.as_lower_str()]);
        let certain = names.has_hash(to, &hash);
        let usual = said == Some(kind) || (said.is_none() && kind == FrontendKind::NodePort);
        if self.beside_ours && !(certain && usual) {
            return;
        }
        let name = certain.then(|| port_name(text)).flatten();
        let name = name.unwrap_or_else(|| nameless(names.hash_of(to)));
        self.ways.entry(frontend).or_insert(Way { to: to.clone(), kind, name });
    }

    /// What the table filter says to frontends without endpoints.
    fn answers(&self) -> BTreeMap<Frontend, Answer> {
        let mut answers = BTreeMap::new();
        for chain in [&self.names.services, &self.names.external_services] {
            if !["INPUT", "FORWARD", "OUTPUT"]
                .iter()
                .any(|from| is_led(self.saved, Table::Filter, from, chain))
            {
                continue;
            }
            for Loose { rule, to_node, .. } in self.rules(Table::Filter, chain) {
                let when_empty = match rule.target {
                    Some(Target::Drop) => WhenEmpty::Drop,
                    Some(Target::RejectUnreachable | Target::RejectWithReset) => WhenEmpty::Reject,
                    _ => continue,
                };
                let Some(frontend) = self.frontend(&rule, to_node) else { continue };
                let text = ANSWERS.iter().find_map(|end| rule.comment.strip_suffix(end));
                if self.beside_ours && text.is_none() {
                    continue;
                }
                // Ours, of which no more is left.
                let record = RouteRecord::parse(&rule.comment);
                let kind = match &record {
                    _ if !frontend_is_address(&frontend) => FrontendKind::NodePort,
                    Some(record) => record.kind,
                    None if *chain == self.names.services => FrontendKind::ClusterIp,
                    None => FrontendKind::ExternalIp,
                };
                let name = text.and_then(port_name).or(record.map(|record| record.service_port));
                let name = name.unwrap_or_else(|| nameless(&frontend.to_string()));
                answers.entry(frontend).or_insert(Answer { when_empty, kind, name });
            }
        }
        answers
    }

    /// The frontend that a rule is about, when it is about nothing else. One of any address is a node port.
    fn frontend(&self, rule: &Rule, may_be_node_port: bool) -> Option<Frontend> {
        let (protocol, port) = (rule.protocol?, rule.port?);
        let only = Rule {
            destination: rule.destination,
            protocol: Some(protocol),
            port: Some(port),
            comment: rule.comment.clone(),
            target: rule.target.clone(),
            ..Rule::default()
        };
        if *rule != only {
            return None;
        }
        match rule.destination {
            Some(net) if is_host(&net) && IpFamily::of(net.addr()) == self.family => {
                Some(Frontend::ip(net.addr(), port, protocol))
            }
            None if may_be_node_port => Some(Frontend::node_port(self.family, port, protocol)),
            _ => None,
        }
    }

    /// What is behind a chain, for flows to these addresses.
    fn behind(&mut self, chain: &ChainName, addresses: &BTreeSet<IpAddr>) -> Option<Behind> {
        if self.names.is_firewall(chain) {
            return self.guarded(chain, addresses);
        }
        if !self.names.is_entry(chain) {
            let set = Some(self.sets.get(chain)?);
            return Some(Behind { internal: set.clone(), external: set, ..Behind::default() });
        }
        if !self.sets.has(chain) {
            return None;
        }
        let mut behind = Behind::default();
        let (mut of_pods, mut of_node) = (None, None);
        for loose in self.rules(Table::Nat, chain) {
            let Some(Target::Jump(to)) = &loose.rule.target else { continue };
            let Some(origin) = origin(&loose) else { continue };
            if *to == self.names.mark_masq {
                behind.masquerade = both(behind.masquerade, origin);
                continue;
            }
            let Some(set) = self.sets.get(to) else { continue };
            match origin {
                Masquerade::ALWAYS => {
                    behind.external = Some(set);
                    break;
                }
                Masquerade { pods: true, node: false, outside: false } => {
                    self.tells_pods(&loose);
                    of_pods.get_or_insert(set);
                }
                Masquerade { pods: false, node: true, outside: false } => drop(of_node.get_or_insert(set)),
                _ => {}
            }
        }
        // Pods that nothing tells from others go where those do.
        behind.internal = of_pods.or(of_node).or_else(|| behind.external.clone());
        Some(behind)
    }

    /// What is behind a chain of source ranges.
    fn guarded(&mut self, chain: &ChainName, addresses: &BTreeSet<IpAddr>) -> Option<Behind> {
        if !self.sets.has(chain) {
            return None;
        }
        let mut ranges = SourceRanges { cidrs: Vec::new(), node: false };
        let (mut behind, mut all) = (None, false);
        for Loose { rule, not_interface, .. } in self.rules(Table::Nat, chain) {
            let Some(Target::Jump(to)) = &rule.target else { continue };
            let only = Rule { source: rule.source, ..Rule::jump(to).comment(&*rule.comment) };
            if self.names.is_firewall(to) || rule != only || not_interface.is_some() {
                continue;
            }
            if behind.is_none() {
                behind = self.behind(to, addresses);
            }
            match rule.source {
                None => all = true,
                Some(source) if source.inverted || IpFamily::of(source.net.addr()) != self.family => {}
                Some(source) if is_host(&source.net) && addresses.contains(&source.net.addr()) => {
                    ranges.node = true;
                }
                Some(source) => ranges.cidrs.push(source.net.trunc()),
            }
        }
        // As ranges of a Service become those of a route.
        ranges.cidrs = IpNet::aggregate(&ranges.cidrs);
        ranges.cidrs.sort_unstable();
        all |= ranges.cidrs.iter().any(|cidr| cidr.prefix_len() == 0);
        let source_ranges = (!all).then(|| Arc::new(ranges));
        Some(Behind { source_ranges, ..behind.unwrap_or_default() })
    }

    /// Whose address a set replaces on the way to a cluster IP.
    fn marked(&mut self, frontend: &Frontend, set: Option<&Set>) -> Masquerade {
        let mut masquerade = Masquerade::NEVER;
        for loose in set.into_iter().flat_map(|set| &set.marks) {
            let rule = &loose.rule;
            let about = rule.destination.is_none_or(|net| Some(net.addr()) == address(frontend))
                && rule.port.is_none_or(|port| port == frontend.port);
            if let Some(origin) = origin(loose).filter(|_| about) {
                masquerade = both(masquerade, origin);
                self.tells_pods(loose);
            }
        }
        masquerade
    }

    /// Notes how a rule tells pods.
    fn tells_pods(&mut self, loose: &Loose) {
        let rule = &loose.rule;
        self.found.pods.extend(rule.source.map(|source| source.net.trunc()));
        let interface = loose.not_interface.as_ref().or(rule.interface.as_ref());
        if let Some(interface) = interface {
            self.found.interface.get_or_insert_with(|| interface.clone());
        }
    }
}

/// From whom a rule takes packets. `None` for one that asks for more.
fn origin(loose: &Loose) -> Option<Masquerade> {
    let rule = &loose.rule;
    let only = Rule {
        source: rule.source,
        source_is_local: rule.source_is_local,
        interface: rule.interface.clone(),
        destination: rule.destination,
        protocol: rule.protocol,
        port: rule.port,
        comment: rule.comment.clone(),
        target: rule.target.clone(),
        ..Rule::default()
    };
    if *rule != only || loose.to_node {
        return None;
    }
    let pods = rule.source.is_some_and(|source| !source.inverted) || rule.interface.is_some();
    let others = rule.source.is_some_and(|source| source.inverted) || loose.not_interface.is_some();
    match (pods, others, rule.source_is_local) {
        (false, false, false) => Some(Masquerade::ALWAYS),
        (true, false, false) => Some(Masquerade { pods: true, ..Masquerade::NEVER }),
        (false, true, false) => Some(Masquerade { pods: false, ..Masquerade::ALWAYS }),
        (false, false, true) => Some(Masquerade { node: true, ..Masquerade::NEVER }),
        _ => None,
    }
}

fn both(a: Masquerade, b: Masquerade) -> Masquerade {
    Masquerade { pods: a.pods | b.pods, node: a.node | b.node, outside: a.outside | b.outside }
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn address(frontend: &Frontend) -> Option<IpAddr> {
    match frontend.address {
        FrontendAddress::Ip(address) => Some(address),
        FrontendAddress::NodePort(_) => None,
    }
}

fn frontend_is_address(frontend: &Frontend) -> bool {
    address(frontend).is_some()
}

/// `namespace/name:port`, or without the port.
fn port_name(text: &str) -> Option<ServicePortName> {
    let (namespace, rest) = text.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    let whole = !namespace.is_empty() && !service.is_empty();
    whole.then(|| ServicePortName { namespace: namespace.into(), service: service.into(), port: port.into() })
}

/// A Service port of which nobody says the name.
fn nameless(instead: &str) -> ServicePortName {
    ServicePortName { namespace: "".into(), service: instead.into(), port: "".into() }
}
