use std::{collections::BTreeMap, fmt};

/// What the programs count, one number for each reason. The order is that of `enum metric` in `bpf/types.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Metric {
    /// Packets of known flows that were translated.
    Forwarded,
    /// Flows for which a backend was picked.
    NewFlow,
    /// New flows to a Service without backends, or to a port of a cluster IP that is no Service port, whose client
    /// was told.
    Rejected,
    /// New flows that were dropped because policy `Local` has no backend on this node.
    DropNoLocalBackend,
    /// Fragments of a datagram to a Service of which the first was not let through.
    DropFragment,
    /// New flows for which no source port was free to masquerade with.
    DropSnatExhausted,
    /// New flows for which the connection table had no room, and packets whose flow lost its room that very moment.
    DropConntrackFull,
    /// Packets whose headers cannot be rewritten.
    DropMalformed,
    /// Packets without a way to their backend, or at the end of their time to live.
    DropRoute,
    /// New flows from clients in none of the Service's source ranges.
    DropSourceRange,
    /// Fragments to a cluster IP that came before the first of their datagram, which alone has the ports.
    DropFragmentEarly,
    /// Events of flows and packets that were not reported, as there were more than a CPU may report in a second.
    EventOverBudget,
    /// Events for which there was no room: the datapath's process read too slowly.
    EventLost,
    /// Events for which there was no room: who [follows](crate::Inspector::follow) them read too slowly.
    EventLostToFollower,
    /// New flows from addresses that no client has: loopback, multicast, broadcast, none.
    DropSpoofed,
}

impl Metric {
    /// All of them, in the order of their indexes.
    pub const ALL: [Metric; 15] = [
        Metric::Forwarded,
        Metric::NewFlow,
        Metric::Rejected,
        Metric::DropNoLocalBackend,
        Metric::DropFragment,
        Metric::DropSnatExhausted,
        Metric::DropConntrackFull,
        Metric::DropMalformed,
        Metric::DropRoute,
        Metric::DropSourceRange,
        Metric::DropFragmentEarly,
        Metric::EventOverBudget,
        Metric::EventLost,
        Metric::EventLostToFollower,
        Metric::DropSpoofed,
    ];

    /// Short name for metrics systems: `drop_no_local_backend`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Metric::Forwarded => "forwarded",
            Metric::NewFlow => "new_flow",
            Metric::Rejected => "rejected",
            Metric::DropNoLocalBackend => "drop_no_local_backend",
            Metric::DropFragment => "drop_fragment",
            Metric::DropSnatExhausted => "drop_snat_exhausted",
            Metric::DropConntrackFull => "drop_conntrack_full",
            Metric::DropMalformed => "drop_malformed",
            Metric::DropRoute => "drop_route",
            Metric::DropSourceRange => "drop_source_range",
            Metric::DropFragmentEarly => "drop_fragment_early",
            Metric::EventOverBudget => "event_over_budget",
            Metric::EventLost => "event_lost",
            Metric::EventLostToFollower => "event_lost_to_follower",
            Metric::DropSpoofed => "drop_spoofed",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Counts since the datapath was built, all CPUs together.
pub type Metrics = BTreeMap<Metric, u64>;

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of `enum metric`, in their order, without what they begin with.
    fn names_in_c() -> Vec<String> {
        let types = include_str!("../bpf/types.h");
        let body = types.split_once("enum metric {").unwrap().1.split_once('}').unwrap().0;
        let names = body.lines().filter_map(|line| line.trim().strip_prefix("METRIC_")?.split_once(','));
        names.map(|(name, _)| name.to_lowercase()).filter(|name| name != "max").collect()
    }

    #[test]
    fn the_programs_and_the_library_count_the_same_under_the_same_names() {
        assert_eq!(names_in_c(), Metric::ALL.map(Metric::as_str));
        for (index, metric) in Metric::ALL.into_iter().enumerate() {
            assert_eq!(metric as usize, index, "{metric}");
        }
    }

    #[test]
    fn every_metric_is_counted_somewhere_in_the_programs() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/bpf");
        let sources: String = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension().is_some_and(|e| e == "h" || e == "c") && !path.ends_with("types.h")
            })
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        for metric in Metric::ALL {
            let name = format!("METRIC_{}", metric.as_str().to_uppercase());
            assert!(sources.contains(&format!("{name})")), "{name} is never counted");
        }
    }
}
