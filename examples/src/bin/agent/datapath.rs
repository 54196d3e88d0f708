//! Which datapath, and how it is built.

use std::sync::Arc;

use kubenet_core::datapath::Datapath;
use kubenet_testkit::memory::MemoryDatapath;

use crate::args::{Args, Kind};

/// A datapath, and what must be done beside it.
pub(crate) struct Chosen {
    pub(crate) datapath: Arc<dyn Datapath>,
    /// Attaches the interfaces of pods as they come.
    #[cfg(target_os = "linux")]
    pub(crate) pods: Option<crate::interfaces::PodInterfaces>,
}

#[cfg(target_os = "linux")]
pub(crate) fn choose(args: &Args) -> Result<Chosen, Box<dyn std::error::Error>> {
    match args.datapath {
        Kind::Memory => Ok(Chosen { datapath: Arc::new(MemoryDatapath::new()), pods: None }),
        Kind::Ebpf => {
            let chosen = ebpf(args)?;
            if let Err(why) = outlives_the_agent(&chosen) {
                tracing::warn!(%why, "ebpf was asked for");
            }
            Ok(chosen)
        }
        Kind::Iptables => iptables(),
        // Nothing is touched where it cannot be built.
        Kind::Auto => probed_ebpf(args).or_else(|reason| {
            tracing::info!(%reason, "iptables is chosen");
            iptables()
        }),
    }
}

#[cfg(target_os = "linux")]
fn probed_ebpf(args: &Args) -> Result<Chosen, Box<dyn std::error::Error>> {
    let found = kubenet_ebpf::probe()?;
    let chosen = ebpf(args)?;
    outlives_the_agent(&chosen)?;
    tracing::info!(?found, "eBPF is chosen");
    Ok(chosen)
}

/// A restarted or killed agent must not take the Services of its node away.
#[cfg(target_os = "linux")]
fn outlives_the_agent(chosen: &Chosen) -> Result<(), String> {
    if chosen.datapath.capabilities().keep_on_close {
        return Ok(());
    }
    let name = chosen.datapath.name();
    Err(format!("{name} ends with the agent: while the agent is down, no Service is routed"))
}

/// Those that were given, or those of the default routes.
#[cfg(target_os = "linux")]
fn external_interfaces(args: &Args) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    if !args.external_interface.is_empty() {
        return Ok(args.external_interface.clone());
    }
    let external = crate::interfaces::of_default_routes()?;
    if external.is_empty() {
        return Err("no default route says which interface is external: use --external-interface".into());
    }
    Ok(external)
}

#[cfg(target_os = "linux")]
fn ebpf(args: &Args) -> Result<Chosen, Box<dyn std::error::Error>> {
    use crate::interfaces::PodInterfaces;
    let external = external_interfaces(args)?;
    tracing::info!(?external, "external interfaces");
    let mut builder =
        kubenet_ebpf::EbpfDatapath::builder().cgroup(&args.cgroup).pin_dir(&args.pin_dir).pin_if_possible();
    for name in external {
        builder = builder.external_interface(name);
    }
    let datapath = Arc::new(builder.build()?);
    let pods = args.pod_interface_prefix.as_ref();
    let pods = pods.map(|prefix| PodInterfaces::new(Arc::clone(&datapath), prefix));
    Ok(Chosen { datapath, pods })
}

#[cfg(target_os = "linux")]
fn iptables() -> Result<Chosen, Box<dyn std::error::Error>> {
    let datapath = kubenet_iptables::IptablesDatapath::builder().build()?;
    Ok(Chosen { datapath: Arc::new(datapath), pods: None })
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn choose(args: &Args) -> Result<Chosen, Box<dyn std::error::Error>> {
    match args.datapath {
        Kind::Memory => Ok(Chosen { datapath: Arc::new(MemoryDatapath::new()) }),
        Kind::Auto | Kind::Ebpf | Kind::Iptables => Err("only Linux has this datapath".into()),
    }
}
