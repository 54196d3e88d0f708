//! Parses the output of `iptables-save`: our chains as values, and as much of others' as we must know.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use kubenet_core::model::IpFamily;

use crate::{
    names::Names,
    rule::{
        ChainKey, ChainName, Chains, Chance, Does, Interface, Recent, Rule, Source, State, Table, Target,
        compare_addresses, whole_mask,
    },
};

/// What a network namespace holds, in one address family.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saved {
    /// Our chains. `None`: some rule there is none that we write.
    pub(crate) chains: BTreeMap<ChainKey, Option<Arc<[Rule]>>>,
    /// All rules of these.
    mixed: Chains,
    /// Rules in chains of others, built-in ones too, that lead to our chains.
    pub(crate) jumps: Vec<SavedJump>,
    /// Whether rules of others use connection tracking.
    pub(crate) others_track: bool,
}

/// A rule of a chain that is not ours that leads to one of ours.
#[derive(Clone, Debug)]
pub(crate) struct SavedJump {
    pub(crate) table: Table,
    pub(crate) chain: String,
    /// The chain that it leads to.
    pub(crate) to: ChainName,
    /// As parsed, when it is a rule that we would write.
    pub(crate) rule: Option<Rule>,
    /// As printed, without `-A` and the chain.
    pub(crate) text: String,
    /// No packet gets there: a rule before it ends the way of every packet.
    pub(crate) shadowed: bool,
}

impl SavedJump {
    pub(crate) fn is_in_built_in_chain(&self) -> bool {
        matches!(self.chain.as_str(), "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING")
    }
}

impl Saved {
    pub(crate) fn parse(text: &str, names: &Names) -> Self {
        let mut saved = Saved::default();
        let mut rules: BTreeMap<ChainKey, Vec<Rule>> = BTreeMap::new();
        let mut table = None;
        // Chains of others in which a rule ended the way of every packet.
        let mut ended: BTreeSet<(Table, &str)> = BTreeSet::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|t| t.as_str() == name.trim());
                continue;
            }
            let declared = line.strip_prefix(':').and_then(|l| l.split(' ').next());
            let Some(table) = table else {
                saved.others_track |= line.starts_with("-A") && tracks(line);
                continue;
            };
            if let Some(chain) = declared.filter(|chain| names.owns(chain)) {
                rules.insert((table, ChainName::new(chain)), Vec::new());
            }
            let Some((chain, text)) = line.strip_prefix("-A ").and_then(|l| l.split_once(' ')) else {
                continue;
            };
            let (rule, target) = parse_rule(text);
            if names.owns(chain) {
                let foreign = || {
                    let to = target.map(ChainName::new);
                    Rule::to(Target::Foreign { text: text.into(), to })
                };
                rules.entry((table, ChainName::new(chain))).or_default().push(rule.unwrap_or_else(foreign));
                continue;
            }
            match target.filter(|to| names.owns(to)) {
                Some(to) => saved.jumps.push(SavedJump {
                    table,
                    chain: chain.to_owned(),
                    to: ChainName::new(to),
                    shadowed: ended.contains(&(table, chain)),
                    rule,
                    text: text.to_owned(),
                }),
                None => {
                    saved.others_track |= tracks(text);
                    let ends = rule.as_ref().is_some_and(ends_all);
                    ended.extend(ends.then_some((table, chain)));
                }
            }
        }
        for (key, rules) in rules {
            let rules: Arc<[Rule]> = rules.into();
            let mixed = rules.iter().any(Rule::is_foreign);
            if mixed {
                saved.mixed.insert(key.clone(), Arc::clone(&rules));
            }
            saved.chains.insert(key, (!mixed).then_some(rules));
        }
        saved
    }

    /// Our chains, those with foreign rules as empty ones.
    pub(crate) fn known(&self) -> Chains {
        self.chains.iter().map(|(key, rules)| (key.clone(), rules.clone().unwrap_or_default())).collect()
    }

    /// Our chains with all their rules.
    pub(crate) fn held(&self) -> Chains {
        let rules = |key, rules: &Option<_>| rules.as_ref().or_else(|| self.mixed.get(key)).cloned();
        self.chains.iter().map(|(key, of)| (key.clone(), rules(key, of).unwrap_or_default())).collect()
    }

    /// Those of our chains that no packet gets to.
    pub(crate) fn unused(&self) -> BTreeSet<ChainKey> {
        let held = self.held();
        let mut used: BTreeSet<ChainKey> = BTreeSet::new();
        let mut next: Vec<ChainKey> = self.jumps.iter().map(|jump| (jump.table, jump.to.clone())).collect();
        while let Some(key) = next.pop() {
            if let Some(rules) = held.get(&key).filter(|_| !used.contains(&key)) {
                let to = rules.iter().filter_map(|rule| rule.target.as_ref()?.chain());
                next.extend(to.map(|to| (key.0, to.clone())));
                used.insert(key);
            }
        }
        held.into_keys().filter(|key| !used.contains(key)).collect()
    }

    /// The chains of ours that rules of others, outside the built-in chains, lead to.
    pub(crate) fn referenced_by_others(&self) -> BTreeSet<ChainKey> {
        let foreign = self.jumps.iter().filter(|jump| !jump.is_in_built_in_chain());
        foreign.map(|jump| (jump.table, jump.to.clone())).collect()
    }
}

/// A rule of a kube-proxy: what ours have, and what only it has.
#[derive(Clone, Debug)]
pub(crate) struct Loose {
    pub(crate) rule: Rule,
    /// The destination is an address of this node.
    pub(crate) to_node: bool,
    /// The interface that the packet did not come in through.
    pub(crate) not_interface: Option<Interface>,
}

/// Reads a rule that we may not write as a kube-proxy's. `None` where it is not one, either.
pub(crate) fn loose(rule: &Rule) -> Option<Loose> {
    let Some(Target::Foreign { text, .. }) = &rule.target else {
        return Some(Loose { rule: rule.clone(), to_node: false, not_interface: None });
    };
    let (mut to_node, mut not_interface) = (false, None);
    let words = words(text);
    let (mut rest, mut kept) = (&words[..], Vec::new());
    while let [word, behind @ ..] = rest {
        let taken = match (word.as_str(), behind) {
            ("--comment", [comment, ..]) => {
                kept.extend([word.clone(), comment.clone()]);
                2
            }
            ("--dst-type", [kind, ..]) if kind == "LOCAL" => {
                to_node = true;
                2
            }
            ("!", [option, name, ..]) if option == "-i" => {
                not_interface = Some(Interface::parse(name));
                3
            }
            // Node ports of which something else serves those on loopback addresses.
            ("!", [option, address, ..]) if option == "-d" && net(address)?.addr().is_loopback() => 3,
            // Counts.
            ("-m", [name, ..]) if name == "nfacct" => 2,
            ("--nfacct-name", [_, ..]) => 2,
            _ => {
                kept.push(word.clone());
                1
            }
        };
        rest = rest.get(taken..)?;
    }
    Some(Loose { rule: parse_words(&kept)?, to_node, not_interface })
}

/// Whether no packet gets past a rule.
pub(crate) fn ends_all(rule: &Rule) -> bool {
    let target = rule.target.clone();
    matches!(target, Some(Target::Accept | Target::Drop | Target::Return))
        && *rule == Rule { target, comment: rule.comment.clone(), ..Rule::default() }
}

/// Whether a rule makes the kernel track connections.
fn tracks(rule: &str) -> bool {
    const MATCHES: [&str; 5] =
        ["-m conntrack ", "-m state ", "-m connmark ", "-m connbytes ", "-m connlimit "];
    const TARGETS: [&str; 8] = [
        "-j MASQUERADE",
        "-j SNAT",
        "-j DNAT",
        "-j REDIRECT",
        "-j NETMAP",
        "-j CONNMARK",
        "-j CT ",
        "-j SYNPROXY",
    ];
    MATCHES.iter().chain(&TARGETS).any(|part| rule.contains(part))
}

/// Splits a line into its words, as the shell would.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Whether two texts are one rule.
pub(crate) fn same_rule(a: &str, b: &str) -> bool {
    let parsed = parse_rule(a).0;
    a == b || (parsed.is_some() && parsed == parse_rule(b).0)
}

/// The rule, when it is one that we write, and in any case the chain or target that it leads to.
fn parse_rule(text: &str) -> (Option<Rule>, Option<String>) {
    let words = words(text);
    let target = words
        .iter()
        .position(|w| matches!(w.as_str(), "-j" | "-g" | "--jump" | "--goto"))
        .and_then(|i| words.get(i + 1));
    (parse_words(&words), target.cloned())
}

fn parse_words(words: &[String]) -> Option<Rule> {
    let mut rule = Rule::default();
    let mut inverted = false;
    let mut words = words.iter().map(String::as_str);
    while let Some(option) = words.next() {
        if option == "!" {
            inverted = true;
            continue;
        }
        let not = std::mem::take(&mut inverted);
        if not && !matches!(option, "-s" | "--mark" | "--dport") {
            return None;
        }
        match option {
            "-s" => rule.source = Some(Source { net: net(words.next()?)?, inverted: not }),
            "-d" => rule.destination = Some(net(words.next()?)?),
            "-i" => rule.interface = Some(Interface::parse(words.next()?)),
            "-p" => rule.protocol = Some(words.next()?.parse().ok()?),
            "--dport" if rule.recent.is_none() => {
                let ports = words.next()?;
                match ports.split_once(':') {
                    Some(_) if not => return None,
                    Some((first, last)) => rule.ports = Some((first.parse().ok()?, last.parse().ok()?)),
                    None if not => rule.not_port = Some(ports.parse().ok()?),
                    None => rule.port = Some(ports.parse().ok()?),
                }
            }
            "-m" => match words.next()? {
                "tcp" | "udp" | "sctp" | "comment" => {}
                // It notes whoever gets so far: no match may follow.
                _ if rule.recent.is_some() => return None,
                "mark" | "conntrack" | "addrtype" | "statistic" | "bpf" => {}
                "recent" => rule.recent = Some(recent(&mut words)?),
                _ => return None,
            },
            "--mark" if words.next()? == "0x4000/0x4000" => rule.marked = Some(!not),
            "--ctstate" => {
                rule.state = Some(match words.next()? {
                    "NEW" => State::New,
                    "INVALID" => State::Invalid,
                    "DNAT" => State::Translated,
                    "RELATED,ESTABLISHED" | "ESTABLISHED,RELATED" => State::RelatedOrEstablished,
                    _ => return None,
                });
            }
            "--bytecode" => {
                let program = words.next()?;
                if !IpFamily::ALL.into_iter().any(|family| compare_addresses(family) == program) {
                    return None;
                }
                rule.to_itself = true;
            }
            "--src-type" if words.next()? == "LOCAL" => rule.source_is_local = true,
            "--comment" => rule.comment = words.next()?.to_owned(),
            "--mode" if words.next()? == "random" => {}
            "--probability" => rule.chance = Some(Chance::parse(words.next()?)?),
            "-g" => rule.target = Some(Target::Goto(ChainName::new(words.next()?))),
            "-j" => rule.target = Some(target(&mut words)?),
            _ => return None,
        }
    }
    Some(rule)
}

/// The options of the match `recent`, which are printed in this order.
fn recent<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Recent> {
    let does = words.next()?;
    let mut seconds = || (words.next()? == "--seconds").then(|| words.next()?.parse().ok())?;
    let does = match does {
        "--set" => Does::Set,
        "--rcheck" => {
            let does = Does::Check(seconds()?);
            (words.next()? == "--reap").then_some(does)?
        }
        "--update" => Does::Update(seconds()?),
        _ => return None,
    };
    let list = (words.next()? == "--name").then(|| words.next())??;
    let whole = words.next()? == "--mask"
        && IpFamily::ALL.map(whole_mask).contains(&words.next()?)
        && words.next()? == "--rsource";
    whole.then(|| Recent { list: ChainName::new(list), does })
}

/// A target and its options, which end the rule.
fn target<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Target> {
    let name = words.next()?;
    let rest: Vec<&str> = words.collect();
    Some(match (name, rest.as_slice()) {
        ("ACCEPT", []) => Target::Accept,
        ("DROP", []) => Target::Drop,
        ("RETURN", []) => Target::Return,
        ("REJECT", ["--reject-with", "tcp-reset"]) => Target::RejectWithReset,
        ("REJECT", ["--reject-with", "icmp-port-unreachable" | "icmp6-port-unreachable"]) => {
            Target::RejectUnreachable
        }
        ("DNAT", ["--to-destination", to]) => Target::Dnat(to.parse().ok()?),
        // Later versions print what is equal to the first form.
        ("MARK", ["--set-xmark", "0x4000/0x4000"] | ["--or-mark" | "--set-mark", "0x4000"]) => {
            Target::SetMark
        }
        ("MARK", ["--set-xmark", "0x0/0x4000"] | ["--and-mark", "0xffffbfff"]) => Target::Unmark,
        ("MARK", ["--set-xmark", "0x4000/0x0"] | ["--xor-mark", "0x4000"]) => Target::ClearMark,
        ("MASQUERADE", options) => masquerade(options)?,
        ("DNAT" | "MARK" | "REJECT" | "SNAT" | "LOG", _) => return None,
        (chain, []) => Target::Jump(ChainName::new(chain)),
        _ => return None,
    })
}

fn masquerade(options: &[&str]) -> Option<Target> {
    let (options, random_fully) = match options {
        [options @ .., "--random-fully"] => (options, true),
        options => (options, false),
    };
    let ports = match options {
        [] => None,
        ["--to-ports", ports] => {
            let (first, last) = ports.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        }
        _ => return None,
    };
    Some(Target::Masquerade { ports, random_fully })
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse().ok().map(crate::rule::host))
}
