//! What `filter` answers to flows that no backend takes.

use std::{net::IpAddr, sync::Arc};

use kubenet_core::{
    model::Protocol,
    route::{Route, SourceRanges, Target as RouteTarget, WhenEmpty},
};

use super::group::Group;
use crate::{
    record,
    rule::{Rule, Target, host},
};

impl Group<'_> {
    /// Only packets that were not translated still have a frontend as their destination, so no match on the
    /// origin is needed where one side has backends.
    pub(super) fn answers(&self, route: &Route) -> Vec<Rule> {
        let answer = |target: &RouteTarget| target.backends.is_empty().then_some(target.when_empty);
        let rule = |matches: Rule, when: WhenEmpty| {
            self.at_frontend(route, Rule { target: Some(refusal(route, when)), ..matches })
        };
        if let Some(ranges) = &route.source_ranges {
            return self.guarded_answers(route, ranges);
        }
        match (answer(&route.internal), answer(&route.external)) {
            (None, None) => Vec::new(),
            (Some(internal), Some(external)) if internal != external => {
                let sources = self.context.sources(self.node, self.family).into_iter();
                let mut rules: Vec<_> = sources.map(|(matches, _)| rule(matches, internal)).collect();
                rules.push(rule(Rule::default(), external));
                rules
            }
            (Some(when), _) | (None, Some(when)) => vec![rule(Rule::default(), when)],
        }
    }

    /// The same where not everybody is admitted: whoever is not is dropped, before any other answer ([R3]).
    fn guarded_answers(&self, route: &Route, ranges: &Arc<SourceRanges>) -> Vec<Rule> {
        let admitted = self.context.admitted(ranges, self.family);
        let sources = || self.context.sources(self.node, self.family).into_iter().map(|(matches, _)| matches);
        let answer = |target: &RouteTarget| target.backends.is_empty().then_some(target.when_empty);
        let rule = |when: WhenEmpty| {
            move |matches: Rule| {
                self.at_frontend(route, Rule { target: Some(refusal(route, when)), ..matches })
            }
        };
        let mut rules: Vec<Rule> = Vec::new();
        match (answer(&route.internal), answer(&route.external)) {
            (Some(WhenEmpty::Reject), Some(WhenEmpty::Drop)) => {
                let both = sources().flat_map(|source| {
                    admitted.iter().filter_map(move |admitted| source.clone().and_from(admitted))
                });
                rules.extend(both.map(rule(WhenEmpty::Reject)));
            }
            (Some(WhenEmpty::Drop), Some(WhenEmpty::Reject)) => {
                rules.extend(sources().map(rule(WhenEmpty::Drop)));
                rules.extend(admitted.into_iter().map(rule(WhenEmpty::Reject)));
            }
            (Some(WhenEmpty::Reject), _) | (None, Some(WhenEmpty::Reject)) => {
                rules.extend(admitted.into_iter().map(rule(WhenEmpty::Reject)));
            }
            _ => {}
        }
        rules.push(rule(WhenEmpty::Drop)(Rule::default()));
        rules
    }

    /// [N4]: the rule for all other ports of a cluster IP, with what is to be said about the route.
    ///
    /// A cluster IP's record is here rather than with the rule that translates: the kernel of the nf_tables
    /// variant goes through all rules of `nat` whenever one of them changes, and a comment is what costs
    /// most there. `filter` does not change with the endpoints.
    pub(super) fn other_ports(&self, address: IpAddr, record: Vec<String>) -> Vec<Rule> {
        // Where node ports answer, too, what is no Service port of the address may be a node port.
        let refused = !self.node.has_node_ports_on(address);
        let destination = Some(host(address));
        let mut rules: Vec<_> =
            record.into_iter().map(|comment| Rule { destination, comment, ..Rule::default() }).collect();
        if let Some(last) = rules.last_mut().filter(|_| refused) {
            last.target = Some(Target::Goto(self.context.names.no_port.clone()));
        }
        rules
    }

    /// Says why there is an answer.
    pub(super) fn explain(&self, route: &Route, answers: &mut [Rule], translated: bool) {
        let label = record::label(&route.service_port);
        let why = match (translated, &route.source_ranges) {
            (true, Some(_)) => " is not for this source",
            (true, None) => " has no endpoints",
            (false, _) => "",
        };
        answers.iter_mut().for_each(|rule| rule.comment = format!("{label}{why}"));
    }
}

/// A TCP reset rather than ICMP: the kernel ignores an ICMP error for a socket whose owner is in a system
/// call at that moment, which is the case for a connect() from this node.
fn refusal(route: &Route, when: WhenEmpty) -> Target {
    match when {
        WhenEmpty::Drop => Target::Drop,
        WhenEmpty::Reject if route.frontend.protocol == Protocol::Tcp => Target::RejectWithReset,
        WhenEmpty::Reject => Target::RejectUnreachable,
    }
}
