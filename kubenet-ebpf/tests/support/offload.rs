//! What veth leaves undone: XDP sees frames as their sender made them.

use std::process::Command;

use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use kubenet_testkit::lab::{Lab, Netns, Node};
use nix::{
    libc,
    sys::signal::{SigSet, SigmaskHow},
};

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

const SET_TX_CHECKSUM: u32 = 0x17;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

fn complete(netns: &Netns, interface: &str) {
    let done = netns.run(|| {
        let mut value = Value { command: SET_TX_CHECKSUM, data: 0 };
        // SAFETY: every bit pattern is an ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: an ordinary socket, which is closed below.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        // SAFETY: the request and what it points to outlive the call.
        let result = unsafe { libc::ioctl(socket, SIOCETHTOOL, &raw mut request) };
        let error = std::io::Error::last_os_error();
        // SAFETY: nobody else has it.
        unsafe { libc::close(socket) };
        if result == 0 { Ok(()) } else { Err(error) }
    });
    done.unwrap().unwrap_or_else(|e| panic!("{interface}: {e}"));
}

/// A program that passes everything, for it knows no device.
pub fn attach_other(netns: &Netns, interface: &str) -> Ebpf {
    let mut ebpf = Ebpf::load_file(concat!(env!("CARGO_MANIFEST_DIR"), "/src/kubenet.bpf.o")).unwrap();
    let program: &mut Xdp = ebpf.program_mut("kubenet_xdp").unwrap().try_into().unwrap();
    // The verifier gives up when a signal is pending, be it only that a child of another test has ended.
    let signals = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap();
    let loaded = program.load();
    signals.thread_set_mask().unwrap();
    loaded.unwrap();
    netns.run(|| program.attach(interface, XdpMode::Driver).unwrap()).unwrap();
    ebpf
}

/// The bridge takes what XDP sends while this lives: one end of a veth pair polls for it only when it has a program
/// of its own.
pub fn let_xdp_send(lab: &Lab) -> Ebpf {
    attach_other(&Netns::open(&format!("kubenet-{}-net", lab.id())).unwrap(), "node-a")
}

/// The other machines complete their checksums, as what comes over a wire has them.
pub fn complete_checksums(lab: &Lab) {
    complete(lab.outside().netns(), "eth0");
    let other = lab.node(Node::B);
    complete(other.netns(), other.external_interface());
}

/// Runs `ip` on node-a.
pub fn ip(lab: &Lab, arguments: &str) -> String {
    let run = || Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let output = lab.node(Node::A).netns().run(run).unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The id of the XDP program in the driver of an interface of node-a.
pub fn xdp_program(lab: &Lab, interface: &str) -> Option<u32> {
    let text = ip(lab, &format!("link show dev {interface}"));
    let id = text.split("prog/xdp id ").nth(1)?;
    Some(id.split_whitespace().next().unwrap().parse().unwrap())
}
