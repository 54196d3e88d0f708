use std::{fmt, io, time::Duration};

/// Building or changing the lab failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The machine does not allow a lab.
    #[error("a lab cannot be built here: {0}")]
    Unsupported(String),
    /// A helper program failed.
    #[error("{command}: {message}")]
    Command {
        /// What was run.
        command: String,
        /// What it said.
        message: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no pod of this name.
    #[error("there is no pod {0:?} in this lab: add it with Lab::add_pod or LabConfig::pod")]
    NoSuchPod(String),
    /// A value given by the caller breaks a rule.
    #[error("{0}")]
    InvalidInput(String),
}

impl LabError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
        let what = what.into();
        |source| LabError::Io { what, source }
    }
}

/// A request was not answered.
#[derive(Debug)]
#[non_exhaustive]
pub enum RequestError {
    /// The peer refused at once: TCP reset at the handshake, or ICMP port unreachable.
    Refused,
    /// Nothing came back in time.
    TimedOut {
        /// The limit that passed.
        after: Duration,
    },
    /// The established connection was cut.
    Reset,
    /// The connection ended before the answer.
    Closed,
    /// There is no way to the address.
    Unreachable,
    /// Something answered that is not a server of this lab.
    Protocol(String),
    /// Another failure of the socket.
    Io(io::Error),
    /// The place to ask from is not in the lab.
    Lab(LabError),
}

impl RequestError {
    /// Sorts an error of a socket; `timeout` is the limit that it had.
    pub(super) fn from_io(error: io::Error, timeout: Duration) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable,
            NetworkUnreachable, TimedOut, UnexpectedEof, WouldBlock,
        };
        match error.kind() {
            ConnectionRefused => RequestError::Refused,
            TimedOut | WouldBlock => RequestError::TimedOut { after: timeout },
            ConnectionReset | ConnectionAborted | BrokenPipe => RequestError::Reset,
            UnexpectedEof => RequestError::Closed,
            HostUnreachable | NetworkUnreachable => RequestError::Unreachable,
            _ => RequestError::Io(error),
        }
    }

    /// Whether the client was refused at once.
    pub fn is_refused(&self) -> bool {
        matches!(self, RequestError::Refused)
    }

    /// Whether nothing came back in time.
    pub fn is_timed_out(&self) -> bool {
        matches!(self, RequestError::TimedOut { .. })
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::Refused => f.write_str("refused"),
            RequestError::TimedOut { after } => write!(f, "timed out after {} ms", after.as_millis()),
            RequestError::Reset => f.write_str("connection reset"),
            RequestError::Closed => f.write_str("connection closed before the answer"),
            RequestError::Unreachable => f.write_str("no way to the address"),
            RequestError::Protocol(what) => write!(f, "unexpected answer: {what}"),
            RequestError::Io(error) => write!(f, "{error}"),
            RequestError::Lab(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for RequestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RequestError::Io(error) => Some(error),
            RequestError::Lab(error) => Some(error),
            _ => None,
        }
    }
}

impl From<LabError> for RequestError {
    fn from(error: LabError) -> Self {
        RequestError::Lab(error)
    }
}
