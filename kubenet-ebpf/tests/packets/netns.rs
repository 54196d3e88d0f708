//! The network namespace of a test: a small node, with one pod's interface and one that leads outside.

use std::{
    fs::File,
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sched::{CloneFlags, setns};

/// An external device for test runs.
pub const VETH: &str = "
link add ext0 address 02:00:00:00:02:01 type veth peer name ext0p
link set ext0p up
";

/// An external device whose frames the test sends and receives.
pub const TAP: &str = "
tuntap add dev ext0 mode tap vnet_hdr
link set ext0 address 02:00:00:00:02:01
";

const SET_UP: &str = "
link set lo up
link add pod0 address 02:00:00:00:01:01 type veth peer name pod0p
link set pod0 up
link set pod0p up
link set ext0 up
addr add 192.0.2.1/24 dev ext0
addr add 192.0.2.9/24 dev ext0
addr add 2001:db8::1/64 dev ext0 nodad
addr add 2001:db8::9/64 dev ext0 nodad
addr add fe80::1/64 dev pod0 nodad
neigh add 192.0.2.2 lladdr 02:00:00:00:02:02 dev ext0
neigh add 192.0.2.254 lladdr 02:00:00:00:02:02 dev ext0
neigh add 2001:db8::2 lladdr 02:00:00:00:02:02 dev ext0
neigh add 2001:db8::fe lladdr 02:00:00:00:02:02 dev ext0
route add 10.1.0.0/24 dev pod0
route add fd01::/64 dev pod0
route add 10.2.0.0/24 via 192.0.2.2
route add fd02::/64 via 2001:db8::2
route add 10.3.0.0/24 via 192.0.2.2 mtu lock 1300
route add fd03::/64 via 2001:db8::2 mtu lock 1300
route add 10.4.0.0/24 via 192.0.2.77
route add 10.5.0.0/24 via inet6 2001:db8::2 dev ext0
route add blackhole 10.9.0.0/24
route add blackhole fd09::/64
route add default via 192.0.2.254
route add default via 2001:db8::fe
";

/// Moves this thread into a new namespace that lives as long as the thread, whatever happens.
pub fn node_namespace(external: &str) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("kubenet-pkt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    ip(&format!("netns add {name}"));
    let entered = File::open(format!("/run/netns/{name}"))
        .and_then(|file| setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(Into::into));
    ip(&format!("netns del {name}"));
    entered.expect("enter the namespace");

    for line in external.lines().chain(SET_UP.lines()).filter(|line| !line.is_empty()) {
        ip(line);
    }
    for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{file}"), "1").expect("switch forwarding on");
    }
}

/// Makes the node of this thread no router.
pub fn switch_forwarding_off() {
    for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{file}"), "0").expect("switch forwarding off");
    }
}

/// Runs `ip` in the namespace of this thread.
pub fn ip(arguments: &str) {
    let six = (arguments.contains("fd0") || arguments.contains("2001:")) && !arguments.contains("inet6");
    let family = if six { &["-6"][..] } else { &[] };
    let output = Command::new("ip").args(family).args(arguments.split(' ')).output().expect("run ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
