//! What somebody else changed in the maps is put right.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kubenet_core::{
    datapath::{DatapathError, DatapathEvent},
    model::IpFamily,
};

use super::Engine;
use crate::{
    names::encode_name,
    program::Tables,
    state::{cluster_ip, source_ranges},
};

impl Engine {
    /// Puts back what is programmed where somebody else changed the maps. Writes of what is there already
    /// change nothing that a packet can see.
    pub(super) fn repair(&mut self) -> Result<(), DatapathError> {
        for family in IpFamily::ALL {
            for (handle, backend) in self.state.backends(family).iter() {
                self.maps.write_backend(family, handle, backend);
            }
        }
        let mut strangers = Vec::new();
        let services: HashMap<_, _> = self.maps.services(&mut strangers)?.into_iter().collect();
        let names = self.maps.names()?;
        for programmed in self.state.routes() {
            let sets = [Some(&programmed.internal), programmed.external.as_ref()];
            for set in sets.into_iter().flatten() {
                self.maps.write_slots(set.range.base, set.words());
            }
        }
        let mut drift = strangers;
        self.repair_sources(&mut drift)?;
        self.repair_cluster_ips(&mut drift)?;
        let mut lost = Vec::new();
        for programmed in self.state.routes() {
            let route = &programmed.route;
            if let Ok(name) = encode_name(route)
                && names.get(&programmed.id) != Some(&name)
            {
                drift.push(format!("the name of {}", route.service_port));
                self.maps.write_name(programmed.id, &name)?;
            }
            let service = programmed.service();
            if services.get(&route.frontend) != Some(&service) {
                drift.push(format!("the entry of {}", route.frontend));
                if self.maps.write_service(&route.frontend, &service).is_err() {
                    lost.push(route.frontend);
                }
            }
        }
        for frontend in services.keys().filter(|f| self.state.get(f).is_none()) {
            drift.push(format!("a foreign entry for {frontend}"));
            self.maps.remove_service(frontend)?;
        }
        // What could not be put back is written from scratch, and reported when that fails.
        for frontend in lost {
            let now = self.now();
            // Its backends and its name are cleaned from the maps with the next change of their ids.
            let _retired = self.state.remove(&frontend, now);
        }
        if !drift.is_empty() {
            let detail = format!("somebody changed the maps: put right: {}", drift.join(", "));
            self.events.emit(&DatapathEvent::Drift { detail });
        }
        Ok(())
    }
    fn repair_cluster_ips(&mut self, drift: &mut Vec<String>) -> Result<(), DatapathError> {
        let wanted: HashSet<IpAddr> = self.state.routes().filter_map(|p| cluster_ip(&p.route)).collect();
        let found = self.maps.cluster_ips()?;
        for ip in wanted.difference(&found) {
            drift.push(format!("the cluster IP {ip}"));
            self.maps.write_cluster_ip(*ip)?;
        }
        for ip in found.difference(&wanted) {
            drift.push(format!("a foreign cluster IP {ip}"));
            self.maps.remove_cluster_ip(*ip)?;
        }
        Ok(())
    }

    /// Ranges first, before an entry that was lost says that they count.
    fn repair_sources(&mut self, drift: &mut Vec<String>) -> Result<(), DatapathError> {
        let wanted: HashSet<(u32, IpNet)> = self
            .state
            .routes()
            .flat_map(|p| source_ranges(&p.route).iter().map(|cidr| (p.id, *cidr)))
            .collect();
        let found: HashSet<(u32, IpNet)> = self.maps.sources()?.into_iter().collect();
        for (id, cidr) in wanted.difference(&found) {
            drift.push(format!("the source range {cidr} of service id {id}"));
            self.maps.write_source(*id, cidr)?;
        }
        for (id, cidr) in found.difference(&wanted) {
            drift.push(format!("a foreign source range {cidr} of service id {id}"));
            self.maps.remove_source(*id, cidr)?;
        }
        Ok(())
    }
}
