//! Messages of netlink, as far as two questions need them.

pub(super) const NLM_F_REQUEST: u16 = 1;
/// Of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// The first word of some bytes.
pub(super) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// The value of the first attribute of this kind.
pub(super) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const FLAGS: u16 = 0xc000;
    const HEAD: usize = 4;
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(HEAD..length)?;
        if u16::from_ne_bytes([c, d]) & !FLAGS == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}
