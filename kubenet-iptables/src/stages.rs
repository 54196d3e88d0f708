//! A large update in several transactions, of which packets see one. Pure.
//!
//! The programs of the nf_tables variant look every name of a transaction up in a list: the cost grows with the
//! square of the names. So chains that are not there yet, which nothing leads to, are made beforehand, a part at
//! a time; then one transaction changes what packets pass; and chains that nothing leads to any more are
//! deleted afterwards, a part at a time.

use std::{collections::BTreeSet, sync::Arc};

use crate::rule::{ChainChanges, ChainKey, ChainName, Chains, Rule, Table, Target};

/// So many names are quick: a transaction more costs as much as some thousand of them in one.
pub(crate) const NAMES: usize = 1_000;

/// The transactions of an update, each of changes to chains.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    /// New chains, those that others of them lead to first.
    pub(crate) before: Vec<ChainChanges>,
    /// What packets see.
    pub(crate) switch: ChainChanges,
    /// Chains to delete, those that lead to others of them first.
    pub(crate) after: Vec<ChainChanges>,
}

impl Stages {
    /// All at once.
    pub(crate) fn one(changes: &ChainChanges) -> Self {
        Self { switch: changes.clone(), ..Self::default() }
    }

    /// Divides changes of chains that are `old` where they are.
    pub(crate) fn of(changes: &ChainChanges, old: &Chains, limit: usize) -> Self {
        if changes.values().map(|rules| names(rules.as_deref())).sum::<usize>() <= limit {
            return Self::one(changes);
        }
        let mut stages = Self::default();
        let (mut new, mut gone) = (Chains::new(), Chains::new());
        for (key, rules) in changes {
            match (old.get(key), rules) {
                (None, Some(rules)) => drop(new.insert(key.clone(), rules.clone())),
                (Some(rules), None) => drop(gone.insert(key.clone(), rules.clone())),
                _ => drop(stages.switch.insert(key.clone(), rules.clone())),
            }
        }
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
    match rule.target.as_ref()? {
        Target::Jump(to) | Target::Goto(to) => Some(to),
        _ => None,
    }
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
