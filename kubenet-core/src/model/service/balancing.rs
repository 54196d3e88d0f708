use std::{fmt, num::NonZeroU32, str::FromStr};

/// How a backend is picked for a new flow.
///
/// Not a field of the Kubernetes API: annotation [`Algorithm::ANNOTATION`] of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// At random, each backend in proportion to its weight. What kube-proxy does.
    #[default]
    Random,
    /// By consistent hashing of the client's address: every node picks the same backend for the same client,
    /// without shared state, and few clients move when a backend comes or goes.
    Maglev,
}

impl Algorithm {
    /// The annotation that chooses it: `kubenet.dev/algorithm`.
    pub const ANNOTATION: &'static str = "kubenet.dev/algorithm";
    /// Every algorithm.
    pub const ALL: [Algorithm; 2] = [Algorithm::Random, Algorithm::Maglev];

    /// As the annotation writes it: `random`, `maglev`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Algorithm::Random => "random",
            Algorithm::Maglev => "maglev",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no [`Algorithm`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be random or maglev")]
pub struct UnknownAlgorithm;

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        Self::ALL.into_iter().find(|a| a.as_str() == name).ok_or(UnknownAlgorithm)
    }
}

/// `sessionAffinity: ClientIP`: a client's address stays with one backend of a Service port ([A1]).
///
/// [A1]: crate::resolve
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    timeout_seconds: NonZeroU32,
}

impl Affinity {
    /// The API's default: three hours.
    pub const DEFAULT_TIMEOUT_SECONDS: u32 = 10_800;
    /// The API's limit: one day.
    pub const MAX_TIMEOUT_SECONDS: u32 = 86_400;

    /// For so many seconds after the client's last new connection; `None` outside 1 to
    /// [`MAX_TIMEOUT_SECONDS`](Self::MAX_TIMEOUT_SECONDS).
    pub const fn new(timeout_seconds: u32) -> Option<Self> {
        match NonZeroU32::new(timeout_seconds) {
            Some(timeout_seconds) if timeout_seconds.get() <= Self::MAX_TIMEOUT_SECONDS => {
                Some(Self { timeout_seconds })
            }
            _ => None,
        }
    }

    /// Seconds after the client's last new connection.
    pub const fn timeout_seconds(self) -> u32 {
        self.timeout_seconds.get()
    }
}

impl Default for Affinity {
    fn default() -> Self {
        let timeout_seconds = NonZeroU32::MIN.saturating_add(Self::DEFAULT_TIMEOUT_SECONDS - 1);
        Self { timeout_seconds }
    }
}
