//! Validated Kubernetes objects: what the cluster declares, before this node decides what it means.
//!
//! Construction is the only place that checks input. A value that exists is valid: a port is never 0, a
//! Service of this model always has a virtual address. Errors name the object, the field, the value and the
//! rule that was broken ([`InvalidObject`]).

mod endpoint_slice;
mod error;
mod name;
mod node;
mod protocol;
mod service;

pub use endpoint_slice::{Conditions, Endpoint, EndpointPort, EndpointSlice, EndpointSliceBuilder, Hints};
pub use error::InvalidObject;
#[cfg(feature = "kubernetes")]
pub(crate) use error::quoted;
pub use name::{ObjectName, validate_label, validate_name};
pub use node::{LocalDetector, NodeInfo, NodeInfoBuilder, NodePortAddresses};
pub use protocol::{IpFamily, Protocol, UnknownProtocol};
pub(crate) use service::unicast;
pub use service::{
    Affinity, Algorithm, Service, ServiceBuilder, ServicePort, ServiceType, TrafficPolicy, UnknownAlgorithm,
};
