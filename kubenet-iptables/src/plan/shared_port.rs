//! A chain whose rules are all for one port looks at the port once.
//!
//! ```text
//! KUBE-NET-…  tcp, but not port 80 ──► return
//!             10.96.0.1, tcp ──► backend
//!             10.96.0.2, tcp ──► backend
//! ```
//!
//! Whenever a rule of `nat` is written, the kernel of the nf_tables variant goes through all rules that packets
//! may get to, once for `PREROUTING` and once for `OUTPUT`: that is what a change in a large cluster costs. A rule
//! without its port is a quarter smaller, and as much quicker to go through. Many Services of one port are what
//! large clusters are made of; a chain with rules for several ports is left as it is.

use std::num::NonZeroU16;

use kubenet_core::model::Protocol;

use crate::rule::{Rule, Target};

/// The first rule costs as much as some others save.
const SEVERAL: usize = 8;

fn first(protocol: Protocol, port: NonZeroU16) -> Rule {
    Rule { protocol: Some(protocol), not_port: Some(port), ..Rule::to(Target::Return) }
}

/// The protocol and the port of all these rules, where it pays to look at them once.
pub(super) fn of(rules: &[Rule]) -> Option<(Protocol, NonZeroU16)> {
    let port_of = |rule: &Rule| rule.protocol.zip(rule.port);
    let port = port_of(rules.first()?)?;
    (rules.len() >= SEVERAL && rules.iter().all(|rule| port_of(rule) == Some(port))).then_some(port)
}

/// Rules for one port as they are in a chain that looks at it once.
pub(super) fn fold((protocol, port): (Protocol, NonZeroU16), rules: Vec<Rule>) -> Vec<Rule> {
    let rules = rules.into_iter().map(|rule| Rule { port: None, ..rule });
    [first(protocol, port)].into_iter().chain(rules).collect()
}

/// The rules of a chain, each with its port again. `None` where they are as ever.
pub(crate) fn unfold(rules: &[Rule]) -> Option<Vec<Rule>> {
    let (head, rules) = rules.split_first()?;
    let (protocol, port) = head.protocol.zip(head.not_port)?;
    let rules = rules.iter().map(|rule| match rule.protocol == Some(protocol) && rule.port.is_none() {
        true => Rule { port: Some(port), ..rule.clone() },
        false => rule.clone(),
    });
    (*head == first(protocol, port)).then(|| rules.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::host;

    fn rules(ports: impl IntoIterator<Item = u16>) -> Vec<Rule> {
        let rule = |(last, port)| Rule {
            destination: Some(host([10, 96, 0, last].into())),
            protocol: Some(Protocol::Tcp),
            port: NonZeroU16::new(port),
            ..Rule::to(Target::Accept)
        };
        (1..).zip(ports).map(rule).collect()
    }

    #[test]
    fn rules_of_one_port_come_back_as_they_were() {
        let all = rules([80; 20]);
        let folded = fold(of(&all).unwrap(), all.clone());
        assert_eq!(folded.len(), 21);
        assert!(folded.iter().all(|rule| rule.port.is_none()));
        assert_eq!(unfold(&folded), Some(all));
    }

    #[test]
    fn few_rules_and_rules_of_several_ports_stay() {
        let several = rules((1..=20).map(|n| 80 + n / 20));
        let mut without = rules([80; 20]);
        without[7].port = None;
        let mut of_udp = rules([80; 20]);
        of_udp[7].protocol = Some(Protocol::Udp);
        for rules in [rules([80; 7]), several, without, of_udp, Vec::new()] {
            assert_eq!(of(&rules), None);
            assert_eq!(unfold(&rules), None);
        }
    }
}
