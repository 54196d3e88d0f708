//! Names of chains: kube-proxy's, with a prefix that can be chosen.

use std::net::SocketAddr;

use data_encoding::BASE32;
use ipnet::IpNet;
use kubenet_core::route::Masquerade;
use sha2::{Digest, Sha256};

use crate::rule::ChainName;

/// Length of the part of a chain's name that identifies a Service port.
const HASH_LENGTH: usize = 16;

/// Kinds of chains with a hash in their name. The last two are kube-proxy's alone (`XLB` up to 1.24): they are
/// known so that a kube-proxy's rules can be taken over.
const HASHED: [&str; 9] = ["SVC", "SVL", "SVP", "EXT", "SEP", "NET", "NDP", "FW", "XLB"];

/// The last two are kube-proxy's alone.
const FIXED: [&str; 12] = [
    "SERVICES",
    "NODEPORTS",
    "EXTERNAL-SERVICES",
    "MARK-MASQ",
    "POSTROUTING",
    "FORWARD",
    "STATE",
    "NO-PORT",
    "LOCALNET",
    "CANARY",
    "PROXY-FIREWALL",
    "PROXY-CANARY",
];

/// Identity of a group of routes that share chains: the hash of a Service port's name and protocol.
///
/// Routes whose Service ports have the same hash are planned together, so that even a collision cannot mix
/// their rules up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NameHash([u8; HASH_LENGTH]);

impl NameHash {
    pub(crate) fn of(parts: &[&str]) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(part.as_bytes());
        }
        // 10 bytes are exactly 16 characters of base32.
        let encoded = BASE32.encode(&digest.finalize()[..10]);
        let mut hash = [b'A'; HASH_LENGTH];
        hash.copy_from_slice(encoded.as_bytes());
        Self(hash)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("AAAAAAAAAAAAAAAA")
    }
}

/// A number that looks random and follows from a text.
pub(crate) fn spread(text: &str) -> u32 {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Makes and recognises the names of our chains.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    prefix: String,
    pub(crate) services: ChainName,
    pub(crate) node_ports: ChainName,
    pub(crate) external_services: ChainName,
    pub(crate) mark_masq: ChainName,
    pub(crate) postrouting: ChainName,
    pub(crate) forward: ChainName,
    /// Refuses what is dialled at a cluster IP but at none of its ports.
    pub(crate) no_port: ChainName,
    /// Drops what is for 127.0.0.0/8 and comes from outside.
    pub(crate) localnet: ChainName,
    /// In the table mangle, and empty: gone when somebody flushed the tables.
    pub(crate) canary: ChainName,
    /// In the table mangle, and empty: there while `route_localnet` is on that somebody else had set.
    pub(crate) localnet_stays: ChainName,
    /// Never jumped to: its comments hold what [`crate::read`] needs and no rule shows.
    pub(crate) state: ChainName,
}

impl Names {
    pub(crate) fn new(prefix: &str) -> Self {
        let name = |rest: &str| ChainName::new(format!("{prefix}-{rest}"));
        Self {
            prefix: prefix.to_owned(),
            services: name("SERVICES"),
            node_ports: name("NODEPORTS"),
            external_services: name("EXTERNAL-SERVICES"),
            mark_masq: name("MARK-MASQ"),
            postrouting: name("POSTROUTING"),
            forward: name("FORWARD"),
            no_port: name("NO-PORT"),
            localnet: name("LOCALNET"),
            canary: name("CANARY"),
            localnet_stays: name("LOCALNET-STAYS"),
            state: name("STATE"),
        }
    }

    fn hashed(&self, kind: &str, hash: &NameHash) -> ChainName {
        ChainName::new(format!("{}-{kind}-{}", self.prefix, hash.as_str()))
    }

    /// The chain that picks from the `n`th set of backends of a Service port, the largest first. Two are
    /// usual: all endpoints, and the local ones.
    pub(crate) fn set(&self, group: &NameHash, n: usize) -> ChainName {
        match n {
            0 => self.hashed("SVC", group),
            1 => self.hashed("SVL", group),
            _ => self.hashed("SVC", &NameHash::of(&[group.as_str(), "#", &n.to_string()])),
        }
    }

    /// The `n`th chain that decides between sets by origin of the flow. One is usual.
    pub(crate) fn entry(&self, group: &NameHash, n: usize) -> ChainName {
        match n {
            0 => self.hashed("EXT", group),
            _ => self.hashed("EXT", &NameHash::of(&[group.as_str(), "#", &n.to_string()])),
        }
    }

    /// The `n`th chain of source ranges. One is usual.
    pub(crate) fn firewall(&self, group: &NameHash, n: usize) -> ChainName {
        match n {
            0 => self.hashed("FW", group),
            _ => self.hashed("FW", &NameHash::of(&[group.as_str(), "#", &n.to_string()])),
        }
    }

    /// Whether it is a chain that decides by origin.
    pub(crate) fn is_entry(&self, chain: &ChainName) -> bool {
        self.is_of_kind(chain, "-EXT-")
    }

    /// Whether it is a chain of source ranges.
    pub(crate) fn is_firewall(&self, chain: &ChainName) -> bool {
        self.is_of_kind(chain, "-FW-")
    }

    /// The chain that picks from a part of the backends that another picks from.
    pub(crate) fn set_part(&self, whole: &ChainName, part: usize) -> ChainName {
        self.hashed("SVP", &NameHash::of(&[whole.as_ref(), "#", &part.to_string()]))
    }

    /// Whether it is a chain that picks from a part of a set.
    pub(crate) fn is_set_part(&self, chain: &ChainName) -> bool {
        self.is_of_kind(chain, "-SVP-")
    }

    /// Whether it is a chain that picks from a set of backends.
    pub(crate) fn is_set(&self, chain: &ChainName) -> bool {
        ["-SVC-", "-SVL-"].iter().any(|kind| self.is_of_kind(chain, kind))
    }

    /// Whether it is a kube-proxy's chain that picks from the endpoints on this node.
    pub(crate) fn is_local_set(&self, chain: &ChainName) -> bool {
        self.is_of_kind(chain, "-SVL-")
    }

    /// Whether it is the chain of one endpoint.
    pub(crate) fn is_endpoint(&self, chain: &ChainName) -> bool {
        self.is_of_kind(chain, "-SEP-")
    }

    /// The last part of a chain's name.
    pub(crate) fn hash_of<'c>(&self, chain: &'c ChainName) -> &'c str {
        chain.as_ref().rsplit('-').next().unwrap_or_default()
    }

    /// Whether a chain is named after this Service port.
    pub(crate) fn has_hash(&self, chain: &ChainName, hash: &NameHash) -> bool {
        self.hash_of(chain) == hash.as_str()
    }

    /// Whether a chain picks a backend or translates to one, and does it alike whoever leads to it. So it is in
    /// kube-proxy's layout, too.
    pub(crate) fn picks(&self, chain: &ChainName) -> bool {
        self.is_set(chain) || self.is_set_part(chain) || self.is_endpoint(chain)
    }

    fn is_of_kind(&self, chain: &ChainName, kind: &str) -> bool {
        let rest = chain.as_ref().strip_prefix(self.prefix.as_str());
        rest.is_some_and(|rest| rest.starts_with(kind))
    }

    /// The chain of one local endpoint of a Service port.
    pub(crate) fn endpoint(&self, name_and_protocol: &str, endpoint: SocketAddr) -> ChainName {
        self.hashed("SEP", &NameHash::of(&[name_and_protocol, &endpoint.to_string()]))
    }

    /// The chain for destinations in a part of the address space: `KUBE-NET-…`.
    pub(crate) fn part(&self, prefix: IpNet) -> ChainName {
        self.hashed("NET", &NameHash::of(&[&prefix.to_string()]))
    }

    /// The chain for a range of node ports: `KUBE-NDP-…`.
    pub(crate) fn port_part(&self, protocol: &str, ports: (u16, u16)) -> ChainName {
        self.hashed("NDP", &NameHash::of(&[protocol, &format!("/{}-{}", ports.0, ports.1)]))
    }

    /// Whether it is a chain for a part of the addresses or of the node ports.
    pub(crate) fn is_part(&self, chain: &ChainName) -> bool {
        ["-NET-", "-NDP-"].iter().any(|kind| self.is_of_kind(chain, kind))
    }

    /// The chain that marks flows for masquerading by their origin: `KUBE-MASQ-NO` for those from the node
    /// and from outside.
    pub(crate) fn masquerade(&self, masquerade: Masquerade) -> ChainName {
        let mut name = format!("{}-MASQ-", self.prefix);
        let letters = [(masquerade.pods, 'P'), (masquerade.node, 'N'), (masquerade.outside, 'O')];
        name.extend(letters.into_iter().filter_map(|(on, letter)| on.then_some(letter)));
        ChainName::new(name)
    }

    /// Whether a chain of this name is ours to change and to delete.
    pub(crate) fn owns(&self, chain: &str) -> bool {
        let Some(rest) = chain.strip_prefix(self.prefix.as_str()).and_then(|r| r.strip_prefix('-')) else {
            return false;
        };
        if FIXED.contains(&rest) {
            return true;
        }
        match rest.split_once('-') {
            Some(("MASQ", origins)) => {
                !origins.is_empty() && origins.chars().all(|c| matches!(c, 'P' | 'N' | 'O'))
            }
            Some((kind, hash)) => {
                HASHED.contains(&kind)
                    && hash.len() == HASH_LENGTH
                    && hash.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b))
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LONGEST_PREFIX;

    #[test]
    fn names_are_those_of_kube_proxy() {
        let names = Names::new("KUBE");
        let group = NameHash::of(&["ns1/svc1:p80", "tcp"]);
        assert_eq!(names.set(&group, 0).as_str(), "KUBE-SVC-XPGD46QRK7WJZT7O");
        assert_eq!(names.entry(&group, 0).as_str(), "KUBE-EXT-XPGD46QRK7WJZT7O");
        let endpoint = "10.180.0.1:80".parse().unwrap();
        assert_eq!(names.endpoint("ns1/svc1:p80tcp", endpoint).as_str(), "KUBE-SEP-SXIVWICOYRO3J4NJ");
    }

    #[test]
    fn chains_of_others_are_not_ours() {
        let names = Names::new("KUBE");
        for ours in [
            "KUBE-SERVICES",
            "KUBE-SVC-XPGD46QRK7WJZT7O",
            "KUBE-MASQ-NO",
            "KUBE-FW-XPGD46QRK7WJZT7O",
            "KUBE-XLB-XPGD46QRK7WJZT7O",
            "KUBE-PROXY-FIREWALL",
            "KUBE-PROXY-CANARY",
        ] {
            assert!(names.owns(ours), "{ours}");
        }
        for foreign in [
            "KUBE-KUBELET-CANARY",
            "KUBE-FIREWALL",
            "KUBE-MARK-DROP",
            "KUBE-IPTABLES-HINT",
            "KUBE-SVC-XPGD46QRK7WJZT7",
            "KUBE-SVC-xPGD46QRK7WJZT7O",
            "KUBE2-SERVICES",
            "KUBE-MASQ-",
            "DOCKER",
            "KUBE",
        ] {
            assert!(!names.owns(foreign), "{foreign}");
        }
    }

    #[test]
    fn the_longest_name_fits() {
        let names = Names::new(&"A".repeat(LONGEST_PREFIX));
        assert!(names.set(&NameHash::of(&["x"]), 0).as_str().len() <= 28);
        assert!(names.external_services.as_str().len() <= 28);
    }
}
