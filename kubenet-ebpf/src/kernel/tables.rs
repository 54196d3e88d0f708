//! Routes are written to the maps.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;
use kubenet_core::{
    datapath::DatapathError,
    model::IpFamily,
    route::{Backend, Frontend},
};

use super::{
    maps::{Key, Maps, deleted, key},
    membarrier,
};
use crate::{
    ids::Handle,
    layout::{Addr4, Addr6, Service, ServiceName},
    program::Tables,
    state::StaleFlows,
};

impl Tables for Maps {
    fn write_backend(&mut self, _: IpFamily, handle: Handle, backend: &Backend) {
        match backend.address {
            IpAddr::V4(address) => self.v4.write_backend(handle, address.into(), backend),
            IpAddr::V6(address) => self.v6.write_backend(handle, address.into(), backend),
        }
    }

    fn kill_backend(&mut self, family: IpFamily, id: u32) {
        match family {
            IpFamily::V4 => self.v4.kill_backend(id),
            IpFamily::V6 => self.v6.kill_backend(id),
        }
    }

    fn write_slots(&mut self, base: u32, ids: &[u32]) {
        for (slot, id) in (base..).zip(ids) {
            let stored = self.slots.store(slot, id, 0);
            debug_assert!(stored, "slot {slot} is not an index of the map");
        }
    }

    fn write_name(&mut self, id: u32, name: &ServiceName) -> Result<(), DatapathError> {
        let result = self.names.insert(id, name, 0);
        result.map_err(|e| self.failed("service_names", "services", e))
    }

    fn remove_name(&mut self, id: u32) -> Result<(), DatapathError> {
        self.traffic.retire(id);
        let result = deleted(self.names.remove(&id));
        result.map_err(|e| self.failed("service_names", "services", e))
    }

    fn write_cluster_ip(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        let (map, result) = match address {
            IpAddr::V4(a) => ("cluster_ips4", self.v4.cluster_ips.insert(Addr4::from(a), 1, 0)),
            IpAddr::V6(a) => ("cluster_ips6", self.v6.cluster_ips.insert(Addr6::from(a), 1, 0)),
        };
        result.map_err(|e| self.failed(map, "services", e))
    }

    fn remove_cluster_ip(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        let (map, result) = match address {
            IpAddr::V4(a) => ("cluster_ips4", deleted(self.v4.cluster_ips.remove(&a.into()))),
            IpAddr::V6(a) => ("cluster_ips6", deleted(self.v6.cluster_ips.remove(&a.into()))),
        };
        result.map_err(|e| self.failed(map, "services", e))
    }

    fn write_source(&mut self, service: u32, cidr: &IpNet) -> Result<(), DatapathError> {
        let (map, result) = match cidr {
            IpNet::V4(c) => {
                ("source_ranges4", self.v4.write_source(service, c.addr().into(), c.prefix_len()))
            }
            IpNet::V6(c) => {
                ("source_ranges6", self.v6.write_source(service, c.addr().into(), c.prefix_len()))
            }
        };
        result.map_err(|e| self.failed(map, "source_ranges", e))
    }

    fn remove_source(&mut self, service: u32, cidr: &IpNet) -> Result<(), DatapathError> {
        let (map, result) = match cidr {
            IpNet::V4(c) => {
                ("source_ranges4", self.v4.remove_source(service, c.addr().into(), c.prefix_len()))
            }
            IpNet::V6(c) => {
                ("source_ranges6", self.v6.remove_source(service, c.addr().into(), c.prefix_len()))
            }
        };
        result.map_err(|e| self.failed(map, "source_ranges", e))
    }

    fn write_service(&mut self, frontend: &Frontend, service: &Service) -> Result<(), DatapathError> {
        self.traffic.begin(service.id);
        let (map, result) = match key(frontend) {
            Key::V4(key) => ("services4", self.v4.services.insert(key, service, 0)),
            Key::V6(key) => ("services6", self.v6.services.insert(key, service, 0)),
        };
        result.map_err(|e| self.failed(map, "services", e))
    }

    fn remove_service(&mut self, frontend: &Frontend) -> Result<(), DatapathError> {
        let (map, result) = match key(frontend) {
            Key::V4(key) => ("services4", deleted(self.v4.services.remove(&key))),
            Key::V6(key) => ("services6", deleted(self.v6.services.remove(&key))),
        };
        result.map_err(|e| self.failed(map, "services", e))
    }

    fn cut(&mut self, flows: &HashSet<StaleFlows>) -> Result<(), DatapathError> {
        for family in IpFamily::ALL {
            if flows.iter().any(|f| f.family == family) {
                self.cut_if(family, &|flow| flows.contains(&flow))?;
            }
        }
        Ok(())
    }

    fn wait_grace_period(&mut self) -> bool {
        membarrier()
    }
}
