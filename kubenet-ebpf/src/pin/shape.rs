//! What shape a map has, and whether a pinned one has the shape that the programs need.
//!
//! Nobody else compares: aya takes whatever map is pinned under a name, and the kernel lets a program have any
//! map whose values are large enough.

use std::{collections::BTreeMap, path::Path};

use aya::maps::MapInfo;
use aya_obj::{EbpfSectionKind, Object};
use kubenet_core::datapath::{DatapathError, ErrorKind};

use crate::error::{caused, error};

/// All that the kernel knows of a map's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// The maps of an object, but for its constants, which go with the programs.
pub(crate) fn shapes(
    object: &[u8],
    sizes: &[(&'static str, u32)],
) -> Result<BTreeMap<String, Shape>, DatapathError> {
    let object = Object::parse(object)
        .map_err(|e| caused("build", ErrorKind::Internal, "cannot parse the embedded object", e))?;
    let is_ours = |kind| matches!(kind, EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps);
    let maps = object.maps.iter().filter(|(_, map)| is_ours(map.section_kind()));
    Ok(maps
        .map(|(name, map)| {
            let size = sizes.iter().find(|(sized, _)| sized == name).map(|(_, size)| *size);
            let shape = Shape {
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: size.unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            };
            (name.clone(), shape)
        })
        .collect())
}

/// Whether every map is pinned in the directory, in its shape; of any size where that does not matter.
pub(crate) fn check(
    directory: &Path,
    shapes: &BTreeMap<String, Shape>,
    of_any_size: bool,
) -> Result<(), DatapathError> {
    const REMEDY: &str = "remove what is pinned with kubenet_ebpf::remove_pins, which ends what it forwards";
    let here = directory.display();
    for (name, wanted) in shapes {
        let path = directory.join(name);
        if !path.exists() {
            let message = format!(
                "pin_dir: {here}: the map {name} is missing: somebody removed a part of what was pinned: {REMEDY}"
            );
            return Err(error("build", ErrorKind::Unsupported, message));
        }
        let found =
            MapInfo::from_pin(&path).and_then(|info| Ok((info.map_type()? as u32, info))).map_err(|e| {
                let message = format!("pin_dir: {}: cannot be opened as a map: {REMEDY}", path.display());
                caused("build", ErrorKind::Unsupported, message, e)
            })?;
        let (kind, info) = found;
        let found = Shape {
            kind,
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: if of_any_size { wanted.max_entries } else { info.max_entries() },
            flags: info.map_flags(),
        };
        if let Some((what, has, needs)) = wanted.difference(&found) {
            let remedy = if what == "entries" {
                format!("keep the MapSizes that it was made with, or {REMEDY}")
            } else {
                REMEDY.to_owned()
            };
            let message =
                format!("pin_dir: {}: the map has {what} {has} instead of {needs}: {remedy}", path.display());
            return Err(error("build", ErrorKind::Unsupported, message));
        }
    }
    Ok(())
}

impl Shape {
    /// The first difference: what it is, what the other has, and what this one has.
    fn difference(&self, found: &Shape) -> Option<(&'static str, u32, u32)> {
        let fields = [
            ("type", found.kind, self.kind),
            ("a key size of", found.key_size, self.key_size),
            ("a value size of", found.value_size, self.value_size),
            ("entries", found.max_entries, self.max_entries),
            ("flags", found.flags, self.flags),
        ];
        fields.into_iter().find(|(_, found, wanted)| found != wanted)
    }
}
