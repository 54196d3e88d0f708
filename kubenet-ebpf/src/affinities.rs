//! Which Service port's clients stay with their backends under which id.

use std::collections::{BTreeSet, HashMap};

use kubenet_core::route::Route;

use crate::{ids::Ids, rest::Now};

/// The number of a Service's port, of [`Ports`](crate::ports::Ports); its frontends of both families share the id.
type Port = u32;

/// Ids with reference counts.
#[derive(Debug)]
pub(crate) struct Affinities {
    by_port: HashMap<Port, Entry>,
    ids: Ids,
    /// While ids of another process are adopted.
    adopted: BTreeSet<u32>,
}

#[derive(Debug)]
struct Entry {
    id: u32,
    references: u32,
}

impl Affinities {
    /// As many as there can be frontends.
    pub(crate) fn new(most: u32) -> Self {
        Self { by_port: HashMap::new(), ids: Ids::up_to(most), adopted: BTreeSet::new() }
    }

    /// Whether the id may stand for the clients of this port: neither has another partner.
    pub(crate) fn may_adopt(&self, port: Port, id: u32) -> bool {
        match self.by_port.get(&port) {
            Some(entry) => entry.id == id,
            None => !self.adopted.contains(&id),
        }
    }

    /// An id that another process handed out. One reference more.
    pub(crate) fn adopt(&mut self, port: Port, id: u32) {
        self.adopted.insert(id);
        self.by_port.entry(port).or_insert(Entry { id, references: 0 }).references += 1;
    }

    pub(crate) fn has_adopted(&self, id: u32) -> bool {
        self.adopted.contains(&id)
    }

    /// After all that is to be adopted; the reserved ones are not to be touched.
    pub(crate) fn finish_adoption(&mut self, most: u32, reserved: &BTreeSet<u32>) {
        let adopted = std::mem::take(&mut self.adopted);
        let last = adopted.iter().chain(reserved).max().copied().unwrap_or(0).min(most);
        let generations = vec![1; last as usize + 1];
        self.ids = Ids::adopt(most, generations, |id| adopted.contains(&id) || reserved.contains(&id));
    }

    /// Gives back an id that was reserved at adoption.
    pub(crate) fn give_back(&mut self, id: u32, now: Now) {
        self.ids.give_back(id, now);
    }

    /// The id for a route: one reference more. 0 where its clients do not stay, `None` when all ids are in use.
    pub(crate) fn acquire(&mut self, route: &Route, port: Port, now: Now) -> Option<u32> {
        if route.affinity.is_none() {
            return Some(0);
        }
        if let Some(entry) = self.by_port.get_mut(&port) {
            entry.references += 1;
            return Some(entry.id);
        }
        let id = self.ids.take(now)?.id;
        self.by_port.insert(port, Entry { id, references: 1 });
        Some(id)
    }

    /// One reference less. What is known of its clients stays in the map: it names backends, by their
    /// generation, which no other Service port has.
    pub(crate) fn release(&mut self, port: Port, id: u32, now: Now) {
        let Some(entry) = self.by_port.get_mut(&port).filter(|entry| entry.id == id) else { return };
        entry.references -= 1;
        if entry.references == 0 {
            self.by_port.remove(&port);
            self.ids.give_back(id, now);
        }
    }

    pub(crate) fn has_resting(&self) -> bool {
        self.ids.has_resting()
    }

    pub(crate) fn wake_all(&mut self) {
        self.ids.wake_all();
    }

    #[cfg(test)]
    pub(crate) fn in_use(&self) -> u32 {
        self.ids.in_use()
    }
}
