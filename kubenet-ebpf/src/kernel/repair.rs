//! What somebody else changed in the maps is put right.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kubenet_core::{
    datapath::{DatapathError, DatapathEvent},
    model::IpFamily,
    route::Frontend,
};

use super::Engine;
use crate::{
    names::encode_name,
    program::{Tables, done},
    state::{cluster_ip, source_ranges},
};

impl Engine {
    /// Puts back what is programmed where somebody else changed the maps. Writes of what is there already
    /// change nothing that a packet can see.
    pub(super) fn repair(&mut self) -> Result<(), DatapathError> {
        for family in IpFamily::ALL {
            for (handle, identity) in self.state.backends(family).iter() {
                self.maps.write_backend(family, handle, &identity.backend);
            }
        }
        let mut strangers = Vec::new();
        let services: HashMap<_, _> = self.maps.services(&mut strangers)?.into_iter().collect();
        let names = self.maps.names()?;
        for programmed in self.state.routes() {
            for set in programmed.sets() {
                self.maps.write_slots(set.range.base, set.words());
            }
        }
        let mut drift = strangers;
        self.repair_sources(&mut drift)?;
        let mut lost = Vec::new();
        let (mut changed_names, mut changed_services) = (Vec::new(), Vec::new());
        for programmed in self.state.routes() {
            let route = &programmed.route;
            if let Ok(name) = encode_name(route)
                && names.get(&programmed.id) != Some(&name)
            {
                drift.push(format!("the name of {}", route.service_port));
                changed_names.push((programmed.id, name));
            }
            let service = programmed.service();
            if services.get(&route.frontend) != Some(&service) {
                drift.push(format!("the entry of {}", route.frontend));
                changed_services.push((route.frontend, service));
            }
        }
        done(self.maps.write_names(&changed_names))?;
        for (index, _) in self.maps.write_services(&changed_services) {
            lost.push(changed_services[index].0);
        }
        let foreign = services.keys().filter(|frontend| self.state.get(frontend).is_none());
        let foreign: Vec<Frontend> = foreign.copied().collect();
        drift.extend(foreign.iter().map(|frontend| format!("a foreign entry for {frontend}")));
        done(self.maps.remove_services(&foreign))?;
        self.repair_cluster_ips(&mut drift)?;
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

    /// Last, as their ports that are no Service ports are refused from then on. One that is not written yet comes
    /// with its route.
    fn repair_cluster_ips(&mut self, drift: &mut Vec<String>) -> Result<(), DatapathError> {
        let wanted: HashSet<IpAddr> = self.state.routes().filter_map(|p| cluster_ip(&p.route)).collect();
        let found = self.maps.cluster_ips()?;
        let lost = wanted.difference(&found).filter(|ip| self.state.is_written(**ip));
        let lost: Vec<IpAddr> = lost.copied().collect();
        drift.extend(lost.iter().map(|ip| format!("the cluster IP {ip}")));
        done(self.maps.write_cluster_ips(&lost))?;
        let foreign: Vec<IpAddr> = found.difference(&wanted).copied().collect();
        drift.extend(foreign.iter().map(|ip| format!("a foreign cluster IP {ip}")));
        done(self.maps.remove_cluster_ips(&foreign))
    }

    /// Ranges first, before an entry that was lost says that they count.
    fn repair_sources(&mut self, drift: &mut Vec<String>) -> Result<(), DatapathError> {
        let wanted: HashSet<(u32, IpNet)> = self
            .state
            .routes()
            .flat_map(|p| source_ranges(&p.route).iter().map(|cidr| (p.id, *cidr)))
            .collect();
        let found: HashSet<(u32, IpNet)> = self.maps.sources()?.into_iter().collect();
        let lost: Vec<(u32, IpNet)> = wanted.difference(&found).copied().collect();
        drift.extend(lost.iter().map(|(id, cidr)| format!("the source range {cidr} of service id {id}")));
        done(self.maps.write_sources(&lost))?;
        let foreign: Vec<(u32, IpNet)> = found.difference(&wanted).copied().collect();
        let text = |(id, cidr): &(u32, IpNet)| format!("a foreign source range {cidr} of service id {id}");
        drift.extend(foreign.iter().map(text));
        done(self.maps.remove_sources(&foreign))
    }
}
