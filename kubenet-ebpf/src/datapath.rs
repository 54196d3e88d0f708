use std::{io, path::Path, sync::Arc};

use async_trait::async_trait;
use futures::stream::BoxStream;
use kubenet_core::{
    datapath::{
        ApplyReport, Capabilities, Close, Counters, Datapath, DatapathError, DatapathEvent, DrainStatus,
        ErrorKind, EventHub, Feature, Limitation,
    },
    model::Protocol,
    route::{FrontendKind, Origin, RouteDelta, RouteTable},
    worker::{Worker, WorkerGone},
};

use crate::{
    EbpfBuilder, Metrics, XdpMode,
    builder::Hooks,
    engine::{self, Engine},
    error::{NAME, error},
};

/// Routes Services in eBPF: programs at the interfaces of pods and of the node, and at the sockets of the
/// node's own processes.
///
/// Packets meet the programs after the first [`replace`](Datapath::replace). Dropping the datapath detaches
/// them, which ends the translation of the flows that it serves; see [`Datapath::drain`] for how many those
/// are. With [`EbpfBuilder::pin_dir`], dropping it, closing it with [`Close::Keep`] and the end of its process
/// leave the kernel forwarding, and the next datapath with that directory goes on from there: it knows all
/// routes, backends, connections and clients, and puts its programs in the place of the old ones so that each
/// packet meets one or the other. Nothing is removed before its first `replace`.
///
/// When a program does not hang any more where it should, because somebody detached it or made the interface
/// anew, [`Datapath::read`] answers with no routes: an audit finds the difference, and the next
/// [`replace`](Datapath::replace) attaches it again. Filters ([`AttachMode::Clsact`](crate::AttachMode::Clsact))
/// are missed only with their interface. Once packets meet the programs, no update fails for an interface or a
/// cgroup that cannot be attached to: that is a [`DatapathEvent::Drift`].
///
/// Who removes pins of a datapath that runs takes nothing from packets, but what is not pinned ends with the process.
/// [`Datapath::read`], [`Datapath::replace`] and [`EbpfDatapath::attach_pod`] pin it again and say so by a
/// [`DatapathEvent::Drift`], or why that cannot be: the file system is gone or read-only, or another datapath took
/// the directory.
#[derive(Debug)]
pub struct EbpfDatapath {
    /// `None` once it is closed.
    worker: Worker<Option<Engine>>,
    capabilities: Capabilities,
    events: EventHub,
}

/// An error at the start of the thread.
struct StartError(DatapathError);

impl From<io::Error> for StartError {
    fn from(e: io::Error) -> Self {
        Self(crate::error::caused("build", ErrorKind::Unavailable, "cannot start a thread", e))
    }
}

impl EbpfDatapath {
    /// Begins a datapath.
    pub fn builder() -> EbpfBuilder {
        EbpfBuilder::default()
    }

    pub(crate) fn start(builder: EbpfBuilder) -> Result<Self, DatapathError> {
        let events = EventHub::default();
        let pins = engine::open_pins(&builder)?;
        let capabilities = capabilities(&builder, pins.is_some());
        let for_engine = (capabilities.clone(), events.clone());
        let init = move || {
            let (capabilities, events) = for_engine;
            Engine::start(builder, pins, capabilities, events).map(Some).map_err(StartError)
        };
        let worker = Worker::spawn("kubenet-ebpf", init).map_err(|StartError(e)| e)?;
        Ok(Self { worker, capabilities, events })
    }

    /// Serves the pod behind this interface: the host's end of its veth pair, or a bridge that pods are connected
    /// to. Before the first
    /// [`replace`](Datapath::replace) the interface is only remembered. Idempotent; call it again when the
    /// interface was made anew.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when there is no such interface in the node's network namespace. [`ErrorKind::Unsupported`]
    /// when it is a port of a bridge: the frames there are for the bridge, which is to be attached instead.
    pub async fn attach_pod(&self, interface: &str) -> Result<(), DatapathError> {
        let interface = interface.to_owned();
        self.run("attach_pod", move |engine| engine.attach_pod(&interface)).await
    }

    /// Ends that. An interface that is gone, or was never attached, is no error.
    ///
    /// # Errors
    /// The kernel's, when the programs cannot be detached.
    pub async fn detach_pod(&self, interface: &str) -> Result<(), DatapathError> {
        let interface = interface.to_owned();
        self.run("detach_pod", move |engine| engine.detach_pod(&interface)).await
    }

    /// What the programs counted, dropped packets by reason among it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] after [`Datapath::close`].
    pub async fn metrics(&self) -> Result<Metrics, DatapathError> {
        self.run("metrics", |engine| engine.metrics()).await
    }

    async fn run<R: Send + 'static>(
        &self,
        operation: &'static str,
        job: impl FnOnce(&mut Engine) -> Result<R, DatapathError> + Send + 'static,
    ) -> Result<R, DatapathError> {
        finished(operation, self.worker.run(on_open(operation, job)).await)
    }

    /// Runs a job that programs routes, and behind it what nobody has to wait for.
    async fn update(
        &self,
        operation: &'static str,
        job: impl FnOnce(&mut Engine) -> Result<ApplyReport, DatapathError> + Send + 'static,
    ) -> Result<ApplyReport, DatapathError> {
        let updated = self.worker.run(on_open(operation, job));
        drop(self.worker.run(|engine| engine.iter_mut().for_each(Engine::cut_late)));
        finished(operation, updated.await)
    }
}

fn on_open<R>(
    operation: &'static str,
    job: impl FnOnce(&mut Engine) -> Result<R, DatapathError>,
) -> impl FnOnce(&mut Option<Engine>) -> Result<R, DatapathError> {
    move |engine| engine.as_mut().map_or_else(|| Err(closed(operation)), job)
}

fn finished<R>(
    operation: &'static str,
    result: Result<Result<R, DatapathError>, WorkerGone>,
) -> Result<R, DatapathError> {
    result.unwrap_or_else(|gone| {
        Err(crate::error::caused(operation, ErrorKind::Internal, "a job of this datapath panicked", gone))
    })
}

/// Ends and removes everything that is pinned in a directory (see [`EbpfBuilder::pin_dir`]), in the layout of any
/// version, and the directory. One that is not there is no error.
///
/// For a datapath that is not wanted any more, and for pins that a newer version cannot adopt. Filters
/// ([`AttachMode::Clsact`](crate::AttachMode::Clsact)) are removed from the network namespace of this thread.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when a datapath is using the directory, or something cannot be removed: all else is.
pub fn remove_pins(directory: impl AsRef<Path>) -> Result<(), DatapathError> {
    engine::remove_pins(directory.as_ref())
}

fn closed(operation: &'static str) -> DatapathError {
    error(operation, ErrorKind::Unavailable, "the datapath is closed: build another one")
}

fn capabilities(builder: &EbpfBuilder, is_pinned: bool) -> Capabilities {
    let mut capabilities = Capabilities::basic();
    let Hooks { pods, xdp, .. } = builder.hooks;
    let sockets = builder.hooks.sockets && builder.cgroup.is_some();
    let external = builder.has_external_tc();
    let xdp_alone = !external && xdp == XdpMode::Native && !builder.external_interfaces.is_empty();
    let clients =
        [(Origin::Pod, pods), (Origin::Node, sockets), (Origin::Outside, external || xdp_alone && pods)];
    capabilities.clients = clients.into_iter().filter_map(|(who, served)| served.then_some(who)).collect();
    // The socket hooks know nothing of SCTP.
    if pods || external {
        capabilities.protocols = Protocol::ALL.into();
    }
    capabilities.frontends = FrontendKind::ALL.into();
    capabilities.features = [
        Feature::Weights,
        Feature::Maglev,
        Feature::SourceRanges,
        Feature::Affinity,
        Feature::InterfaceDetectors,
        Feature::RejectUnknownPorts,
    ]
    .into();
    if sockets {
        capabilities.features.insert(Feature::LoopbackNodePorts);
    }
    capabilities.local_backends_see_client = true;
    capabilities.counters = true;
    // Of flows that sockets translate, the kernel sends the packets untouched.
    capabilities.packet_counters = pods || external;
    capabilities.node_udp_follows = sockets && engine::cuts_udp_sockets(builder.network_namespace.as_deref());
    capabilities.keep_on_close = is_pinned;
    capabilities.affinity_clients = Some(builder.sizes.affinities);
    let follows = capabilities.node_udp_follows;
    let mut add = |what, why| capabilities.limitations.push(Limitation { what, why });
    add(
        "UDP flows at a swap",
        "a UDP packet does not tell whether its flow is new: what another datapath began may get another backend",
    );
    add(
        "masqueraded flows at a swap",
        "replies come back to a port that only the datapath that chose it knows: keep it draining until they end",
    );
    add(
        "idle flows while draining",
        "a flow counts as gone after 130 minutes without a packet (TCP) or 2 minutes (UDP), a connection that is \
         half closed after 2 minutes, one that nobody answered after 1; a UDP flow whose backend is silent for \
         30 seconds is the successor's",
    );
    add(
        "endpoints of very different weight",
        "where the weights of a target do not fit in 1,024 places (or 16 for each endpoint, if that is more), shares \
         are rounded to one place, and nobody has less than one",
    );
    add(
        "affinity and maglev for this node's own processes",
        "all of them together are one client, under the node's first address: a socket that connects has no \
         address yet",
    );
    add(
        "clients with affinity",
        "the least recently seen are forgotten when there are more than MapSizes::affinities",
    );
    add(
        "fragments out of order",
        "only a datagram's first fragment has ports: one that comes before it is dropped and counted at an address \
         with Services, and left to the stack elsewhere, as it may be anybody's; at an address of this node the \
         stack waits for the first in vain; the datagram is lost",
    );
    add(
        "SCTP",
        "associations have one address on each side; a fragmented packet whose port is to be changed is dropped and \
         counted, as its checksum depends on the length of the whole; this node's own processes reach no Service by \
         SCTP, for which the kernel has no socket programs",
    );
    add(
        "masqueraded packets that may be fragmented",
        "one that is larger than the device towards its backend takes is dropped and counted, without an ICMP \
         error: this node does not fragment in its own name",
    );
    if builder.direct_server_return {
        add(
            "direct server return",
            "clients outside are not masqueraded on the way to backends of other nodes, which must know it, too; a \
             packet with so many IPv4 options or such IPv6 headers that it cannot be marked is dropped and counted",
        );
    }
    if builder.redirect_peer {
        add(
            "egress of pods' interfaces",
            "what hangs there on the node's side sees no translated packet (EbpfBuilder::redirect_peer)",
        );
    }
    if !pods {
        add("pods", "they reach no Service: EbpfBuilder::pod_tc is off");
    }
    if !external && pods {
        add(
            "pods whose flows are masqueraded",
            "answers of other nodes to the node's own address are not translated back: no TC program is at an \
             external interface (EbpfBuilder::external_interface, EbpfBuilder::external_tc)",
        );
    }
    if xdp_alone {
        add(
            "XDP without TC",
            "nobody serves fragments, ICMP errors, headers with options or extensions, packets whose checksum is yet \
             to be completed, and next hops without a neighbour's entry, nor answers for Services without backends \
             or answers of this node's own processes as backends (EbpfBuilder::external_tc)",
        );
    }
    if !sockets {
        add(
            "this node's own processes",
            "they reach no Service: translation at their sockets needs a cgroup (EbpfBuilder::cgroup)",
        );
    } else if follows {
        add(
            "connected UDP sockets of this node",
            "their address is translated once, when they connect: when that backend goes, they get ECONNABORTED and \
             must connect again, which fails while there is none; sockets that are not connected choose again by \
             themselves",
        );
    } else {
        add(
            "connected UDP sockets of this node",
            "their address is translated once, when they connect: they stay with that backend, also when it is \
             gone, as this kernel cuts no sockets (CONFIG_INET_DIAG_DESTROY), and connecting fails while there is \
             none; sockets that are not connected choose again",
        );
    }
    if sockets {
        add(
            "node ports on loopback addresses",
            "for sockets that have no address of their own yet: from one that is bound to a loopback address there \
             is no way to a backend",
        );
    }
    if !is_pinned {
        add("restarts", "the programs end with this process, as nothing is pinned (EbpfBuilder::pin_dir)");
    }
    if !capabilities.clients.contains(&Origin::Outside) {
        capabilities.limitations.push(Limitation {
            what: "node ports",
            why: "no client outside reaches them: none of the node's interfaces is named, or its hooks are off \
                  (EbpfBuilder::external_interface, EbpfBuilder::external_tc)",
        });
    }
    capabilities
}

#[async_trait]
impl Datapath for EbpfDatapath {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn replace(&self, table: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        self.update("replace", move |engine| engine.replace(&table)).await
    }

    async fn apply(&self, delta: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        self.update("apply", move |engine| engine.apply(&delta)).await
    }

    async fn read(&self) -> Result<RouteTable, DatapathError> {
        self.run("read", Engine::read).await
    }

    /// Whether the programs hang where packets are to meet them, and the XDP program nowhere else: on a device that got
    /// VLANs it must not. Maps that somebody changed are found by [`read`](Datapath::read). It cuts, too, the UDP sockets
    /// whose backend went while they were being connected, and for longer than the update looked out for them.
    async fn is_intact(&self) -> Result<bool, DatapathError> {
        self.run("is_intact", |engine| Ok(engine.is_intact())).await
    }

    /// Connections are counted at once. Packets are counted with their connection, and added up when the first
    /// one comes in a new second, and when the connection is closed: those of the last second may be missing, and of
    /// a connection that is silent until its place is taken they are lost. Segments that the kernel hands on together
    /// are one packet. Packets of the node's own processes, which the socket hooks translate, are not seen; later
    /// fragments are counted by [`metrics`](EbpfDatapath::metrics) alone. A backend that begins to terminate is
    /// counted from zero, for the connections that it is given then.
    async fn counters(&self) -> Result<Counters, DatapathError> {
        self.run("counters", |engine| Ok(engine.counters())).await
    }

    /// A flow is counted until it is closed or was silent for longer than its
    /// [limitation](Capabilities::limitations) says.
    async fn drain(&self) -> Result<DrainStatus, DatapathError> {
        self.run("drain", Engine::drain).await
    }

    /// [`Close::Keep`] needs [`EbpfBuilder::pin_dir`]; without it is [`ErrorKind::Unsupported`], and the datapath
    /// goes on. So it does when somebody removed what was pinned and it cannot be pinned again: the error names the
    /// path and the reason.
    async fn close(&self, how: Close) -> Result<(), DatapathError> {
        let events = self.events.clone();
        let job = move |engine: &mut Option<Engine>| {
            if how == Close::Keep && engine.as_ref().is_some_and(|engine| !engine.is_pinned()) {
                let message = "the programs end with this process, as nothing is pinned: set \
                               EbpfBuilder::pin_dir, or drain the datapath and use Close::Remove";
                return Err(error("close", ErrorKind::Unsupported, message));
            }
            if how == Close::Keep
                && let Some(engine) = engine.as_mut()
            {
                engine.restore_pins().map_err(|e| {
                    let message = format!("what is not pinned would end with this process: {}", e.message());
                    error("close", e.kind(), message)
                })?;
            }
            let engine = engine.take().ok_or_else(|| closed("close"))?;
            let failures = match how {
                Close::Remove => engine.remove(),
                // What is pinned goes on without it.
                Close::Keep => {
                    drop(engine);
                    Vec::new()
                }
            };
            events.emit(&DatapathEvent::Closed);
            events.end();
            if failures.is_empty() {
                return Ok(());
            }
            Err(error("close", ErrorKind::Unavailable, failures.join("; ")))
        };
        finished("close", self.worker.run(job).await)
    }

    /// With [`EbpfBuilder::flow_events`], flows and dropped packets are among them from a moment later on.
    fn events(&self) -> BoxStream<'static, DatapathEvent> {
        let events = self.events.subscribe();
        // It is queued at once, and nobody needs to wait for it.
        drop(self.worker.run(|engine| engine.iter_mut().for_each(Engine::listen)));
        events
    }
}
