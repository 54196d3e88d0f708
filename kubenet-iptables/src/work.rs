//! One family's part of an update: how to get there, and how to get back.

use std::{collections::BTreeSet, sync::Arc};

use kubenet_core::model::IpFamily;

use crate::{
    exec::{Backend, ExecError, Tools},
    names::Names,
    plan::{self, Jump},
    restore::{self, JumpEdit},
    rule::{ChainChanges, ChainKey, Chains, Rule, Table},
    save::{self, Saved, SavedJump},
    stages::{self, Stages, Way},
};

/// A transaction to be, or several of which packets see one.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) family: IpFamily,
    /// What the changed chains hold before.
    old: Chains,
    changes: ChainChanges,
    edits: Vec<JumpEdit>,
    /// Chains that are there and that no packet gets to.
    unused: BTreeSet<ChainKey>,
    way: Way,
}

impl Work {
    /// From what the kernel was found to hold to these chains and jumps.
    pub(crate) fn towards(family: IpFamily, saved: &Saved, wanted: &Chains, jumps: &[Jump]) -> Self {
        let held = saved.held();
        // A chain with a rule that is not ours is written again, even where the rest of it is right.
        let mut changes = plan::changes(&held, wanted);
        let referenced = saved.referenced_by_others();
        restore::keep_referenced(&mut changes, |key| referenced.contains(key));
        let edits = edits(family, saved, jumps);
        Self { unused: saved.unused(), ..Self::new(family, &held, changes, edits) }
    }

    /// From one plan to the next, without looking.
    pub(crate) fn step(family: IpFamily, current: &Chains, changes: &ChainChanges) -> Self {
        Self::new(family, current, changes.clone(), Vec::new())
    }

    fn new(family: IpFamily, current: &Chains, changes: ChainChanges, edits: Vec<JumpEdit>) -> Self {
        let old = changes.keys().filter_map(|key| Some((key.clone(), Arc::clone(current.get(key)?))));
        Self { family, old: old.collect(), changes, edits, unused: BTreeSet::new(), way: Way::There }
    }

    /// Makes the changes; packets see them at once. The result says what chains that nothing leads to any more
    /// were left, if any: the rules are right all the same.
    ///
    /// After an error packets see what they saw before, unless iptables committed one table and not the other;
    /// new chains that nothing leads to may be left. Of a large update some Services may have changed.
    pub(crate) fn run(&self, tools: &Tools, names: &Names) -> Result<Option<ExecError>, ExecError> {
        if self.changes.is_empty() && self.edits.is_empty() {
            return Ok(None);
        }
        let stages = match tools.variant {
            Backend::Nft => {
                let is_new = |key: &ChainKey| !self.old.contains_key(key) || self.unused.contains(key);
                let alone = |key: &ChainKey| names.picks(&key.1);
                Stages::of(&self.changes, &self.old, stages::NAMES, &is_new, &alone)
            }
            // The kernel is given the whole table, whatever changes.
            Backend::Legacy => Stages::one(&self.changes),
        };
        let (before, alone, after) = (stages.before.len(), stages.alone.len(), stages.after.len());
        if before + alone + after > 0 {
            let family = self.family;
            tracing::debug!(%family, before, alone, after, "transactions around the one that switches");
        }
        let transaction = |changes, edits| restore::transaction(self.family, &self.old, changes, edits);
        let (first, then) = match self.way {
            Way::There => (&[][..], &stages.alone[..]),
            Way::Back => (&stages.alone[..], &[][..]),
        };
        for changes in stages.before.iter().chain(first) {
            tools.restore(&transaction(changes, &[]))?;
        }
        if !stages.switch.is_empty() || !self.edits.is_empty() {
            tools.restore(&transaction(&stages.switch, &self.edits))?;
        }
        for changes in then {
            tools.restore(&transaction(changes, &[]))?;
        }
        let mut rest = stages.after.iter().map(|changes| tools.restore(&transaction(changes, &[])));
        Ok(rest.find_map(Result::err))
    }

    /// The way back after it was done.
    pub(crate) fn inverse(&self) -> Self {
        let new = self.changes.iter().filter_map(|(key, rules)| Some((key.clone(), rules.clone()?)));
        Self {
            family: self.family,
            changes: self.changes.keys().map(|key| (key.clone(), self.old.get(key).cloned())).collect(),
            old: new.collect(),
            edits: self.edits.iter().rev().map(JumpEdit::inverse).collect(),
            unused: BTreeSet::new(),
            way: match self.way {
                Way::There => Way::Back,
                Way::Back => Way::There,
            },
        }
    }

    /// The way back after it may have been done in part. Nothing to do when it was not.
    pub(crate) fn recovery(&self, saved: &Saved) -> Self {
        let is_there = |edit: &JumpEdit| {
            saved.jumps.iter().any(|jump| {
                jump.table == edit.table
                    && jump.chain == edit.chain
                    && save::same_rule(&jump.text, &edit.text)
            })
        };
        let mut back = self.inverse();
        // A jump that was to move is taken away and put back: where it still is, it stays.
        let all = back.edits.clone();
        let moves = |edit: &JumpEdit| all.iter().any(|other| other.is_opposite_of(edit));
        back.edits.retain(|edit| match moves(edit) {
            true => edit.insert && !is_there(edit),
            false => is_there(edit) != edit.insert,
        });
        let held = saved.held();
        back.changes.retain(|key, rules| held.get(key) != rules.as_ref());
        back.old = held;
        back.unused = saved.unused();
        back
    }
}

/// What makes every jump exist once, reachable and in its order, and no other lead to our chains. Where one of a
/// chain is not in its place, all of that chain go to its top; rules of others before ours are no reason, unless
/// no packet gets past them.
fn edits(family: IpFamily, saved: &Saved, jumps: &[Jump]) -> Vec<JumpEdit> {
    let jumps: Vec<_> = jumps.iter().filter(|jump| jump.is_for(family)).collect();
    let found = |table, chain: &str| {
        let found = saved.jumps.iter().filter(|jump| jump.is_in_built_in_chain());
        found.filter(move |jump| jump.table == table && jump.chain == chain).collect::<Vec<_>>()
    };
    let mut chains: Vec<(Table, String)> = jumps.iter().map(|j| (j.table, j.chain.to_owned())).collect();
    let all = saved.jumps.iter().filter(|jump| jump.is_in_built_in_chain());
    chains.extend(all.map(|jump| (jump.table, jump.chain.clone())));
    chains.sort_unstable();
    chains.dedup();
    let mut edits = Vec::new();
    for (table, chain) in chains {
        let found = found(table, &chain);
        let wanted: Vec<&Jump> =
            jumps.iter().filter(|j| j.table == table && j.chain == chain).copied().collect();
        if in_place(&found, &wanted) {
            continue;
        }
        let delete =
            |text: &String| JumpEdit { table, chain: chain.clone(), text: text.clone(), insert: false };
        edits.extend(found.iter().map(|jump| delete(&jump.text)));
        // Each goes to the top, so the last comes first.
        edits.extend(wanted.into_iter().rev().map(|jump| JumpEdit::insert(jump, family)));
    }
    edits
}

/// Whether the jumps that were found in a chain are those that are wanted.
fn in_place(found: &[&SavedJump], wanted: &[&Jump]) -> bool {
    found.len() == wanted.len() && works(found, wanted)
}

/// Whether packets get to the jumps that are wanted, and in their order.
pub(crate) fn works(found: &[&SavedJump], wanted: &[&Jump]) -> bool {
    let mut first: Vec<&Rule> = Vec::new();
    for jump in found.iter().filter(|jump| !jump.shadowed) {
        let known = jump.rule.as_ref().filter(|rule| wanted.iter().any(|wanted| wanted.rule == **rule));
        first.extend(known.filter(|rule| !first.contains(rule)));
    }
    first.into_iter().eq(wanted.iter().map(|wanted| &wanted.rule))
}
