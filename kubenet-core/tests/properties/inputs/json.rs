//! Objects, as the API would send them if it were broken.

use k8s_openapi::api::{core::v1, discovery::v1 as discovery};
use kubenet_core::{
    cluster::{Change, Cluster},
    kubernetes::{Conversion, Converter, Intake, Manifests, Taken},
    model::{InvalidObject, NodeInfo, Service},
};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};

use super::values::{TEXTS, any_damaged, any_valid, any_value};
use crate::{cases, fixed, sample};

/// Something is delivered to an intake.
#[derive(Clone, Debug)]
enum Delivery {
    Object(Value),
    Gone(&'static str, &'static str),
    Begin,
    End,
}

fn any_object() -> impl Strategy<Value = Value> {
    prop_oneof![2 => any_valid(), 4 => any_damaged(), 1 => any_value()]
}

fn any_delivery() -> impl Strategy<Value = Delivery> {
    prop_oneof![
        8 => any_object().prop_map(Delivery::Object),
        1 => (select(&["demo", "other", ""][..]), select(TEXTS)).prop_map(|(ns, name)| Delivery::Gone(ns, name)),
        1 => Just(Delivery::Begin),
        1 => Just(Delivery::End),
    ]
}

/// A refusal names object, field and rule.
fn is_told(problem: &InvalidObject) -> Result<(), TestCaseError> {
    prop_assert!(!problem.object.is_empty() && !problem.rule.is_empty(), "{problem:?}");
    let rest = problem.to_string().len() - problem.object.len();
    prop_assert!(rest < 2_000, "a message that nobody reads: {problem}");
    Ok(())
}

/// Hands an object to all that takes objects, as whatever it may be.
fn take(intake: &mut Intake, object: &Value) -> Result<Vec<Taken>, TestCaseError> {
    let converter = Converter::new().service_proxy_name("x");
    if let Ok(service) = serde_json::from_value::<v1::Service>(object.clone()) {
        for result in [Conversion::<Service>::try_from(&service), converter.service(&service)] {
            result.map_or_else(|problem| is_told(&problem), |_| Ok(()))?;
        }
    }
    if let Ok(slice) = serde_json::from_value::<discovery::EndpointSlice>(object.clone()) {
        converter.endpoint_slice(&slice).map_or_else(|problem| is_told(&problem), |_| Ok(()))?;
    }
    if let Ok(node) = serde_json::from_value::<v1::Node>(object.clone()) {
        match NodeInfo::try_from(&node) {
            Ok(node) => prop_assert_eq!(node.clone().into_builder().build(), Ok(node)),
            Err(problem) => is_told(&problem)?,
        }
    }
    let taken = vec![intake.service_json(object), intake.endpoint_slice_json(object)];
    for problem in taken.iter().flat_map(|taken| &taken.problems) {
        is_told(problem)?;
    }
    Ok(taken)
}

fn deliver(intake: &mut Intake, delivery: &Delivery) -> Result<Vec<Taken>, TestCaseError> {
    Ok(match delivery {
        Delivery::Object(object) => take(intake, object)?,
        Delivery::Gone(namespace, name) => {
            vec![intake.service_gone(namespace, name), intake.endpoint_slice_gone(namespace, name)]
        }
        Delivery::Begin => {
            intake.begin_services();
            intake.begin_endpoint_slices();
            vec![]
        }
        Delivery::End => vec![intake.end_services(), intake.end_endpoint_slices()],
    })
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_objects_are_taken_or_refused_one_by_one(deliveries in vec(any_delivery(), 1..12)) {
        let mut intake = Intake::new(Converter::new());
        let mut cluster = Cluster::new(NodeInfo::builder("node-a").build().unwrap());
        for delivery in &deliveries {
            for taken in deliver(&mut intake, delivery)? {
                taken.changes.into_iter().for_each(|change: Change| cluster.change(change));
            }
            cluster.take_delta();
            prop_assert!(intake.refused() <= intake.problems().count());
            cluster.conflicts();
        }
    }

    #[test]
    fn a_bad_object_hides_no_good_one(good in any_valid(), bad in vec(any_object(), 1..6)) {
        let mut alone = Intake::new(Converter::new());
        let expected = take(&mut alone, &good)?;
        let mut among = Intake::new(Converter::new());
        // An object of the same name is the same object.
        let name = |object: &Value| object["metadata"]["name"].clone();
        for object in bad.iter().filter(|object| name(object) != name(&good)) {
            take(&mut among, object)?;
        }
        prop_assert_eq!(take(&mut among, &good)?, expected);
    }

    #[test]
    fn any_object_in_a_file_is_taken_or_refused(object in any_object(), list in any::<bool>()) {
        let object = if list { json!({ "apiVersion": "v1", "kind": "List", "items": [object] }) } else { object };
        let text = object.to_string();
        for name in ["m.json", "m.yaml"] {
            if let Err(error) = Manifests::parse(name, &text) {
                prop_assert!(!error.problems().is_empty());
                prop_assert!(error.problems().iter().all(|problem| !problem.rule.is_empty()), "{}", error);
            }
        }
    }
}

/// How many of the damaged Services are taken, refused for what they say, or for what they are.
#[test]
fn damage_is_neither_always_fatal_nor_never() {
    let (mut runner, strategy) = (fixed(), any_damaged());
    let (mut taken, mut refused, mut malformed) = (0, 0, 0);
    for _ in 0..1_000 {
        let object = sample(&strategy, &mut runner);
        if object["kind"] != "Service" {
            continue;
        }
        match serde_json::from_value::<v1::Service>(object) {
            Err(_) => malformed += 1,
            Ok(service) => match Converter::new().service(&service) {
                Ok(_) => taken += 1,
                Err(_) => refused += 1,
            },
        }
    }
    assert!(taken > 50 && refused > 50 && malformed > 50, "{taken} {refused} {malformed}");
}
