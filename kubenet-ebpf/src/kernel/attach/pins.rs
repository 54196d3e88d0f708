//! What somebody removed from the directory of pins is pinned again.
//!
//! Without its pins everything goes on, as this process holds it; but it would end with the process.

use std::{
    collections::BTreeSet,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::maps::MapData;
use kubenet_core::datapath::{DatapathError, ErrorKind};

use super::{
    super::link,
    Attachments,
    hook::{Hook, pin_name},
    pin_program,
    programs::Programs,
    sockets,
};
use crate::{error::caused, pin::Pins};

/// The maps that are pinned in a directory, to pin them again.
pub(crate) struct PinnedMaps(Vec<(String, MapData)>);

impl PinnedMaps {
    /// Opens the maps with these names.
    pub(crate) fn open<'a>(
        directory: &Path,
        names: impl Iterator<Item = &'a String>,
    ) -> Result<Self, DatapathError> {
        let open = |name: &String| {
            let map = MapData::from_pin(directory.join(name)).map_err(|e| {
                let message = format!("pin_dir: {}: the map {name} cannot be opened", directory.display());
                caused("build", ErrorKind::Unavailable, message, e)
            })?;
            Ok((name.clone(), map))
        };
        names.map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Pins those in a directory that are not there. Returns where.
    fn pin(&self, directory: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
        let mut pinned = Vec::new();
        for (name, map) in &self.0 {
            let path = directory.join(name);
            if !path.exists() {
                if let Err(e) = link::pin(map.fd().as_fd(), &path) {
                    return Err((path, e));
                }
                pinned.push(path);
            }
        }
        Ok(pinned)
    }
}

impl Attachments {
    /// Pins again what is pinned no more, and returns where. Nothing before packets meet the programs.
    ///
    /// # Errors
    /// Names the path and why it cannot be; packets are served all the same.
    pub(crate) fn restore_pins(&mut self, programs: &Programs) -> Result<BTreeSet<PathBuf>, DatapathError> {
        let result = self.try_restore_pins(programs);
        // What is wrong with the file system says more than the call that failed.
        match (&result, &self.pins) {
            (Err(_), Some(pins)) => Pins::check(pins.path()).and(result),
            _ => result,
        }
    }

    fn try_restore_pins(&mut self, programs: &Programs) -> Result<BTreeSet<PathBuf>, DatapathError> {
        let mut restored = BTreeSet::new();
        let Some(pins) = self.pins.as_mut().filter(|_| self.active) else { return Ok(restored) };
        if !pins.is_there() {
            pins.make_again()?;
            restored.insert(pins.path().to_owned());
        }
        let failed = |pins: &Pins, (path, e): (PathBuf, io::Error)| pins.failed("pin", &path, e);
        if let Some(maps) = &self.maps {
            let directory = pins.maps();
            if directory.is_dir() {
                restored.extend(maps.pin(&directory).map_err(|e| failed(pins, e))?);
            } else {
                maps.pin(&pins.begin_maps()?).map_err(|e| failed(pins, e))?;
                pins.finish_maps()?;
                restored.insert(directory);
            }
        }
        for attached in self.interfaces.values_mut() {
            for (spot, hook) in &mut attached.hooks {
                let name = attached.side.program(*spot);
                match hook {
                    Hook::Link(link) => {
                        let path = pins.link(&pin_name(attached.side, attached.index, *spot));
                        restored.extend(put(pins, link, path).map_err(|e| failed(pins, e))?);
                    }
                    // One of another process has its pin, or is known to nobody.
                    Hook::Filter(filter) if filter.program() == programs.id(name) => {
                        let path = pins.filter(filter.program());
                        if !path.exists() {
                            pin_program(pins, programs, name).map_err(|e| {
                                let message = format!("pin_dir: cannot pin {}", path.display());
                                caused("build", ErrorKind::Unavailable, message, e)
                            })?;
                            restored.insert(path);
                        }
                    }
                    Hook::Filter(_) => {}
                }
            }
        }
        for (program, link) in &mut self.sockets {
            let path = pins.link(&sockets::pin_name(program));
            restored.extend(put(pins, link, path).map_err(|e| failed(pins, e))?);
        }
        Ok(restored)
    }
}

/// Pins a link where it is not pinned. Returns where it was not.
fn put(
    pins: &Pins,
    link: &mut link::BpfLink,
    path: PathBuf,
) -> Result<Option<PathBuf>, (PathBuf, io::Error)> {
    if path.exists() {
        return Ok(None);
    }
    match pins.put(&path, |path| link.pin(path)) {
        Ok(()) => {
            link.set_pin(path.clone());
            Ok(Some(path))
        }
        Err(e) => Err((path, e)),
    }
}
