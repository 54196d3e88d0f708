//! Manifests as several programs read them: what is wrong with one object is told, and hides no other.

use std::{error::Error, path::PathBuf};

use kubenet_core::kubernetes::{ManifestError, Manifests};

/// Reads files and directories. Tells on standard error what was refused, noted or skipped.
///
/// # Errors
/// A path that cannot be read.
pub fn load(paths: &[PathBuf]) -> Result<Manifests, Box<dyn Error>> {
    let manifests = Manifests::load_all(paths).or_else(go_on_with_the_rest)?;
    for notice in &manifests.notices {
        eprintln!("note: {notice}");
    }
    for skipped in &manifests.skipped {
        eprintln!("skipped: {skipped}");
    }
    Ok(manifests)
}

fn go_on_with_the_rest(error: ManifestError) -> Result<Manifests, Box<dyn Error>> {
    let report = error.to_string();
    // A file that cannot be read is a mistake in the call.
    if error.problems().iter().any(|problem| problem.origin.document.is_none()) {
        return Err(report.into());
    }
    for line in report.lines() {
        eprintln!("refused: {line}");
    }
    Ok(error.into_usable())
}
