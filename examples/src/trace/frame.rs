//! The first packet of a connection, from scratch, with a mark that no translation changes.

use std::net::{IpAddr, SocketAddr};

use crc::{CRC_32_ISCSI, Crc};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder,
    err::packet::BuildWriteError,
};
use kubenet_core::model::Protocol;

/// The checksum of SCTP.
const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// What the payload of our datagrams begins with; the mark follows.
pub(super) const UDP_MAGIC: [u8; 4] = *b"kubn";

/// Bytes of SCTP's common header and of the chunk that opens an association.
const SCTP_HEADER: usize = 12;
const SCTP_INIT: usize = 20;

pub(super) type Mac = [u8; 6];

/// A frame from one device to another. TCP: a SYN without options, whose sequence number is the mark. SCTP: an
/// INIT, whose tag is the mark.
pub(super) fn first(
    (mac_from, mac_to): (Mac, Mac),
    from: SocketAddr,
    to: SocketAddr,
    protocol: Protocol,
    mark: u32,
) -> Result<Vec<u8>, BuildWriteError> {
    let mut out = Vec::with_capacity(128);
    let step = PacketBuilder::ethernet2(mac_from, mac_to).ip(headers(from.ip(), to.ip()));
    match protocol {
        Protocol::Tcp => step.tcp(from.port(), to.port(), mark, 64_000).syn().write(&mut out, &[])?,
        Protocol::Udp => step.udp(from.port(), to.port()).write(&mut out, &datagram(mark))?,
        Protocol::Sctp => {
            step.write(&mut out, IpNumber::SCTP, &sctp_init(from.port(), to.port(), mark))?;
        }
    }
    Ok(out)
}

fn headers(from: IpAddr, to: IpAddr) -> IpHeaders {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => IpHeaders::Ipv4(
            Ipv4Header {
                time_to_live: 64,
                dont_fragment: true,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv4Header::default()
            },
            Ipv4Extensions::default(),
        ),
        // Flows of mixed families are refused when they are read.
        (from, to) => IpHeaders::Ipv6(
            Ipv6Header { hop_limit: 64, source: v6(from), destination: v6(to), ..Ipv6Header::default() },
            Ipv6Extensions::default(),
        ),
    }
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The payload of a datagram.
pub(super) fn datagram(mark: u32) -> [u8; 8] {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&UDP_MAGIC);
    payload[4..].copy_from_slice(&mark.to_be_bytes());
    payload
}

/// A whole SCTP packet (RFC 9260).
pub(super) fn sctp_init(from: u16, to: u16, mark: u32) -> Vec<u8> {
    let mut packet = Vec::with_capacity(SCTP_HEADER + SCTP_INIT);
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend([0; 8]); // No tag of the peer is known yet. The checksum comes last.
    packet.extend([1, 0, 0, SCTP_INIT as u8]);
    packet.extend(mark.to_be_bytes());
    packet.extend(64_000u32.to_be_bytes()); // Window.
    packet.extend([0, 1, 0, 1]); // Streams out and in.
    packet.extend(mark.to_be_bytes());
    let sum = CRC32C.checksum(&packet);
    packet[8..SCTP_HEADER].copy_from_slice(&sum.to_le_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_sctp_covers_the_packet_with_a_zero_in_its_place() {
        let mut packet = sctp_init(40_000, 3868, 7);
        assert_eq!(packet.len(), SCTP_HEADER + SCTP_INIT);
        let sum = u32::from_le_bytes(packet[8..12].try_into().unwrap());
        packet[8..12].fill(0);
        assert_eq!(CRC32C.checksum(&packet), sum);
        // The check value that the catalogue of CRCs gives.
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
    }
}
