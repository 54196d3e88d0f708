//! Removes what was pinned, whatever it is.

use std::{collections::BTreeSet, path::Path};

use kubenet_core::datapath::{DatapathError, ErrorKind};

use super::{attach::Attachments, link::BpfLink};
use crate::{error::error, pin::Pins};

/// Detaches and removes everything that is pinned in a directory, in the layout of any version.
pub(crate) fn remove_pins(path: &Path) -> Result<(), DatapathError> {
    if !path.exists() {
        return Ok(());
    }
    Pins::check(path)?;
    let pins = Pins::lock(path)?;
    let mut failures = Vec::new();
    for name in pins.links().unwrap_or_default() {
        let path = pins.link(&name);
        if let Err(e) = BpfLink::pinned(&path).and_then(BpfLink::detach) {
            failures.push(format!("cannot detach what is pinned at {}: {e}", path.display()));
        }
    }
    let programs: BTreeSet<u32> = pins.filters().unwrap_or_default().into_iter().collect();
    if !programs.is_empty()
        && let Err(e) = Attachments::remove_filters(&programs)
    {
        failures.push(format!("cannot remove filters: {e}"));
    }
    failures.extend(pins.remove_all());
    if failures.is_empty() {
        return Ok(());
    }
    Err(error("remove_pins", ErrorKind::Unavailable, failures.join("; ")))
}
