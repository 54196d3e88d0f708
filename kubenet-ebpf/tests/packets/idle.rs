//! UDP flows of which one side was silent for long.

use crate::{
    bench::{Bench, Hook, for_each_kind},
    frame::{Flags, Frame, Proto},
    nets::{Net, at},
};

const IDLE: u32 = 120;

/// A pod's flow, and the frames of both sides.
fn begin(bench: &mut Bench, net: Net) -> [Frame; 2] {
    let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
    let id = bench.backend(backend, 0);
    bench.serve(frontend, Proto::Udp, 0, &[id], &[]);
    let frames = [Frame::new(Proto::Udp, client, frontend), Frame::new(Proto::Udp, backend, client)];
    there(bench, &frames);
    back(bench, &frames);
    frames
}

#[track_caller]
fn there(bench: &mut Bench, [ask, answer]: &[Frame; 2]) {
    bench.expect_forwarded(Hook::FromPod, ask.clone(), ask.from, answer.from);
}

#[track_caller]
fn back(bench: &mut Bench, [ask, answer]: &[Frame; 2]) {
    bench.expect_forwarded(Hook::FromExternal, answer.clone(), ask.to, answer.to);
}

fn for_each_family(test: impl Fn(&mut Bench, Net) + Send + Sync) {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            test(bench, net);
        }
    });
}

#[test]
fn a_flow_goes_on_while_one_side_is_heard() {
    for_each_family(|bench, net| {
        let frames = begin(bench, net);
        // Another backend, which nobody may get who stays.
        let other = bench.backend(at(net.pod_there, 9090), 0);
        bench.replace_set(frames[0].to, Proto::Udp, &[other]);
        // The client alone is heard, and is answered late.
        for _ in 0..2 {
            bench.age(IDLE - 20);
            there(bench, &frames);
        }
        back(bench, &frames);
        // The backend alone is.
        for _ in 0..2 {
            bench.age(IDLE - 20);
            back(bench, &frames);
        }
        there(bench, &frames);
        assert_eq!(bench.entries(), 2);
    });
}

#[test]
fn a_client_that_comes_back_after_both_were_silent_gets_a_backend_anew() {
    for_each_family(|bench, net| {
        let frames = begin(bench, net);
        let new = at(net.pod_there, 9090);
        let other = bench.backend(new, 0);
        bench.replace_set(frames[0].to, Proto::Udp, &[other]);
        bench.age(IDLE);
        let [ask, answer] = &frames;
        bench.expect_forwarded(Hook::FromPod, ask.clone(), ask.from, new);
        bench.expect_passed(Hook::FromExternal, answer.clone());
        assert_eq!(bench.entries(), 2);
    });
}

#[test]
fn an_answer_after_both_were_silent_is_no_answer() {
    for_each_family(|bench, net| {
        let frames = begin(bench, net);
        bench.age(IDLE);
        bench.expect_passed(Hook::FromExternal, frames[1].clone());
        assert_eq!(bench.entries(), 0);
    });
}

/// It is a connection of its own, but from a port that answers: nobody else can have dialled so.
#[test]
fn a_backend_that_dials_from_the_port_that_it_serves_is_taken_for_an_answer() {
    for_each_kind(|bench, net, proto| {
        if proto == Proto::Udp {
            return;
        }
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);
        bench.expect_forwarded(Hook::FromPod, Frame::new(proto, client, frontend), client, backend);
        // Nor does the client begin anew with an answer.
        let odd = Frame::new(proto, client, frontend).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromPod, odd, client, backend);
        let syn = Frame::new(proto, backend, client).flags(Flags::Syn);
        bench.expect_forwarded(Hook::FromExternal, syn, frontend, client);
        // The answer to a SYN of which nothing is known any more is no Service's.
        bench.evict(client, frontend, proto);
        let answer = Frame::new(proto, backend, client).flags(Flags::SynAck);
        bench.expect_passed(Hook::FromExternal, answer);
        assert_eq!(bench.entries(), 0);
    });
}
