//! Interfaces of this node: those of the default routes, and those of its pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    sync::Arc,
    thread,
    time::Duration,
};

use kubenet_ebpf::EbpfDatapath;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::{sync::mpsc, time::timeout};
use tracing::{debug, info, warn};

/// The interfaces of the default routes, of both families.
pub(crate) fn of_default_routes() -> io::Result<Vec<String>> {
    let read = |path: &str| match fs::read_to_string(path) {
        // Without the family there is no file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text,
    };
    let v4 = read("/proc/net/route")?;
    let v6 = read("/proc/net/ipv6_route")?;
    Ok(default_routes(&v4, &v6).into_iter().collect())
}

fn default_routes(v4: &str, v6: &str) -> BTreeSet<String> {
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (&name, &destination, &mask) = (fields.first()?, fields.get(1)?, fields.get(7)?);
        (destination == "00000000" && mask == "00000000").then_some(name)
    });
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (&destination, &length, &name) = (fields.first()?, fields.get(1)?, fields.last()?);
        (length == "00" && destination.bytes().all(|digit| digit == b'0')).then_some(name)
    });
    // An unreachable default route has the loopback interface.
    v4.chain(v6).filter(|name| *name != "lo").map(ToOwned::to_owned).collect()
}

/// The host ends of pods' interfaces, by the beginning of their names.
pub(crate) struct PodInterfaces {
    datapath: Arc<EbpfDatapath>,
    prefix: String,
    /// Name and index: an interface that is made anew has another index.
    attached: BTreeMap<String, u32>,
}

/// Even if the kernel told nothing, they are looked at so often.
const AT_LEAST: Duration = Duration::from_secs(10);

impl PodInterfaces {
    pub(crate) fn new(datapath: Arc<EbpfDatapath>, prefix: &str) -> Self {
        Self { datapath, prefix: prefix.to_owned(), attached: BTreeMap::new() }
    }

    /// Attaches those that are there and those that come, and forgets those that go. Runs without end.
    pub(crate) async fn follow(mut self) {
        let mut changes = match changes() {
            Ok(changes) => Some(changes),
            Err(error) => {
                warn!(%error, every = ?AT_LEAST, "the kernel does not tell which interfaces come and go");
                None
            }
        };
        loop {
            if let Err(error) = self.look().await {
                warn!(%error, "interfaces cannot be listed");
            }
            match &mut changes {
                Some(told) => drop(timeout(AT_LEAST, told.recv()).await),
                None => tokio::time::sleep(AT_LEAST).await,
            }
        }
    }

    async fn look(&mut self) -> io::Result<()> {
        let now = interfaces(&self.prefix)?;
        for (name, index) in &self.attached.clone() {
            if now.get(name) != Some(index) {
                self.attached.remove(name);
                match self.datapath.detach_pod(name).await {
                    Ok(()) => debug!(name, "the interface of a pod is gone"),
                    Err(error) => warn!(name, %error, "the interface of a pod is gone, but not detached"),
                }
            }
        }
        for (name, index) in now {
            if self.attached.contains_key(&name) {
                continue;
            }
            match self.datapath.attach_pod(&name).await {
                Ok(()) => {
                    info!(name, "the interface of a pod is attached");
                    self.attached.insert(name, index);
                }
                Err(error) => warn!(name, %error, "the interface of a pod is not served; trying again"),
            }
        }
        Ok(())
    }
}

/// Names and indices of the interfaces whose names begin so.
fn interfaces(prefix: &str) -> io::Result<BTreeMap<String, u32>> {
    let all = nix::net::if_::if_nameindex()?;
    let named = all.iter().filter_map(|one| Some((one.name().to_str().ok()?.to_owned(), one.index())));
    Ok(named.filter(|(name, _)| name.starts_with(prefix)).collect())
}

/// Something whenever an interface comes, goes or changes.
fn changes() -> io::Result<mpsc::Receiver<()>> {
    const RTNLGRP_LINK: u32 = 1;
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(RTNLGRP_LINK)?;
    // One that waits says all that there is to say.
    let (sender, receiver) = mpsc::channel(1);
    thread::Builder::new().name("interfaces".into()).spawn(move || {
        while !sender.is_closed() {
            // An overflow is news, too.
            if let Err(error) = socket.recv_from_full() {
                debug!(%error, "netlink");
            }
            let _ = sender.try_send(());
        }
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_of_both_families_are_found() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth1\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        let zeros = "0".repeat(32);
        let v6 = format!(
            "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth2\n\
             fd000000000000000000000000000000 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001     eth3\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n"
        );
        assert_eq!(default_routes(v4, &v6).into_iter().collect::<Vec<_>>(), ["eth0", "eth2"]);
        assert!(default_routes("", "").is_empty());
        assert!(default_routes("nonsense\nx", "x").is_empty());
    }

    #[test]
    fn interfaces_are_found_by_the_beginning_of_their_names() {
        assert_eq!(interfaces("lo").unwrap().get("lo"), Some(&1));
        assert!(interfaces("no-such-interface").unwrap().is_empty());
    }
}
