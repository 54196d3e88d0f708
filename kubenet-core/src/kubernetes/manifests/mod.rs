//! Manifest files.

mod document;
mod error;
mod object;
mod tree;

use std::{
    fmt, fs,
    io::Read,
    path::{Path, PathBuf},
};

pub use error::{ManifestError, ManifestProblem, Origin};
use object::Reader;
pub(super) use object::type_rule;

use super::{Converter, Notice};
use crate::{
    cluster::Change,
    model::{EndpointSlice, NodeInfo, Service},
};

/// Files larger than this are refused.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The Services, EndpointSlices and Nodes of manifest files, as `kubectl` reads and writes them.
///
/// Files are YAML or JSON, with any number of documents. `List`s, `ServiceList`s, `EndpointSliceList`s and
/// `NodeList`s are unfolded. Objects without a namespace are in `default`. Objects of other kinds are skipped and listed.
///
/// Where an object is invalid, the error lists the problems of all, and has those that are good:
/// [`ManifestError::into_usable`].
///
/// ```no_run
/// use kubenet_core::kubernetes::Manifests;
/// let manifests = Manifests::load("manifests/")?;
/// for notice in &manifests.notices {
///     eprintln!("note: {notice}");
/// }
/// # Ok::<_, kubenet_core::kubernetes::ManifestError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Manifests {
    /// The Services, in the order of the files.
    pub services: Vec<Service>,
    /// The EndpointSlices, in the order of the files.
    pub slices: Vec<EndpointSlice>,
    /// What the Nodes say, in the order of the files.
    pub nodes: Vec<NodeInfo>,
    /// Fields that have no effect, or another than one would expect, and fields that the API does not have.
    pub notices: Vec<Notice>,
    /// Objects that are not ours.
    pub skipped: Vec<Skipped>,
}

/// As all that exists: `router.submit(manifests)` needs no [`synced`](crate::router::ServiceRouter::synced).
impl From<Manifests> for Change {
    fn from(manifests: Manifests) -> Self {
        Change::Snapshot { services: manifests.services, slices: manifests.slices }
    }
}

/// An object of a manifest that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Where it stands.
    pub origin: Origin,
    /// Kind and name, such as `Deployment demo/web`.
    pub object: String,
    /// Why it is not ours.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.origin, self.object, self.reason)
    }
}

impl Manifests {
    /// Reads a file, or the `*.yaml`, `*.yml` and `*.json` files of a directory in the order of their names.
    /// Directories below it are not read.
    ///
    /// # Errors
    /// All that is wrong, with file, document, object, field and rule.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ManifestError> {
        Self::load_all([path])
    }

    /// Reads several files and directories as one set.
    ///
    /// # Errors
    /// See [`Manifests::load`].
    pub fn load_all<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self, ManifestError> {
        Self::load_with(&Converter::new(), paths)
    }

    /// Reads several files and directories as one set, converted in a way of one's own.
    ///
    /// # Errors
    /// See [`Manifests::load`].
    pub fn load_with<P: AsRef<Path>>(
        converter: &Converter,
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Self, ManifestError> {
        let mut reader = Reader::new(converter);
        for path in paths {
            let path = path.as_ref();
            match files(path) {
                Ok(files) => {
                    for file in files {
                        match read(&file) {
                            Ok(text) => reader.read(&file, &text),
                            Err(rule) => reader.fail(ManifestProblem::of_file(&file, rule)),
                        }
                    }
                }
                Err(rule) => reader.fail(ManifestProblem::of_file(path, rule)),
            }
        }
        reader.end()
    }

    /// Reads a text. Messages call it by `name`, whose ending tells YAML from JSON where it has one.
    ///
    /// # Errors
    /// See [`Manifests::load`].
    pub fn parse(name: impl AsRef<Path>, text: &str) -> Result<Self, ManifestError> {
        let converter = Converter::new();
        let mut reader = Reader::new(&converter);
        reader.read(name.as_ref(), text);
        reader.end()
    }
}

/// The files that a path means.
fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let known = file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        // A link that leads nowhere stays in the list: reading it names it.
        if known && fs::metadata(&file).map_or(true, |m| m.is_file()) {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err("must hold *.yaml, *.yml or *.json files".into());
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(unreadable)?;
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("must not be larger than {} MiB", MAX_FILE_BYTES >> 20));
    }
    String::from_utf8(bytes).map_err(|error| {
        format!("must be UTF-8 text, which it is not at byte {}", error.utf8_error().valid_up_to())
    })
}

fn unreadable(error: std::io::Error) -> String {
    format!("cannot be read: {error}")
}
