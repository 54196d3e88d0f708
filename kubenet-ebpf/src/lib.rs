//! Kubernetes Service routing in eBPF, for Linux.
//!
//! [`EbpfDatapath`] makes the kernel equal to a [`RouteTable`](kubenet_core::route::RouteTable): TC programs at
//! the interfaces of pods and of the node translate packets, socket programs translate the addresses that
//! the node's own processes dial, and at network cards an XDP program sends back what leaves again. A change of a route is one map entry, whatever the number of Services.
//!
//! ```no_run
//! use std::sync::Arc;
//! use kubenet_core::{datapath::Datapath, route::RouteTable};
//! use kubenet_ebpf::EbpfDatapath;
//!
//! # async fn run(table: Arc<RouteTable>) -> Result<(), Box<dyn std::error::Error>> {
//! let datapath = EbpfDatapath::builder()
//!     .external_interface("eth0")
//!     .cgroup("/sys/fs/cgroup")
//!     .build()?;
//! datapath.attach_pod("veth1a2b3c4d").await?;
//! let report = datapath.replace(table).await?;
//! println!("{} routes in {:?}, {} failed", report.upserted, report.took, report.failed.len());
//! # Ok(())
//! # }
//! ```
//!
//! # What it needs
//! - Linux 5.10; 5.14 for [`EbpfBuilder::cgroup`]. [`probe()`] says what this machine has, and the
//!   [table below](#kernels) what is done without.
//! - `CAP_BPF`, `CAP_PERFMON` and `CAP_NET_ADMIN`, and `CAP_SYS_ADMIN` for [`EbpfBuilder::network_namespace`].
//! - A BPF file system where it pins, as most machines have at `/sys/fs/bpf`.
//! - A node that forwards: `net.ipv4.ip_forward` and `net.ipv6.conf.all.forwarding` are 1, and there are routes
//!   to the pods.
//!
//! # Hooks
//! | hook | whom it serves | switched by |
//! |---|---|---|
//! | sockets in a cgroup | this node's own processes | [`EbpfBuilder::cgroup`], [`EbpfBuilder::socket_hooks`] |
//! | TC at pods' interfaces | pods | [`EbpfBuilder::pod_tc`] |
//! | TC at external interfaces | clients outside, answers from other nodes | [`EbpfBuilder::external_tc`] |
//! | XDP at external interfaces | of those, what leaves by the interface that it came in by | [`EbpfBuilder::xdp`] |
//!
//! All that the kernel has are on by default. The datapath's
//! [`Capabilities::clients`](kubenet_core::datapath::Capabilities::clients) say whom those that are on serve.
//!
//! Off by default is [`EbpfBuilder::redirect_peer`], with which TC puts packets straight into pods of this node: from
//! pod to pod, a connection then costs less, but what hangs at the egress of the pods' interfaces, such as a network
//! plugin's policy, sees none of those packets.
//!
//! # Kernels
//! Written for Linux 5.10 and later, and run on 6.18. What is not there is found out, not guessed from the version,
//! but for the one row that says so.
//!
//! | Feature | Needs | Since | Without it |
//! |---|---|---|---|
//! | Packets of pods and from outside | `bpf_redirect_neigh`, `bpf_redirect_peer`, `bpf_fib_lookup` in TC programs | 5.10 | [`EbpfBuilder::build`] fails and names it |
//! | Atomic sets of backends | maps of memory (`BPF_F_MMAPABLE`) | 5.5 | fails |
//! | Time | `bpf_jiffies64` | 5.6 | fails |
//! | Cheap time | `bpf_ktime_get_coarse_ns` | 5.11 | `bpf_ktime_get_ns`, which asks the hardware; once in a jiffy |
//! | Reading tables back, cutting UDP flows | `BPF_MAP_LOOKUP_BATCH` | 5.6 | fails |
//! | Attachment to interfaces by links | TCX | 6.6 | filters of a `clsact` queueing discipline, which stays on the interface |
//! | The node's own processes | `bpf_get_netns_cookie` (5.7), links to cgroups (5.7), `getpeername` hooks (5.8), `SO_NETNS_COOKIE` | 5.14 | fails where [`EbpfBuilder::cgroup`] is set |
//! | XDP at external interfaces | links of XDP (5.9), `bpf_xdp_get_buff_len` | 5.18 | TC serves alone |
//! | `ECONNREFUSED` at the socket | `bpf_set_retval` | 5.18 | `EPERM` |
//! | Connected UDP sockets follow backends | hook at the end of a socket (5.9), `CONFIG_INET_DIAG_DESTROY`, `CONFIG_INET_UDP_DIAG` | 5.9 | they stay with a backend that is gone: [`Capabilities::node_udp_follows`](kubenet_core::datapath::Capabilities::node_udp_follows) |
//! | The route's MTU in "packet too big" | `mtu_result` of `bpf_fib_lookup` | 5.12 | 1280 |
//! | A cheaper routing look-up | `BPF_FIB_LOOKUP_SKIP_NEIGH` | 6.3, by version | the neighbour is looked up, too |
//! | Programs detached at once | `BPF_LINK_DETACH` | 5.9 | when the link is closed |
//! | Pins | a BPF file system | 4.4 | nothing outlives the process |
//!
//! # Restarts and upgrades
//! With [`EbpfBuilder::pin_dir`], maps and links are pinned in a BPF file system, and the kernel goes on forwarding
//! when the process ends, is killed or is upgraded. The next one with that directory:
//! - takes its lock, or says that another datapath has it;
//! - compares each map with what it needs, and refuses another layout, size or shape by name;
//! - rebuilds from the maps what was programmed, connections and clients of affinity with it, also where the last
//!   process ended in the middle of an update;
//! - puts its programs in the place of the old ones with the first `replace`, so that each packet meets one or the
//!   other, and changes what differs. What then serves nobody goes, and nothing before.
//!
//! Another layout is never migrated: [`remove_pins`] ends what it forwards. [`Inspector`] looks into what is pinned,
//! from any process.
//!
//! ```no_run
//! use kubenet_ebpf::{DEFAULT_PIN_DIR, EbpfDatapath};
//!
//! let datapath = EbpfDatapath::builder().external_interface("eth0").pin_dir(DEFAULT_PIN_DIR).build()?;
//! # Ok::<(), kubenet_core::datapath::DatapathError>(())
//! ```
//!
//! No clang is needed: the programs are built beforehand and embedded. Elsewhere than on Linux the crate
//! compiles, and [`EbpfBuilder::build`] says [`Unsupported`](kubenet_core::datapath::ErrorKind::Unsupported).

#![deny(unsafe_op_in_unsafe_fn)]

mod builder;
mod datapath;
mod error;
mod inspect;
mod metrics;
mod probe;

#[cfg(target_os = "linux")]
mod affinities;
#[cfg(target_os = "linux")]
mod backends;
#[cfg(target_os = "linux")]
mod decode;
#[cfg(target_os = "linux")]
mod ids;
#[cfg(target_os = "linux")]
mod index;
#[cfg(target_os = "linux")]
mod kernel;
#[cfg(target_os = "linux")]
mod layout;
#[cfg(target_os = "linux")]
mod names;
#[cfg(target_os = "linux")]
mod pin;
#[cfg(target_os = "linux")]
mod ports;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
mod refused;
#[cfg(target_os = "linux")]
mod rest;
#[cfg(target_os = "linux")]
mod sets;
#[cfg(target_os = "linux")]
mod settle;
#[cfg(target_os = "linux")]
mod slots;
#[cfg(target_os = "linux")]
mod state;
#[cfg(not(target_os = "linux"))]
mod unsupported;

#[cfg(target_os = "linux")]
use kernel as engine;
#[cfg(not(target_os = "linux"))]
use unsupported as engine;

pub use builder::{AttachMode, DEFAULT_PIN_DIR, EbpfBuilder, MapSizes, XdpMode};
pub use datapath::{EbpfDatapath, remove_pins};
pub use inspect::{BackendEntry, Connection, Followed, Inspector, StickyClient};
pub use metrics::{Metric, Metrics};
pub use probe::{Hook, Probe, probe};
