//! What becomes of listed and watched objects: the last good state, deletions, and what is told once.
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{core::v1, discovery::v1 as discovery};
use kubenet_core::{
    cluster::Change,
    kubernetes::{Converter, Intake, Taken},
    model::Service,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A Service of port 80; a `port` of 0 makes it bad.
fn service(name: &str, version: &str, port: u16) -> v1::Service {
    service_from(name, version, json!({ "clusterIP": "10.96.0.10", "ports": [{ "port": port }] }))
}

fn service_from(name: &str, version: &str, spec: Value) -> v1::Service {
    let metadata = json!({ "namespace": "demo", "name": name, "resourceVersion": version });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
}

fn slice(name: &str, version: &str, address: &str) -> discovery::EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "demo",
            "name": name,
            "resourceVersion": version,
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4",
        "ports": [{ "port": 8080 }],
        "endpoints": [{ "addresses": [address] }],
    }))
    .unwrap()
}

fn intake() -> Intake {
    Intake::new(Converter::new())
}

/// The changes in short.
fn changes(taken: &Taken) -> Vec<String> {
    let text = |change: &Change| match change {
        Change::Service(service) => format!("+{}:{}", service.name(), service.ports()[0].port()),
        Change::RemoveService(name) => format!("-{name}"),
        Change::EndpointSlice(slice) => format!("+{}@{}", slice.name(), slice.endpoints()[0].address),
        Change::RemoveEndpointSlice(name) => format!("-{name}@"),
        other => format!("{other:?}"),
    };
    taken.changes.iter().map(text).collect()
}

fn problems(taken: &Taken) -> Vec<String> {
    taken.problems.iter().map(ToString::to_string).collect()
}

const BAD_PORT: &str = "Service demo/web: spec.ports[0].port: \"0\": must be 1 to 65535";

#[test]
fn what_is_delivered_is_declared() {
    let mut intake = intake();
    assert_eq!(changes(&intake.service(&service("web", "1", 80))), ["+demo/web:80"]);
    assert_eq!(changes(&intake.service(&service("web", "2", 81))), ["+demo/web:81"]);
    assert_eq!(changes(&intake.service_gone("demo", "web")), ["-demo/web"]);
    assert_eq!(changes(&intake.endpoint_slice(&slice("s", "1", "10.0.0.1"))), ["+demo/s@10.0.0.1"]);
    assert_eq!(changes(&intake.endpoint_slice(&slice("s", "2", "10.0.0.2"))), ["+demo/s@10.0.0.2"]);
    assert_eq!(changes(&intake.endpoint_slice_gone("demo", "s")), ["-demo/s@"]);
}

#[test]
fn a_refused_object_keeps_its_last_good_state_until_it_is_deleted() {
    let mut intake = intake();
    intake.service(&service("web", "1", 80));
    let bad = intake.service(&service("web", "2", 0));
    assert_eq!(changes(&bad), [""; 0]);
    assert_eq!(problems(&bad), [BAD_PORT]);
    assert_eq!(intake.problems().map(ToString::to_string).collect::<Vec<_>>(), [BAD_PORT]);
    assert_eq!(changes(&intake.service_gone("demo", "web")), ["-demo/web"], "of the last good state");
    assert_eq!(intake.refused(), 0);
}

#[test]
fn a_refused_object_is_declared_again_when_it_is_mended() {
    let mut intake = intake();
    intake.service(&service("web", "1", 80));
    intake.service(&service("web", "2", 0));
    assert_eq!(intake.refused(), 1);
    assert!(intake.service(&service("web", "3", 80)).is_empty(), "the last good state again");
    assert_eq!(intake.refused(), 0);
    intake.service(&service("web", "4", 0));
    assert_eq!(changes(&intake.service(&service("web", "5", 81))), ["+demo/web:81"]);
}

#[test]
fn an_object_that_was_never_good_is_not_declared() {
    let mut intake = intake();
    let bad = intake.endpoint_slice(&slice("s", "1", "nowhere"));
    assert_eq!((bad.changes.len(), bad.problems.len()), (0, 1));
    assert!(intake.endpoint_slice_gone("demo", "s").is_empty());
    assert_eq!(changes(&intake.endpoint_slice(&slice("s", "2", "10.0.0.1"))), ["+demo/s@10.0.0.1"]);
}

#[test]
fn a_refused_object_that_is_listed_is_not_deleted() {
    let mut intake = intake();
    intake.services([&service("web", "1", 80)]);
    let relisted = intake.services([&service("web", "2", 0)]);
    assert_eq!((changes(&relisted), problems(&relisted)), (vec![], vec![BAD_PORT.to_owned()]));
    assert_eq!(changes(&intake.services([])), ["-demo/web"]);
}

#[test]
fn one_bad_object_never_hides_the_rest() {
    let mut intake = intake();
    let all = [service("a", "1", 80), service("web", "2", 0), service("b", "3", 80)];
    let taken = intake.services(&all);
    assert_eq!(changes(&taken), ["+demo/a:80", "+demo/b:80"]);
    assert_eq!(problems(&taken), [BAD_PORT]);
}

#[test]
fn every_rule_that_an_object_breaks_is_told() {
    let spec = json!({
        "clusterIP": "10.96.0.10",
        "ports": [{ "port": 0, "name": "a" }, { "port": 80, "protocol": "ICMP", "name": "b" }],
    });
    let taken = intake().service(&service_from("web", "1", spec));
    let fields: Vec<_> = taken.problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, ["spec.ports[0].port", "spec.ports[1].protocol"]);
}

#[test]
fn an_object_of_another_form_is_refused_like_any_other() {
    let mut intake = intake();
    let mut object = serde_json::to_value(service("web", "1", 80)).unwrap();
    assert_eq!(changes(&intake.service_json(&object)), ["+demo/web:80"]);
    object["metadata"]["resourceVersion"] = "2".into();
    object["spec"]["ports"][0]["port"] = "http".into();
    let refused = intake.service_json(&object);
    let problem = "Service demo/web: spec.ports[0].port: must be a whole number, and is string \"http\"";
    assert_eq!((changes(&refused), problems(&refused)), (vec![], vec![problem.to_owned()]));
    assert!(intake.service_json(&object).is_empty(), "told once");
    intake.begin_services();
    intake.service_json(&object);
    assert!(intake.end_services().is_empty(), "listed, so not deleted");
    object["metadata"]["resourceVersion"] = "3".into();
    object["spec"]["ports"][0]["port"] = 81.into();
    assert_eq!(changes(&intake.service_json(&object)), ["+demo/web:81"]);
    let slice = json!({ "metadata": { "namespace": "demo", "name": "s" }, "endpoints": 7 });
    assert_eq!(intake.endpoint_slice_json(&slice).problems.len(), 1);
    assert_eq!(intake.refused(), 1);
}

#[test]
fn what_is_no_object_at_all_is_refused() {
    let mut intake = intake();
    for value in
        [json!(null), json!([]), json!("x"), json!({ "metadata": 7 }), json!({ "metadata": { "name": 7 } })]
    {
        let taken = intake.service_json(&value);
        assert!(taken.changes.is_empty(), "{value}: {taken:?}");
    }
    assert_eq!(intake.refused(), 1, "all without a name are one");
}

#[test]
fn a_list_deletes_what_it_does_not_name() {
    let mut intake = intake();
    intake.services([&service("a", "1", 80), &service("b", "2", 80)]);
    intake.endpoint_slices([&slice("a", "3", "10.0.0.1")]);
    let relisted = intake.services([&service("b", "2", 80), &service("c", "4", 80)]);
    assert_eq!(changes(&relisted), ["+demo/c:80", "-demo/a"]);
    assert_eq!(changes(&intake.endpoint_slices([])), ["-demo/a@"], "kinds do not mix");
}

#[test]
fn a_list_that_breaks_off_deletes_nothing() {
    let mut intake = intake();
    intake.services([&service("a", "1", 80), &service("b", "2", 80)]);
    intake.begin_services();
    intake.service(&service("a", "1", 80));
    intake.begin_services();
    intake.service(&service("b", "2", 80));
    assert_eq!(changes(&intake.end_services()), ["-demo/a"], "only the last list counts");
}

#[test]
fn what_comes_after_a_list_is_not_deleted_by_the_next() {
    let mut intake = intake();
    intake.services([&service("a", "1", 80)]);
    intake.service(&service("b", "2", 80));
    assert!(intake.services([&service("a", "1", 80), &service("b", "2", 80)]).is_empty());
}

#[test]
fn an_object_that_becomes_somebody_elses_is_removed() {
    let headless = json!({ "clusterIP": "None", "ports": [{ "port": 80 }] });
    let external = json!({ "type": "ExternalName", "externalName": "example.org" });
    let mut other_proxy = service("web", "2", 80);
    let label = ("service.kubernetes.io/service-proxy-name".to_owned(), "mesh".to_owned());
    other_proxy.metadata.labels = Some([label].into());
    let becomes =
        [service_from("web", "2", headless), service_from("web", "2", external), other_proxy.clone()];
    for object in becomes {
        let mut intake = intake();
        intake.services([&service("web", "1", 80)]);
        assert_eq!(changes(&intake.service(&object)), ["-demo/web"]);
        assert!(intake.service(&object).is_empty());
        assert_eq!(changes(&intake.service(&service("web", "3", 80))), ["+demo/web:80"]);
    }
    let mut mesh = Intake::new(Converter::new().service_proxy_name("mesh"));
    assert!(mesh.service(&service("web", "1", 80)).is_empty());
    assert_eq!(changes(&mesh.service(&other_proxy)), ["+demo/web:80"]);
}

#[test]
fn a_refused_object_that_becomes_somebody_elses_is_removed() {
    let mut intake = intake();
    intake.service(&service("web", "1", 80));
    intake.service(&service("web", "2", 0));
    let headless = json!({ "clusterIP": "None", "ports": [{ "port": 80 }] });
    assert_eq!(changes(&intake.service(&service_from("web", "3", headless))), ["-demo/web"]);
    assert_eq!(intake.refused(), 0);
}

#[test]
fn an_object_that_means_the_same_gives_no_change() {
    let mut intake = intake();
    intake.service(&service("web", "1", 80));
    let mut annotated = service("web", "2", 80);
    annotated.metadata.annotations = Some([("note".to_owned(), "x".to_owned())].into());
    assert!(intake.service(&annotated).is_empty());
    assert!(intake.service(&annotated).is_empty());
}

#[test]
fn a_problem_is_told_once_for_each_change_of_it() {
    let mut intake = intake();
    assert_eq!(problems(&intake.services([&service("web", "1", 0)])), [BAD_PORT]);
    assert!(intake.services([&service("web", "1", 0)]).is_empty(), "the same object");
    assert!(intake.services([&service("web", "2", 0)]).is_empty(), "the same problem");
    let other = json!({
        "clusterIP": "10.96.0.10", "externalTrafficPolicy": "Near", "ports": [{ "port": 0 }],
    });
    let taken = intake.service(&service_from("web", "3", other));
    assert_eq!(taken.problems.len(), 1, "only what is new: {:?}", taken.problems);
    assert_eq!(taken.problems[0].field, "spec.externalTrafficPolicy");
    intake.service(&service("web", "4", 80));
    assert_eq!(problems(&intake.service(&service("web", "5", 0))), [BAD_PORT], "again after it was mended");
    intake.service_gone("demo", "web");
    assert_eq!(problems(&intake.service(&service("web", "6", 0))), [BAD_PORT], "another object");
}

#[test]
fn objects_without_a_version_are_compared_as_they_are() {
    let mut intake = intake();
    assert_eq!(changes(&intake.service(&service("web", "", 80))), ["+demo/web:80"]);
    assert!(intake.service(&service("web", "", 80)).is_empty());
    assert_eq!(changes(&intake.service(&service("web", "", 81))), ["+demo/web:81"]);
}

#[test]
fn k0_complete_means_that_both_kinds_were_listed() {
    let mut intake = intake();
    intake.service(&service("web", "1", 80));
    intake.endpoint_slice(&slice("s", "2", "10.0.0.1"));
    intake.begin_services();
    assert!(!intake.is_complete());
    intake.end_services();
    assert!(!intake.is_complete());
    intake.endpoint_slices([]);
    assert!(intake.is_complete());
    intake.begin_services();
    assert!(intake.is_complete(), "and stays so");
}

/// What a random object of a list looks like: its name, and its port, 0 being bad and 1 being headless.
fn listed() -> impl Strategy<Value = BTreeMap<String, u16>> {
    let name = prop_oneof!["[a-c]", "[A-Z é/\u{0}]{0,3}"];
    proptest::collection::btree_map(name, prop_oneof![Just(0), Just(1), 80..83u16], 0..4)
}

fn object(name: &str, version: usize, port: u16) -> v1::Service {
    let address = if port == 1 { "None" } else { "10.96.0.10" };
    service_from(name, &version.to_string(), json!({ "clusterIP": address, "ports": [{ "port": port }] }))
}

proptest! {
    /// Whatever comes, the declared Services are those that exist, each in its last good state.
    #[test]
    fn churn_ends_in_the_last_good_state_of_what_exists(lists in proptest::collection::vec(
        (listed(), any::<bool>()),
        1..8,
    )) {
        let mut intake = intake();
        let mut declared: BTreeMap<String, Service> = BTreeMap::new();
        let mut expected: BTreeMap<String, u16> = BTreeMap::new();
        let mut version = 0;
        for (now, is_list) in lists {
            let mut objects = Vec::new();
            for (name, port) in &now {
                version += 1;
                objects.push(object(name, version, *port));
                let valid_name = name.chars().all(|c| c.is_ascii_lowercase()) && !name.is_empty();
                match port {
                    _ if !valid_name => {}
                    0 => {}
                    1 => drop(expected.remove(name)),
                    port => drop(expected.insert(name.clone(), *port)),
                }
            }
            let taken = if is_list {
                let named: BTreeSet<_> = now.keys().collect();
                expected.retain(|name, _| named.contains(name));
                intake.services(&objects)
            } else {
                let mut taken = Taken::default();
                for object in &objects {
                    taken.append(intake.service(object));
                }
                taken
            };
            for change in taken.changes {
                match change {
                    Change::Service(service) => {
                        declared.insert(service.name().name().to_string(), service);
                    }
                    Change::RemoveService(name) => {
                        prop_assert!(declared.remove(&**name.name()).is_some(), "removed twice: {name}");
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let found: BTreeMap<_, _> =
                declared.iter().map(|(name, s)| (name.clone(), s.ports()[0].port().get())).collect();
            prop_assert_eq!(&found, &expected);
        }
    }
}
