//! What a captured packet tells.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, LaxIpSlice, TcpHeaderSlice, TcpOptionElement};
use kubenet_core::model::Protocol;

use super::frame::UDP_MAGIC;

const ETHERNET: usize = 14;

/// Types of the ICMP errors that say that somebody cannot be reached.
const UNREACHABLE_V4: u8 = 3;
const UNREACHABLE_V6: u8 = 1;
/// Bytes before what an ICMP error quotes.
const ICMP_HEADER: usize = 8;

/// A packet that says something about one of our connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// The first packet of a connection.
    First { protocol: Protocol, from: SocketAddr, to: SocketAddr, mark: Mark },
    /// The client is told that its connection will not be.
    Refusal { protocol: Protocol, client: SocketAddr, dialled: SocketAddr },
}

/// What tells a connection from others, whatever became of its addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Of a packet that we made.
    Made(u32),
    /// The segment size that a socket announces.
    SegmentSize(u16),
}

/// A frame with its Ethernet header.
pub(super) fn of_frame(frame: &[u8]) -> Option<Sight> {
    of_packet(frame.get(ETHERNET..)?)
}

/// A packet with its network header.
pub(super) fn of_packet(packet: &[u8]) -> Option<Sight> {
    let (ip, _) = LaxIpSlice::from_slice(packet).ok()?;
    if ip.is_fragmenting_payload() {
        return None;
    }
    let payload = ip.payload();
    of_transport(payload.ip_number, ip.source_addr(), ip.destination_addr(), payload.payload)
}

/// A packet whose network header is known already.
pub(super) fn of_transport(number: IpNumber, from: IpAddr, to: IpAddr, bytes: &[u8]) -> Option<Sight> {
    if number == IpNumber::ICMP || number == IpNumber::IPV6_ICMP {
        return of_icmp(number, bytes);
    }
    let protocol = protocol_of(number)?;
    let (source, destination) = ports(bytes)?;
    let (from, to) = (SocketAddr::new(from, source), SocketAddr::new(to, destination));
    let mark = match protocol {
        Protocol::Tcp => {
            let tcp = TcpHeaderSlice::from_slice(bytes).ok()?;
            if tcp.rst() {
                return Some(Sight::Refusal { protocol, client: to, dialled: from });
            }
            if !tcp.syn() || tcp.ack() {
                return None;
            }
            let size = tcp.options_iterator().flatten().find_map(|option| match option {
                TcpOptionElement::MaximumSegmentSize(size) => Some(size),
                _ => None,
            });
            size.map_or(Mark::Made(tcp.sequence_number()), Mark::SegmentSize)
        }
        Protocol::Udp => {
            let payload = bytes.get(8..)?;
            Mark::Made(u32_at(payload.strip_prefix(&UDP_MAGIC)?, 0)?)
        }
        Protocol::Sctp => Mark::Made(u32_at(bytes, 16).filter(|_| bytes.get(12) == Some(&1))?),
    };
    Some(Sight::First { protocol, from, to, mark })
}

/// Only the beginning of what was sent is quoted, which has the addresses and ports.
fn of_icmp(number: IpNumber, bytes: &[u8]) -> Option<Sight> {
    let wanted = if number == IpNumber::ICMP { UNREACHABLE_V4 } else { UNREACHABLE_V6 };
    if bytes.first() != Some(&wanted) {
        return None;
    }
    let (quoted, _) = LaxIpSlice::from_slice(bytes.get(ICMP_HEADER..)?).ok()?;
    let payload = quoted.payload();
    let protocol = protocol_of(payload.ip_number)?;
    let (source, destination) = ports(payload.payload)?;
    Some(Sight::Refusal {
        protocol,
        client: SocketAddr::new(quoted.source_addr(), source),
        dialled: SocketAddr::new(quoted.destination_addr(), destination),
    })
}

fn protocol_of(number: IpNumber) -> Option<Protocol> {
    match number {
        IpNumber::TCP => Some(Protocol::Tcp),
        IpNumber::UDP => Some(Protocol::Udp),
        IpNumber::SCTP => Some(Protocol::Sctp),
        _ => None,
    }
}

/// All three protocols have them at the beginning.
fn ports(bytes: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *bytes.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::trace::frame;

    const MACS: (frame::Mac, frame::Mac) = ([2; 6], [4; 6]);

    fn pairs() -> [(SocketAddr, SocketAddr); 2] {
        [
            ("10.0.0.1:40000".parse().unwrap(), "10.96.0.1:80".parse().unwrap()),
            ("[fd00::1]:40000".parse().unwrap(), "[fd00:96::1]:80".parse().unwrap()),
        ]
    }

    #[test]
    fn what_is_made_is_known_again() {
        for (from, to) in pairs() {
            for protocol in Protocol::ALL {
                let frame = frame::first(MACS, from, to, protocol, 0xdead_beef).unwrap();
                let mark = Mark::Made(0xdead_beef);
                assert_eq!(of_frame(&frame), Some(Sight::First { protocol, from, to, mark }));
                assert_eq!(of_frame(&frame[..frame.len() - 25]), None, "cut off");
            }
        }
    }

    #[test]
    fn a_refusal_names_the_connection_as_its_client_knows_it() {
        for (client, dialled) in pairs() {
            for protocol in Protocol::ALL {
                let quoted = frame::first(MACS, client, dialled, protocol, 7).unwrap();
                let header = if client.is_ipv4() { 20 } else { 40 };
                let icmp = PacketBuilder::ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64);
                let quote = &quoted[ETHERNET..ETHERNET + header + 8];
                let mut packet = Vec::new();
                let number = if client.is_ipv4() {
                    icmp.icmpv4_raw(3, 3, [0; 4]).write(&mut packet, quote).unwrap();
                    IpNumber::ICMP
                } else {
                    icmp.icmpv4_raw(1, 4, [0; 4]).write(&mut packet, quote).unwrap();
                    IpNumber::IPV6_ICMP
                };
                let seen = of_transport(number, client.ip(), client.ip(), &packet[20..]);
                assert_eq!(seen, Some(Sight::Refusal { protocol, client, dialled }));
                packet[20] = 0;
                assert_eq!(of_transport(number, client.ip(), client.ip(), &packet[20..]), None, "an echo");
            }
        }
    }

    #[test]
    fn a_reset_refuses_and_an_answer_says_nothing() {
        let ip = || PacketBuilder::ipv4([10, 96, 0, 1], [10, 0, 0, 1], 64);
        let mut packet = Vec::new();
        ip().tcp(80, 40_000, 0, 0).rst().ack(8).write(&mut packet, &[]).unwrap();
        let (client, dialled) = pairs()[0];
        assert_eq!(of_packet(&packet), Some(Sight::Refusal { protocol: Protocol::Tcp, client, dialled }));
        packet.clear();
        ip().tcp(80, 40_000, 0, 0).syn().ack(8).write(&mut packet, &[]).unwrap();
        assert_eq!(of_packet(&packet), None);
    }

    #[test]
    fn a_socket_is_known_by_its_segment_size() {
        let mut packet = Vec::new();
        let options = [TcpOptionElement::Noop, TcpOptionElement::MaximumSegmentSize(777)];
        let step = PacketBuilder::ipv4([10, 0, 0, 1], [10, 96, 0, 1], 64).tcp(40_000, 80, 9, 0).syn();
        step.options(&options).unwrap().write(&mut packet, &[]).unwrap();
        let Some(Sight::First { mark, .. }) = of_packet(&packet) else { panic!("not seen") };
        assert_eq!(mark, Mark::SegmentSize(777));
    }
}
