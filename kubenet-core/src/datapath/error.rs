use std::{error::Error, fmt, sync::Arc};

/// What went wrong, for code that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The kernel, the machine or this datapath cannot do it. Retrying does not help.
    Unsupported,
    /// A privilege is missing.
    Permission,
    /// Something is full: the message names it, its size, and the setting.
    Capacity,
    /// The kernel is not in the state that the call assumed. [`Datapath::replace`](super::Datapath::replace)
    /// resolves it.
    Conflict,
    /// A value given by the caller breaks a rule.
    InvalidInput,
    /// It may work later: a lock is held, a helper program failed, the datapath is closed.
    Unavailable,
    /// A mistake in the datapath itself.
    Internal,
}

impl ErrorKind {
    /// Whether the same call may succeed later without anybody's help.
    pub const fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Unavailable | ErrorKind::Conflict | ErrorKind::Capacity)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Permission => "permission denied",
            ErrorKind::Capacity => "capacity exhausted",
            ErrorKind::Conflict => "conflict",
            ErrorKind::InvalidInput => "invalid input",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Internal => "internal error",
        })
    }
}

/// An error of a datapath: which, doing what, what kind, and what to do about it.
///
/// Cheap to clone. Errors of other libraries appear only in [`Error::source`].
#[derive(Clone)]
pub struct DatapathError(Arc<Inner>);

struct Inner {
    datapath: &'static str,
    operation: &'static str,
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl DatapathError {
    /// An error of `datapath` during `operation` (a verb: `probe`, `replace`). The message says what is wrong
    /// and, where something can be done, what.
    pub fn new(
        datapath: &'static str,
        operation: &'static str,
        kind: ErrorKind,
        message: impl Into<String>,
    ) -> Self {
        Self(Arc::new(Inner { datapath, operation, kind, message: message.into(), source: None }))
    }

    /// The same with the error that caused it.
    pub fn with_source(
        datapath: &'static str,
        operation: &'static str,
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self(Arc::new(Inner {
            datapath,
            operation,
            kind,
            message: message.into(),
            source: Some(source.into()),
        }))
    }

    /// Name of the datapath.
    pub fn datapath(&self) -> &'static str {
        self.0.datapath
    }

    /// What it was doing.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// What kind of error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What is wrong, without the datapath, the operation and the source.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for DatapathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { datapath, operation, kind, message, .. } = &*self.0;
        write!(f, "{datapath}: {operation}: {kind}: {message}")
    }
}

impl fmt::Debug for DatapathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatapathError")
            .field("datapath", &self.0.datapath)
            .field("operation", &self.0.operation)
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl Error for DatapathError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source: &(dyn Error + 'static) = self.0.source.as_deref()?;
        Some(source)
    }
}
