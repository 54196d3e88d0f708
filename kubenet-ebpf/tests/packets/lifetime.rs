//! How long a flow keeps its backend.

use std::net::SocketAddr;

use crate::{
    bench::{ALIVE, Bench, DRAINING, Hook, TERMINATING, for_each_kind},
    frame::{Flags, Frame, Proto},
    nets::{Net, at},
    table::Word,
};

struct Flow {
    client: SocketAddr,
    frontend: SocketAddr,
    old: SocketAddr,
    new: SocketAddr,
    id: u32,
}

/// A flow to `old`, while everything newer goes to `new`.
fn established(bench: &mut Bench, net: Net, proto: Proto) -> Flow {
    let (client, frontend) = (at(net.pod, 40000), at(net.vip, 80));
    let (old, new) = (at(net.pod_there, 8080), at(net.pod_there, 9090));
    let id = bench.backend(old, 0);
    bench.serve(frontend, proto, 0, &[id], &[]);
    bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, old);
    let answer = Frame::new(proto, old, client).flags(Flags::SynAck);
    bench.expect_forwarded(Hook::FromExternal, answer, frontend, client);
    Flow { client, frontend, old, new, id }
}

impl Flow {
    fn syn(&self, proto: Proto) -> Frame {
        Frame::new(proto, self.client, self.frontend)
    }

    /// Replaces the set; the frontend stays the same Service's.
    fn move_on(&self, bench: &mut Bench, proto: Proto) {
        let id = bench.backend(self.new, 0);
        bench.replace_set(self.frontend, proto, &[id]);
    }
}

#[test]
fn established_tcp_stays_with_a_removed_backend_and_a_new_connection_does_not() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let flow = established(bench, net, proto);
        flow.move_on(bench, proto);
        bench.set_backend(flow.id, flow.old, 0, 1);
        bench.expect_forwarded(Hook::FromPod, flow.syn(proto).flags(Flags::Ack), flow.client, flow.old);
        bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.new);
        let late = Frame::new(proto, flow.old, flow.client).flags(Flags::Ack);
        bench.expect_passed(Hook::FromExternal, late);
    });
}

#[test]
fn a_terminating_backend_gets_no_new_connection() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let flow = established(bench, net, proto);
        flow.move_on(bench, proto);
        bench.set_backend(flow.id, flow.old, ALIVE | TERMINATING, 1);
        bench.expect_forwarded(Hook::FromPod, flow.syn(proto).flags(Flags::Ack), flow.client, flow.old);
        bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.new);
    });
}

#[test]
fn udp_leaves_a_backend_that_is_gone() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Udp {
            return;
        }
        let flow = established(bench, net, proto);
        flow.move_on(bench, proto);
        // Still in use by others: the flow stays.
        bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.old);
        bench.set_backend(flow.id, flow.old, 0, 1);
        bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.new);
    });
}

#[test]
fn while_draining_udp_leaves_a_backend_that_does_not_answer() {
    for_each_kind(|bench, net, proto| {
        let flow = established(bench, net, proto);
        bench.configure(DRAINING, 20000..=29999);
        let there = flow.syn(proto).flags(Flags::Ack);
        let answer = Frame::new(proto, flow.old, flow.client).flags(Flags::Ack);
        for _ in 0..3 {
            bench.age(20);
            bench.expect_forwarded(Hook::FromPod, there.clone(), flow.client, flow.old);
            bench.expect_forwarded(Hook::FromExternal, answer.clone(), flow.frontend, flow.client);
        }
        // The client goes on, and hears nothing.
        bench.age(20);
        bench.expect_forwarded(Hook::FromPod, there.clone(), flow.client, flow.old);
        bench.age(20);
        if proto != Proto::Udp {
            bench.expect_forwarded(Hook::FromPod, there, flow.client, flow.old);
            return;
        }
        bench.expect_passed(Hook::FromPod, there);
        bench.expect_passed(Hook::FromExternal, answer);
        assert_eq!(bench.entries(), 0, "the flow is its successor's");
    });
}

/// A backend that others may have still: the frontend counts that it has lost one.
#[test]
fn udp_looks_for_its_backend_in_the_set_when_the_frontend_has_lost_one() {
    const CUT: u32 = 1 << 16;
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Udp {
            return;
        }
        let flow = established(bench, net, proto);
        let flags = |bench: &mut Bench| {
            let entry = bench.entry(flow.client, flow.frontend, proto).expect("a known flow");
            entry.get(Word::Flags) & (0xffff * CUT)
        };
        assert_eq!(flags(bench), 0);
        let other = bench.backend(flow.new, 0);
        // Another than this one was lost.
        for cuts in [1, 2, 0xffff, 0] {
            bench.replace_set_with(cuts * CUT, flow.frontend, proto, &[flow.id, other]);
            bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.old);
            assert_eq!(flags(bench), cuts * CUT, "it has looked");
        }
        // This one was.
        bench.replace_set_with(CUT, flow.frontend, proto, &[other]);
        bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.new);
        assert_eq!(flags(bench), CUT);
        // And the last one.
        bench.replace_set_with(2 * CUT, flow.frontend, proto, &[]);
        bench.expect_answered(Hook::FromPod, flow.syn(proto), Frame::refusal);
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn an_id_that_was_handed_out_again_is_another_backend() {
    for_each_kind(|bench, net, proto| {
        let flow = established(bench, net, proto);
        flow.move_on(bench, proto);
        bench.set_backend(flow.id, at(net.pod_here, 1), ALIVE, 2);
        bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.new);
    });
}

#[test]
fn a_service_made_anew_under_the_same_address_does_not_inherit_flows() {
    for_each_kind(|bench, net, proto| {
        let flow = established(bench, net, proto);
        bench.remove_service(flow.frontend, proto);
        let id = bench.backend(flow.new, 0);
        bench.serve(flow.frontend, proto, 0, &[id], &[]);
        if proto != Proto::Udp {
            bench.expect_forwarded(Hook::FromPod, flow.syn(proto).flags(Flags::Ack), flow.client, flow.old);
        }
        bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.new);
    });
}

#[test]
fn udp_to_a_removed_frontend_is_no_longer_ours() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Udp {
            return;
        }
        let flow = established(bench, net, proto);
        bench.remove_service(flow.frontend, proto);
        bench.expect_passed(Hook::FromPod, flow.syn(proto));
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn udp_is_refused_when_the_last_backend_goes() {
    for_each_kind(|bench, net, proto| {
        if proto != Proto::Udp {
            return;
        }
        let flow = established(bench, net, proto);
        bench.replace_set(flow.frontend, proto, &[]);
        bench.set_backend(flow.id, flow.old, 0, 1);
        bench.expect_answered(Hook::FromPod, flow.syn(proto), Frame::refusal);
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn a_closed_connection_gives_its_port_free_for_a_new_choice() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        for reset in [false, true] {
            // SCTP has no connections that are closed on one side.
            if proto == Proto::Sctp && !reset {
                continue;
            }
            bench.clear();
            let flow = established(bench, net, proto);
            flow.move_on(bench, proto);
            // A SYN sent again, and one side's FIN, change nothing.
            bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.old);
            if proto == Proto::Tcp {
                let fin = flow.syn(proto).flags(Flags::Fin);
                bench.expect_forwarded(Hook::FromPod, fin, flow.client, flow.old);
                bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.old);
            }

            let end = if reset { Flags::Rst } else { Flags::Fin };
            let end = Frame::new(proto, flow.old, flow.client).flags(end);
            bench.expect_forwarded(Hook::FromExternal, end, flow.frontend, flow.client);
            // The last ACK still finds its way.
            let ack = flow.syn(proto).flags(Flags::Ack);
            bench.expect_forwarded(Hook::FromPod, ack, flow.client, flow.old);
            bench.expect_forwarded(Hook::FromPod, flow.syn(proto), flow.client, flow.new);
            assert_eq!(bench.entries(), 2);
        }
    });
}

#[test]
fn a_backend_dialled_directly_answers_as_itself() {
    for_each_kind(|bench, net, proto| {
        let flow = established(bench, net, proto);
        // The client's port served a flow to the Service long ago, and now one to the backend's own address.
        bench.age(121);
        let direct = Frame::new(proto, flow.client, flow.old);
        bench.expect_passed(Hook::FromPod, direct);
        let answer = Frame::new(proto, flow.old, flow.client).flags(Flags::SynAck);
        bench.expect_passed(Hook::FromExternal, answer);
        assert_eq!(bench.entries(), 0);
    });
}

#[test]
fn a_quiet_tcp_connection_is_kept() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let flow = established(bench, net, proto);
        bench.age(100_000);
        let answer = Frame::new(proto, flow.old, flow.client).flags(Flags::Ack);
        bench.expect_forwarded(Hook::FromExternal, answer, flow.frontend, flow.client);
        let there = flow.syn(proto).flags(Flags::Ack);
        bench.expect_forwarded(Hook::FromPod, there, flow.client, flow.old);
    });
}

#[test]
fn an_ended_connection_does_not_take_the_answer_to_another() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        for hook in [Hook::FromExternal, Hook::ToDevice] {
            bench.clear();
            let flow = established(bench, net, proto);
            let reset = flow.syn(proto).flags(Flags::Rst);
            bench.expect_forwarded(Hook::FromPod, reset, flow.client, flow.old);
            // Another datapath translated the new SYN: its answer is not ours.
            let answer = Frame::new(proto, flow.old, flow.client).flags(Flags::SynAck);
            bench.expect_passed(hook, answer);
            assert_eq!(bench.entries(), 0);
        }
    });
}

#[test]
fn a_range_that_is_just_being_replaced_still_serves() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.set_backend(id, backend, 0, 1);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
    });
}
