//! How the datapath begins: with empty maps, or with those that another process left.

use std::{
    ops::RangeInclusive,
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use aya::{
    maps::{Map, MapData},
    util::nr_cpus,
};
use kubenet_core::datapath::{Capabilities, DatapathError, ErrorKind, EventHub};

use super::{
    Adopted, Engine,
    attach::{Attachments, PinnedMaps, Programs, Wanted},
    events::Reporter,
    follow::Undecided,
    link::{BpfLink, Place},
    maps::{self, Maps},
    membarrier, netns, node, object, probe, sys,
};
use crate::{
    AttachMode, EbpfBuilder, Hook, Probe,
    error::{caused, error},
    layout,
    pin::{self, Pins},
    state::State,
};

/// The directory of pins, where the builder wants one. Without one where that is allowed and none can be had.
pub(crate) fn open_pins(builder: &EbpfBuilder) -> Result<Option<Pins>, DatapathError> {
    let Some(path) = &builder.pin_dir else { return Ok(None) };
    match Pins::check(path) {
        Err(error) if builder.pin_if_possible => {
            tracing::warn!(%error, "nothing is pinned: what is forwarded ends with this process");
            return Ok(None);
        }
        checked => checked?,
    }
    Pins::open(path).map(Some)
}

impl Engine {
    /// Enters the namespace, checks the kernel and loads. Attaches nothing, and changes nothing of what another
    /// process left.
    pub(crate) fn start(
        builder: EbpfBuilder,
        mut pins: Option<Pins>,
        capabilities: Capabilities,
        events: EventHub,
    ) -> Result<Self, DatapathError> {
        let result = Self::try_start(builder, &mut pins, capabilities, events);
        if result.is_err()
            && let Some(pins) = pins
        {
            pins.abandon_maps();
        }
        result
    }

    fn try_start(
        builder: EbpfBuilder,
        pins: &mut Option<Pins>,
        capabilities: Capabilities,
        events: EventHub,
    ) -> Result<Self, DatapathError> {
        let has_external_tc = builder.has_external_tc();
        let EbpfBuilder {
            network_namespace,
            external_interfaces,
            pod_interfaces,
            cgroup,
            sizes,
            snat_ports,
            attach_mode,
            direct_server_return,
            redirect_peer,
            hooks,
            flow_events,
            pin_dir: _,
            pin_if_possible: _,
        } = builder;
        if let Some(path) = &network_namespace {
            netns::enter(path)?;
        }
        let cpus = nr_cpus().map_err(|(_, e)| {
            caused("build", ErrorKind::Unavailable, "cannot find out how many CPUs there are", e)
        })?;
        let sizes = sizes.for_cpus(cpus);
        let found = probe()?;
        let cgroup = cgroup.filter(|_| hooks.sockets);
        if let Some(why) = found.missing.get(&Hook::Sockets).filter(|_| cgroup.is_some()) {
            let message = format!("cgroup: {why}: leave the setting out");
            return Err(error("build", ErrorKind::Unsupported, message));
        }
        let netns_cookie = netns::cookie().unwrap_or_default();
        let tcx = has_tcx(attach_mode, &found)?;
        let sockets = cgroup.is_some();
        let mut attachments = Attachments::new(external_interfaces, cgroup, hooks, tcx, events.clone())?;
        let wanted = Wanted { sockets, xdp: found.has(Hook::Xdp) && attachments.wants_any_xdp() };
        for name in &pod_interfaces {
            attachments.declare_pod(name, "build")?;
        }
        let shapes = object::shapes(&sizes)?;
        let directory = match pins {
            None => None,
            Some(pins) if holds_state(pins, netns_cookie)? => {
                pin::check_maps(&pins.maps(), &shapes, false)?;
                Some(pins.maps())
            }
            Some(pins) => Some(pins.begin_maps()?),
        };
        let pinned = directory.as_deref().map(|directory| (directory, &shapes));
        let seed = flow_seed(directory.as_deref())?;
        let ebpf = object::load(
            &sizes,
            found.connect_refused,
            direct_server_return,
            has_external_tc,
            redirect_peer,
            &seed,
            pinned,
        )?;
        let mut programs = Programs::load(ebpf, wanted)?;
        let maps = Maps::take(programs.object())?;
        maps.set_flow_seed(&seed);
        let held =
            directory.as_deref().map(|directory| PinnedMaps::open(directory, shapes.keys())).transpose()?;
        let (state, adopted) = match pins {
            Some(pins) if pins.has_maps() => {
                // No program goes on with what only the process before knew of.
                membarrier();
                let snapshot = maps.snapshot()?;
                let (mut state, leftovers) = State::adopt(sizes.clone(), &snapshot, &maps);
                state.node = node::read(&maps)?;
                maps.retire_strangers(&state, &snapshot);
                (state, Some(Adopted { snapshot, leftovers }))
            }
            _ => (State::new(sizes.clone()), None),
        };
        if let (Some(pins), Some(held)) = (pins.take(), held) {
            let path = pins.path().to_owned();
            if adopted.is_none()
                && let Err(error) = pins.finish_maps()
            {
                pins.abandon_maps();
                return Err(error);
            }
            attachments.adopt(pins, held).map_err(|e| {
                let message = format!("pin_dir: {}: what is pinned there cannot be read", path.display());
                caused("build", ErrorKind::Unavailable, message, e)
            })?;
        }
        maps.set_config(&config(&maps, netns_cookie, &snat_ports));
        let routes = state.routes().count();
        tracing::debug!(?found, adopted = adopted.is_some(), routes, "loaded");
        if let Some(per_second) = flow_events {
            maps.listeners.store_word(0, layout::Listeners::BUDGET, per_second.get());
        }
        Ok(Self {
            reporter: flow_events.map(|_| Reporter::default()),
            attachments,
            programs,
            maps,
            state,
            adopted,
            undecided: Undecided::default(),
            redirect_peer,
            sizes,
            capabilities,
            events,
            started: Instant::now(),
        })
    }
}

fn has_tcx(mode: AttachMode, found: &Probe) -> Result<bool, DatapathError> {
    match mode {
        AttachMode::Auto => Ok(found.tcx),
        AttachMode::Tcx if !found.tcx => {
            let message = format!("attach_mode: kernel {} has no TCX: it came with 6.6", found.kernel);
            Err(error("build", ErrorKind::Unsupported, message))
        }
        AttachMode::Tcx => Ok(true),
        AttachMode::Clsact => Ok(false),
    }
}

/// Whether maps are pinned that are to be adopted. Removes what was left of a network namespace that is gone.
fn holds_state(pins: &Pins, netns_cookie: u64) -> Result<bool, DatapathError> {
    let here = pins.path().display();
    let unreadable = |e: std::io::Error| {
        let message = format!("pin_dir: {here}: what is pinned there cannot be read");
        caused("build", ErrorKind::Unavailable, message, e)
    };
    let links = pins.links().map_err(unreadable)?;
    let filters = pins.filters().map_err(unreadable)?;
    if !pins.has_maps() {
        if links.is_empty() && filters.is_empty() {
            return Ok(false);
        }
        let message = format!(
            "pin_dir: {here}: programs are pinned, but not their maps: somebody removed a part of what was \
             pinned: remove the rest with kubenet_ebpf::remove_pins, which ends what it forwards"
        );
        return Err(error("build", ErrorKind::Unsupported, message));
    }
    let Some(cookie) = pinned_cookie(&pins.maps()) else { return Ok(true) };
    if cookie == netns_cookie || netns_cookie == 0 {
        return Ok(true);
    }
    let places = links.iter().filter_map(|name| BpfLink::pinned(&pins.link(name)).ok()?.place());
    let hangs = places.filter(|place| matches!(place, Place::Interface(_))).count();
    if hangs > 0 || !filters.is_empty() {
        let message = format!(
            "pin_dir: {here}: is in use for another network namespace: give this one a directory of its own, or \
             remove what is pinned with kubenet_ebpf::remove_pins"
        );
        return Err(error("build", ErrorKind::InvalidInput, message));
    }
    tracing::info!(%here, "what was pinned for a network namespace that is gone is removed");
    pins.discard().map_err(unreadable)?;
    Ok(false)
}

/// The network namespace that pinned maps were made for. `None` where they do not say.
fn pinned_cookie(directory: &Path) -> Option<u64> {
    let map = MapData::from_pin(directory.join("config")).ok()?;
    let config = maps::mapped::<layout::Config>(Map::Array(map)).ok()?;
    config.load(0).map(|config| config.netns_cookie).filter(|cookie| *cookie != 0)
}

/// What flows are looked for by: that of the programs that put them there. Where none is written yet, no program ran.
fn flow_seed(directory: Option<&Path>) -> Result<layout::FlowSeed, DatapathError> {
    let pinned = directory.and_then(|directory| {
        let map = MapData::from_pin(directory.join("flow_seed")).ok()?;
        maps::mapped::<layout::FlowSeed>(Map::Array(map)).ok()?.load(0)
    });
    if let Some(seed) = pinned.filter(|seed| *seed != layout::FlowSeed::default()) {
        return Ok(seed);
    }
    let word = sys::random()
        .map_err(|e| caused("build", ErrorKind::Unavailable, "the kernel has no random numbers", e))?;
    Ok(layout::FlowSeed { word })
}

/// What `config` holds from now on. Facts about the node stay as they are.
fn config(maps: &Maps, netns_cookie: u64, snat_ports: &RangeInclusive<u16>) -> layout::Config {
    let before = maps.config();
    let (first, last) = (*snat_ports.start(), *snat_ports.end());
    if (before.snat_wide_min, before.snat_wide_max) == (first, last) {
        // Flows have ports of these, and another instance has others.
        return layout::Config { netns_cookie, ..before };
    }
    let own = snat_slice(snat_ports, INSTANCES.fetch_add(1, Ordering::Relaxed));
    layout::Config {
        netns_cookie,
        snat_port_min: *own.start(),
        snat_port_max: *own.end(),
        snat_wide_min: first,
        snat_wide_max: last,
        ..before
    }
}

/// Counts the datapaths of this process, from a number that differs from those of other processes.
static INSTANCES: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(std::process::id()));

/// The part of the ports that an instance prefers.
pub(super) fn snat_slice(ports: &RangeInclusive<u16>, instance: u32) -> RangeInclusive<u16> {
    const SLICES: u32 = 16;
    let (first, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
    let (count, slice) = (last + 1 - first, instance % SLICES);
    if count < SLICES {
        return ports.clone();
    }
    let border = |slice: u32| first + slice * count / SLICES;
    // Both lie in the range, so that they are ports.
    border(slice) as u16..=(border(slice + 1) - 1) as u16
}
