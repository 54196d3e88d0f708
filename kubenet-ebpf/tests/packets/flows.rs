//! New and known flows, there and back.

use crate::{
    bench::{Hook, LOCAL, Metric, at, for_each_kind},
    frame::{Flags, Frame},
};

#[test]
fn a_pod_reaches_a_backend_and_gets_the_answer_from_the_frontend() {
    for_each_kind(|bench, net, proto| {
        let (client, frontend, backend) = (at(net.pod, 40000), at(net.vip, 80), at(net.pod_there, 8080));
        let id = bench.backend(backend, 0);
        bench.serve(frontend, proto, 0, &[id], &[]);

        let syn = Frame::new(proto, client, frontend);
        bench.expect_forwarded(Hook::FromPod, syn, client, backend);
        let syn_ack = Frame::new(proto, backend, client).flags(Flags::SynAck);
        bench.expect_forwarded(Hook::FromExternal, syn_ack, frontend, client);
        let ack = Frame::new(proto, client, frontend).flags(Flags::Ack);
        bench.expect_forwarded(Hook::FromPod, ack, client, backend);
        assert_eq!(bench.entries(), 2);
    });
}
