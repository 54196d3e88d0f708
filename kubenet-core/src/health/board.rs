use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, RwLock};

use super::{Answer, DEFAULT_SYNC_PERIOD, Moment, NodeEligibility, ProxyHealth, ServiceHealth};
use crate::model::{IpFamily, ObjectName};

/// All that health checks ask about. Who routes writes to it; who serves the checks reads from it.
///
/// Share it in an `Arc`. No call does I/O; only [`HealthBoard::wait_for_ports`] waits.
#[derive(Debug)]
pub struct HealthBoard {
    state: RwLock<State>,
    ports_version: Mutex<u64>,
    ports_changed: Condvar,
}

#[derive(Debug)]
struct State {
    services: BTreeMap<ObjectName, ServiceHealth>,
    ports: BTreeMap<NonZeroU16, Vec<ObjectName>>,
    proxy: ProxyHealth,
    node: NodeEligibility,
}

impl Default for HealthBoard {
    fn default() -> Self {
        Self::new(DEFAULT_SYNC_PERIOD)
    }
}

impl HealthBoard {
    /// No Services, nothing queued, the node eligible. An update is late after twice the sync period.
    pub fn new(sync_period: Duration) -> Self {
        Self {
            state: RwLock::new(State {
                services: BTreeMap::new(),
                ports: BTreeMap::new(),
                proxy: ProxyHealth::new(sync_period),
                node: NodeEligibility::default(),
            }),
            ports_version: Mutex::new(0),
            ports_changed: Condvar::new(),
        }
    }

    /// Adds a Service, or replaces what is known of it.
    pub fn upsert_service(&self, health: ServiceHealth) {
        let changed = self.state.write().upsert(health);
        self.note_ports(changed);
    }

    /// Removes a Service. One that is not there is no error.
    pub fn remove_service(&self, service: &ObjectName) {
        let changed = self.state.write().remove(service);
        self.note_ports(changed);
    }

    /// Makes the Services exactly these.
    pub fn set_services(&self, services: impl IntoIterator<Item = ServiceHealth>) {
        let services: Vec<ServiceHealth> = services.into_iter().collect();
        let mut changed = false;
        let mut state = self.state.write();
        let keep: BTreeSet<&ObjectName> = services.iter().map(|health| &health.service).collect();
        let gone: Vec<ObjectName> =
            state.services.keys().filter(|name| !keep.contains(name)).cloned().collect();
        for name in &gone {
            changed |= state.remove(name);
        }
        for health in services {
            changed |= state.upsert(health);
        }
        drop(state);
        self.note_ports(changed);
    }

    /// Something of this family must get into the kernel: [`ProxyHealth::update_queued`].
    pub fn update_queued(&self, family: IpFamily, at: Instant) {
        self.state.write().proxy.update_queued(family, at);
    }

    /// The kernel has what was queued of this family until `covers`: [`ProxyHealth::updated`].
    pub fn updated(&self, family: IpFamily, covers: Instant, at: Moment) {
        self.state.write().proxy.updated(family, covers, at);
    }

    /// Sets what the node's object says.
    pub fn set_node(&self, node: NodeEligibility) {
        self.state.write().node = node;
    }

    /// The answer at a health-check node port ([H1]); `None` when no Service has it.
    ///
    /// [H1]: crate::health
    pub fn service_answer(&self, port: NonZeroU16, now: Moment) -> Option<Answer> {
        let state = self.state.read();
        let health = state.services.get(state.ports.get(&port)?.first()?)?;
        Some(health.answer(state.proxy.is_healthy(now.instant)))
    }

    /// The answer at `/healthz` ([H2]).
    ///
    /// [H2]: crate::health
    pub fn healthz(&self, now: Moment) -> Answer {
        let state = self.state.read();
        state.proxy.healthz(state.node, now)
    }

    /// The answer at `/livez` ([H2]).
    ///
    /// [H2]: crate::health
    pub fn livez(&self, now: Moment) -> Answer {
        self.state.read().proxy.livez(now)
    }

    /// The health-check node ports, each with the Services that claim it, in the order of their claims. The
    /// first has it.
    pub fn ports(&self) -> BTreeMap<NonZeroU16, Vec<ObjectName>> {
        self.state.read().ports.clone()
    }

    /// A number that changes whenever [`HealthBoard::ports`] does.
    pub fn ports_version(&self) -> u64 {
        *self.ports_version.lock()
    }

    /// Blocks the thread until [`HealthBoard::ports_version`] is no longer `seen`, or for as long as `timeout`.
    /// Returns the version. It may change without a change of the ports.
    pub fn wait_for_ports(&self, seen: u64, timeout: Option<Duration>) -> u64 {
        // A timeout that no clock can hold is none.
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut version = self.ports_version.lock();
        while *version == seen {
            match until {
                None => self.ports_changed.wait(&mut version),
                Some(until) => {
                    if self.ports_changed.wait_until(&mut version, until).timed_out() {
                        break;
                    }
                }
            }
        }
        *version
    }

    /// Wakes all that wait for ports, when something else changed that they look at.
    #[cfg(feature = "health-server")]
    pub(super) fn wake_waiting(&self) {
        self.note_ports(true);
    }

    fn note_ports(&self, changed: bool) {
        if changed {
            *self.ports_version.lock() += 1;
            self.ports_changed.notify_all();
        }
    }
}

impl State {
    /// Whether the ports changed.
    fn upsert(&mut self, health: ServiceHealth) -> bool {
        match self.services.get_mut(&health.service) {
            Some(known) if known.port == health.port => {
                *known = health;
                false
            }
            _ => {
                self.remove(&health.service);
                self.ports.entry(health.port).or_default().push(health.service.clone());
                self.services.insert(health.service.clone(), health);
                true
            }
        }
    }

    /// Whether the ports changed.
    fn remove(&mut self, service: &ObjectName) -> bool {
        let Some(health) = self.services.remove(service) else { return false };
        if let Some(claims) = self.ports.get_mut(&health.port) {
            claims.retain(|claim| claim != service);
            if claims.is_empty() {
                self.ports.remove(&health.port);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
