//! Loading Kubernetes objects: from k8s-openapi's types and from manifest files in YAML or JSON.
//!
//! [`Converter`] turns `v1` Services and `discovery.k8s.io/v1` EndpointSlices into values of
//! [`model`](crate::model). Three things may come of an object:
//!
//! - it is **ours**: [`Conversion::Ours`], with a [`Notice`] for each field that has no effect;
//! - it is **not ours**, such as a headless Service: [`Conversion::NotOurs`] says why. Nothing is wrong with it;
//! - it is **invalid**: [`InvalidObject`](crate::model::InvalidObject) names the field and the rule.
//!
//! `NodeInfo::try_from` reads what a `v1` Node says of itself.
//!
//! ```
//! use k8s_openapi::api::core::v1;
//! use kubenet_core::{kubernetes::Conversion, model::Service};
//!
//! let object: v1::Service = serde_json::from_value(serde_json::json!({
//!     "metadata": { "namespace": "demo", "name": "web" },
//!     "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] },
//! }))?;
//! match Conversion::<Service>::try_from(&object)? {
//!     Conversion::Ours(service, _notices) => assert_eq!(service.name().to_string(), "demo/web"),
//!     Conversion::NotOurs(reason) => println!("left alone: {reason}"),
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Manifests`] reads files and directories:
//!
//! ```
//! use kubenet_core::kubernetes::Manifests;
//!
//! let manifests = Manifests::parse(
//!     "web.yaml",
//!     "
//! apiVersion: v1
//! kind: Service
//! metadata: { name: web, namespace: demo }
//! spec:
//!   clusterIP: 10.96.0.10
//!   ports: [{ port: 80 }]
//! ",
//! )?;
//! assert_eq!(manifests.services.len(), 1);
//!
//! let error = Manifests::parse("bad.yaml", "{apiVersion: v1, kind: Service, metadata: {name: Web}}").unwrap_err();
//! assert!(error.to_string().starts_with("bad.yaml: document 1: Service default/Web: metadata.name: "));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Intake`] does it for what lists and watches deliver, and keeps the last good state of an object that is
//! refused.

mod address;
mod conversion;
mod endpoint_slice;
mod intake;
mod manifests;
mod meta;
mod node;
mod optional;
mod service;

pub use address::{InvalidAddress, InvalidCidr, parse_address, parse_cidr};
pub use conversion::{Conversion, Converter, NotOurs, Notice};
pub use intake::{Intake, Taken};
pub use manifests::{ManifestError, ManifestProblem, Manifests, Origin, Skipped};
