use std::{fmt, io, net::SocketAddr, sync::Arc};

use crate::model::ObjectName;

/// A port of health checks that does not listen.
///
/// Displays as `health check port of Service demo/web: cannot listen on [::]:30123: Address already in use`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PortProblem {
    /// The Service whose checks are not answered; `None` when it is `/healthz` and `/livez`.
    pub service: Option<ObjectName>,
    /// Where it should listen.
    pub address: SocketAddr,
    /// Why it does not.
    pub error: Arc<io::Error>,
}

impl PortProblem {
    /// Whether it is the same problem as it was before.
    pub(super) fn is(&self, other: &Self) -> bool {
        (&self.service, self.address, self.error.kind())
            == (&other.service, other.address, other.error.kind())
    }
}

impl fmt::Display for PortProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Some(service) => write!(f, "health check port of Service {service}")?,
            None => f.write_str("/healthz and /livez")?,
        }
        write!(f, ": cannot listen on {}: {}", self.address, self.error)
    }
}
