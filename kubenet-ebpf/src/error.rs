//! Errors of this datapath.

use std::error::Error;

use kubenet_core::datapath::{DatapathError, ErrorKind};

/// Name of the datapath, in errors and metrics.
pub(crate) const NAME: &str = "ebpf";

pub(crate) fn error(operation: &'static str, kind: ErrorKind, message: impl Into<String>) -> DatapathError {
    DatapathError::new(NAME, operation, kind, message)
}

pub(crate) fn caused(
    operation: &'static str,
    kind: ErrorKind,
    message: impl Into<String>,
    source: impl Into<Box<dyn Error + Send + Sync>>,
) -> DatapathError {
    DatapathError::with_source(NAME, operation, kind, message, source)
}
