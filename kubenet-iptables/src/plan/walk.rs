//! How many rules the first packet of a flow meets, at most.

use std::collections::{BTreeSet, HashMap};

use super::Planner;
use crate::rule::{ChainName, Chains, Rule, Table, Target};

impl Planner {
    /// The most rules of one table that the first packet of a flow can meet on its way to any backend or answer.
    pub(crate) fn longest_walk(&self) -> usize {
        let names = &self.context.names;
        let marking = |used| names.masquerade(used);
        let walks = self.families.values().flat_map(|family| {
            let used = family.masquerades.keys().copied();
            let used = used.chain(self.context.usual_masquerade(self.table.node()));
            let marking: BTreeSet<_> = used.map(marking).chain([names.mark_masq.clone()]).collect();
            let walk = |table| {
                let mut walk =
                    Walk { chains: &family.chains, table, marking: &marking, known: HashMap::new() };
                walk.below(&names.services)
            };
            Table::ALL.map(walk)
        });
        walks.max().unwrap_or(0)
    }
}

struct Walk<'a> {
    chains: &'a Chains,
    table: Table,
    /// The chains that a packet comes back from.
    marking: &'a BTreeSet<ChainName>,
    known: HashMap<&'a ChainName, usize>,
}

impl Walk<'_> {
    /// The most rules that a packet meets in a chain and behind it. One rule of a chain leads on; those before it
    /// are met in vain, except that some mark the packet.
    fn below(&mut self, chain: &ChainName) -> usize {
        let Some(((_, chain), rules)) = self.chains.get_key_value(&(self.table, chain.clone())) else {
            return 0;
        };
        if let Some(known) = self.known.get(chain) {
            return *known;
        }
        let (mut met, mut marks, mut most) = (0, 0, 0);
        for rule in rules.iter() {
            met += 1;
            let Some(to) = to(rule) else { continue };
            let behind = self.below(to);
            if !self.marking.contains(to) {
                most = most.max(met + marks + behind);
            } else if rule.port.is_none() && rule.destination.is_none() {
                met += behind;
            } else {
                // Of rules about frontends a packet passes its own only.
                marks = marks.max(behind);
            }
        }
        let most = most.max(met + marks);
        self.known.insert(chain, most);
        most
    }
}

fn to(rule: &Rule) -> Option<&ChainName> {
    match rule.target.as_ref()? {
        Target::Jump(to) | Target::Goto(to) => Some(to),
        _ => None,
    }
}
