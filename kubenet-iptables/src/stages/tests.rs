use std::sync::Arc;

use proptest::{collection, prelude::*};

use super::*;
use crate::rule::{Target, host};

fn key(n: u8) -> ChainKey {
    let table = if n.is_multiple_of(5) { Table::Filter } else { Table::Nat };
    (table, ChainName::new(format!("C{n}")))
}

/// Chains of which each leads to some of greater numbers in its table.
fn any_chains() -> impl Strategy<Value = Chains> {
    let chain = (0u8..60, collection::vec(1u8..20, 0..6), any::<u8>());
    collection::vec(chain, 0..60).prop_map(|chains| {
        let of = |n: u8, more: &[u8], mark: u8| {
            let to = more.iter().map(|m| key(n.saturating_add(*m))).filter(|to| to.0 == key(n).0);
            let rules = to.map(|(_, name)| Rule::to(Target::Goto(name)));
            let own = Rule { destination: Some(host([10, 0, 0, mark].into())), ..Rule::to(Target::Accept) };
            Arc::from(rules.chain([own]).collect::<Vec<_>>())
        };
        let mut made: Chains = chains.iter().map(|(n, more, mark)| (key(*n), of(*n, more, *mark))).collect();
        // What is led to exists.
        let keys: Vec<_> = made.iter().flat_map(|(key, rules)| led_to(key, rules)).collect();
        for key in keys {
            made.entry(key).or_insert_with(|| Arc::from([]));
        }
        made
    })
}

fn led_to(key: &ChainKey, rules: &[Rule]) -> Vec<ChainKey> {
    rules.iter().filter_map(to).map(|name| (key.0, name.clone())).collect()
}

/// Applies a transaction as the kernel does: nothing may lead to what is not there.
fn apply(kernel: &mut Chains, transaction: &ChainChanges) -> Result<(), String> {
    for (key, rules) in transaction {
        match rules {
            Some(rules) => kernel.insert(key.clone(), Arc::clone(rules)),
            None => Some(kernel.remove(key).ok_or(format!("{key:?} was not there"))?),
        };
    }
    let mut all = kernel.iter().flat_map(|(key, rules)| led_to(key, rules));
    all.find(|to| !kernel.contains_key(to))
        .map_or(Ok(()), |to| Err(format!("{to:?} is led to and not there")))
}

proptest! {
    #[test]
    fn every_transaction_is_possible_and_one_changes_what_was_there(
        old in any_chains(), new in any_chains(), limit in 1usize..40, nobody_sees: bool, back: bool,
    ) {
        let changes = crate::plan::changes(&old, &new);
        let changed: Chains =
            old.iter().filter(|(key, _)| changes.contains_key(*key)).map(|(k, r)| (k.clone(), r.clone())).collect();
        // Those that nothing leads to are as good as new; of the others, these may change by themselves.
        let led: BTreeSet<_> = old.iter().flat_map(|(key, rules)| led_to(key, rules)).collect();
        let is_new = |key: &ChainKey| !changed.contains_key(key) || (nobody_sees && !led.contains(key));
        let alone = |key: &ChainKey| key.1.as_ref().ends_with('7');
        let stages = Stages::of(&changes, &changed, limit, &is_new, &alone);
        let mut kernel = old.clone();
        let seen: Chains =
            old.iter().filter(|(key, _)| !is_new(key)).map(|(k, r)| (k.clone(), r.clone())).collect();
        let holds = |kernel: &Chains, table: &Chains| table.iter().all(|(key, rules)| kernel.get(key) == Some(rules));
        for transaction in &stages.before {
            prop_assert_eq!(apply(&mut kernel, transaction), Ok(()));
            prop_assert!(holds(&kernel, &seen), "nothing that packets see has changed");
            prop_assert!(transaction.len() <= limit);
        }
        let mut order: Vec<_> = [&stages.switch].into_iter().chain(&stages.alone).collect();
        if back {
            order.rotate_left(1);
        }
        for transaction in order {
            prop_assert_eq!(apply(&mut kernel, transaction), Ok(()));
        }
        for transaction in &stages.alone {
            prop_assert!(transaction.len() <= limit && transaction.keys().all(alone));
        }
        for transaction in &stages.after {
            prop_assert!(holds(&kernel, &new), "all that is wanted is there");
            prop_assert_eq!(apply(&mut kernel, transaction), Ok(()));
        }
        prop_assert_eq!(kernel, new);
    }
}

#[test]
fn a_small_update_is_one_transaction() {
    let new: Chains =
        [(key(1), Arc::from([Rule::to(Target::Goto(key(2).1))])), (key(2), Arc::from([]))].into();
    let changes = crate::plan::changes(&Chains::new(), &new);
    let stages = Stages::of(&changes, &Chains::new(), 3, &|_| true, &|_| false);
    assert!(stages.before.is_empty() && stages.after.is_empty() && stages.switch == changes);
    let stages = Stages::of(&changes, &Chains::new(), 2, &|_| true, &|_| false);
    assert_eq!(
        stages.before.iter().map(|c| c.keys().cloned().collect()).collect::<Vec<Vec<_>>>(),
        [vec![key(2)], vec![key(1)]]
    );
}
