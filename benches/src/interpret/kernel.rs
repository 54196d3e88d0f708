//! Maps of programs that the kernel has loaded.

use std::fmt;

use aya::{
    maps::{
        Array, HashMap, LpmTrie, Map as KernelMap, MapData, MapError, MapInfo, MapType, PerCpuArray,
        lpm_trie::Key,
    },
    programs::ProgramInfo,
};

use super::{
    maps::{Kind, Map, Shape, Source},
    program::Program,
};
use crate::Failure;

/// What the kernel keeps of a map's name.
const NAME: usize = 15;

/// The maps of a program that is loaded: copies, which begin as the kernel's are when they are first looked at.
///
/// # Errors
/// The program in the kernel is another, or maps cannot be opened.
pub fn maps(program: &Program, loaded: &ProgramInfo) -> Result<Vec<Map>, Failure> {
    let ids = loaded.map_ids()?.ok_or("the kernel does not tell a program's maps")?;
    if ids.len() != program.used.len() {
        return Err(
            format!("the program uses {} maps, and the kernel's {}", program.used.len(), ids.len()).into()
        );
    }
    let other = |name: &String| {
        let shape =
            Shape { name: name.clone(), kind: Kind::Other, key: 0, value: 0, entries: 0, constants: false };
        Map::new(shape, super::maps::Nothing)
    };
    let mut maps: Vec<Map> = program.maps.iter().map(other).collect();
    for (place, id) in program.used.iter().zip(ids) {
        let slot = maps.get_mut(*place).ok_or("a map that is not in the object")?;
        let info = MapInfo::from_id(id)?;
        let name = slot.shape.name.clone();
        // Global variables have a name of their section alone.
        let same = name.as_bytes().starts_with(info.name()) && info.name().len() >= name.len().min(NAME);
        if !same {
            let found = String::from_utf8_lossy(info.name()).into_owned();
            return Err(format!("the kernel has {found} in place of {name}").into());
        }
        *slot = open(name, id, &info)?;
    }
    Ok(maps)
}

fn open(name: String, id: u32, info: &MapInfo) -> Result<Map, Failure> {
    let kind = match info.map_type()? {
        MapType::Array => Kind::Array,
        MapType::PerCpuArray => Kind::PerCpuArray,
        MapType::Hash | MapType::LruHash => Kind::Hash,
        MapType::LpmTrie => Kind::Trie,
        _ => Kind::Other,
    };
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    let constants = name == ".rodata";
    let shape = Shape { name, kind, key, value, entries: info.max_entries(), constants };
    if kind == Kind::Other {
        return Ok(Map::new(shape, super::maps::Nothing));
    }
    let mut kernel =
        Kernel { map: KernelMap::from_map_data(MapData::from_id(id)?)?, prefixes: Vec::new(), value };
    if kind == Kind::Trie {
        kernel.prefixes = kernel.keys(key)?;
    }
    Ok(Map::new(shape, kernel))
}

struct Kernel {
    map: KernelMap,
    /// Of a trie, as they were in the beginning: length, and the bits.
    prefixes: Vec<(u32, Vec<u8>)>,
    value: usize,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("prefixes", &self.prefixes)
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}

/// Has a size as a constant in an expression, if it is one of those that are named.
macro_rules! sized {
    ($size:expr, $N:ident => $body:expr, [$($known:literal)+]) => {
        match $size {
            $($known => {
                const $N: usize = $known;
                $body
            })+
            other => Err(Failure::from(format!("it has elements of {other} bytes: add the size to kernel.rs"))),
        }
    };
}

/// The same for arrays, whose values may be of any size that types have, and all constants of the loader together.
macro_rules! values {
    ($size:expr, $N:ident => $body:expr) => {
        sized!($size, $N => $body, [
            4 8 12 16 20 24 28 32 36 40 44 48 52 56 60 64 68 72 76 80 84 88 92 96 100 104
            108 112 116 120 124 128 132 136 140 144 148 152 156 160 164 168 172 176 180
            184 188 192 196 200 204 208 212 216 220 224 228 232 236 240 244 248 252 256
            260 264 268 272 276 280 284 288 292 296 300 304 308 312 316 320 324 328 332
            336 340 344 348 352 356 360 364 368 372 376 380 384 388 392 396 400 404 408
            412 416 420 424 428 432 436 440 444 448 452 456 460 464 468 472 476 480 484
            488 492 496 500 504 508 512 516 520 524 528 532 536 540 544 548 552 556 560
            564 568 572 576 580 584 588 592 596 600 604 608 612 616 620 624 628 632 636
            640 644 648 652 656 660 664 668 672 676 680 684 688 692 696 700 704 708 712
            716 720 724 728 732 736 740 744 748 752 756 760 764 768 65536
        ])
    };
}

impl Kernel {
    /// Of a trie.
    fn keys(&self, key: usize) -> Result<Vec<(u32, Vec<u8>)>, Failure> {
        sized!(key, K => trie_keys::<{ K - 4 }>(&self.map), [8 12 20 24])
    }
}

impl Source for Kernel {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        let map = &self.map;
        match map {
            KernelMap::Array(_) => values!(self.value, V => array::<V>(map, key)),
            KernelMap::PerCpuArray(_) => values!(self.value, V => per_cpu::<V>(map, key)),
            KernelMap::LpmTrie(_) => sized!(key.len(), K => trie::<{ K - 4 }>(map, key), [8 12 20 24]),
            _ => sized!(key.len(), K => sized!(self.value, V => hash::<K, V>(map, key),
                [4 8 16 20 24 28 32 40]), [4 8 12 16 20 24 28 32]),
        }
    }

    fn prefixes(&self, key: &[u8]) -> Result<Vec<u64>, Failure> {
        let bits = key.get(4..).unwrap_or_default();
        let holds = |(_, (len, prefix)): &(u64, &(u32, Vec<u8>))| begins_alike(prefix, bits, *len);
        let mut found: Vec<u64> = (0..).zip(&self.prefixes).filter(holds).map(|(number, _)| number).collect();
        // To find that there is none, the root is looked at.
        if found.is_empty() && !self.prefixes.is_empty() {
            found.push(0);
        }
        Ok(found)
    }
}

fn begins_alike(a: &[u8], b: &[u8], bits: u32) -> bool {
    let (whole, rest) = (bits as usize / 8, bits % 8);
    let last = |bytes: &[u8]| bytes.get(whole).map_or(0, |byte| u16::from(*byte) >> (8 - rest));
    a.get(..whole) == b.get(..whole) && last(a) == last(b)
}

fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn fixed<const K: usize>(key: &[u8]) -> Result<[u8; K], Failure> {
    Ok(key.try_into()?)
}

fn array<const V: usize>(map: &KernelMap, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    let index = u32::from_le_bytes(fixed(key)?);
    Ok(found(Array::<_, [u8; V]>::try_from(map)?.get(&index, 0))?.map(Vec::from))
}

/// Of the last CPU: that is where test runs are.
fn per_cpu<const V: usize>(map: &KernelMap, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    let index = u32::from_le_bytes(fixed(key)?);
    let values = found(PerCpuArray::<_, [u8; V]>::try_from(map)?.get(&index, 0))?;
    Ok(values.and_then(|values| values.last().copied()).map(Vec::from))
}

fn hash<const K: usize, const V: usize>(map: &KernelMap, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    Ok(found(HashMap::<_, [u8; K], [u8; V]>::try_from(map)?.get(&fixed(key)?, 0))?.map(Vec::from))
}

fn trie<const K: usize>(map: &KernelMap, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    let (len, bits) = key.split_at_checked(4).ok_or("a key without a length")?;
    let key = Key::new(u32::from_le_bytes(fixed(len)?), fixed::<K>(bits)?);
    Ok(found(LpmTrie::<_, [u8; K], [u8; 4]>::try_from(map)?.get(&key, 0))?.map(Vec::from))
}

fn trie_keys<const K: usize>(map: &KernelMap) -> Result<Vec<(u32, Vec<u8>)>, Failure> {
    let keys = LpmTrie::<_, [u8; K], [u8; 4]>::try_from(map)?
        .keys()
        .map(|key| key.map(|key| (key.prefix_len(), key.data().to_vec())))
        .collect::<Result<_, _>>()?;
    Ok(keys)
}
