//! Chains and rules as values: what [`crate::plan`] makes, [`crate::restore`] writes and [`crate::save`] reads.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use ipnet::IpNet;
use kubenet_core::model::{IpFamily, Protocol};

/// The bit of the packet mark that asks for masquerading, kube-proxy's.
pub(crate) const MASQUERADE_MARK: &str = "0x4000/0x4000";

/// A table of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    Filter,
    Nat,
}

impl Table {
    pub(crate) const ALL: [Table; 2] = [Table::Filter, Table::Nat];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
        }
    }
}

/// Name of a chain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChainName(Arc<str>);

impl ChainName {
    pub(crate) fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    #[cfg(test)]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ChainName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) type ChainKey = (Table, ChainName);

/// The chains of one address family and their rules.
pub(crate) type Chains = BTreeMap<ChainKey, Arc<[Rule]>>;

/// What to do with chains: set them to these rules, or delete them.
pub(crate) type ChainChanges = BTreeMap<ChainKey, Option<Arc<[Rule]>>>;

/// One rule. The fields are matches, all of which must hold; their order in text has no meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rule {
    pub(crate) source: Option<Source>,
    pub(crate) destination: Option<IpNet>,
    /// The interface that the packet came in through. One that this node sends itself has none.
    pub(crate) interface: Option<Interface>,
    pub(crate) protocol: Option<Protocol>,
    /// Destination port.
    pub(crate) port: Option<NonZeroU16>,
    /// Destination port is any but this.
    pub(crate) not_port: Option<NonZeroU16>,
    /// Destination port from one to another, where it is not one port.
    pub(crate) ports: Option<(u16, u16)>,
    /// The source is an address of this node.
    pub(crate) source_is_local: bool,
    /// Whether the mark [`MASQUERADE_MARK`] is set.
    pub(crate) marked: Option<bool>,
    pub(crate) state: Option<State>,
    /// The source is the destination.
    pub(crate) to_itself: bool,
    /// Taken at random, so often.
    pub(crate) chance: Option<Chance>,
    /// Looks for the source in a list, or puts it there. After all other matches.
    pub(crate) recent: Option<Recent>,
    pub(crate) comment: String,
    pub(crate) target: Option<Target>,
}

/// A match on the source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) net: IpNet,
    pub(crate) inverted: bool,
}

/// A match on the name of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Interface {
    Named(Arc<str>),
    /// The name begins so.
    Prefix(Arc<str>),
}

impl Interface {
    /// The kernel's names have at most so many bytes: a prefix of this length is a whole name.
    const LONGEST: usize = 15;

    pub(crate) fn prefix(prefix: &str) -> Self {
        match prefix.len() < Self::LONGEST {
            true => Interface::Prefix(prefix.into()),
            false => Interface::Named(prefix.into()),
        }
    }

    /// As rules have it.
    pub(crate) fn parse(text: &str) -> Self {
        match text.strip_suffix('+') {
            Some(prefix) => Interface::Prefix(prefix.into()),
            None => Interface::Named(text.into()),
        }
    }

    /// The name, and what follows it in rules.
    pub(crate) fn parts(&self) -> (&str, &'static str) {
        match self {
            Interface::Named(name) => (name, ""),
            Interface::Prefix(prefix) => (prefix, "+"),
        }
    }
}

/// A match on the state in connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    New,
    RelatedOrEstablished,
    /// The kernel can make no sense of it.
    Invalid,
    /// Its destination was translated.
    Translated,
}

/// The kernel's match `recent`: a list of source addresses and of when each was seen last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Recent {
    /// The list's name. It exists as long as some rule has it.
    pub(crate) list: ChainName,
    pub(crate) does: Does,
}

/// What [`Recent`] does with its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Does {
    /// Notes the source and the time. Matches always.
    Set,
    /// Matches a source that was seen within so many seconds, and forgets one that was not.
    Check(NonZeroU32),
    /// The same, and notes the time when it matches; forgets nobody.
    Update(NonZeroU32),
}

/// A probability, in the ten digits that rules are written with.
///
/// The kernel keeps it as a fraction of 2³¹: two that are one to the kernel are equal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    const DIGITS: u64 = 10_000_000_000;
    const KERNEL: u64 = 1 << 31;

    /// `part` of `whole`. `None` when that is certain.
    pub(crate) fn of(part: u64, whole: u64) -> Option<Self> {
        (part < whole).then(|| Self(scaled(part, Self::DIGITS, whole)))
    }

    /// As `iptables-save` prints it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let probability: f64 = text.parse().ok()?;
        if !(0.0..1.0).contains(&probability) {
            return None;
        }
        // Checked to be in range above.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let kept = (probability * Self::KERNEL as f64).round() as u64;
        Self::of(kept, Self::KERNEL)
    }

    /// Whether it is none.
    pub(crate) fn is_never(self) -> bool {
        self.kept() == 0
    }

    /// As the kernel keeps it.
    fn kept(self) -> u64 {
        scaled(self.0, Self::KERNEL, Self::DIGITS)
    }
}

/// `part * scale / whole`, rounded, a half to the even side as printing does.
fn scaled(part: u64, scale: u64, whole: u64) -> u64 {
    let (product, whole) = (u128::from(part) * u128::from(scale), u128::from(whole.max(1)));
    let (down, rest) = (product / whole, product % whole);
    let up = match (2 * rest).cmp(&whole) {
        Ordering::Less => false,
        Ordering::Equal => down % 2 == 1,
        Ordering::Greater => true,
    };
    u64::try_from(down).unwrap_or(u64::MAX).saturating_add(u64::from(up))
}

impl PartialEq for Chance {
    fn eq(&self, other: &Self) -> bool {
        self.kept() == other.kept()
    }
}

impl Eq for Chance {}

impl Hash for Chance {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kept().hash(state);
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0.{:010}", self.0)
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Jump(ChainName),
    Goto(ChainName),
    Dnat(SocketAddr),
    Accept,
    Drop,
    Return,
    RejectWithReset,
    RejectUnreachable,
    SetMark,
    /// Takes the mark away from a packet that has it.
    ClearMark,
    /// Takes the mark away, whether the packet has it or not.
    Unmark,
    /// From these source ports; a rule with ports names its protocol.
    Masquerade {
        ports: Option<(u16, u16)>,
        random_fully: bool,
    },
    /// All of a rule that is none of those that we write, as `iptables-save` prints it: so that it can be put
    /// back.
    Foreign {
        text: Arc<str>,
        /// The chain or target that it leads to.
        to: Option<ChainName>,
    },
}

impl Target {
    /// The chain that packets are led to.
    pub(crate) fn chain(&self) -> Option<&ChainName> {
        match self {
            Target::Jump(to) | Target::Goto(to) => Some(to),
            Target::Foreign { to, .. } => to.as_ref(),
            _ => None,
        }
    }
}

impl Rule {
    /// Whether it is none of those that we write.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.target, Some(Target::Foreign { .. }))
    }

    pub(crate) fn jump(chain: &ChainName) -> Self {
        Self::to(Target::Jump(chain.clone()))
    }

    pub(crate) fn to(target: Target) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    pub(crate) fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = comment.into();
        self
    }

    /// From a network. One that holds every address is no match: the kernel would not list it.
    pub(crate) fn from(mut self, net: IpNet) -> Self {
        self.source = (net.prefix_len() > 0).then_some(Source { net: net.trunc(), inverted: false });
        self
    }

    pub(crate) fn not_from(mut self, net: IpNet) -> Self {
        self.source = Some(Source { net, inverted: true });
        self
    }

    pub(crate) fn state(mut self, state: State) -> Self {
        self.state = Some(state);
        self
    }

    pub(crate) fn recent(mut self, recent: Option<Recent>) -> Self {
        self.recent = recent;
        self
    }

    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    pub(crate) fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Adds another rule's matches on where a packet comes from. `None` when no source matches both.
    pub(crate) fn and_from(mut self, other: &Rule) -> Option<Self> {
        self.source = match (self.source, other.source) {
            (Some(ours), Some(theirs)) if ours.net.contains(&theirs.net) => Some(theirs),
            (Some(ours), Some(theirs)) if theirs.net.contains(&ours.net) => Some(ours),
            (Some(_), Some(_)) => return None,
            (ours, theirs) => ours.or(theirs),
        };
        self.source_is_local |= other.source_is_local;
        self.interface = self.interface.or_else(|| other.interface.clone());
        Some(self)
    }
}

/// A program for `xt_bpf` that compares the two addresses of a packet, as `iptables-save` prints it: loads the
/// words of each in turn, and says no at the first that differ.
pub(crate) const fn compare_addresses(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0",
        IpFamily::V6 => {
            "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,32 0 0 16,7 0 0 0,32 0 0 \
             32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,6 0 0 65535,6 0 0 0"
        }
    }
}

/// The mask of the match `recent` that keeps the whole address.
pub(crate) const fn whole_mask(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "255.255.255.255",
        IpFamily::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

/// The network that holds only this address.
pub(crate) fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel makes of a text, and prints.
    fn through_the_kernel(text: &str) -> String {
        let kept = (text.parse::<f64>().unwrap() * 2_147_483_648.0).round();
        format!("{:.11}", kept / 2_147_483_648.0)
    }

    #[test]
    fn equal_shares_are_written_as_ever() {
        for n in 2..5_000 {
            assert_eq!(Chance::of(1, n).unwrap().to_string(), format!("{:.10}", 1.0 / n as f64));
        }
        assert_eq!(Chance::of(3, 3), None);
    }

    proptest! {
        #[test]
        fn a_chance_is_the_same_after_the_kernel_had_it(part in 1u64..70_000, more in 1u64..700_000_000) {
            let chance = Chance::of(part, part + more).unwrap();
            let printed = through_the_kernel(&chance.to_string());
            let again = Chance::parse(&printed).unwrap();
            prop_assert_eq!(chance, again);
            prop_assert_eq!(Chance::parse(&through_the_kernel(&again.to_string())), Some(chance));
        }

        #[test]
        fn different_chances_stay_different(part in 1u64..1_000, whole in 2_000u64..10_000) {
            prop_assert_ne!(Chance::of(part, whole), Chance::of(part + 1, whole));
        }
    }
}
