//! What was seen of a flow.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// What became of the connections of one flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The backends that connections reached.
    pub reached: BTreeMap<SocketAddr, Reached>,
    /// Connections whose client was told at once.
    pub refused: u32,
    /// Connections of which nothing was heard.
    pub silent: u32,
    /// Connections that went on as they were: to the world, to a pod or to the node's own stack.
    pub passed: u32,
    /// What the node's own sockets said when they did not get as far as a packet, and how often.
    pub errors: BTreeMap<String, u32>,
    /// Where the route has session affinity: whether the client stayed with its first backend.
    pub stays: Option<bool>,
}

/// What was seen of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Connections that reached it.
    pub connections: u32,
    /// Whom it saw.
    pub sees: BTreeSet<IpAddr>,
    /// Whether the client's address was replaced; for the node's own connections also their port alone.
    pub masquerade: bool,
}

/// One word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// To a backend.
    Forward,
    /// The client is told at once.
    Reject,
    /// Silence.
    Drop,
    /// Left to the stack.
    Pass,
}

impl Verdict {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Forward => "forward",
            Verdict::Reject => "reject",
            Verdict::Drop => "drop",
            Verdict::Pass => "pass",
        }
    }
}

impl Seen {
    /// How many connections there were.
    pub fn connections(&self) -> u32 {
        self.forwarded() + self.refused + self.silent + self.passed
    }

    /// How many reached a backend.
    pub fn forwarded(&self) -> u32 {
        self.reached.values().map(|reached| reached.connections).sum()
    }

    /// What became of them: forwarded if any was, else what became of the most.
    pub fn verdict(&self) -> Verdict {
        if !self.reached.is_empty() {
            return Verdict::Forward;
        }
        let counts =
            [(self.silent, Verdict::Drop), (self.refused, Verdict::Reject), (self.passed, Verdict::Pass)];
        counts.into_iter().max_by_key(|(count, _)| *count).map_or(Verdict::Drop, |(_, verdict)| verdict)
    }

    /// Whether not the same became of all of them.
    pub fn is_mixed(&self) -> bool {
        let counts = [self.forwarded(), self.silent, self.refused, self.passed];
        counts.into_iter().filter(|count| *count > 0).count() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_most_is_the_verdict_unless_a_backend_was_reached() {
        let mut seen = Seen { refused: 2, silent: 1, passed: 1, ..Seen::default() };
        assert_eq!((seen.verdict(), seen.is_mixed()), (Verdict::Reject, true));
        let reached = Reached { connections: 1, ..Reached::default() };
        seen.reached.insert(([10, 0, 0, 1], 80).into(), reached);
        assert_eq!((seen.verdict(), seen.connections()), (Verdict::Forward, 5));
        assert!(!Seen { silent: 3, ..Seen::default() }.is_mixed());
    }
}
