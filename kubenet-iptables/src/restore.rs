//! Renders chains as input for `iptables-restore --noflush`. Pure.

use std::{collections::HashSet, fmt::Write as _};

use kubenet_core::model::{IpFamily, Protocol};

use crate::{
    plan::Jump,
    rule::{self, ChainChanges, ChainKey, Chains, Does, MASQUERADE_MARK, Recent, Rule, State, Table, Target},
    save,
};

/// A change to a rule in a built-in chain that leads to one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JumpEdit {
    pub(crate) table: Table,
    pub(crate) chain: String,
    /// The rule, as in `iptables-save`, without `-A` and the chain.
    pub(crate) text: String,
    /// Put it before all others, or take it away.
    pub(crate) insert: bool,
}

impl JumpEdit {
    pub(crate) fn insert(jump: &Jump, family: IpFamily) -> Self {
        let mut text = String::new();
        write_rule(&mut text, &jump.rule, family);
        Self {
            table: jump.table,
            chain: jump.chain.to_owned(),
            text: text.trim_start().to_owned(),
            insert: true,
        }
    }

    pub(crate) fn inverse(&self) -> Self {
        Self { insert: !self.insert, ..self.clone() }
    }

    /// Whether one takes away the rule that the other puts in.
    pub(crate) fn is_opposite_of(&self, other: &Self) -> bool {
        self.insert != other.insert
            && (self.table, &self.chain) == (other.table, &other.chain)
            && save::same_rule(&self.text, &other.text)
    }
}

/// One input that makes `changes` and the jumps' edits.
///
/// iptables commits a table at a time. A packet to a frontend that has backends is translated by `nat` and no
/// longer matches the answers in `filter`, which know frontends only. So answers are added before `nat`
/// changes and taken away after it: at no moment is a packet neither translated nor answered.
pub(crate) fn transaction(
    family: IpFamily,
    old: &Chains,
    changes: &ChainChanges,
    edits: &[JumpEdit],
) -> String {
    let mut before = ChainChanges::new();
    let mut after = ChainChanges::new();
    let mut nat = ChainChanges::new();
    for (key, rules) in changes {
        if key.0 == Table::Nat {
            nat.insert(key.clone(), rules.clone());
            continue;
        }
        let old = old.get(key).map(|rules| &rules[..]).unwrap_or_default();
        let Some(new) = rules else {
            after.insert(key.clone(), None);
            continue;
        };
        let (in_old, in_new): (HashSet<&Rule>, HashSet<&Rule>) = (old.iter().collect(), new.iter().collect());
        // Whether what others wrote can be written again is not known.
        let kept: Vec<&Rule> =
            old.iter().filter(|rule| !in_new.contains(rule) && !rule.is_foreign()).collect();
        let added = new.iter().any(|rule| !in_old.contains(rule));
        if kept.is_empty() || added || old.is_empty() {
            // Old answers first: new ones may be for the address as a whole.
            let both = kept.iter().copied().chain(new.iter()).cloned().collect();
            before.insert(key.clone(), Some(both));
        }
        if !kept.is_empty() {
            after.insert(key.clone(), Some(new.clone()));
        }
    }
    let edits_of = |table| -> Vec<&JumpEdit> { edits.iter().filter(move |e| e.table == table).collect() };
    // A jump that moves does so at once, and is taken away first: what is deleted is the first that matches.
    let stays = |edit: &JumpEdit| edit.insert || edits.iter().any(|other| other.is_opposite_of(edit));
    let (mut inserts, deletes): (Vec<_>, Vec<_>) =
        edits_of(Table::Filter).into_iter().partition(|e| stays(e));
    inserts.sort_by_key(|edit| edit.insert);
    let mut text = String::new();
    section(&mut text, Table::Filter, family, &before, &inserts);
    let mut of_nat = edits_of(Table::Nat);
    of_nat.sort_by_key(|edit| edit.insert);
    section(&mut text, Table::Nat, family, &nat, &of_nat);
    section(&mut text, Table::Filter, family, &after, &deletes);
    text
}

fn section(text: &mut String, table: Table, family: IpFamily, changes: &ChainChanges, edits: &[&JumpEdit]) {
    if changes.is_empty() && edits.is_empty() {
        return;
    }
    let _ = writeln!(text, "*{}", table.as_str());
    // Declaring a chain makes it, or empties it.
    for (_, chain) in changes.keys() {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for ((_, chain), rules) in changes {
        for rule in rules.iter().flat_map(|rules| rules.iter()) {
            let _ = write!(text, "-A {chain}");
            write_rule(text, rule, family);
            text.push('\n');
        }
    }
    for edit in edits {
        let _ = match edit.insert {
            true => writeln!(text, "-I {} 1 {}", edit.chain, edit.text),
            false => writeln!(text, "-D {} {}", edit.chain, edit.text),
        };
    }
    for ((_, chain), _) in changes.iter().filter(|(_, rules)| rules.is_none()) {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
}

/// Makes chains empty rather than gone, where somebody else's rules lead to them.
pub(crate) fn keep_referenced(changes: &mut ChainChanges, referenced: impl Fn(&ChainKey) -> bool) {
    for (key, rules) in changes.iter_mut().filter(|(_, rules)| rules.is_none()) {
        if referenced(key) {
            *rules = Some([].into());
        }
    }
}

/// Writes a rule's matches and target, each with a space before it, in the form that `iptables-save` has.
pub(crate) fn write_rule(out: &mut String, rule: &Rule, family: IpFamily) {
    // Writing to a string cannot fail.
    let _ = try_write_rule(out, rule, family);
}

/// Writes text that stands between quotes, so that nothing in it ends them.
fn write_quoted(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' | '\r' | '\0' => out.push(' '),
            _ => out.push(c),
        }
    }
}

fn try_write_rule(out: &mut String, rule: &Rule, family: IpFamily) -> std::fmt::Result {
    if let Some(source) = rule.source {
        let not = if source.inverted { " !" } else { "" };
        write!(out, "{not} -s {}", source.net)?;
    }
    if let Some(destination) = rule.destination {
        write!(out, " -d {destination}")?;
    }
    if let Some(interface) = &rule.interface {
        let (name, suffix) = interface.parts();
        out.push_str(" -i \"");
        write_quoted(out, name);
        write!(out, "{suffix}\"")?;
    }
    if let Some(protocol) = rule.protocol {
        let protocol = Protocol::as_lower_str(protocol);
        write!(out, " -p {protocol}")?;
        if let Some(port) = rule.port {
            write!(out, " -m {protocol} --dport {port}")?;
        } else if let Some(port) = rule.not_port {
            write!(out, " -m {protocol} ! --dport {port}")?;
        } else if let Some((first, last)) = rule.ports {
            write!(out, " -m {protocol} --dport {first}:{last}")?;
        }
    }
    if let Some(marked) = rule.marked {
        let not = if marked { "" } else { " !" };
        write!(out, " -m mark{not} --mark {MASQUERADE_MARK}")?;
    }
    match rule.state {
        Some(State::New) => out.push_str(" -m conntrack --ctstate NEW"),
        Some(State::RelatedOrEstablished) => out.push_str(" -m conntrack --ctstate RELATED,ESTABLISHED"),
        Some(State::Invalid) => out.push_str(" -m conntrack --ctstate INVALID"),
        Some(State::Translated) => out.push_str(" -m conntrack --ctstate DNAT"),
        None => {}
    }
    if rule.to_itself {
        write!(out, " -m bpf --bytecode \"{}\"", rule::compare_addresses(family))?;
    }
    if rule.source_is_local {
        out.push_str(" -m addrtype --src-type LOCAL");
    }
    if !rule.comment.is_empty() {
        out.push_str(" -m comment --comment \"");
        write_quoted(out, &rule.comment);
        out.push('"');
    }
    if let Some(chance) = rule.chance {
        write!(out, " -m statistic --mode random --probability {chance}")?;
    }
    if let Some(Recent { list, does }) = &rule.recent {
        out.push_str(" -m recent ");
        match does {
            Does::Set => out.push_str("--set"),
            Does::Check(seconds) => write!(out, "--rcheck --seconds {seconds} --reap")?,
            Does::Update(seconds) => write!(out, "--update --seconds {seconds}")?,
        }
        write!(out, " --name {list} --mask {} --rsource", rule::whole_mask(family))?;
    }
    match &rule.target {
        None => {}
        Some(Target::Foreign { text, .. }) => write!(out, " {text}")?,
        Some(Target::Jump(chain)) => write!(out, " -j {chain}")?,
        Some(Target::Goto(chain)) => write!(out, " -g {chain}")?,
        Some(Target::Dnat(to)) => write!(out, " -j DNAT --to-destination {to}")?,
        Some(Target::Accept) => out.push_str(" -j ACCEPT"),
        Some(Target::Drop) => out.push_str(" -j DROP"),
        Some(Target::Return) => out.push_str(" -j RETURN"),
        Some(Target::RejectWithReset) => out.push_str(" -j REJECT --reject-with tcp-reset"),
        Some(Target::RejectUnreachable) => out.push_str(match family {
            IpFamily::V4 => " -j REJECT --reject-with icmp-port-unreachable",
            IpFamily::V6 => " -j REJECT --reject-with icmp6-port-unreachable",
        }),
        Some(Target::SetMark) => write!(out, " -j MARK --set-xmark {MASQUERADE_MARK}")?,
        Some(Target::Unmark) => out.push_str(" -j MARK --set-xmark 0x0/0x4000"),
        Some(Target::ClearMark) => out.push_str(" -j MARK --set-xmark 0x4000/0x0"),
        Some(Target::Masquerade { ports, random_fully }) => {
            out.push_str(" -j MASQUERADE");
            if let Some((first, last)) = ports {
                write!(out, " --to-ports {first}-{last}")?;
            }
            if *random_fully {
                out.push_str(" --random-fully");
            }
        }
    }
    Ok(())
}
