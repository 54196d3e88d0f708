//! Says whether a program did right by any packet at all, without knowing what it should have done: what it passes
//! is as it was; what it translates has nothing changed but what may change, and every checksum is exactly as right
//! or wrong as it was before; what it answers is right in itself.

use std::ops::Range;

use crate::{
    bench::{Hook, OK, REDIRECT, SHOT, Setup, UNSPEC, octets},
    frame::L3,
    nets::{V4, V6},
    peers::POD,
    run::EXTERNAL_MAC,
    xdp::{DROP, GATEWAY, PASS, TX},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Where things are in a packet.
#[derive(Clone, Copy, Debug)]
struct Layout {
    v6: bool,
    /// Of the network header.
    at: usize,
    /// Of the transport header.
    l4: usize,
    /// By the header's word; a quoted packet may be cut before.
    end: usize,
    proto: u8,
    /// A fragment that is not the first.
    later: bool,
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

/// Follows the headers from one at an offset on.
fn layout(bytes: &[u8], at: usize, gso: bool) -> Option<Layout> {
    match bytes.get(at)? >> 4 {
        4 => {
            let header = usize::from(bytes[at] & 0xf) * 4;
            let length = match word(bytes, at + 2)? {
                0 if gso => bytes.len() - at,
                length => length,
            };
            let later = word(bytes, at + 6)? & 0x1fff != 0;
            let proto = *bytes.get(at + 9)?;
            let (l4, end) = (at + header, at + length);
            (header >= 20 && l4 <= end).then_some(Layout { v6: false, at, l4, end, proto, later })
        }
        6 => {
            let end = match word(bytes, at + 4)? {
                0 if gso => bytes.len(),
                length => at + 40 + length,
            };
            let (mut l4, mut proto, mut later) = (at + 40, *bytes.get(at + 6)?, false);
            while !later && matches!(proto, 0 | 43 | 44 | 51 | 60) {
                let units = usize::from(*bytes.get(l4 + 1)?);
                let length = match proto {
                    44 => 8,
                    51 => (units + 2) * 4,
                    _ => (units + 1) * 8,
                };
                later = proto == 44 && word(bytes, l4 + 2)? & !7 != 0;
                proto = bytes[l4];
                l4 += length;
            }
            (l4 <= end).then_some(Layout { v6: true, at, l4, end, proto, later })
        }
        _ => None,
    }
}

impl Layout {
    fn addresses(&self) -> Range<usize> {
        if self.v6 { self.at + 8..self.at + 40 } else { self.at + 12..self.at + 20 }
    }

    fn ttl(&self) -> usize {
        self.at + if self.v6 { 7 } else { 8 }
    }

    fn is_icmp(&self) -> bool {
        !self.later && self.proto == if self.v6 { 58 } else { 1 }
    }

    /// The transport's checksum, as far as there is one in so many bytes.
    fn check(&self, limit: usize) -> Option<Range<usize>> {
        let check = match self.proto {
            TCP => self.l4 + 16..self.l4 + 18,
            UDP => self.l4 + 6..self.l4 + 8,
            SCTP => self.l4 + 8..self.l4 + 12,
            _ if self.is_icmp() => self.l4 + 2..self.l4 + 4,
            _ => return None,
        };
        (!self.later && check.end <= limit.min(self.end)).then_some(check)
    }

    /// The packet that an error quotes.
    fn quoted(&self, bytes: &[u8]) -> Option<Self> {
        let kind = *bytes.get(self.l4)?;
        let error = if self.v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 11 | 12) };
        if !error || !self.is_icmp() {
            return None;
        }
        layout(&bytes[..self.end.min(bytes.len())], self.l4 + 8, false).filter(|quoted| quoted.v6 == self.v6)
    }

    /// What a translation may change.
    fn changeable(&self, limit: usize) -> Vec<Range<usize>> {
        let mut all = vec![self.addresses()];
        if !self.v6 {
            all.push(self.at + 10..self.at + 12);
        }
        if !self.later && matches!(self.proto, TCP | UDP | SCTP) {
            all.push(self.l4..self.l4 + 4);
        }
        all.extend(self.check(limit));
        all
    }

    /// How far its checksums are off: the header's, and the transport's.
    fn errors(&self, bytes: &[u8], limit: usize) -> Vec<u64> {
        let mut all = Vec::new();
        if !self.v6 {
            all.push(sum(&bytes[self.at..self.l4]));
        }
        let Some(check) = self.check(limit) else { return all };
        let l4 = &bytes[self.l4..self.end.min(limit)];
        all.push(match self.proto {
            UDP | SCTP if bytes[check.clone()].iter().all(|byte| *byte == 0) => u64::MAX,
            SCTP => {
                // What is not quoted does not matter, as long as it is the same.
                let mut whole = l4.to_vec();
                whole.resize(self.end - self.l4, 0);
                let found = u32::from_le_bytes(whole[8..12].try_into().expect("four bytes"));
                whole[8..12].fill(0);
                u64::from(found ^ crc32c::crc32c(&whole))
            }
            1 => sum(l4),
            _ => {
                let pseudo = [u32::from(self.proto), (self.end - self.l4) as u32].map(u32::to_be_bytes);
                sum(&[&bytes[self.addresses()], &pseudo.concat(), l4].concat())
            }
        });
        all
    }
}

/// The one's complement sum; all ones for a packet whose checksum is right.
fn sum(bytes: &[u8]) -> u64 {
    let mut sum: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Two ways to write zero.
    if sum == 0 { 0xffff } else { sum }
}

/// What a frame met.
#[derive(Clone, Copy)]
pub struct Met {
    /// XDP, if none of TC's.
    pub hook: Option<Hook>,
    pub gso: bool,
    pub setup: Setup,
}

/// Looks at what became of a frame.
///
/// # Errors
/// What is wrong with it.
pub fn judge(met: Met, action: i32, before: &[u8], after: &[u8]) -> Result<(), String> {
    let Met { hook, gso, setup } = met;
    let Some(hook) = hook else { return judge_xdp(setup, action, before, after) };
    match action {
        SHOT => Ok(()),
        UNSPEC if before == after => Ok(()),
        UNSPEC if hook != Hook::ToDevice => Err("is passed on, but changed".into()),
        REDIRECT if setup.peer && after[..12] == [&POD[..], &before[..6]].concat() => {
            translation(gso, true, before, &[&before[..12], &after[12..]].concat())
        }
        REDIRECT if after[..6] == before[6..12] => answer(gso, before, after),
        OK | REDIRECT if setup.direct && hook != Hook::ToDevice && before.len() < after.len() => {
            translation(gso, action == REDIRECT, before, &without_mark(gso, before, after)?)
        }
        UNSPEC | OK | REDIRECT => translation(gso, action == REDIRECT, before, after),
        other => Err(format!("the program returns {other}")),
    }
}

fn judge_xdp(setup: Setup, action: i32, before: &[u8], after: &[u8]) -> Result<(), String> {
    match action {
        DROP => Ok(()),
        PASS if before == after => Ok(()),
        PASS if setup.external_tc => Err("is passed on, but changed".into()),
        PASS => translation(false, false, before, after),
        TX if after[..12] != [GATEWAY, EXTERNAL_MAC].concat() => Err("has wrong MAC addresses".into()),
        TX => translation(false, true, before, &[&before[..12], &after[12..]].concat()),
        other => Err(format!("the program returns {other}")),
    }
}

/// What is left of a packet without the mark of direct server return, if the mark is right and so is the
/// header with it.
fn without_mark(gso: bool, before: &[u8], after: &[u8]) -> Result<Vec<u8>, String> {
    let sent = layout(before, L3, gso).ok_or("is marked, but has no headers that make sense")?;
    let frontend = (&before[sent.addresses().end - if sent.v6 { 16 } else { 4 }..sent.addresses().end], {
        // The destination's port.
        before.get(sent.l4 + 2..sent.l4 + 4).ok_or("is marked, but has no ports")?
    });
    let (mark, at) = if sent.v6 {
        ([&[before[L3 + 6], 2, 0x1e, 18][..], frontend.0, frontend.1, &[1, 0]].concat(), L3 + 40)
    } else {
        ([&[0x9e, 8][..], frontend.1, frontend.0].concat(), L3 + 20)
    };
    if after.len() != before.len() + mark.len() || after[at..at + mark.len()] != mark {
        return Err("has a wrong mark".into());
    }
    let mut plain = after.to_vec();
    plain.drain(at..at + mark.len());
    let length = if sent.v6 { L3 + 4 } else { L3 + 2 };
    if let Some(marked) = word(after, length).filter(|_| word(before, length) != Some(0)) {
        let unmarked = marked.checked_sub(mark.len()).ok_or("is marked, but shorter")? as u16;
        plain[length..length + 2].copy_from_slice(&unmarked.to_be_bytes());
    }
    if sent.v6 {
        if after[L3 + 6] != 60 {
            return Err("has a mark that no header leads to".into());
        }
        plain[L3 + 6] = mark[0];
        return Ok(plain);
    }
    let off = sum(&before[L3..sent.l4]);
    if sum(&after[L3..sent.l4 + mark.len()]) != off {
        return Err("has a mark that its header's checksum knows nothing of".into());
    }
    plain[L3] = plain[L3].wrapping_sub(2);
    // As far off as it was.
    plain[L3 + 10..L3 + 12].fill(0);
    let check = (off + 0xffff - sum(&plain[L3..sent.l4]) % 0xffff) % 0xffff;
    plain[L3 + 10..L3 + 12].copy_from_slice(&(check as u16).to_be_bytes());
    Ok(plain)
}

fn translation(gso: bool, forwarded: bool, before: &[u8], after: &[u8]) -> Result<(), String> {
    if before.len() != after.len() {
        return Err("has another length".into());
    }
    let outer = layout(before, L3, gso).ok_or("is translated, but has no headers that make sense")?;
    if before[12..14] != if outer.v6 { [0x86, 0xdd] } else { [8, 0] } {
        return Err("is translated, but of no family".into());
    }
    if outer.end > before.len() {
        return Err("is translated, but cut off".into());
    }
    let mut changeable = outer.changeable(outer.end);
    let mut errors = outer.errors(before, outer.end);
    let mut errors_after = outer.errors(after, outer.end);
    if let Some(quoted) = outer.quoted(before) {
        changeable.extend(quoted.changeable(outer.end));
        errors.extend(quoted.errors(before, outer.end));
        errors_after.extend(quoted.errors(after, outer.end));
    } else if outer.is_icmp() {
        return Err("is translated, but is no error".into());
    }
    if errors != errors_after {
        return Err(format!("checksums were off by {errors:x?}, now by {errors_after:x?}"));
    }
    let ttl = outer.ttl();
    if after[ttl] != before[ttl].wrapping_sub(u8::from(forwarded)) {
        return Err(format!("its time to live was {}, now it is {}", before[ttl], after[ttl]));
    }
    changeable.push(ttl..ttl + 1);
    let mut expected = before.to_vec();
    for range in changeable {
        expected[range.clone()].copy_from_slice(&after[range]);
    }
    if expected == after { Ok(()) } else { Err("something else is changed".into()) }
}

fn answer(gso: bool, before: &[u8], after: &[u8]) -> Result<(), String> {
    let asked = layout(before, L3, gso).ok_or("is answered, but has no headers that make sense")?;
    let answer = layout(after, L3, false).ok_or("the answer has no headers that make sense")?;
    if answer.end != after.len() {
        return Err("the answer has a wrong length".into());
    }
    let addresses = &before[asked.addresses()];
    let (from, to) = addresses.split_at(addresses.len() / 2);
    // A router on the way says when a packet is at the end of its hops, and nobody else than it.
    let (time_exceeded, node) = if answer.v6 { (3, octets(V6.node)) } else { (11, octets(V4.node)) };
    let expired = answer.is_icmp() && after[answer.l4] == time_exceeded;
    let by = if expired { &node } else { to };
    if after[answer.addresses()] != [by, from].concat() {
        return Err("the answer has wrong addresses".into());
    }
    if expired && before[asked.ttl()] > 1 {
        return Err("is told to be at the end of its hops".into());
    }
    let errors = answer.errors(after, answer.end);
    let right = |error: &u64| match answer.proto {
        // Left to the device.
        SCTP => matches!(error, 0 | 0xffff | &u64::MAX),
        _ => *error == 0xffff,
    };
    if errors.is_empty() || !errors.iter().all(right) {
        return Err(format!("the answer's checksums are off: {errors:x?}"));
    }
    Ok(())
}
