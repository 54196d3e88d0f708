//! From a configuration to a running datapath.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, mpsc},
    thread,
};

use kubenet_core::{
    datapath::{Capabilities, DatapathError, ErrorKind, EventHub, Feature, Limitation},
    model::{IpFamily, Protocol},
    route::{FrontendKind, RouteTable},
    worker::Worker,
};

use crate::{
    builder::Probe,
    config::Config,
    datapath::IptablesDatapath,
    engine::Engine,
    names::Names,
    netns,
    plan::{self, Context, Jump, Planner},
    preview::Preview,
    probe::{self, Found},
    refusal,
    registry::{Claim, Place},
    restore::{self, JumpEdit},
    rule::Chains,
};

impl From<&Found> for Probe {
    fn from(found: &Found) -> Self {
        Self {
            datapath: found.backend.datapath_name(),
            families: found.families(),
            random_fully: found.random_fully,
            affinity: found.recent,
            conntrack: found.conntrack,
        }
    }
}

pub(crate) fn probe(config: &Config) -> Result<Probe, DatapathError> {
    // On a thread of its own, which may change its network namespace.
    let found = thread::scope(|scope| scope.spawn(|| probe::examine(config)).join());
    match found {
        Ok(found) => found.as_ref().map(Probe::from).map_err(Clone::clone),
        Err(_) => {
            let message = "the probe's thread panicked";
            Err(DatapathError::new("iptables", "probe", ErrorKind::Internal, message))
        }
    }
}

pub(crate) fn build(config: Config) -> Result<IptablesDatapath, DatapathError> {
    let events = EventHub::default();
    let (tell, told) = mpsc::channel();
    let hub = events.clone();
    let worker = Worker::spawn("kubenet-iptables", move || {
        let found = probe::examine(&config)?;
        let namespace = netns::identity()?;
        let capabilities = capabilities(&found);
        let name = found.backend.datapath_name();
        let place = Place { namespace, backend: found.backend, prefix: config.prefix.clone() };
        let context = Context {
            names: Names::new(&config.prefix),
            random_fully: found.random_fully,
            hairpin: found.hairpin,
            sctp: found.sctp,
            accept_invalid: config.accept_invalid,
            families: found.families(),
        };
        // The receiver waits until this thread is ready.
        let _ = tell.send((name, capabilities.clone()));
        let Found { tools, other, conntrack, .. } = found;
        let claim = Claim::new(place);
        Ok::<_, StartError>(Engine::new(
            name,
            Arc::new(context),
            tools,
            other,
            conntrack,
            capabilities,
            claim,
            hub,
        ))
    })
    .map_err(|StartError(error)| error)?;
    let (name, capabilities) = told.recv().map_err(|_| {
        DatapathError::new("iptables", "build", ErrorKind::Internal, "the worker did not start")
    })?;
    Ok(IptablesDatapath { name, capabilities, worker, events })
}

struct StartError(DatapathError);

impl From<DatapathError> for StartError {
    fn from(error: DatapathError) -> Self {
        Self(error)
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        let message = "the worker thread could not be started";
        Self(DatapathError::with_source("iptables", "build", ErrorKind::Unavailable, message, error))
    }
}

/// See [`IptablesBuilder::preview`](crate::IptablesBuilder::preview).
pub(crate) fn preview(
    config: &Config,
    table: &RouteTable,
    before: Option<&RouteTable>,
) -> Result<Preview, DatapathError> {
    const NAME: &str = "iptables";
    let mut capabilities = routing_capabilities();
    let families = config.families.clone().unwrap_or_else(|| IpFamily::ALL.to_vec());
    capabilities.families = families.iter().copied().collect();
    let check = |table: &RouteTable| {
        capabilities
            .check_node(table.node())
            .map_err(|why| DatapathError::new(NAME, "preview", ErrorKind::Unsupported, why))
    };
    check(table)?;
    let names = Names::new(&config.prefix);
    let context = Arc::new(Context {
        names,
        random_fully: true,
        hairpin: true,
        sctp: true,
        accept_invalid: config.accept_invalid,
        families: families.clone(),
    });
    let (served, failed) = refusal::divide(NAME, &capabilities, table);
    let plan = |table| Planner::new(Arc::clone(&context), table);
    let mut texts = BTreeMap::new();
    let longest_walk;
    match before {
        None => {
            let planner = plan(served);
            longest_walk = planner.longest_walk();
            // Each goes to the top, so the last comes first.
            let jumps: Vec<_> = context.jumps(table.node()).into_iter().rev().collect();
            for family in families {
                let (none, chains) = (Chains::new(), planner.chains(family).cloned().unwrap_or_default());
                let jumps = jumps.iter().filter(|jump| jump.is_for(family));
                let edits: Vec<_> = jumps.map(|jump| JumpEdit::insert(jump, family)).collect();
                let all = plan::changes(&none, &chains);
                texts.insert(family, restore::transaction(family, &none, &all, &edits));
            }
        }
        Some(before) => {
            check(before)?;
            let planner = plan(refusal::divide(NAME, &capabilities, before).0);
            let delta = planner.table().diff(&served);
            if delta.is_empty() {
                return Ok(Preview { texts, failed, longest_walk: planner.longest_walk() });
            }
            longest_walk = plan(served).longest_walk();
            for (family, changes) in planner.step(Arc::new(delta)).changes {
                let old = planner.chains(family).cloned().unwrap_or_default();
                let (had, has) = (context.jumps(before.node()), context.jumps(table.node()));
                let other = |jumps: &[Jump], others: &[Jump]| -> Vec<JumpEdit> {
                    let other = jumps.iter().filter(|jump| jump.is_for(family) && !others.contains(jump));
                    other.map(|jump| JumpEdit::insert(jump, family)).collect()
                };
                let gone = other(&had, &has);
                let edits: Vec<_> = gone.iter().map(JumpEdit::inverse).chain(other(&has, &had)).collect();
                texts.insert(family, restore::transaction(family, &old, &changes, &edits));
            }
        }
    }
    Ok(Preview { texts, failed, longest_walk })
}

/// What rules can say on every machine.
fn routing_capabilities() -> Capabilities {
    let mut capabilities = Capabilities::basic();
    capabilities.protocols = Protocol::ALL.into();
    capabilities.frontends = FrontendKind::ALL.into();
    capabilities.features = [
        Feature::SourceRanges,
        Feature::Affinity,
        Feature::Weights,
        Feature::LoopbackNodePorts,
        Feature::InterfaceDetectors,
        Feature::RejectUnknownPorts,
    ]
    .into();
    capabilities
}

fn capabilities(found: &Found) -> Capabilities {
    let mut capabilities = routing_capabilities();
    capabilities.families = found.families().into_iter().collect();
    capabilities.keep_on_close = true;
    capabilities.node_udp_follows = found.conntrack;
    capabilities.limitations.extend([
        Limitation {
            what: "flows that a change of source ranges shuts out",
            why: "who is admitted is decided when a flow begins: established connections live on until they end. UDP \
                  flows are cut where the kernel has connection tracking over netlink (nf_conntrack_netlink)",
        },
        Limitation {
            what: "backends at an address of this node",
            why: "the kernel masquerades what leaves the node. What comes in for such a backend stays here, and the \
                  backend sees the client whatever the route says; what the node itself sends to it is masqueraded",
        },
        Limitation {
            what: "node ports on loopback addresses",
            why: "they need net.ipv4.conf.all.route_localnet, which is set with them, and taken back when they are no \
                  longer asked for or the datapath is removed, unless it was set before. Of IPv4 only: the kernel \
                  lets no packet of [::1] leave the node",
        },
        Limitation {
            what: "UDP flows at a swap",
            why: "a datagram does not tell whether its flow is new: what another datapath began may get another \
                  backend",
        },
        Limitation {
            what: "established flows after close",
            why: "the kernel translates them as long as some rule in the network namespace uses connection \
                  tracking; where ours are the only ones, removing them ends the translation. drain() counts \
                  these flows where the kernel can list them",
        },
    ]);
    affinity(&mut capabilities, found);
    if !found.sctp {
        capabilities.protocols.remove(&Protocol::Sctp);
        capabilities.limitations.push(Limitation {
            what: "SCTP",
            why: "the kernel or iptables has no match for it (xt_sctp): its routes are reported as unsupported",
        });
    }
    if !found.conntrack {
        capabilities.limitations.push(Limitation {
            what: "number of flows while draining",
            why: "the kernel offers no connection tracking over netlink (nf_conntrack_netlink): drain() takes no \
                  new flows, and then fails with Unsupported where closing would end flows, as it cannot say how \
                  many",
        });
        capabilities.limitations.push(Limitation {
            what: "UDP flows to backends that are gone, and of clients that are shut out",
            why: "the kernel offers no connection tracking over netlink (nf_conntrack_netlink), so they end by \
                  their timeout only",
        });
    }
    if !found.hairpin {
        capabilities.limitations.push(Limitation {
            what: "backends that dial their own Service",
            why: "the kernel or iptables has no match that compares addresses (xt_bpf): a backend that is not known \
                  to be on this node is left out for its own flows, unless it is the last of its Service",
        });
    }
    if !found.random_fully {
        capabilities.limitations.push(Limitation {
            what: "source ports of masqueraded flows",
            why: "this iptables has no MASQUERADE --random-fully: ports are kept where they are free",
        });
    }
    capabilities
}

/// What the kernel's match `recent` makes of session affinity.
fn affinity(capabilities: &mut Capabilities, found: &Found) {
    if !found.recent {
        capabilities.features.remove(&Feature::Affinity);
        capabilities.limitations.push(Limitation {
            what: "session affinity",
            why: "the kernel or iptables has no match that remembers clients (xt_recent): routes that ask for it are \
                  reported as unsupported",
        });
        return;
    }
    capabilities.affinity_clients = found.recent_clients;
    capabilities.limitations.extend([
        Limitation {
            what: "clients with affinity",
            why: "the kernel remembers so many of each backend as the parameter ip_list_tot of its module xt_recent \
                  says, 100 by default: beyond, those not seen for longest are forgotten. To have more, load the \
                  module with ip_list_tot=10000, or boot with xt_recent.ip_list_tot=10000 where it is built in; \
                  ip_pkt_list_tot=1 makes a client cost 100 bytes instead of 2 KB",
        },
        Limitation {
            what: "endpoints of Services with affinity",
            why: "a new connection looks for its client on the list of one endpoint after the other, and the kernel \
                  looks for each list among all of them: many such Services of many endpoints slow all of them down",
        },
        Limitation {
            what: "affinity to a backend that comes back",
            why: "a backend's clients are forgotten when it goes; and one that dials frontends whose policies have \
                  different backends may get one backend for each policy",
        },
    ]);
}
