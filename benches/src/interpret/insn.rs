//! One instruction, and what it computes.

use std::fmt;

use aya_obj::generated::bpf_insn;

/// An instruction, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Insn {
    /// Class, operation and source or size.
    pub code: u8,
    /// Destination register.
    pub dst: u8,
    /// Source register, or what an immediate stands for.
    pub src: u8,
    /// Offset of a jump or an access.
    pub off: i16,
    /// Immediate.
    pub imm: i32,
}

impl Insn {
    /// From its parts, in the order in which they are encoded.
    pub fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        Self { code, dst, src, off, imm }
    }

    /// Its class: the lowest three bits.
    pub(super) fn class(self) -> u8 {
        self.code & 7
    }

    /// The operation of arithmetic and jumps: the upper half.
    pub(super) fn operation(self) -> u8 {
        self.code >> 4
    }

    /// Whether the second operand is a register.
    pub(super) fn is_register(self) -> bool {
        self.code & 8 != 0
    }

    /// Bytes that a load or store accesses.
    pub(super) fn size(self) -> usize {
        match self.code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => 8,
        }
    }
}

impl From<&bpf_insn> for Insn {
    fn from(insn: &bpf_insn) -> Self {
        Self::new(insn.code, insn.dst_reg(), insn.src_reg(), insn.off, insn.imm)
    }
}

impl fmt::Display for Insn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, dst, src, off, imm } = self;
        write!(f, "{code:#04x} dst r{dst} src r{src} off {off} imm {imm}")
    }
}

/// The operations of one width. `None`: there is no such operation.
macro_rules! operate {
    ($operation:expr, $dst:expr, $src:expr, $unsigned:ty, $signed:ty) => {{
        let (dst, src) = ($dst as $unsigned, $src as $unsigned);
        let shift = (src & <$unsigned>::from(<$unsigned>::BITS as u8 - 1)) as u32;
        Some(match $operation {
            0x0 => dst.wrapping_add(src),
            0x1 => dst.wrapping_sub(src),
            0x2 => dst.wrapping_mul(src),
            0x3 => dst.checked_div(src).unwrap_or(0),
            0x4 => dst | src,
            0x5 => dst & src,
            0x6 => dst << shift,
            0x7 => dst >> shift,
            0x8 => dst.wrapping_neg(),
            0x9 => dst.checked_rem(src).unwrap_or(dst),
            0xa => dst ^ src,
            0xb => src,
            0xc => ((dst as $signed) >> shift) as $unsigned,
            _ => return None,
        })
    }};
}

/// Arithmetic on 64 bits or on 32, whose result has zeros above.
pub(super) fn alu(operation: u8, wide: bool, dst: u64, src: u64) -> Option<u64> {
    if wide {
        operate!(operation, dst, src, u64, i64)
    } else {
        operate!(operation, dst, src, u32, i32).map(u64::from)
    }
}

/// So many bits in little or big endian; what is above them goes.
pub(super) fn to_endian(big: bool, bits: i32, value: u64) -> Option<u64> {
    Some(match (bits, big) {
        (16, false) => u64::from((value as u16).to_le()),
        (32, false) => u64::from((value as u32).to_le()),
        (64, false) => value.to_le(),
        (16, true) => u64::from((value as u16).to_be()),
        (32, true) => u64::from((value as u32).to_be()),
        (64, true) => value.to_be(),
        _ => return None,
    })
}

/// Whether a conditional jump is taken.
pub(super) fn compare(operation: u8, wide: bool, dst: u64, src: u64) -> Option<bool> {
    let (a, b) = if wide { (dst, src) } else { (u64::from(dst as u32), u64::from(src as u32)) };
    let signed = if wide {
        (dst as i64, src as i64)
    } else {
        (i64::from(dst as u32 as i32), i64::from(src as u32 as i32))
    };
    Some(match operation {
        0x1 => a == b,
        0x2 => a > b,
        0x3 => a >= b,
        0x4 => a & b != 0,
        0x5 => a != b,
        0x6 => signed.0 > signed.1,
        0x7 => signed.0 >= signed.1,
        0xa => a < b,
        0xb => a <= b,
        0xc => signed.0 < signed.1,
        0xd => signed.0 <= signed.1,
        _ => return None,
    })
}

/// What an atomic operation leaves in memory, and what in a register: `None` where it is not fetched.
pub(super) fn atomic(
    kind: i32,
    wide: bool,
    memory: u64,
    src: u64,
    expected: u64,
) -> Option<(u64, Option<u64>)> {
    const FETCH: i32 = 1;
    let fetched = (kind & FETCH != 0).then_some(memory);
    let result = match kind {
        0xe1 => src,
        0xf1 => {
            let same = if wide { memory == expected } else { memory as u32 == expected as u32 };
            if same { src } else { memory }
        }
        _ => match kind & !FETCH {
            0x00 => alu(0x0, wide, memory, src)?,
            0x40 => memory | src,
            0x50 => memory & src,
            0xa0 => memory ^ src,
            _ => return None,
        },
    };
    Some((result, fetched))
}
