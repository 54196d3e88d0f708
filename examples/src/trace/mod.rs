//! What really happens to described packets: each flow is sent through a datapath of the kernel.
//!
//! [`observe`] builds a node of two network namespaces for whatever addresses there are, starts the datapath
//! on it, and sends the first packet of many connections of each flow: from a pod of the node, from the node's
//! own sockets, or from the world outside. Nobody answers. Where a packet arrives, and from whom, is seen at
//! the far ends and by raw sockets of the node. A client with a loopback address is a process of the node that
//! is bound to no address; but one that dials loopback from another than 127.0.0.1 or ::1 is bound to that.
//!
//! | seen | means |
//! |---|---|
//! | arrives somewhere else than it was sent to | forwarded to that backend; masqueraded if it comes from somebody else |
//! | arrives where it was sent to, in the world, at a pod or in the node's own stack | left to the stack |
//! | a TCP reset or an ICMP error, without the packet having arrived; `ECONNREFUSED` | rejected |
//! | nothing, although a packet that was sent later has passed; another error of the node's socket | dropped |

#[cfg(target_os = "linux")]
mod expect;
pub mod flow;
#[cfg(target_os = "linux")]
mod frame;
#[cfg(target_os = "linux")]
mod observe;
#[cfg(target_os = "linux")]
mod own;
#[cfg(target_os = "linux")]
mod pace;
#[cfg(target_os = "linux")]
mod places;
#[cfg(target_os = "linux")]
mod sampler;
mod seen;
#[cfg(target_os = "linux")]
mod sight;
#[cfg(target_os = "linux")]
mod stage;
#[cfg(target_os = "linux")]
mod wire;

pub use self::{
    flow::Dialled,
    seen::{Reached, Seen, Verdict},
};
#[cfg(target_os = "linux")]
pub use self::{
    observe::{Observed, observe, observe_on},
    stage::{Kind, Stage},
};

/// A datapath of the kernel could not be asked.
#[cfg(target_os = "linux")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The namespaces could not be built.
    #[error(transparent)]
    Lab(#[from] kubenet_testkit::lab::LabError),
    /// The datapath could not be started, or refused the routes as a whole.
    #[error(transparent)]
    Datapath(#[from] kubenet_core::datapath::DatapathError),
    /// The machine lacks something else.
    #[error("packets cannot be tried here: {0}")]
    Missing(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

#[cfg(target_os = "linux")]
impl TraceError {
    fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        TraceError::Io { what: what.into(), source }
    }
}
