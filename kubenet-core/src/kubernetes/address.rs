use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A text that is no IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an IPv4 or IPv6 address")]
pub struct InvalidAddress;

/// Reads an address as Kubernetes users write them ([O4]): leading zeros in IPv4 are decimal, an IPv4-mapped
/// IPv6 address is IPv4.
///
/// ```
/// use kubenet_core::kubernetes::parse_address;
/// assert_eq!(parse_address("010.096.000.010")?.to_string(), "10.96.0.10");
/// assert_eq!(parse_address("::ffff:10.96.0.10")?.to_string(), "10.96.0.10");
/// assert!(parse_address("10.96.0.256").is_err());
/// # Ok::<_, kubenet_core::kubernetes::InvalidAddress>(())
/// ```
///
/// # Errors
/// The text is no IP address. Zones (`fe80::1%eth0`) and surrounding space are not part of one.
///
/// [O4]: crate::resolve
pub fn parse_address(text: &str) -> Result<IpAddr, InvalidAddress> {
    if !text.contains(':') {
        return parse_v4(text).map(IpAddr::V4);
    }
    let v6: Ipv6Addr = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => format!("{head}:{}", parse_v4(tail)?).parse(),
        _ => text.parse(),
    }
    .map_err(|_| InvalidAddress)?;
    Ok(IpAddr::V6(v6).to_canonical())
}

/// A text that is no range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an IPv4 or IPv6 CIDR")]
pub struct InvalidCidr;

/// Reads a CIDR as Kubernetes users write it ([O4], [R1]): as [`parse_address`] reads the address, with white
/// space around it, and with bits set behind the prefix, which count as zero.
///
/// ```
/// use kubenet_core::kubernetes::parse_cidr;
/// assert_eq!(parse_cidr(" 10.0.0.7/08 ")?.to_string(), "10.0.0.0/8");
/// assert_eq!(parse_cidr("::ffff:10.0.0.0/104")?.to_string(), "10.0.0.0/8");
/// assert!(parse_cidr("10.0.0.0/33").is_err());
/// # Ok::<_, kubenet_core::kubernetes::InvalidCidr>(())
/// ```
///
/// # Errors
/// The text is no CIDR. An address alone is none.
///
/// [O4]: crate::resolve
/// [R1]: crate::resolve
pub fn parse_cidr(text: &str) -> Result<IpNet, InvalidCidr> {
    let (address, length) = text.trim().split_once('/').ok_or(InvalidCidr)?;
    if length.is_empty() || !length.bytes().all(|c| c.is_ascii_digit()) {
        return Err(InvalidCidr);
    }
    let length: u8 = length.parse().map_err(|_| InvalidCidr)?;
    let mapped = address.contains(':');
    let net = match parse_address(address).map_err(|_| InvalidCidr)? {
        // An IPv4-mapped one counts its length from the beginning of the IPv6 address.
        IpAddr::V4(v4) if mapped => {
            IpNet::V4(Ipv4Net::new(v4, length.checked_sub(96).ok_or(InvalidCidr)?).map_err(|_| InvalidCidr)?)
        }
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, length).map_err(|_| InvalidCidr)?),
        IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new(v6, length).map_err(|_| InvalidCidr)?),
    };
    Ok(net.trunc())
}

fn parse_v4(text: &str) -> Result<Ipv4Addr, InvalidAddress> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().ok_or(InvalidAddress)?;
        if part.is_empty() || !part.bytes().all(|c| c.is_ascii_digit()) {
            return Err(InvalidAddress);
        }
        *octet = part.parse().map_err(|_| InvalidAddress)?;
    }
    if parts.next().is_some() { Err(InvalidAddress) } else { Ok(octets.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_in_ipv4_are_decimal() {
        assert_eq!(parse_address("010.001.000.0255"), Ok(Ipv4Addr::new(10, 1, 0, 255).into()));
        assert_eq!(parse_address("::ffff:010.0.0.08"), Ok(Ipv4Addr::new(10, 0, 0, 8).into()));
    }

    #[test]
    fn an_ipv4_mapped_ipv6_address_is_ipv4() {
        assert_eq!(parse_address("::ffff:a00:1"), Ok(Ipv4Addr::new(10, 0, 0, 1).into()));
    }

    #[test]
    fn other_ipv6_addresses_stay() {
        assert_eq!(parse_address("FD00:96:0::0010").map(|a| a.to_string()), Ok("fd00:96::10".into()));
        assert_eq!(parse_address("64:ff9b::10.0.0.1").map(|a| a.to_string()), Ok("64:ff9b::a00:1".into()));
    }

    #[test]
    fn r1_white_space_around_a_cidr_is_accepted_and_what_is_none_is_refused() {
        for (text, net) in
            [("\t10.1.2.3/16\n", "10.1.0.0/16"), ("0.0.0.0/0", "0.0.0.0/0"), ("fd00::1/8", "fd00::/8")]
        {
            assert_eq!(parse_cidr(text).map(|n| n.to_string()), Ok(net.to_owned()), "{text:?}");
        }
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0/8",
            "::/129",
            "::ffff:10.0.0.0/8",
            "10.0.0.0 /8",
            "10.0.0.0/8,10.1.0.0/8",
            "10.0.0.0/999999999999",
        ] {
            assert_eq!(parse_cidr(text), Err(InvalidCidr), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            " 10.0.0.1",
            "10.0.0.1 ",
            "10.0.0",
            "10.0.0.1.2",
            "10.0.0.256",
            "10.0.0.+1",
            "10.0..1",
            "0x0a.0.0.1",
            "fe80::1%eth0",
            "::ffff:10.0.0",
            ":",
            "::1::",
            "web",
            "10.0.0.1/32",
            "10.0.0.1:80",
            "[::1]",
            "1.2.3.٤",
            "99999999999999999999.0.0.1",
            "1:2.3.4.5",
        ] {
            assert_eq!(parse_address(text), Err(InvalidAddress), "{text:?}");
        }
    }
}
