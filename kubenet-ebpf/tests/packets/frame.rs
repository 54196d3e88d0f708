//! Frames as values: what a test sends, and what it expects to see, built from scratch by etherparse.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, TcpHeader, TcpOptions,
};

/// Offset of the network header.
pub const L3: usize = 14;

/// A transport protocol that the programs translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    Tcp,
    Udp,
    Sctp,
}

impl Proto {
    pub const ALL: [Proto; 3] = [Proto::Tcp, Proto::Udp, Proto::Sctp];

    pub fn number(self) -> u8 {
        match self {
            Proto::Tcp => 6,
            Proto::Udp => 17,
            Proto::Sctp => 132,
        }
    }
}

/// Which TCP flags a frame has, or what SCTP has for them. For UDP it makes no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    Syn,
    /// Of TCP alone.
    SynFin,
    SynAck,
    Ack,
    Fin,
    Rst,
}

/// With the checksum that an independent implementation gives it, or with that left to the device.
fn sctp_packet(from: u16, to: u16, tag: u32, chunks: &[u8], no_checksum: bool) -> Vec<u8> {
    let (from, to, tag) = (from.to_be_bytes(), to.to_be_bytes(), tag.to_be_bytes());
    let mut packet = [&from[..], &to, &tag, &[0; 4], chunks].concat();
    if !no_checksum {
        let checksum = crc32c::crc32c(&packet);
        packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    }
    packet
}

/// One frame with a transport protocol in it.
#[derive(Clone, Debug)]
pub struct Frame {
    pub mac_from: [u8; 6],
    pub mac_to: [u8; 6],
    pub proto: Proto,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub flags: Flags,
    pub ttl: u8,
    pub tcp_options: Vec<u8>,
    pub ip_options: Vec<u8>,
    /// Hop-by-hop and destination options.
    pub extensions: bool,
    pub dont_fragment: bool,
    /// Number of the datagram, for its fragments.
    pub id: u16,
    /// UDP without a checksum, SCTP with one that the device is to fill in.
    pub no_checksum: bool,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(proto: Proto, from: SocketAddr, to: SocketAddr) -> Self {
        Self {
            mac_from: [2, 0, 0, 0, 9, 9],
            mac_to: [0; 6],
            proto,
            from,
            to,
            flags: Flags::Syn,
            ttl: 64,
            tcp_options: Vec::new(),
            ip_options: Vec::new(),
            extensions: false,
            dont_fragment: true,
            id: 4711,
            no_checksum: false,
            payload: b"an odd payload for checksums".to_vec(),
        }
    }

    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// The frame with other addresses, as it stands after a translation.
    pub fn with(&self, from: SocketAddr, to: SocketAddr) -> Self {
        Self { from, to, ..self.clone() }
    }

    /// The same, one hop on.
    pub fn forwarded(&self, from: SocketAddr, to: SocketAddr) -> Self {
        let mut frame = self.with(from, to);
        frame.ttl -= 1;
        frame
    }

    fn ip(&self) -> IpHeaders {
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = Ipv4Header {
                    identification: self.id,
                    time_to_live: self.ttl,
                    dont_fragment: self.dont_fragment,
                    source: source.octets(),
                    destination: destination.octets(),
                    options: Ipv4Options::try_from(&self.ip_options[..]).expect("options"),
                    ..Ipv4Header::default()
                };
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                let mut extensions = Ipv6Extensions::default();
                if self.extensions {
                    // PadN over the rest of each header.
                    let option = |next| Ipv6RawExtHeader::new_raw(next, &[1, 4, 0, 0, 0, 0]).expect("header");
                    extensions.hop_by_hop_options = Some(option(IpNumber::IPV6_DESTINATION_OPTIONS));
                    extensions.destination_options = Some(option(IpNumber::TCP));
                }
                IpHeaders::Ipv6(header, extensions)
            }
            _ => panic!("families differ"),
        }
    }

    /// The bytes, with every checksum computed from scratch.
    pub fn bytes(&self) -> Vec<u8> {
        let step = PacketBuilder::ethernet2(self.mac_from, self.mac_to).ip(self.ip());
        let mut out = Vec::new();
        match self.proto {
            Proto::Sctp => {
                let number = IpNumber(self.proto.number());
                step.write(&mut out, number, &self.sctp()).expect("frame");
            }
            Proto::Tcp => {
                let mut tcp = TcpHeader::new(self.from.port(), self.to.port(), 1000, 4096);
                tcp.syn = matches!(self.flags, Flags::Syn | Flags::SynFin | Flags::SynAck);
                tcp.ack = !matches!(self.flags, Flags::Syn | Flags::SynFin);
                tcp.fin = matches!(self.flags, Flags::Fin | Flags::SynFin);
                tcp.rst = self.flags == Flags::Rst;
                tcp.acknowledgment_number = if tcp.ack { 2000 } else { 0 };
                tcp.options = TcpOptions::try_from_slice(&self.tcp_options).expect("TCP options");
                step.tcp_header(tcp).write(&mut out, &self.payload).expect("frame");
            }
            Proto::Udp => {
                step.udp(self.from.port(), self.to.port()).write(&mut out, &self.payload).expect("frame");
                if self.no_checksum {
                    let at = self.l4() + 6;
                    out[at..at + 2].fill(0);
                }
            }
        }
        out
    }

    /// The frames that a sender makes of it: each but the last with so many bytes of the transport's.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        let bytes = self.bytes();
        let pieces: Vec<_> = bytes[self.l4()..].chunks(size).collect();
        let count = pieces.len();
        let fragment = |(i, piece): (usize, &&[u8])| {
            let offset = IpFragOffset::try_new((i * size / 8) as u16).expect("offset");
            let more = i + 1 < count;
            let mut ip = self.ip();
            match &mut ip {
                IpHeaders::Ipv4(header, _) => {
                    (header.dont_fragment, header.more_fragments) = (false, more);
                    header.fragment_offset = offset;
                }
                IpHeaders::Ipv6(_, extensions) => {
                    let next = IpNumber(self.proto.number());
                    extensions.fragment = Some(Ipv6FragmentHeader::new(next, offset, more, self.id.into()));
                }
            }
            let mut out = Vec::new();
            let step = PacketBuilder::ethernet2(self.mac_from, self.mac_to).ip(ip);
            step.write(&mut out, IpNumber(self.proto.number()), piece).expect("fragment");
            out
        };
        pieces.iter().enumerate().map(fragment).collect()
    }

    /// A packet of SCTP with one chunk.
    fn sctp(&self) -> Vec<u8> {
        let (kind, mut body) = match self.flags {
            // Tag, window, streams, number of the first chunk; then a parameter that nobody knows.
            Flags::Syn | Flags::SynFin => {
                (1, vec![0xa1, 0xa2, 0xa3, 0xa4, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0x80, 0, 0, 4])
            }
            Flags::SynAck => {
                (2, vec![0xb1, 0xb2, 0xb3, 0xb4, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0x80, 0, 0, 4])
            }
            Flags::Ack => (0, vec![0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]),
            Flags::Fin => (14, Vec::new()),
            Flags::Rst => (6, Vec::new()),
        };
        body.extend(&self.payload);
        let length = 4 + body.len();
        body.resize(body.len().next_multiple_of(4), 0);
        let tag: u32 = if self.flags == Flags::Syn { 0 } else { 0xa1a2_a3a4 };
        let chunk = [&[kind, 0][..], &(length as u16).to_be_bytes(), &body].concat();
        sctp_packet(self.from.port(), self.to.port(), tag, &chunk, self.no_checksum)
    }

    /// The abort that refuses this INIT.
    pub fn abort(&self) -> Vec<u8> {
        let packet =
            sctp_packet(self.to.port(), self.from.port(), 0xa1a2_a3a4, &[6, 0, 0, 4], self.no_checksum);
        let mut out = Vec::new();
        self.answer().write(&mut out, IpNumber(self.proto.number()), &packet).expect("abort");
        out
    }

    /// How the node refuses the beginning of a flow.
    pub fn refusal(&self) -> Vec<u8> {
        match self.proto {
            Proto::Tcp => self.reset(),
            Proto::Udp => self.port_unreachable(),
            Proto::Sctp => self.abort(),
        }
    }

    /// Offset of the transport header.
    pub fn l4(&self) -> usize {
        match self.from {
            SocketAddr::V4(_) => L3 + 20 + self.ip_options.len().next_multiple_of(4),
            SocketAddr::V6(_) => L3 + 40 + if self.extensions { 16 } else { 0 },
        }
    }

    /// An answer by this node: network header with the addresses turned round.
    fn answer(&self) -> etherparse::PacketBuilderStep<IpHeaders> {
        let ip = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => IpHeaders::Ipv4(
                Ipv4Header {
                    time_to_live: 64,
                    dont_fragment: true,
                    source: to.octets(),
                    destination: from.octets(),
                    // Zeros end the list, and keep the header's length.
                    options: Ipv4Options::try_from(&vec![0; self.ip_options.len()][..]).expect("options"),
                    ..Ipv4Header::default()
                },
                Ipv4Extensions::default(),
            ),
            (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
                Ipv6Header {
                    hop_limit: 64,
                    source: to.octets(),
                    destination: from.octets(),
                    ..Ipv6Header::default()
                },
                Ipv6Extensions::default(),
            ),
            _ => panic!("families differ"),
        };
        PacketBuilder::ethernet2(self.mac_to, self.mac_from).ip(ip)
    }

    /// The reset that refuses this SYN.
    pub fn reset(&self) -> Vec<u8> {
        let mut tcp = TcpHeader::new(self.to.port(), self.from.port(), 0, 0);
        tcp.rst = true;
        tcp.ack = true;
        let fin = u32::from(self.flags == Flags::SynFin);
        tcp.acknowledgment_number = 1000 + 1 + fin + self.payload.len() as u32;
        let mut out = Vec::new();
        self.answer().tcp_header(tcp).write(&mut out, &[]).expect("reset");
        out
    }

    /// The ICMP error of this type about this frame, with the network header and 8 bytes quoted.
    pub fn icmp(&self, v4: (u8, u8), v6: (u8, u8), info: u32) -> Vec<u8> {
        self.icmp_about(&self.bytes()[L3..self.l4() + 8], v4, v6, info)
    }

    /// The same with another quotation.
    pub fn icmp_about(&self, quote: &[u8], v4: (u8, u8), v6: (u8, u8), info: u32) -> Vec<u8> {
        let mut out = Vec::new();
        match self.from {
            SocketAddr::V4(_) => {
                self.answer().icmpv4_raw(v4.0, v4.1, info.to_be_bytes()).write(&mut out, quote)
            }
            SocketAddr::V6(_) => {
                self.answer().icmpv6_raw(v6.0, v6.1, info.to_be_bytes()).write(&mut out, quote)
            }
        }
        .expect("ICMP");
        out
    }

    /// The ICMP error that refuses this datagram. In IPv6, its unused word holds the pseudo header's sum.
    pub fn port_unreachable(&self) -> Vec<u8> {
        let quoted = 8 + self.l4() - L3 + 8;
        let sum = if self.from.is_ipv4() { 0 } else { self.pseudo_sum(58, quoted) };
        self.icmp((3, 3), (1, 4), sum.into())
    }

    /// The sum of the pseudo header for so many bytes of a protocol, in either direction.
    pub fn pseudo_sum(&self, protocol: u8, len: usize) -> u16 {
        let addresses = if self.from.is_ipv4() { L3 + 12..L3 + 20 } else { L3 + 8..L3 + 40 };
        let bytes = self.bytes();
        let words = bytes[addresses].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let mut sum = words.sum::<u32>() + u32::from(protocol) + len as u32;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

/// A frame of more than 64 KiB has no length in its header, until its device cuts it: these bytes as such a one.
pub fn without_length(mut bytes: Vec<u8>) -> Vec<u8> {
    let v4 = bytes[L3] >> 4 == 4;
    let at = if v4 { L3 + 2 } else { L3 + 4 };
    let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    bytes[at..at + 2].fill(0);
    if v4 {
        let check = u16::from_be_bytes([bytes[L3 + 10], bytes[L3 + 11]]);
        let sum = u32::from(check) + u32::from(old);
        let check = ((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[L3 + 10..L3 + 12].copy_from_slice(&check.to_be_bytes());
    }
    bytes
}
