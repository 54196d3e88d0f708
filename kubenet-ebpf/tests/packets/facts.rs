//! What tests write into the maps for a rule of their own.

use std::net::IpAddr;

use aya::maps::{HashMap, MapData, lpm_trie};

use crate::bench::{Bench, Hook, octets};

impl Bench {
    /// Makes all that comes in there a pod's.
    pub fn pods_behind(&mut self, hook: Hook) {
        let index = self.interface(hook);
        self.insert::<4, 4>("pod_interfaces", &index.to_ne_bytes(), &[1, 0, 0, 0]);
    }

    /// Makes an address one that has Services, and other ports of its own.
    pub fn external_ip(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(a) => self.insert::<4, 4>("service_addrs4", &a.octets(), &[1, 0, 0, 0]),
            IpAddr::V6(a) => self.insert::<16, 4>("service_addrs6", &a.octets(), &[1, 0, 0, 0]),
        }
    }

    /// Makes an address one whose other ports are nobody's.
    pub fn cluster_ip(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(a) => self.insert::<4, 4>("cluster_ips4", &a.octets(), &[1, 0, 0, 0]),
            IpAddr::V6(a) => self.insert::<16, 4>("cluster_ips6", &a.octets(), &[1, 0, 0, 0]),
        }
    }

    /// Lets clients of a range reach a service.
    pub fn source_range(&mut self, service: u32, address: IpAddr, len: u32) {
        fn insert<const K: usize>(map: &mut aya::maps::Map, len: u32, key: &[u8]) {
            let key: [u8; K] = key.try_into().expect("key");
            let mut map = lpm_trie::LpmTrie::<_, [u8; K], u32>::try_from(map).expect("trie");
            map.insert(&lpm_trie::Key::new(32 + len, key), 1, 0).expect("insert");
        }
        let key = [service.to_ne_bytes().to_vec(), octets(address)].concat();
        match address {
            IpAddr::V4(_) => insert::<8>(self.map_mut("source_ranges4"), len, &key),
            IpAddr::V6(_) => insert::<20>(self.map_mut("source_ranges6"), len, &key),
        }
    }

    pub fn remove_source_range(&mut self, service: u32, address: IpAddr, len: u32) {
        fn remove<const K: usize>(map: &mut aya::maps::Map, len: u32, key: &[u8]) {
            let key: [u8; K] = key.try_into().expect("key");
            let mut map = lpm_trie::LpmTrie::<_, [u8; K], u32>::try_from(map).expect("trie");
            map.remove(&lpm_trie::Key::new(32 + len, key)).expect("remove");
        }
        let key = [service.to_ne_bytes().to_vec(), octets(address)].concat();
        match address {
            IpAddr::V4(_) => remove::<8>(self.map_mut("source_ranges4"), len, &key),
            IpAddr::V6(_) => remove::<20>(self.map_mut("source_ranges6"), len, &key),
        }
    }

    /// Makes every client's choice so many seconds older, and says how many there are.
    pub fn age_affinity(&mut self, seconds: u64) -> usize {
        fn age<const K: usize>(map: &mut aya::maps::Map, seconds: u64) -> usize {
            let mut map = HashMap::<&mut MapData, [u8; K], [u8; 16]>::try_from(map).expect("hash map");
            let entries: Vec<_> = map.iter().map(|entry| entry.expect("entry")).collect();
            for (key, value) in &entries {
                let mut value = *value;
                let last = u64::from_ne_bytes(value[8..].try_into().expect("last_new"));
                let last = last.wrapping_sub(seconds.wrapping_mul(1_000_000_000));
                value[8..].copy_from_slice(&last.to_ne_bytes());
                map.insert(key, value, 0).expect("insert");
            }
            entries.len()
        }
        age::<8>(self.map_mut("affinity4"), seconds) + age::<20>(self.map_mut("affinity6"), seconds)
    }

    /// Makes every flow and every fragment look as if it was last heard this many ticks ago.
    pub fn age(&mut self, ticks: u32) {
        fn age<const K: usize, const V: usize>(map: &mut aya::maps::Map, at: usize, ticks: u32) {
            let mut map = HashMap::<&mut MapData, [u8; K], [u8; V]>::try_from(map).expect("hash map");
            let entries: Vec<_> = map.iter().map(|entry| entry.expect("entry")).collect();
            for (key, mut value) in entries {
                let at = at..at + 4;
                let seen = u32::from_ne_bytes(value[at.clone()].try_into().expect("last_seen"));
                value[at].copy_from_slice(&seen.wrapping_sub(ticks).to_ne_bytes());
                map.insert(key, value, 0).expect("insert");
            }
        }
        self.age_flows(ticks);
        age::<16, 16>(self.map_mut("fragments4"), 8, ticks);
        age::<40, 40>(self.map_mut("fragments6"), 32, ticks);
    }

    /// Makes the last time that a next hop was the stack's so many ticks older.
    pub fn age_hops(&mut self, ticks: u32) {
        let mut map =
            HashMap::<&mut MapData, [u8; 20], u32>::try_from(self.map_mut("xdp_hops")).expect("hash map");
        let entries: Vec<_> = map.iter().map(|entry| entry.expect("entry")).collect();
        for (key, last) in entries {
            map.insert(key, last.wrapping_sub(ticks), 0).expect("insert");
        }
    }
}
