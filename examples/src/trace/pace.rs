//! How often a flow is tried.

use std::{collections::BTreeSet, net::SocketAddr};

use super::seen::Seen;

/// Connections in the first round, one after the other. What then did not reach a backend is tried no more: it
/// does not depend on which one is picked.
const FIRST_ROUND: u32 = 8;
/// Connections in each of the others.
const ROUND: u32 = 32;
/// For each backend that was seen, and for one that was not: had it a share like theirs, it would have shown.
const FOR_EACH_BACKEND: u32 = 8;
/// However small a backend's share is.
const MOST: u32 = 200_000;
/// The chance that an allowed backend stays unseen is one to e to the power of this.
const CERTAINTY: f64 = 14.0;

/// How often one flow may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// As the user says.
    samples: u32,
    /// As it takes until each allowed backend has almost certainly been seen.
    until_all: u32,
}

impl Pace {
    /// `weights` are those of the allowed backends.
    pub(super) fn new(samples: u32, weights: impl IntoIterator<Item = u16> + Clone) -> Self {
        let (mut sum, mut count) = (0.0, 0.0);
        for weight in weights.clone() {
            sum += f64::from(weight);
            count += 1.0;
        }
        let rarest = weights.into_iter().min().map_or(1.0, f64::from);
        let until_all = if count > 1.0 { sum / rarest * (f64::ln(count) + CERTAINTY) } else { 0.0 };
        // Casts of floats saturate.
        Self { samples, until_all: (until_all.ceil() as u32).min(MOST) }
    }

    /// One round, and no more.
    pub(super) const fn one_round() -> Self {
        Self { samples: FIRST_ROUND, until_all: 0 }
    }

    /// How many connections to try next, after what was seen. 0 when that is enough.
    pub(super) fn next(&self, allowed: &BTreeSet<SocketAddr>, seen: &Seen) -> u32 {
        let done = seen.connections();
        let missing = allowed.iter().any(|backend| !seen.reached.contains_key(backend));
        let enough = if seen.reached.is_empty() {
            self.samples.min(FIRST_ROUND)
        } else if missing {
            self.samples.max(self.until_all)
        } else if seen.is_mixed() {
            self.samples
        } else {
            let backends = u32::try_from(seen.reached.len()).unwrap_or(u32::MAX);
            self.samples.min(FOR_EACH_BACKEND.saturating_mul(backends.saturating_add(1)))
        };
        let round = if done == 0 { FIRST_ROUND } else { ROUND };
        enough.saturating_sub(done).min(round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::seen::Reached;

    fn backend(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 80).into()
    }

    fn seen(backends: &[(u8, u32)]) -> Seen {
        let reached = |connections| Reached { connections, ..Reached::default() };
        let backends = backends.iter().map(|(n, count)| (backend(*n), reached(*count)));
        Seen { reached: backends.collect(), ..Seen::default() }
    }

    #[test]
    fn what_reaches_nobody_is_tried_a_few_times() {
        let pace = Pace::new(64, [1, 1]);
        let allowed = [backend(1), backend(2)].into();
        assert_eq!(pace.next(&allowed, &Seen::default()), 8);
        assert_eq!(pace.next(&allowed, &Seen { refused: 8, ..Seen::default() }), 0);
        assert_eq!(Pace::new(3, []).next(&BTreeSet::new(), &Seen::default()), 3);
    }

    #[test]
    fn a_flow_is_tried_until_all_are_seen_and_a_few_times_more() {
        let pace = Pace::new(64, [1, 1]);
        let allowed = [backend(1), backend(2)].into();
        assert_eq!(pace.next(&allowed, &seen(&[(1, 8)])), 32);
        assert_eq!(pace.next(&allowed, &seen(&[(1, 60)])), 4);
        assert_eq!(pace.next(&allowed, &seen(&[(1, 64)])), 0);
        assert_eq!(pace.next(&allowed, &seen(&[(1, 6), (2, 2)])), 16);
        assert_eq!(pace.next(&allowed, &seen(&[(1, 12), (2, 12)])), 0);
        assert_eq!(pace.next(&allowed, &seen(&[(1, 12), (2, 12), (3, 1)])), 7, "one more was seen");
    }

    #[test]
    fn rare_backends_are_waited_for() {
        let many = Pace::new(64, [1; 100]);
        assert_eq!(many.until_all, 1861);
        assert_eq!(Pace::new(64, [1, 999]).until_all, 14_694);
        assert_eq!(Pace::new(64, [1, u16::MAX]).until_all, MOST);
    }
}
