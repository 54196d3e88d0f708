//! Picking among many endpoints: a tree of chains, each of which picks a part.
//!
//! In one chain a new flow meets half of the endpoints' rules. Where there are more than [`LEAF`], the chain picks
//! one of eight parts instead, as likely as the part's endpoints weigh, and so on; a flow meets O(log n) rules. An
//! endpoint's part follows from its address alone, so that a change rewrites its own chain, and in those above
//! it only chances.

use kubenet_core::route::Backend;

use super::{group::Group, serve::Set};
use crate::{
    names,
    rule::{ChainName, Chance, Rule, Target},
};

/// So many endpoints share a chain.
const LEAF: usize = 32;
/// A chain divides by so many bits of where an endpoint's address puts it.
const BITS: u32 = 3;

/// An endpoint and where its address puts it.
type Placed = (u32, Backend);

/// Which part of a chain `depth` chains below the set's is meant: the first bits count first.
fn slot(place: u32, depth: u32) -> usize {
    place.rotate_left(BITS * (depth + 1)) as usize % (1 << BITS)
}

impl Group<'_> {
    /// Makes the chain that picks from a set, and those behind it.
    pub(super) fn divide(&mut self, set: &Set, chain: &ChainName) {
        let many = set.backends.len() > LEAF;
        // In a small set nothing depends on it.
        let place = |b: &Backend| if many { names::spread(&b.socket_addr().to_string()) } else { 0 };
        let placed: Vec<Placed> = set.backends.iter().map(|b| (place(b), *b)).collect();
        let known = self.known_clients(set);
        self.part(set, chain.clone(), placed, 0, known);
    }

    /// The kernel follows 16 jumps, and without the match on addresses the chains of endpoints need two.
    fn deepest(&self) -> u32 {
        if self.context.hairpin { 3 } else { 2 }
    }

    /// Makes the chain of a part, `depth` chains below the set's, after these rules.
    fn part(&mut self, set: &Set, chain: ChainName, backends: Vec<Placed>, depth: u32, mut rules: Vec<Rule>) {
        let parts: Vec<Vec<Placed>> = if backends.len() <= LEAF || depth == self.deepest() {
            backends.into_iter().map(|backend| vec![backend]).collect()
        } else {
            let mut parts = vec![Vec::new(); 1 << BITS];
            for backend in backends {
                parts[slot(backend.0, depth)].push(backend);
            }
            parts.retain(|part| !part.is_empty());
            parts
        };
        let weight = |part: &[Placed]| part.iter().map(|(_, b)| u64::from(b.weight.get())).sum::<u64>();
        let mut left: u64 = parts.iter().map(|part| weight(part)).sum();
        rules.reserve(parts.len() + 1);
        for (n, part) in parts.into_iter().enumerate() {
            // Of those that the rules before leave. The last takes the rest.
            let chance = Chance::of(weight(&part), left);
            left -= weight(&part);
            if let [(_, only)] = part[..] {
                rules.extend(self.pick(set, &only, chance, n == 0));
                continue;
            }
            let slot = part.first().map_or(0, |(place, _)| slot(*place, depth));
            let behind = self.context.names.set_part(&chain, slot);
            let comment = if n == 0 { set.label.clone() } else { String::new() };
            rules.push(Rule { chance, ..Rule::to(Target::Goto(behind.clone())) }.comment(comment));
            self.part(set, behind, part, depth + 1, Vec::new());
        }
        self.plan.chains.push((chain, rules.into()));
    }
}

#[cfg(test)]
mod tests;
