//! Which flows live: what would be cut if the datapath ended.

use std::io;

use kubenet_core::{datapath::DatapathError, model::Protocol};

use super::{
    clock,
    maps::{FamilyMaps, Maps},
};
use crate::layout::{Address, CLOCK_SHIFT, CT_FIN, CT_REPLY, CT_RST, CT_SEEN_REPLY, Conntrack, Tuple};

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
    let now = clock::ticks().map_err(|e| maps.unreadable("conntrack4", e))?;
    let v4 = count_family(&maps.v4, now).map_err(|e| maps.unreadable("conntrack4", e))?;
    let v6 = count_family(&maps.v6, now).map_err(|e| maps.unreadable("conntrack6", e))?;
    Ok(v4 + v6)
}

fn count_family<A: Address>(maps: &FamilyMaps<A>, now: u32) -> io::Result<u64> {
    let flows = maps.flows()?;
    let forward = flows.iter().filter(|(_, entry)| entry.flags & CT_REPLY == 0);
    let live = forward.filter(|(tuple, entry)| {
        let reply = flows.get(&reply_tuple(tuple, entry)).map(|entry| (entry.flags, entry.last_seen));
        is_live(tuple.proto, (entry.flags, entry.last_seen), reply, now)
            // A pair that was taken away while it was read: its way back was gone already.
            && (reply.is_some() || maps.has_flow(tuple, entry))
    });
    Ok(live.count() as u64)
}

/// The tuple of the answers to a forward entry's packets: from the backend to whom it sees.
fn reply_tuple<A: Address>(tuple: &Tuple<A>, entry: &Conntrack<A>) -> Tuple<A> {
    Tuple {
        saddr: entry.daddr,
        daddr: entry.saddr,
        sport: entry.dport,
        dport: entry.sport,
        proto: tuple.proto,
        pad: [0; 3],
    }
}

/// Flags and time of the last packet in each direction; the way back may be missing.
fn is_live(proto: u8, forward: (u32, u32), reply: Option<(u32, u32)>, now: u32) -> bool {
    let (back, back_seen) = reply.unwrap_or((0, forward.1));
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

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    #[test]
    fn a_connection_lives_until_both_sides_closed_it_or_one_reset_it() {
        let open = (CT_SEEN_REPLY, 1000);
        assert!(is_live(TCP, open, Some((CT_REPLY, 1000)), 1010));
        assert!(is_live(TCP, (open.0 | CT_FIN, 1000), Some((CT_REPLY, 1000)), 1010));
        assert!(!is_live(TCP, (open.0 | CT_FIN, 1000), Some((CT_REPLY | CT_FIN, 1000)), 1010));
        assert!(!is_live(TCP, open, Some((CT_REPLY | CT_RST, 1000)), 1010));
        assert!(!is_live(TCP, (open.0 | CT_RST, 1000), None, 1000));
    }

    #[test]
    fn silence_ends_a_flow() {
        assert!(is_live(UDP, (0, 1000), None, 1110));
        assert!(!is_live(UDP, (0, 1000), None, 1130));
        assert!(is_live(UDP, (0, 1000), Some((CT_REPLY, 1060)), 1130), "answers count, too");
        assert!(!is_live(TCP, (0, 1000), None, 1070), "nobody answered");
        assert!(is_live(TCP, (CT_SEEN_REPLY, 1000), None, 8200), "until the next keep-alive");
        assert!(!is_live(TCP, (CT_SEEN_REPLY, 1000), None, 9000));
        assert!(is_live(UDP, (0, 1001), None, 1000), "the clocks may differ by a tick");
        assert!(!is_live(TCP, (CT_SEEN_REPLY, 2000), None, 1000), "such a flow would never end");
        assert!(is_live(TCP, (CT_SEEN_REPLY, 2000), Some((CT_REPLY, 999)), 1000), "it goes on");
    }
}
