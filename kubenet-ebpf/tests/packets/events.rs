//! What is reported of flows and drops, to whom, and how much of it.

use aya::maps::{Array, MapData, RingBuf};

use crate::{
    bench::{Bench, EXTERNAL_DROP, Hook, INTERNAL_DROP, Metric, REDIRECT, for_each_kind, octets, on_bench},
    clock::ticks,
    frame::{Flags, Frame, Proto},
    nets::{V4, at},
};

const FLOW: u8 = 1;
const DROP: u8 = 2;
/// Each event stands behind 8 bytes in its ring.
const ROOM: u64 = (1 << 18) / (60 + 4 + 8);

impl Bench {
    /// Who listens for how many ticks from now on, and how many events a CPU may report in one.
    pub fn listen(&mut self, own: Option<u32>, follower: Option<u32>, budget: u32) {
        let until = |ticks_left: Option<u32>| ticks_left.map_or(0, |left| ticks().wrapping_add(left));
        let words = [until(own), until(follower), budget];
        let mut value = [0; 12];
        for (place, word) in value.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_ne_bytes();
        }
        let mut map = Array::<&mut MapData, [u8; 12]>::try_from(self.map_mut("listeners")).unwrap();
        map.set(0, value, 0).unwrap();
    }

    pub fn events(&mut self, ring: &str) -> Vec<Vec<u8>> {
        let mut ring = RingBuf::try_from(self.map_mut(ring)).unwrap();
        let mut events = Vec::new();
        while let Some(event) = ring.next() {
            events.push(event.to_vec());
        }
        events
    }
}

#[test]
fn nothing_is_reported_when_nobody_listens_and_no_longer_than_somebody_does() {
    on_bench(|bench| {
        bench.clear();
        let id = bench.backend(at(V4.pod_there, 8080), 0);
        bench.serve(at(V4.vip, 80), Proto::Tcp, 0, &[id], &[]);
        let mut port = 30000;
        let mut dial = |bench: &mut Bench| {
            port += 1;
            let mut frame = Frame::new(Proto::Tcp, at(V4.pod, port), at(V4.vip, 80));
            assert_eq!(bench.send(Hook::FromPod, &mut frame).action, REDIRECT);
        };
        for (own, follower, expected) in [
            (None, None, [0, 0]),
            (Some(100), None, [1, 0]),
            (None, Some(100), [0, 1]),
            (Some(100), Some(100), [1, 1]),
            // It said so long ago, and is gone.
            (Some(0), Some(u32::MAX - 10), [0, 0]),
            // Nobody says that; it is from another clock.
            (Some(100_000), Some(1 << 31), [0, 0]),
        ] {
            bench.listen(own, follower, 0);
            dial(bench);
            let seen = ["events", "followed"].map(|ring| bench.events(ring).len());
            assert_eq!(seen, expected, "{own:?}, {follower:?}");
        }
    });
}

#[test]
fn an_event_says_who_dialled_what_and_what_became_of_it() {
    for_each_kind(|bench, net, proto| {
        bench.listen(Some(100), None, 0);
        bench.events("events");
        let word = |address| {
            let mut word = octets(address);
            word.resize(16, 0);
            word
        };
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        let expect = |bench: &mut Bench,
                      kind: u8,
                      reason: u8,
                      to: std::net::SocketAddr,
                      backend: Option<std::net::SocketAddr>| {
            let family = if net.vip.is_ipv4() { 4 } else { 6 };
            let mut event = vec![kind, family, proto.number(), reason];
            event.extend(client.port().to_be_bytes());
            event.extend(to.port().to_be_bytes());
            event.extend(backend.map_or([0; 2], |b| b.port().to_be_bytes()));
            event.extend([0; 2]);
            event.extend(word(client.ip()));
            event.extend(word(to.ip()));
            event.extend(backend.map_or(vec![0; 16], |b| word(b.ip())));
            assert_eq!(bench.events("events"), [event]);
        };
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
        expect(bench, FLOW, 0, frontend, Some(backend));
        // What is known is not news.
        let known = Frame::new(proto, client, frontend).flags(Flags::Ack);
        bench.expect_forwarded(Hook::FromPod, known, client, backend);
        assert_eq!(bench.events("events"), Vec::<Vec<u8>>::new());

        let silent = at(net.vip, 81);
        bench.serve(silent, proto, INTERNAL_DROP | EXTERNAL_DROP, &[], &[]);
        bench.expect_dropped(Hook::FromPod, Frame::new(proto, client, silent), Metric::NoLocalBackend);
        expect(bench, DROP, Metric::NoLocalBackend as u8, silent, None);
        let empty = at(net.vip, 82);
        bench.serve(empty, proto, 0, &[], &[]);
        assert_eq!(bench.send(Hook::FromPod, &mut Frame::new(proto, client, empty)).action, REDIRECT);
        expect(bench, DROP, Metric::Rejected as u8, empty, None);
    });
}

#[test]
fn a_cpu_reports_so_many_events_in_a_tick_and_counts_the_others() {
    on_bench(|bench| {
        bench.clear();
        let id = bench.backend(at(V4.pod_there, 8080), 0);
        bench.serve(at(V4.vip, 80), Proto::Tcp, 0, &[id], &[]);
        bench.listen(Some(100), None, 5);
        let (before, begin) = (bench.metric(Metric::EventOverBudget), ticks());
        for port in 0..500 {
            bench.send(Hook::FromPod, &mut Frame::new(Proto::Tcp, at(V4.pod, 30000 + port), at(V4.vip, 80)));
        }
        let spans = u64::from(ticks() - begin) + 1;
        let reported = bench.events("events").len() as u64;
        assert_eq!(reported + bench.metric(Metric::EventOverBudget) - before, 500);
        let cpus = std::thread::available_parallelism().unwrap().get() as u64;
        assert!((5..=5 * spans * cpus).contains(&reported), "{reported} in {spans} ticks");
    });
}

#[test]
fn a_full_ring_keeps_what_it_has_and_what_is_lost_is_counted_for_its_reader_alone() {
    on_bench(|bench| {
        bench.clear();
        let id = bench.backend(at(V4.pod_there, 8080), 0);
        bench.serve(at(V4.vip, 80), Proto::Tcp, 0, &[id], &[]);
        bench.listen(Some(100), Some(100), u32::MAX);
        let before = [Metric::EventLost, Metric::EventLostToFollower].map(|metric| bench.metric(metric));
        let sent = ROOM + 500;
        for port in 0..sent {
            let client = at(V4.pod, 10_000 + port as u16);
            bench.send(Hook::FromPod, &mut Frame::new(Proto::Tcp, client, at(V4.vip, 80)));
            if port % 1000 == 0 {
                bench.events("followed");
            }
        }
        let kept = bench.events("events");
        let lost = bench.metric(Metric::EventLost) - before[0];
        assert_eq!(kept.len() as u64 + lost, sent);
        assert!(lost >= 500, "{lost}");
        assert_eq!(kept[0][4..6], 10_000u16.to_be_bytes(), "the first ones stay");
        assert_eq!(bench.metric(Metric::EventLostToFollower), before[1]);
        // There is room again.
        bench.send(Hook::FromPod, &mut Frame::new(Proto::Tcp, at(V4.pod, 9), at(V4.vip, 80)));
        assert_eq!(bench.events("events").len(), 1);
    });
}
