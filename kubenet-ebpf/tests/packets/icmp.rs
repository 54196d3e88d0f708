//! ICMP errors as values, built from scratch by etherparse.

use std::net::IpAddr;

use etherparse::{IpHeaders, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder};

use crate::frame::{Frame, L3};

/// Type, code and the word behind the checksum.
pub type Kind = (u8, u8, u32);

/// Every error that says what became of a packet.
pub fn kinds(v4: bool) -> &'static [Kind] {
    const V4: [Kind; 8] = [
        (3, 0, 0),
        (3, 1, 0),
        (3, 3, 0),
        (3, 4, 1280),
        (3, 13, 0x0500_0000),
        (11, 0, 0),
        (11, 1, 0),
        (12, 0, 8 << 24),
    ];
    const V6: [Kind; 8] =
        [(1, 0, 0), (1, 3, 0), (1, 4, 0), (1, 6, 0x0500_0000), (2, 0, 1280), (3, 0, 0), (3, 1, 0), (4, 1, 6)];
    if v4 { &V4 } else { &V6 }
}

/// What a router says about a packet that does not fit.
pub fn too_big(v4: bool) -> Kind {
    if v4 { (3, 4, 1400) } else { (2, 0, 1400) }
}

/// An error about a packet, of which it quotes the beginning.
#[derive(Clone, Debug)]
pub struct IcmpError {
    pub mac_from: [u8; 6],
    pub mac_to: [u8; 6],
    pub from: IpAddr,
    pub to: IpAddr,
    pub kind: Kind,
    pub ttl: u8,
    /// How many bytes of the packet it quotes, as far as there are so many.
    pub quoted: usize,
    pub about: Frame,
    /// Which fragment of the packet it is about.
    pub fragment: Option<usize>,
    /// Bytes of the quotation that are others than in the packet.
    pub damage: Vec<(usize, Vec<u8>)>,
}

impl IcmpError {
    pub fn new(from: IpAddr, about: Frame) -> Self {
        Self {
            mac_from: [2, 0, 0, 0, 9, 9],
            mac_to: [0; 6],
            from,
            to: about.from.ip(),
            kind: too_big(from.is_ipv4()),
            ttl: 64,
            quoted: about.l4() - L3 + 8,
            about,
            fragment: None,
            damage: Vec::new(),
        }
    }

    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same, translated: from and to other addresses, about the packet as somebody else knows it.
    pub fn with(&self, from: IpAddr, about: &Frame) -> Self {
        Self { from, to: about.from.ip(), about: about.clone(), ..self.clone() }
    }

    /// The same, one hop on.
    pub fn forwarded(&self, from: IpAddr, about: &Frame) -> Self {
        let mut error = self.with(from, about);
        error.ttl -= 1;
        error
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut packet = match self.fragment {
            Some(number) => self.about.fragments(64).remove(number),
            None => self.about.bytes(),
        };
        for (at, bytes) in &self.damage {
            packet[L3 + at..L3 + at + bytes.len()].copy_from_slice(bytes);
        }
        let quote = &packet[L3..packet.len().min(L3.saturating_add(self.quoted))];
        let (kind, code, word) = self.kind;
        let start = PacketBuilder::ethernet2(self.mac_from, self.mac_to);
        let mut out = Vec::new();
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let ip = Ipv4Header {
                    identification: 815,
                    time_to_live: self.ttl,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv4Header::default()
                };
                start
                    .ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default()))
                    .icmpv4_raw(kind, code, word.to_be_bytes())
                    .write(&mut out, quote)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ip = Ipv6Header {
                    hop_limit: self.ttl,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                start
                    .ip(IpHeaders::Ipv6(ip, Ipv6Extensions::default()))
                    .icmpv6_raw(kind, code, word.to_be_bytes())
                    .write(&mut out, quote)
            }
            _ => panic!("families differ"),
        }
        .expect("ICMP");
        out
    }
}
