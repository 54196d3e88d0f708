use std::fmt;

use k8s_openapi::api::{core::v1, discovery::v1 as discovery};

use super::{endpoint_slice, node, service};
use crate::model::{EndpointSlice, InvalidObject, NodeInfo, Service};

/// What became of a valid Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conversion<T> {
    /// It is to be routed.
    Ours(
        /// The object.
        T,
        /// Its fields that have no effect, or another than one would expect.
        Vec<Notice>,
    ),
    /// It is for somebody else, or nothing is routed for its kind.
    NotOurs(NotOurs),
}

impl<T> Conversion<T> {
    /// The object, if it is ours.
    pub fn ours(self) -> Option<T> {
        match self {
            Conversion::Ours(object, _) => Some(object),
            Conversion::NotOurs(_) => None,
        }
    }
}

/// Why an object is not ours ([O1]).
///
/// [O1]: crate::resolve
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotOurs {
    /// A Service of type `ExternalName`: an alias in the DNS.
    ExternalName,
    /// A Service with `clusterIP: None`, or a slice labelled `service.kubernetes.io/headless`.
    Headless,
    /// A Service whose `clusterIP` is empty: the API server has not allocated it.
    NoClusterIp,
    /// A Service with the label `service.kubernetes.io/service-proxy-name` of another proxy.
    OtherProxy,
    /// A slice of address type `FQDN`.
    Fqdn,
    /// A slice without the label `kubernetes.io/service-name`.
    NoService,
}

impl fmt::Display for NotOurs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotOurs::ExternalName => "type ExternalName has no virtual address",
            NotOurs::Headless => "headless: it has no virtual address",
            NotOurs::NoClusterIp => {
                "no cluster IP yet: the API server allocates it; in a manifest read from a file, set \
                 spec.clusterIP"
            }
            NotOurs::OtherProxy => "label service.kubernetes.io/service-proxy-name gives it to another proxy",
            NotOurs::Fqdn => "addressType FQDN has no addresses to route to",
            NotOurs::NoService => "label kubernetes.io/service-name, which names its Service, is not set",
        })
    }
}

/// A field that has no effect, or another than one would expect. The object is routed all the same.
///
/// Displays as `Service demo/web: spec.externalIPs[0]: fd00::9 is ignored: …`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// Kind and name of the object, such as `Service demo/web`.
    pub object: String,
    /// Path of the field inside the object, such as `spec.externalIPs`.
    pub field: String,
    /// What happens instead.
    pub note: String,
}

impl Notice {
    pub(super) fn new(object: &str, field: impl Into<String>, note: impl Into<String>) -> Self {
        Self { object: object.into(), field: field.into(), note: note.into() }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.note)
    }
}

/// Turns k8s-openapi's objects into this library's.
///
/// `TryFrom` for [`Conversion`] does the same with the defaults.
#[derive(Clone, Debug, Default)]
pub struct Converter {
    pub(super) service_proxy_name: Option<String>,
}

impl Converter {
    /// The converter of the cluster's default proxy: it leaves every Service alone that carries the label
    /// `service.kubernetes.io/service-proxy-name`.
    pub fn new() -> Self {
        Self::default()
    }

    /// The converter of the proxy with this name: it takes the Services whose label
    /// `service.kubernetes.io/service-proxy-name` has this very value, and no others.
    #[must_use]
    pub fn service_proxy_name(mut self, name: impl Into<String>) -> Self {
        self.service_proxy_name = Some(name.into());
        self
    }

    /// Converts a Service. Without a namespace it is in `default`.
    ///
    /// # Errors
    /// The first rule of the Kubernetes API that it breaks.
    pub fn service(&self, object: &v1::Service) -> Result<Conversion<Service>, InvalidObject> {
        service::convert(self, object).map_err(first)
    }

    /// Converts an EndpointSlice. Without a namespace it is in `default`.
    ///
    /// # Errors
    /// The first rule of the Kubernetes API that it breaks.
    pub fn endpoint_slice(
        &self,
        object: &discovery::EndpointSlice,
    ) -> Result<Conversion<EndpointSlice>, InvalidObject> {
        endpoint_slice::convert(object).map_err(first)
    }
}

impl TryFrom<&v1::Service> for Conversion<Service> {
    type Error = InvalidObject;

    fn try_from(object: &v1::Service) -> Result<Self, InvalidObject> {
        Converter::new().service(object)
    }
}

impl TryFrom<&discovery::EndpointSlice> for Conversion<EndpointSlice> {
    type Error = InvalidObject;

    fn try_from(object: &discovery::EndpointSlice) -> Result<Self, InvalidObject> {
        Converter::new().endpoint_slice(object)
    }
}

/// What the object says: its name, its zone, the ranges of its pods, and its addresses, the internal ones
/// first. How the node treats Services is not said there: see [`NodeInfo::into_builder`].
impl TryFrom<&v1::Node> for NodeInfo {
    type Error = InvalidObject;

    fn try_from(object: &v1::Node) -> Result<Self, InvalidObject> {
        node::convert(object).map_err(first)
    }
}

fn first(problems: Problems) -> InvalidObject {
    problems.first
}

/// All the rules that one object breaks: at least one.
#[derive(Debug)]
pub(super) struct Problems {
    first: InvalidObject,
    more: Vec<InvalidObject>,
}

impl From<InvalidObject> for Problems {
    fn from(first: InvalidObject) -> Self {
        Self { first, more: Vec::new() }
    }
}

impl IntoIterator for Problems {
    type Item = InvalidObject;
    type IntoIter = std::iter::Chain<std::iter::Once<InvalidObject>, std::vec::IntoIter<InvalidObject>>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self.first).chain(self.more)
    }
}

/// Gathers the broken rules of an object while it is read.
#[derive(Debug)]
pub(super) struct Checks<'a> {
    object: &'a str,
    found: Vec<InvalidObject>,
}

impl<'a> Checks<'a> {
    pub(super) fn new(object: &'a str) -> Self {
        Self { object, found: Vec::new() }
    }

    pub(super) fn add(
        &mut self,
        field: impl Into<String>,
        value: impl fmt::Display,
        rule: impl Into<String>,
    ) {
        self.found.push(InvalidObject::new(self.object, field, value, rule));
    }

    /// Fails if anything was found.
    pub(super) fn end(self) -> Result<(), Problems> {
        let mut found = self.found.into_iter();
        match found.next() {
            None => Ok(()),
            Some(first) => Err(Problems { first, more: found.collect() }),
        }
    }
}
