use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

#[test]
fn protocols_are_written_and_read_the_same() {
    for protocol in Protocol::ALL {
        assert_eq!(protocol.to_string().parse(), Ok(protocol));
        assert_eq!(protocol.as_lower_str().parse(), Ok(protocol));
        assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
    }
    assert_eq!("Tcp".parse::<Protocol>(), Err(UnknownProtocol));
    assert_eq!("".parse::<Protocol>(), Err(UnknownProtocol));
    assert_eq!(Protocol::from_number(1), None);
}

#[test]
fn the_family_is_that_of_the_address() {
    assert_eq!(IpFamily::of(Ipv4Addr::LOCALHOST.into()), IpFamily::V4);
    assert_eq!(IpFamily::of(Ipv6Addr::LOCALHOST.into()), IpFamily::V6);
    assert_eq!(IpFamily::ALL.map(IpFamily::as_str), ["IPv4", "IPv6"]);
}
