//! Comments of rules that carry what the rules themselves do not show, so that a table can be read back.
//!
//! Names are data: everything but letters, digits, `-`, `.` and `_` is percent-encoded, so that no name can
//! end a comment or become an option.

use std::{fmt::Write as _, net::SocketAddr, num::NonZeroU16, sync::Arc};

use ipnet::IpNet;
use kubenet_core::{
    model::{Affinity, LocalDetector, Protocol},
    route::{
        Backend, BackendState, FrontendAddress, FrontendKind, Masquerade, NodeRouting, Revision, Route,
        ServicePortName, SourceRanges, WhenEmpty,
    },
};

/// The kernel keeps 255 bytes of a comment.
const LONGEST_COMMENT: usize = 250;
/// Names in comments for people are cut to this.
const LONGEST_NAME: usize = 120;
/// Begins a comment that the next rule's continues.
pub(crate) const CONTINUED: char = '+';

fn encode(part: &str, out: &mut String) {
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

fn decode(text: &str) -> Option<Arc<str>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().map(Arc::from)
}

fn encode_name(name: &ServicePortName) -> String {
    let mut text = String::new();
    encode(&name.namespace, &mut text);
    text.push('/');
    encode(&name.service, &mut text);
    if !name.port.is_empty() {
        text.push(':');
        encode(&name.port, &mut text);
    }
    text
}

fn decode_name(text: &str) -> Option<ServicePortName> {
    let (namespace, rest) = text.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some(ServicePortName { namespace: decode(namespace)?, service: decode(service)?, port: decode(port)? })
}

/// A Service port's name as comments show it, cut where it is too long.
pub(crate) fn label(name: &ServicePortName) -> String {
    let mut text = encode_name(name);
    if text.len() > LONGEST_NAME {
        text.truncate(LONGEST_NAME);
        text.push('~');
    }
    text
}

/// Of a frontend that another Service has as its cluster IP ([F5]).
///
/// [F5]: kubenet_core::resolve
const ON_CLUSTER_IP: &str = " on cluster IP";

/// What the rules of a route do not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteRecord {
    pub(crate) kind: FrontendKind,
    pub(crate) on_cluster_ip: bool,
    pub(crate) service_port: ServicePortName,
    pub(crate) masquerade: Masquerade,
    pub(crate) internal_empty: WhenEmpty,
    pub(crate) external_empty: WhenEmpty,
    pub(crate) affinity: Option<Affinity>,
    pub(crate) source_ranges: Option<Arc<SourceRanges>>,
    /// Of a cluster IP: its rule does not show them.
    pub(crate) port: Option<(Protocol, NonZeroU16)>,
}

fn empty_word(empty: WhenEmpty) -> &'static str {
    match empty {
        WhenEmpty::Reject => "reject",
        WhenEmpty::Drop => "drop",
    }
}

/// Words, none of which has a space or a comma.
fn encode_ranges(ranges: &SourceRanges) -> String {
    let mut words: Vec<_> = ranges.cidrs.iter().map(IpNet::to_string).collect();
    if ranges.node {
        words.push("node".to_owned());
    }
    if words.is_empty() {
        words.push("nobody".to_owned());
    }
    words.join(",")
}

fn decode_ranges(text: &str) -> Option<SourceRanges> {
    let mut ranges = SourceRanges { cidrs: Vec::new(), node: false };
    for word in text.split(',') {
        match word {
            "node" => ranges.node = true,
            "nobody" => {}
            cidr => ranges.cidrs.push(cidr.parse().ok()?),
        }
    }
    Some(ranges)
}

fn parse_empty(word: &str) -> Option<WhenEmpty> {
    [WhenEmpty::Reject, WhenEmpty::Drop].into_iter().find(|e| empty_word(*e) == word)
}

impl RouteRecord {
    /// `None` for a kind of frontend that this version does not know.
    pub(crate) fn of(route: &Route) -> Self {
        Self {
            kind: route.kind,
            on_cluster_ip: route.on_cluster_ip,
            service_port: route.service_port.clone(),
            masquerade: route.masquerade,
            internal_empty: route.internal.when_empty,
            external_empty: route.external.when_empty,
            affinity: route.affinity,
            source_ranges: route.source_ranges.clone(),
            port: (route.kind == FrontendKind::ClusterIp
                && matches!(route.frontend.address, FrontendAddress::Ip(_)))
            .then_some((route.frontend.protocol, route.frontend.port)),
        }
    }

    /// The comments that hold it. All but the last belong on rules of their own, without a target.
    /// They also say what is to be said about the only backend.
    pub(crate) fn comments(&self, backend: Option<&Backend>) -> Vec<String> {
        let mut text = encode_name(&self.service_port);
        let kind = self.kind.as_str();
        let on = if self.on_cluster_ip && self.kind != FrontendKind::ClusterIp { ON_CLUSTER_IP } else { "" };
        let Masquerade { pods, node, outside } = self.masquerade;
        let mut origins: Vec<&str> = [(pods, "pods"), (node, "node"), (outside, "outside")]
            .into_iter()
            .filter_map(|(on, word)| on.then_some(word))
            .collect();
        if origins.is_empty() {
            origins.push("none");
        }
        let _ = write!(text, " {kind}{on}");
        if let Some((protocol, port)) = self.port {
            let _ = write!(text, " port={}/{port}", protocol.as_lower_str());
        }
        let _ = write!(text, " masq={} empty={}", origins.join(","), empty_word(self.internal_empty));
        if self.external_empty != self.internal_empty {
            let _ = write!(text, "/{}", empty_word(self.external_empty));
        }
        if let Some(affinity) = self.affinity {
            let _ = write!(text, " affinity={}", affinity.timeout_seconds());
        }
        if let Some(ranges) = &self.source_ranges {
            let _ = write!(text, " from={}", encode_ranges(ranges));
        }
        if let Some(backend) = backend {
            text = backend_comment(&text, backend);
        }
        let mut comments = Vec::new();
        // The text is ASCII, so any position is a boundary between characters.
        while text.len() > LONGEST_COMMENT {
            let rest = text.split_off(LONGEST_COMMENT - 1);
            comments.push(format!("{CONTINUED}{text}"));
            text = rest;
        }
        comments.push(text);
        comments
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        // What a rule that translates says about its backend.
        let text = text.split_once(ARROW).map_or(text, |(text, _)| text.trim_end());
        let (text, source_ranges) = match text.rsplit_once(" from=") {
            Some((text, ranges)) => (text, Some(Arc::new(decode_ranges(ranges)?))),
            None => (text, None),
        };
        let (text, affinity) = match text.rsplit_once(" affinity=") {
            Some((text, seconds)) => (text, Some(Affinity::new(seconds.parse().ok()?)?)),
            None => (text, None),
        };
        let (text, empty) = text.rsplit_once(" empty=")?;
        let (text, origins) = text.rsplit_once(" masq=")?;
        let (text, port) = match text.rsplit_once(" port=") {
            Some((text, port)) => {
                let (protocol, port) = port.split_once('/')?;
                (text, Some((protocol.parse().ok()?, port.parse().ok()?)))
            }
            None => (text, None),
        };
        let (name, words) = text.split_once(' ')?;
        let (words, won) = words.strip_suffix(ON_CLUSTER_IP).map_or((words, false), |words| (words, true));
        let kind = FrontendKind::ALL.into_iter().find(|kind| kind.as_str() == words)?;
        let mut masquerade = Masquerade::NEVER;
        for origin in origins.split(',') {
            match origin {
                "pods" => masquerade.pods = true,
                "node" => masquerade.node = true,
                "outside" => masquerade.outside = true,
                "none" => {}
                _ => return None,
            }
        }
        let (internal, external) = empty.split_once('/').unwrap_or((empty, empty));
        Some(Self {
            kind,
            on_cluster_ip: won || kind == FrontendKind::ClusterIp,
            service_port: decode_name(name)?,
            masquerade,
            internal_empty: parse_empty(internal)?,
            external_empty: parse_empty(external)?,
            affinity,
            source_ranges,
            port,
        })
    }
}

/// Between whose backend it is and what is to be said about it.
const ARROW: &str = "-> ";

/// Whether a rule that translates to a backend says all about it.
pub(crate) fn is_plain(backend: &Backend) -> bool {
    *backend == Backend::new(backend.address, backend.port, false)
}

/// The comment of a rule that picks a backend.
pub(crate) fn backend_comment(label: &str, backend: &Backend) -> String {
    let space = if label.is_empty() { "" } else { " " };
    let mut text = format!("{label}{space}{ARROW}{}", backend.socket_addr());
    if backend.local {
        text.push_str(" local");
    }
    if backend.state == BackendState::Terminating {
        text.push_str(" terminating");
    }
    if backend.weight != NonZeroU16::MIN {
        let _ = write!(text, " weight={}", backend.weight);
    }
    text
}

pub(crate) fn parse_backend(comment: &str) -> Option<Backend> {
    let (_, text) = comment.rsplit_once(ARROW)?;
    let mut words = text.split(' ');
    let address: SocketAddr = words.next()?.parse().ok()?;
    let mut backend = Backend::new(address.ip(), address.port().try_into().ok()?, false);
    for word in words {
        match word {
            "local" => backend.local = true,
            "terminating" => backend.state = BackendState::Terminating,
            word => backend.weight = word.strip_prefix("weight=")?.parse().ok()?,
        }
    }
    Some(backend)
}

fn detector(kind: &str, interface: &str) -> String {
    let mut text = format!("{kind} ");
    encode(interface, &mut text);
    text
}

/// The comments of the state chain.
pub(crate) fn state_comments(revision: Revision, node: &NodeRouting) -> Vec<String> {
    let mut comments = vec![format!("kubenet 1 revision={}", revision.0)];
    comments.extend(node.addresses.iter().map(|a| format!("address {a}")));
    comments.extend(node.node_port_addresses.iter().map(|a| format!("node-port-address {a}")));
    comments.extend(node.loopback_node_ports.iter().map(|net| format!("loopback-node-ports {net}")));
    match &node.local_detector {
        LocalDetector::Cidrs(cidrs) => {
            comments.push("detector cluster-cidrs".to_owned());
            comments.extend(cidrs.iter().map(|cidr| format!("pods {cidr}")));
        }
        LocalDetector::Bridge(bridge) => comments.push(detector("bridge", bridge)),
        LocalDetector::InterfacePrefix(prefix) => comments.push(detector("interface-prefix", prefix)),
        _ => {}
    }
    comments
}

pub(crate) fn parse_state<'a>(
    mut comments: impl Iterator<Item = &'a str>,
) -> Option<(Revision, NodeRouting)> {
    let revision = comments.next()?.strip_prefix("kubenet 1 revision=")?.parse().ok()?;
    let mut node = NodeRouting::default();
    let mut cidrs: Option<Vec<IpNet>> = None;
    for comment in comments {
        let (key, value) = comment.split_once(' ')?;
        match key {
            "address" => node.addresses.push(value.parse().ok()?),
            "node-port-address" => node.node_port_addresses.push(value.parse().ok()?),
            "loopback-node-ports" => node.loopback_node_ports.push(value.parse().ok()?),
            "detector" if value == "cluster-cidrs" => cidrs = Some(Vec::new()),
            "bridge" => node.local_detector = LocalDetector::Bridge(decode(value)?.to_string()),
            "interface-prefix" => {
                node.local_detector = LocalDetector::InterfacePrefix(decode(value)?.to_string());
            }
            "pods" => cidrs.as_mut()?.push(value.parse().ok()?),
            _ => return None,
        }
    }
    if let Some(cidrs) = cidrs {
        node.local_detector = LocalDetector::Cidrs(cidrs);
    }
    Some((Revision(revision), node))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn masquerade() -> impl Strategy<Value = Masquerade> {
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(pods, node, outside)| Masquerade {
            pods,
            node,
            outside,
        })
    }

    fn empty() -> impl Strategy<Value = WhenEmpty> {
        prop_oneof![Just(WhenEmpty::Reject), Just(WhenEmpty::Drop)]
    }

    fn ranges() -> impl Strategy<Value = SourceRanges> {
        let cidr = (any::<IpAddr>(), 0u8..=32).prop_map(|(ip, length)| IpNet::new(ip, length).unwrap());
        (prop::collection::vec(cidr, 0..40), any::<bool>())
            .prop_map(|(cidrs, node)| SourceRanges { cidrs, node })
    }

    proptest! {
        #[test]
        fn any_name_comes_back_and_stays_one_plain_argument(
            namespace in any::<String>(),
            service in "\\PC{0,300}",
            port in any::<String>(),
            masquerade in masquerade(),
            internal_empty in empty(),
            external_empty in empty(),
            ranges in prop::option::of(ranges()),
            affinity in prop::option::of(1..=Affinity::MAX_TIMEOUT_SECONDS),
            of_port in any::<bool>(),
            backend in prop::option::of((any::<IpAddr>(), 1u16.., any::<bool>())),
        ) {
            let backend = backend.map(|(address, weight, local)| Backend {
                weight: weight.try_into().unwrap(),
                ..Backend::new(address, NonZeroU16::MAX, local)
            });
            let record = RouteRecord {
                kind: FrontendKind::NodePort,
                on_cluster_ip: false,
                service_port: ServicePortName {
                    namespace: namespace.into(), service: service.into(), port: port.into(),
                },
                masquerade, internal_empty, external_empty,
                affinity: affinity.and_then(Affinity::new),
                source_ranges: ranges.map(Arc::new),
                port: of_port.then_some((Protocol::Udp, NonZeroU16::MAX)),
            };
            let comments = record.comments(backend.as_ref());
            let mut whole = String::new();
            for (i, comment) in comments.iter().enumerate() {
                prop_assert!(comment.len() <= 255);
                prop_assert!(comment.bytes().all(|b| (b' '..=b'~').contains(&b) && !b"\"'\\".contains(&b)));
                let last = i + 1 == comments.len();
                prop_assert_eq!(comment.starts_with(CONTINUED), !last);
                whole.push_str(if last { comment } else { &comment[1..] });
            }
            prop_assert_eq!(RouteRecord::parse(&whole), Some(record.clone()));
            prop_assert_eq!(parse_backend(&whole), backend);
            prop_assert!(label(&record.service_port).len() <= LONGEST_NAME + 1);
        }
    }
}
