//! The clock of the programs, read from here.
//!
//! It is monotonic: nobody sets it. But a process may be in a time namespace, where it stands elsewhere, and the
//! programs are in none.

use std::{fs, io, sync::LazyLock, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::layout::{CLOCK_SHIFT, CLOCK_SLACK};

const NANOSECONDS: i128 = 1_000_000_000;

/// Nanoseconds by which this process's clock is ahead of the programs'. A thread that runs cannot change its time
/// namespace.
static AHEAD: LazyLock<i128> = LazyLock::new(|| {
    // The offsets are those of the namespace that children get: mostly the process's own.
    let namespace = |name: &str| fs::read_link(format!("/proc/self/ns/{name}"));
    let (own, children) = (namespace("time"), namespace("time_for_children"));
    match (own, children) {
        (Ok(own), Ok(children)) if own == children => {
            fs::read_to_string("/proc/self/timens_offsets").ok().as_deref().and_then(offset).unwrap_or(0)
        }
        // A kernel without time namespaces.
        (Err(_), _) => 0,
        _ => {
            tracing::warn!(
                "children get another time namespace: by how much this one's clock is off is not known"
            );
            0
        }
    }
});

/// That of the monotonic clock among the offsets of a time namespace, in nanoseconds.
fn offset(offsets: &str) -> Option<i128> {
    let mut words = offsets.lines().find(|line| line.starts_with("monotonic"))?.split_whitespace().skip(1);
    let mut number = || words.next()?.parse::<i64>().ok().map(i128::from);
    Some(number()? * NANOSECONDS + number()?)
}

/// The time of stamps.
pub(crate) fn ticks() -> io::Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let here = i128::from(now.tv_sec()) * NANOSECONDS + i128::from(now.tv_nsec());
    Ok(((here - *AHEAD) >> CLOCK_SHIFT) as u32)
}

/// Ticks since a stamp, as the programs see it: one of no clock that is known here is older than everything.
pub(crate) fn age(now: u32, stamp: u32) -> u32 {
    now.wrapping_sub(stamp).wrapping_add(CLOCK_SLACK).saturating_sub(CLOCK_SLACK)
}

/// How long so many ticks are.
pub(crate) fn duration(ticks: u32) -> Duration {
    Duration::from_nanos(u64::from(ticks) << CLOCK_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespace_says_by_how_much_it_is_off() {
        assert_eq!(
            offset("monotonic     1000000         5\nboottime            7         0\n"),
            Some(1_000_000_000_000_005)
        );
        assert_eq!(
            offset("monotonic           -3 500000000\nboottime            0         0\n"),
            Some(-2_500_000_000)
        );
        assert_eq!(offset("monotonic           0         0\n"), Some(0));
        assert_eq!(["", "boottime 1 2", "monotonic", "monotonic x 0"].map(offset), [None; 4]);
    }

    #[test]
    fn a_stamp_from_nowhere_is_older_than_everything() {
        assert_eq!(age(1000, 990), 10);
        assert_eq!([1000, 1001, 1002].map(|stamp| age(1000, stamp)), [0; 3], "another CPU was faster");
        assert!(
            age(1000, 1003) > u32::MAX - 10 && age(1000, u32::MAX) > 1000 && age(5, 5 + (1 << 31)) > 1 << 30
        );
        // A clock that runs over.
        assert_eq!([age(3, u32::MAX), age(u32::MAX, 1), age(0, 0)], [4, 0, 0]);
    }
}
