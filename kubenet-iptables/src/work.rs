//! One family's part of an update: how to get there, and how to get back.

use std::sync::Arc;

use kubenet_core::model::IpFamily;

use crate::{
    exec::{Backend, ExecError, Tools},
    plan::{self, Jump},
    restore::{self, JumpEdit},
    rule::{ChainChanges, Chains},
    save::{self, Saved},
    stages::{self, Stages},
};

/// A transaction to be, or several of which packets see one.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) family: IpFamily,
    /// What the changed chains hold before.
    old: Chains,
    changes: ChainChanges,
    edits: Vec<JumpEdit>,
}

impl Work {
    /// From what the kernel was found to hold to these chains and jumps.
    pub(crate) fn towards(family: IpFamily, saved: &Saved, wanted: &Chains, jumps: &[Jump]) -> Self {
        let known = saved.known();
        let mut changes = plan::changes(&known, wanted);
        // A chain with a rule that is not ours is written again, even where the rest of it is right.
        for (key, rules) in saved.chains.iter().filter(|(_, rules)| rules.is_none()) {
            let _ = rules;
            changes.insert(key.clone(), wanted.get(key).cloned());
        }
        let referenced = saved.referenced_by_others();
        restore::keep_referenced(&mut changes, |key| referenced.contains(key));
        let edits = edits(family, saved, jumps);
        Self::new(family, &known, changes, edits)
    }

    /// From one plan to the next, without looking.
    pub(crate) fn step(family: IpFamily, current: &Chains, changes: &ChainChanges) -> Self {
        Self::new(family, current, changes.clone(), Vec::new())
    }

    fn new(family: IpFamily, current: &Chains, changes: ChainChanges, edits: Vec<JumpEdit>) -> Self {
        let old = changes.keys().filter_map(|key| Some((key.clone(), Arc::clone(current.get(key)?))));
        Self { family, old: old.collect(), changes, edits }
    }

    /// Makes the changes; packets see them at once. The result says what chains that nothing leads to any more
    /// were left, if any: the rules are right all the same.
    ///
    /// After an error packets see what they saw before, unless iptables committed one table and not the other;
    /// new chains that nothing leads to may be left.
    pub(crate) fn run(&self, tools: &Tools) -> Result<Option<ExecError>, ExecError> {
        if self.changes.is_empty() && self.edits.is_empty() {
            return Ok(None);
        }
        let stages = match tools.variant {
            Backend::Nft => Stages::of(&self.changes, &self.old, stages::NAMES),
            // The kernel is given the whole table, whatever changes.
            Backend::Legacy => Stages::one(&self.changes),
        };
        let (before, after) = (stages.before.len(), stages.after.len());
        if before + after > 0 {
            tracing::debug!(family = %self.family, before, after, "transactions around the one that switches");
        }
        let transaction = |changes, edits| restore::transaction(self.family, &self.old, changes, edits);
        for changes in &stages.before {
            tools.restore(&transaction(changes, &[]))?;
        }
        if !stages.switch.is_empty() || !self.edits.is_empty() {
            tools.restore(&transaction(&stages.switch, &self.edits))?;
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
        back.edits.retain(|edit| is_there(edit) != edit.insert);
        back.changes.retain(|key, rules| saved.chains.get(key).cloned().flatten() != *rules);
        back.old = saved.known();
        back
    }
}

/// What makes every jump exist once, and no other lead to our chains. Jumps of one chain are put in their
/// order when one is missing; those that are there stay where they are.
fn edits(family: IpFamily, saved: &Saved, jumps: &[Jump]) -> Vec<JumpEdit> {
    let mut missing: Vec<&Jump> = jumps.iter().collect();
    let mut edits = Vec::new();
    for found in saved.jumps.iter().filter(|jump| jump.is_in_built_in_chain()) {
        let wanted = missing.iter().position(|jump| {
            jump.table == found.table && jump.chain == found.chain && Some(&jump.rule) == found.rule.as_ref()
        });
        match wanted {
            Some(i) => drop(missing.remove(i)),
            None => edits.push(JumpEdit {
                table: found.table,
                chain: found.chain.clone(),
                text: found.text.clone(),
                insert: false,
            }),
        }
    }
    // Each goes to the top, so the last comes first.
    edits.extend(missing.into_iter().rev().map(|jump| JumpEdit::insert(jump, family)));
    edits
}
