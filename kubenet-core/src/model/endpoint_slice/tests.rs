use super::*;

fn slice(family: IpFamily, addresses: &[&str]) -> Result<EndpointSlice, InvalidObject> {
    EndpointSlice::builder("demo", "web-1", "web", family)
        .endpoints(addresses.iter().map(|a| Endpoint::new(a.parse().unwrap())))
        .build()
}

#[test]
fn all_addresses_are_of_the_family_of_the_slice() {
    assert!(slice(IpFamily::V4, &["10.0.0.1", "10.0.0.2"]).is_ok());
    assert!(slice(IpFamily::V6, &["fd00::1"]).is_ok());
    assert_eq!(
        slice(IpFamily::V4, &["10.0.0.1", "fd00::1"]).unwrap_err().to_string(),
        "EndpointSlice demo/web-1: endpoints[1].addresses[0]: \"fd00::1\": must be an IPv4 address"
    );
    assert!(slice(IpFamily::V6, &["10.0.0.1"]).is_err());
}

#[test]
fn an_ipv4_mapped_address_is_ipv4() {
    assert!(slice(IpFamily::V4, &["::ffff:10.0.0.1"]).is_ok());
    assert!(slice(IpFamily::V6, &["::ffff:10.0.0.1"]).is_err());
}

#[test]
fn addresses_are_unicast_and_not_local_to_a_link() {
    for address in ["0.0.0.0", "224.0.0.1", "127.0.0.1", "169.254.0.1", "255.255.255.255"] {
        let error = slice(IpFamily::V4, &[address]).unwrap_err();
        assert_eq!((error.field.as_str(), error.value.as_str()), ("endpoints[0].addresses[0]", address));
    }
    for address in ["::", "::1", "ff02::1", "fe80::1"] {
        let error = slice(IpFamily::V6, &[address]).unwrap_err();
        assert_eq!((error.field.as_str(), error.value.as_str()), ("endpoints[0].addresses[0]", address));
    }
}

#[test]
fn port_names_are_labels_and_unique() {
    let ports = |names: &[&str]| {
        let port = |name: &&str| EndpointPort::new(name, Protocol::Tcp, 80.try_into().unwrap());
        names
            .iter()
            .map(port)
            .fold(EndpointSlice::builder("demo", "web-1", "web", IpFamily::V4), EndpointSliceBuilder::port)
            .build()
    };
    assert!(ports(&["", "http", "a-1"]).is_ok());
    assert_eq!(
        ports(&["http", "http"]).unwrap_err().to_string(),
        "EndpointSlice demo/web-1: ports[1].name: \"http\": is used twice"
    );
    assert_eq!(ports(&["", ""]).unwrap_err().field, "ports[1].name");
    assert_eq!(ports(&["A"]).unwrap_err().field, "ports[0].name");
}

#[test]
fn names_of_slices_are_subdomains_and_of_services_labels() {
    let named = |namespace: &str, name: &str, service: &str| {
        EndpointSlice::builder(namespace, name, service, IpFamily::V4).build()
    };
    assert!(named("demo", &format!("web.{}", "x".repeat(249)), "web").is_ok());
    assert_eq!(named("demo", "web..1", "web").unwrap_err().field, "metadata.name");
    assert_eq!(named("a.b", "web-1", "web").unwrap_err().field, "metadata.namespace");
    for service in ["", "web.1", &"s".repeat(64)] {
        let error = named("demo", "web-1", service).unwrap_err();
        assert_eq!(error.field, "metadata.labels[kubernetes.io/service-name]");
    }
}

#[test]
fn a_slice_belongs_to_a_service_of_its_namespace() {
    assert_eq!(slice(IpFamily::V4, &[]).unwrap().service().to_string(), "demo/web");
}

#[test]
fn absent_conditions_mean_ready_serving_and_not_terminating() {
    let conditions = Conditions::default();
    assert!(conditions.ready && conditions.serving && !conditions.terminating);
    let conditions = Conditions::from_api(Some(false), Some(false), Some(true));
    assert!(!conditions.ready && !conditions.serving && conditions.terminating);
}

#[test]
fn an_endpoint_is_on_the_node_of_its_whole_name() {
    let endpoint = Endpoint::new([10, 0, 0, 1].into());
    assert!(!endpoint.is_on("node-a"));
    assert!(!endpoint.is_on(""));
    let endpoint = endpoint.on_node("node-a");
    assert!(endpoint.is_on("node-a"));
    assert!(!endpoint.is_on("node-aa") && !endpoint.is_on("node"));
    assert!(!endpoint.on_node("").is_on(""));
}
