use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::discovery::v1 as discovery;

use super::{
    Conversion, NotOurs, Notice,
    conversion::{Checks, Problems},
    meta, parse_address,
};
use crate::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Hints, InvalidObject, IpFamily, quoted, validate_name,
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

pub(super) fn convert(object: &discovery::EndpointSlice) -> Result<Conversion<EndpointSlice>, Problems> {
    let (namespace, name) = meta::names(&object.metadata);
    let title = meta::title("EndpointSlice", namespace, name);
    // A name that cannot be is wrong whoever the object is for.
    meta::check_names(&title, namespace, name, validate_name)?;
    if meta::label(&object.metadata, HEADLESS).is_some() {
        return Ok(Conversion::NotOurs(NotOurs::Headless));
    }
    if object.address_type == "FQDN" {
        return Ok(Conversion::NotOurs(NotOurs::Fqdn));
    }
    let service = meta::label(&object.metadata, SERVICE_NAME).unwrap_or_default();
    if service.is_empty() {
        return Ok(Conversion::NotOurs(NotOurs::NoService));
    }
    let Some(family) = IpFamily::ALL.into_iter().find(|f| f.as_str() == object.address_type) else {
        return Err(InvalidObject::new(
            title,
            "addressType",
            &object.address_type,
            "must be IPv4, IPv6 or FQDN",
        )
        .into());
    };

    let mut checks = Checks::new(&title);
    let mut builder = EndpointSlice::builder(namespace, name, service, family);
    for (i, port) in object.ports.iter().flatten().enumerate() {
        let field = format!("ports[{i}]");
        builder = builder.port(EndpointPort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: meta::protocol(port.protocol.as_ref(), &field, &mut checks),
            port: port.port.and_then(|number| meta::port(number, format!("{field}.port"), &mut checks)),
        });
    }
    let mut notices = Vec::new();
    let weights = weights(&title, object, &mut notices);
    let mut shared = Shared::default();
    for (i, endpoint) in object.endpoints.all().iter().enumerate() {
        if let Some(mut endpoint) = convert_endpoint(i, endpoint, &mut shared, &mut checks) {
            endpoint.weight = weights.get(&endpoint.address).copied().unwrap_or(endpoint.weight);
            builder = builder.endpoint(endpoint);
        }
    }
    checks.end()?;
    let slice = builder.build()?;
    Ok(Conversion::Ours(slice, notices))
}

/// What endpoints of one slice have in common is held once.
#[derive(Default)]
struct Shared {
    nodes: HashSet<Arc<str>>,
    hints: HashSet<Arc<Hints>>,
}

fn share<T: Eq + Hash + ?Sized>(known: &mut HashSet<Arc<T>>, new: Arc<T>) -> Arc<T> {
    match known.get(&*new) {
        Some(known) => Arc::clone(known),
        None => {
            known.insert(Arc::clone(&new));
            new
        }
    }
}

fn convert_endpoint(
    i: usize,
    endpoint: &discovery::Endpoint,
    shared: &mut Shared,
    checks: &mut Checks<'_>,
) -> Option<Endpoint> {
    let Some(text) = endpoint.addresses.first() else {
        checks.add(format!("endpoints[{i}].addresses"), "", "must hold at least one address");
        return None;
    };
    let address = match parse_address(text) {
        Ok(address) => address,
        Err(error) => {
            checks.add(format!("endpoints[{i}].addresses[0]"), text, error.to_string());
            return None;
        }
    };
    let conditions = endpoint.conditions.as_ref();
    let mut converted = Endpoint::new(address).with_conditions(Conditions::from_api(
        conditions.and_then(|c| c.ready),
        conditions.and_then(|c| c.serving),
        conditions.and_then(|c| c.terminating),
    ));
    if let Some(node_name) = meta::text(endpoint.node_name.as_ref()) {
        converted.node_name = Some(share(&mut shared.nodes, node_name.into()));
    }
    converted.hints = hints(endpoint).map(|hints| share(&mut shared.hints, hints.into()));
    if let Some(target) = endpoint.target_ref.as_ref().and_then(|target| meta::text(target.name.as_ref())) {
        converted = converted.named(target);
    }
    Some(converted)
}

/// Hints that lead nowhere are none.
fn hints(endpoint: &discovery::Endpoint) -> Option<Hints> {
    let hints = endpoint.hints.as_ref()?;
    let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str());
    let nodes = hints.for_nodes.iter().flatten().map(|node| node.name.as_str());
    let named = |name: &&str| !name.is_empty();
    let (zones, nodes): (Vec<_>, Vec<_>) =
        (zones.filter(named).map(Arc::from).collect(), nodes.filter(named).map(Arc::from).collect());
    (!zones.is_empty() || !nodes.is_empty()).then_some(Hints { nodes, zones })
}

/// The weights of an annotation by address. What cannot be read is noted.
fn weights(
    title: &str,
    object: &discovery::EndpointSlice,
    notices: &mut Vec<Notice>,
) -> HashMap<IpAddr, u16> {
    const ANNOTATION: &str = Endpoint::WEIGHTS_ANNOTATION;
    let Some(text) = object.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION)) else {
        return HashMap::new();
    };
    let mut weights = HashMap::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let read = entry.split_once('=').and_then(|(address, weight)| {
            let weight = weight.trim().parse().ok().filter(|weight| *weight <= Endpoint::MAX_WEIGHT)?;
            Some((parse_address(address.trim()).ok()?, weight))
        });
        match read {
            Some((address, weight)) => drop(weights.insert(address, weight)),
            None => notices.push(Notice::new(
                title,
                format!("metadata.annotations[{ANNOTATION}]"),
                format!(
                    "{} is ignored: must be an address, '=' and a weight of 0 to {}",
                    quoted(entry),
                    Endpoint::MAX_WEIGHT
                ),
            )),
        }
    }
    weights
}

/// `endpoints` is a `Vec` or an `Option` of one, depending on the API version that the embedder chose.
trait Endpoints {
    fn all(&self) -> &[discovery::Endpoint];
}

impl Endpoints for Vec<discovery::Endpoint> {
    fn all(&self) -> &[discovery::Endpoint] {
        self
    }
}

impl Endpoints for Option<Vec<discovery::Endpoint>> {
    fn all(&self) -> &[discovery::Endpoint] {
        self.as_deref().unwrap_or_default()
    }
}
