//! Which flows live: what would be cut if the datapath ended.

use std::io;

use kubenet_core::{datapath::DatapathError, model::Protocol};

use super::{
    clock,
    maps::{FamilyMaps, Maps},
};
use crate::layout::{Address, CLOCK_SHIFT, CT_FIN, CT_RST, CT_SEEN_REPLY, Conntrack, Pair};

/// Seconds without a packet after which a flow counts as gone, though nobody closed it.
mod idle {
    /// An open TCP connection, both sides of which were heard: keep-alives come every two hours.
    pub(super) const TCP: u32 = 7200 + 600;
    /// One that is closed on one side.
    pub(super) const TCP_CLOSING: u32 = 120;
    /// One that nobody answered.
    pub(super) const TCP_OPENING: u32 = 60;
    /// What the programs keep it for (`UDP_IDLE` in `bpf/conntrack.h`).
    pub(super) const UDP: u32 = 120;
}

/// Number of live flows of both families.
pub(crate) fn count(maps: &Maps) -> Result<u64, DatapathError> {
    let now = clock::ticks().map_err(|e| maps.unreadable("flows4", e))?;
    let v4 = count_family(&maps.v4, now).map_err(|e| maps.unreadable("flows4", e))?;
    let v6 = count_family(&maps.v6, now).map_err(|e| maps.unreadable("flows6", e))?;
    Ok(v4 + v6)
}

fn count_family<A: Address>(maps: &FamilyMaps<A>, now: u32) -> io::Result<u64> {
    let heard = |entry: Conntrack<A>| (entry.flags, entry.last_seen);
    let live = |pair: &Pair<A>| is_live(pair.there.proto(), heard(pair.there), heard(pair.back), now);
    Ok(maps.flows()?.filter(live).count() as u64)
}

/// Flags and time of the last packet in each direction.
fn is_live(proto: u8, forward: (u32, u32), (back, back_seen): (u32, u32), now: u32) -> bool {
    let ticks = clock::age(now, forward.1).min(clock::age(now, back_seen));
    let limit = if proto == Protocol::Udp.number() {
        idle::UDP
    } else if (forward.0 | back) & CT_RST != 0 || (forward.0 & back) & CT_FIN != 0 {
        return false;
    } else if (forward.0 | back) & CT_FIN != 0 {
        idle::TCP_CLOSING
    } else if forward.0 & CT_SEEN_REPLY == 0 {
        idle::TCP_OPENING
    } else {
        idle::TCP
    };
    u64::from(ticks) << CLOCK_SHIFT <= u64::from(limit) * 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::CT_REPLY;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    #[test]
    fn a_connection_lives_until_both_sides_closed_it_or_one_reset_it() {
        let open = (CT_SEEN_REPLY, 1000);
        assert!(is_live(TCP, open, (CT_REPLY, 1000), 1010));
        assert!(is_live(TCP, (open.0 | CT_FIN, 1000), (CT_REPLY, 1000), 1010));
        assert!(!is_live(TCP, (open.0 | CT_FIN, 1000), (CT_REPLY | CT_FIN, 1000), 1010));
        assert!(!is_live(TCP, open, (CT_REPLY | CT_RST, 1000), 1010));
        assert!(!is_live(TCP, (open.0 | CT_RST, 1000), (CT_REPLY, 1000), 1000));
    }

    #[test]
    fn silence_ends_a_flow() {
        assert!(is_live(UDP, (0, 1000), (CT_REPLY, 1000), 1110));
        assert!(!is_live(UDP, (0, 1000), (CT_REPLY, 1000), 1130));
        assert!(is_live(UDP, (0, 1000), (CT_REPLY, 1060), 1130), "answers count, too");
        assert!(!is_live(TCP, (0, 1000), (CT_REPLY, 1000), 1070), "nobody answered");
        assert!(is_live(TCP, (CT_SEEN_REPLY, 1000), (CT_REPLY, 1000), 8200), "until the next keep-alive");
        assert!(!is_live(TCP, (CT_SEEN_REPLY, 1000), (CT_REPLY, 1000), 9000));
        assert!(is_live(UDP, (0, 1001), (CT_REPLY, 1001), 1000), "the clocks may differ by a tick");
        assert!(!is_live(TCP, (CT_SEEN_REPLY, 2000), (CT_REPLY, 2000), 1000), "such a flow would never end");
        assert!(is_live(TCP, (CT_SEEN_REPLY, 2000), (CT_REPLY, 999), 1000), "it goes on");
    }
}
