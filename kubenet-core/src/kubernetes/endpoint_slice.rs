use k8s_openapi::api::discovery::v1 as discovery;

use super::{
    Conversion, NotOurs, Notice,
    conversion::{Checks, Problems},
    meta, parse_address,
};
use crate::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, InvalidObject, IpFamily, validate_name,
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
    for (i, endpoint) in object.endpoints.all().iter().enumerate() {
        if let Some(endpoint) = convert_endpoint(i, endpoint, &mut checks) {
            builder = builder.endpoint(endpoint);
        }
    }
    checks.end()?;
    let slice = builder.build()?;
    Ok(Conversion::Ours(slice, notices(&title, object)))
}

fn convert_endpoint(i: usize, endpoint: &discovery::Endpoint, checks: &mut Checks<'_>) -> Option<Endpoint> {
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
        converted = converted.on_node(node_name);
    }
    if let Some(target) = endpoint.target_ref.as_ref().and_then(|target| meta::text(target.name.as_ref())) {
        converted = converted.named(target);
    }
    Some(converted)
}

fn notices(title: &str, object: &discovery::EndpointSlice) -> Vec<Notice> {
    let hinted = object.endpoints.all().iter().position(|endpoint| {
        endpoint.hints.as_ref().is_some_and(|hints| {
            hints.for_zones.iter().flatten().next().is_some()
                || hints.for_nodes.iter().flatten().next().is_some()
        })
    });
    let note = "not served: endpoints of all zones and nodes are used alike";
    hinted.map(|i| Notice::new(title, format!("endpoints[{i}].hints"), note)).into_iter().collect()
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
