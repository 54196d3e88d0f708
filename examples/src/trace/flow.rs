//! Flows as users describe them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
};

use kubenet_core::{
    kubernetes::parse_address,
    model::{IpFamily, Protocol},
};
use kubenet_testkit::memory::Flow;
use serde_json::{Map, Value};

/// A client's port, where only the addresses matter.
const EPHEMERAL: u16 = 40_000;

/// Who dials what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dialled {
    /// The client's address.
    pub from: IpAddr,
    /// The address that it dials.
    pub to: IpAddr,
    /// The port that it dials.
    pub port: NonZeroU16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl Dialled {
    /// What the client dials.
    pub const fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.to, self.port.get())
    }

    /// Whether it stands for a process of the node that is bound to no address: from any loopback address to one
    /// that is not, and from the one that the kernel would choose to another loopback address.
    pub fn is_unbound(&self) -> bool {
        let usual = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&self.from);
        self.from.is_loopback() && (usual || !self.to.is_loopback())
    }

    /// One connection of it, as the reference wants it.
    pub fn flow(&self) -> Flow {
        let source = SocketAddr::new(self.from, EPHEMERAL);
        Flow::new(source, self.destination(), self.protocol)
    }

    /// From a line of JSON, which must have the four fields and may have others.
    ///
    /// # Errors
    /// The field that cannot be, and why.
    pub fn read(object: &Map<String, Value>) -> Result<Self, String> {
        let text = |field: &str| match object.get(field) {
            Some(Value::String(text)) => Ok(text.as_str()),
            None => Err(format!("{field}: must be set")),
            Some(other) => Err(format!("{field}: must be a string, and is {other}")),
        };
        let port = object.get("port").ok_or("port: must be set")?;
        let number = port.as_u64().and_then(|port| u16::try_from(port).ok());
        let number = number.ok_or_else(|| format!("port: must be 1 to 65535, and is {port}"))?;
        Self::new(text("from")?, text("to")?, number, text("protocol")?)
    }

    /// From what users write.
    ///
    /// # Errors
    /// The field that cannot be, and why.
    pub fn new(from: &str, to: &str, port: u16, protocol: &str) -> Result<Self, String> {
        let address = |field: &str, text: &str| {
            parse_address(text).map_err(|rule| format!("{field}: {text:?}: {rule}"))
        };
        let (from, to) = (address("from", from)?, address("to", to)?);
        let (source, destination) = (IpFamily::of(from), IpFamily::of(to));
        if source != destination {
            return Err(format!("from: {source} cannot reach {destination}: both must be of one family"));
        }
        let port = NonZeroU16::new(port).ok_or("port: must be 1 to 65535, and is 0")?;
        let protocol = protocol.parse().map_err(|rule| format!("protocol: {protocol:?}: {rule}"))?;
        Ok(Self { from, to, port, protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_read_as_users_write_addresses() {
        let line =
            r#"{"from": "010.0.0.1", "to": "::ffff:10.96.0.1", "port": 80, "protocol": "UDP", "id": 7}"#;
        let flow = Dialled::read(&serde_json::from_str(line).unwrap()).unwrap();
        assert_eq!((flow.from, flow.to), ([10, 0, 0, 1].into(), [10, 96, 0, 1].into()));
        assert_eq!(flow.protocol, Protocol::Udp);
    }

    #[test]
    fn what_is_wrong_is_said_by_field() {
        for (line, wrong) in [
            (r#"{}"#, "port: must be set"),
            (r#"{"port": 80}"#, "from: must be set"),
            (
                r#"{"port": 0, "from": "10.0.0.1", "to": "10.0.0.2", "protocol": "TCP"}"#,
                "port: must be 1 to 65535, and is 0",
            ),
            (r#"{"port": 65536}"#, "port: must be 1 to 65535, and is 65536"),
            (r#"{"port": "80"}"#, "port: must be 1 to 65535, and is \"80\""),
            (r#"{"port": 80, "from": 7}"#, "from: must be a string, and is 7"),
            (
                r#"{"port": 80, "from": "x", "to": "y", "protocol": "TCP"}"#,
                "from: \"x\": must be an IPv4 or IPv6 address",
            ),
            (
                r#"{"port": 80, "from": "::1", "to": "10.0.0.1", "protocol": "TCP"}"#,
                "from: IPv6 cannot reach IPv4: both must be of one family",
            ),
            (
                r#"{"port": 80, "from": "10.0.0.1", "to": "10.0.0.2", "protocol": "ICMP"}"#,
                "protocol: \"ICMP\": must be TCP, UDP or SCTP",
            ),
        ] {
            assert_eq!(Dialled::read(&serde_json::from_str(line).unwrap()), Err(wrong.to_owned()), "{line}");
        }
    }
}
