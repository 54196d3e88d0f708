//! A large update in several transactions, of which packets see one. Pure.
//!
//! The programs of the nf_tables variant look every name of a transaction up in a list: the cost grows with the
//! square of the names. So chains that are not there yet, which nothing leads to, are made beforehand, a part at
//! a time; then one transaction changes what packets pass; and chains that nothing leads to any more are
//! deleted afterwards, a part at a time.
//!
//! **Chains that pick a backend** may be many, and have kube-proxy's names: where its rules are taken over, they
//! are there, in use, and have to change. Each serves one Service, by itself. Ours rely on the dispatch before
//! them, which marks flows for masquerading; kube-proxy's mark by themselves. So those of kube-proxy serve
//! behind either dispatch, and ours behind ours alone: they change after the dispatch does, a part at a time, and
//! on the way back before it.

use std::{collections::BTreeSet, sync::Arc};

use crate::rule::{ChainChanges, ChainKey, ChainName, Chains, Rule, Table};

/// So many names are quick: a transaction more costs as much as some thousand of them in one.
pub(crate) const NAMES: usize = 1_000;

/// The transactions of an update, each of changes to chains.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    /// New chains, those that others of them lead to first.
    pub(crate) before: Vec<ChainChanges>,
    /// What packets see at once.
    pub(crate) switch: ChainChanges,
    /// What packets to one Service each see: on the side of the switch where our dispatch is in place.
    pub(crate) alone: Vec<ChainChanges>,
    /// Chains to delete, those that lead to others of them first.
    pub(crate) after: Vec<ChainChanges>,
}

/// Where an update leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To a plan of ours.
    There,
    /// To what was there before.
    Back,
}

impl Stages {
    /// All at once.
    pub(crate) fn one(changes: &ChainChanges) -> Self {
        Self { switch: changes.clone(), ..Self::default() }
    }

    /// Divides changes of chains that are `old` where they are. Those that are new are not there, or nobody
    /// sees them.
    pub(crate) fn of(
        changes: &ChainChanges,
        old: &Chains,
        limit: usize,
        is_new: &dyn Fn(&ChainKey) -> bool,
        alone: &dyn Fn(&ChainKey) -> bool,
    ) -> Self {
        if changes.values().map(|rules| names(rules.as_deref())).sum::<usize>() <= limit {
            return Self::one(changes);
        }
        let mut stages = Self::default();
        let (mut new, mut gone, mut single) = (Chains::new(), Chains::new(), Vec::new());
        for (key, rules) in changes {
            match (old.get(key), rules) {
                (_, Some(rules)) if is_new(key) => drop(new.insert(key.clone(), rules.clone())),
                (Some(rules), None) => drop(gone.insert(key.clone(), rules.clone())),
                (_, rules) if alone(key) => single.push((key.clone(), rules.clone())),
                _ => drop(stages.switch.insert(key.clone(), rules.clone())),
            }
        }
        stages.alone = portions(single.into_iter(), limit);
        let made = behind_first(&new).into_iter().map(|key| (key.clone(), new.get(key).cloned()));
        stages.before = portions(made, limit);
        let deleted = behind_first(&gone).into_iter().rev().map(|key| (key.clone(), None));
        stages.after = portions(deleted, limit);
        stages
    }
}

/// How many names a chain's rules bring into a transaction, its own too.
fn names(rules: Option<&[Rule]>) -> usize {
    1 + rules.unwrap_or_default().iter().filter(|rule| to(rule).is_some()).count()
}

fn to(rule: &Rule) -> Option<&ChainName> {
    rule.target.as_ref()?.chain()
}

/// The keys of chains, each after those of the chains that it leads to.
fn behind_first(chains: &Chains) -> Vec<&ChainKey> {
    fn visit<'a>(
        key: &'a ChainKey,
        chains: &'a Chains,
        seen: &mut BTreeSet<&'a ChainKey>,
        order: &mut Vec<&'a ChainKey>,
    ) {
        let Some((key, rules)) = chains.get_key_value(key) else { return };
        if seen.insert(key) {
            for to in rules.iter().filter_map(to) {
                let behind: ChainKey = (key.0, to.clone());
                if let Some((behind, _)) = chains.get_key_value(&behind) {
                    visit(behind, chains, seen, order);
                }
            }
            order.push(key);
        }
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::with_capacity(chains.len()));
    for key in chains.keys() {
        visit(key, chains, &mut seen, &mut order);
    }
    order
}

/// Divides changes, in their order and table by table, so that none has more names than `limit`.
fn portions(
    changes: impl Iterator<Item = (ChainKey, Option<Arc<[Rule]>>)>,
    limit: usize,
) -> Vec<ChainChanges> {
    let mut of_tables: [(Vec<ChainChanges>, usize); Table::ALL.len()] = Default::default();
    for (key, rules) in changes {
        let more = names(rules.as_deref());
        let (portions, size) = &mut of_tables[usize::from(key.0 == Table::Nat)];
        if portions.is_empty() || *size + more > limit {
            portions.push(ChainChanges::new());
            *size = 0;
        }
        *size += more;
        if let Some(portion) = portions.last_mut() {
            portion.insert(key, rules);
        }
    }
    of_tables.into_iter().flat_map(|(portions, _)| portions).collect()
}

#[cfg(test)]
mod tests;
