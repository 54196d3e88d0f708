//! Devices that packets may be put through: with [`EbpfBuilder::redirect_peer`](crate::EbpfBuilder::redirect_peer),
//! those that lead into the namespaces of pods.

use std::collections::{BTreeSet, HashSet};

use kubenet_core::datapath::DatapathError;
use nix::net::if_::if_nametoindex;

use super::{
    Engine,
    detector::hold,
    device::{self, Device},
};

impl Engine {
    /// Makes the map hold the devices of pods that the kernel would put packets through. Of one that is missing there,
    /// the packets take the usual way.
    pub(super) fn write_pod_peers(&mut self) -> Result<(), DatapathError> {
        let mut wanted = HashSet::new();
        if self.redirect_peer {
            let fit = device::leading_elsewhere().unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot find out which interfaces lead into pods");
                BTreeSet::new()
            });
            let indexes = self.attachments.pods().filter_map(|name| if_nametoindex(name).ok());
            wanted.extend(indexes.filter(|index| fit.contains(index)));
        }
        hold(&mut self.maps, "pod_peers", |maps| &mut maps.pod_peers, &wanted)
    }

    /// Before the programs are attached to a pod's interface.
    pub(super) fn announce_peer(&mut self, name: &str) -> Result<(), DatapathError> {
        if !self.redirect_peer || self.attachments.is_external(name) {
            return Ok(());
        }
        let Ok(index) = if_nametoindex(name) else { return Ok(()) };
        if !Device::of(index).is_ok_and(|device| device.leads_elsewhere) {
            return Ok(());
        }
        let written = self.maps.pod_peers.insert(index, 1, 0);
        written.map_err(|e| self.maps.failed("pod_peers", "pod_cidrs", e))
    }
}
