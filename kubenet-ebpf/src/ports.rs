//! Which port of a Service has which number. Its frontends of both families share it, and so do its backends.

use kubenet_core::{
    model::Protocol,
    route::{Route, ServicePortName},
};

use crate::index::{Index, Slab};

/// Numbers with reference counts.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    index: Index,
    entries: Slab<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: ServicePortName,
    protocol: Protocol,
    references: u32,
}

impl Ports {
    /// The number of a route's port. One reference more.
    pub(crate) fn acquire(&mut self, route: &Route) -> u32 {
        let (name, protocol) = (&route.service_port, route.frontend.protocol);
        let hash = self.index.hash(&(name, protocol));
        let is_it = |entry: &Entry| entry.protocol == protocol && entry.name == *name;
        if let Some(number) = self.index.find(hash, |number| self.entries.get(number).is_some_and(is_it))
            && let Some(entry) = self.entries.get_mut(number)
        {
            entry.references += 1;
            return number;
        }
        let number = self.entries.insert(Entry { name: name.clone(), protocol, references: 1 });
        self.index.insert(hash, number);
        number
    }

    /// What a number stands for.
    pub(crate) fn get(&self, number: u32) -> Option<(&ServicePortName, Protocol)> {
        self.entries.get(number).map(|entry| (&entry.name, entry.protocol))
    }

    /// One reference less. After the last one, the number may be another port's.
    pub(crate) fn release(&mut self, number: u32) {
        let Some(entry) = self.entries.get_mut(number) else {
            debug_assert!(false, "release of port {number}, which nobody holds");
            return;
        };
        entry.references -= 1;
        if entry.references == 0 {
            let hash = self.index.hash(&(&entry.name, entry.protocol));
            self.index.remove(hash, number);
            self.entries.remove(number);
        }
    }

    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.entries.iter().count()
    }
}
