//! Answers of a datapath of the kernel: what was seen, with what the routes say beside it.

use std::{collections::BTreeMap, net::SocketAddr};

use kubenet_core::route::{FrontendAddress, Route};
use kubenet_examples::trace::{Dialled, Observed, Reached, Seen, Verdict};
use kubenet_testkit::memory;

use crate::{
    answer::{Answer, Choice, word},
    model::Model,
    why,
};

impl Answer {
    /// What was seen of the flow of this number. Only whose it is and why come from the resolved routes.
    pub(crate) fn seen(model: &Model, dialled: &Dialled, observed: &Observed, index: usize) -> Self {
        let route = model.route(dialled);
        let by_rules = model.datapath.route(&dialled.flow());
        let mut answer = Self {
            verdict: Verdict::Drop.as_str(),
            choices: None,
            service_port: route.map(|route| route.service_port.clone()),
            why: why::explain(model, dialled, route, &by_rules),
        };
        let (name, why) = (observed.datapath, &mut answer.why);
        let refusal = refusal(model, dialled, observed);
        let is_refused = refusal.is_some();
        why.extend(refusal);
        let (Some(seen), Some(expected)) = (observed.seen.get(index), observed.expected.get(index)) else {
            return answer;
        };
        if !is_refused {
            why.extend(ways(observed, &by_rules, expected));
        }
        why.push(counts(name, seen));
        why.extend(seen.errors.iter().map(|(error, count)| {
            format!("the node's own socket failed {count} times without a packet: {error}")
        }));
        why.extend(seen.stays.map(|stays| {
            let whether =
                if stays { "stayed with its first backend" } else { "did not stay with one backend" };
            format!("with its affinity the client {whether}; without, it was seen whom it may pick [A1]")
        }));
        why.extend(difference(name, seen, expected));
        answer.verdict = seen.verdict().as_str();
        answer.choices = choices(model, route, seen);
        answer
    }
}

/// That the datapath does not serve the flow's route.
fn refusal(
    model: &Model,
    dialled: &Dialled,
    Observed { datapath, refused, .. }: &Observed,
) -> Option<String> {
    if let Some(route) = model.route(dialled) {
        let refusal = refused.get(&route.frontend)?;
        return Some(format!("refused by {datapath}, which does not serve this route: {refusal}"));
    }
    let table = model.cluster.table();
    let at = FrontendAddress::Ip(dialled.to);
    let mut here =
        table.routes().filter(|route| route.on_cluster_ip && route.frontend.address == at).peekable();
    here.peek()?;
    here.all(|route| refused.contains_key(&route.frontend)).then(|| {
        format!("refused by {datapath}, which serves no port of this cluster IP, and so rejects no other")
    })
}

/// Where a datapath is known to go another way than the reference that explains.
fn ways(observed: &Observed, by_rules: &memory::Verdict, expected: &memory::Verdict) -> Vec<String> {
    let (memory::Verdict::Forward(by_rules), memory::Verdict::Forward(expected)) = (by_rules, expected)
    else {
        return Vec::new();
    };
    let name = observed.datapath;
    let mut ways = Vec::new();
    if expected.len() < by_rules.len() {
        ways.push(format!("{name} does not pick the client itself, as it is not on this node"));
    }
    let kept = |choice: &&memory::Choice| {
        let same = |other: &&memory::Choice| other.backend == choice.backend;
        !choice.masquerade && by_rules.iter().find(same).is_some_and(|other| other.masquerade)
    };
    if expected.iter().any(|choice| kept(&choice)) {
        ways.push(if observed.capabilities.local_backends_see_client {
            format!("{name} keeps the client's address for backends on this node, and that of the node's own sockets")
        } else {
            format!("{name} keeps the client's address where the backend is the node itself")
        });
    }
    ways
}

fn choices(model: &Model, route: Option<&Route>, seen: &Seen) -> Option<Vec<Choice>> {
    if seen.reached.is_empty() {
        return None;
    }
    let here = |backend: &SocketAddr| {
        let mut known = route.into_iter().flat_map(Route::backends);
        model.node.addresses().contains(&backend.ip())
            || known.any(|known| known.local && known.socket_addr() == *backend)
    };
    let choice = |(backend, reached): (&SocketAddr, &Reached)| Choice {
        backend: *backend,
        masquerade: reached.masquerade,
        sees: reached.sees.iter().copied().collect(),
        here: here(backend),
    };
    Some(seen.reached.iter().map(choice).collect())
}

fn counts(name: &str, seen: &Seen) -> String {
    let counts = [
        (seen.forwarded(), "forwarded"),
        (seen.refused, "rejected"),
        (seen.silent, "dropped"),
        (seen.passed, "left to the stack"),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts.map(|(count, what)| format!("{count} {what}")).collect();
    format!("seen through {name}, {} connections: {}", seen.connections(), counts.join(", "))
}

/// What the routes say, where the kernel did otherwise.
fn difference(name: &str, seen: &Seen, expected: &memory::Verdict) -> Option<String> {
    let verdict = word(expected);
    if seen.verdict().as_str() != verdict {
        return Some(format!("unlike that, {name} should {verdict} by these rules"));
    }
    let memory::Verdict::Forward(choices) = expected else { return None };
    let allowed: BTreeMap<_, _> =
        choices.iter().map(|choice| (choice.backend.socket_addr(), choice.masquerade)).collect();
    let list =
        |backends: Vec<SocketAddr>| backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let more: Vec<_> = seen.reached.keys().filter(|b| !allowed.contains_key(b)).copied().collect();
    let less: Vec<_> = allowed.keys().filter(|b| !seen.reached.contains_key(b)).copied().collect();
    let masquerade = |(b, seen): (&SocketAddr, &Reached)| {
        (allowed.get(b).is_some_and(|masquerade| *masquerade != seen.masquerade)).then_some(*b)
    };
    let otherwise: Vec<_> = seen.reached.iter().filter_map(masquerade).collect();
    let mut parts = Vec::new();
    if !more.is_empty() {
        parts.push(format!("{} should not be reached", list(more)));
    }
    if !less.is_empty() {
        parts.push(format!("{} should be reached, too", list(less)));
    }
    if !otherwise.is_empty() {
        parts.push(format!("it is the other way round with masquerading for {}", list(otherwise)));
    }
    (!parts.is_empty()).then(|| format!("unlike that, by these rules {}", parts.join("; ")))
}
