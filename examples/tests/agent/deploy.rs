//! `examples/deploy`: what it grants is what the agent needs.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Container, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{
    api::{Access, Kind},
    objects::{service, slice, with},
    rig::{Rig, api},
};

const MANIFEST: &str = include_str!("../../deploy/kubenet-agent.yaml");

fn object<T: DeserializeOwned>(kind: &str) -> T {
    let documents: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
    let of_kind = documents.into_iter().filter(|document| document["kind"] == kind);
    let [found]: [Value; 1] = of_kind.collect::<Vec<_>>().try_into().unwrap();
    T::deserialize(found).unwrap()
}

fn container() -> Container {
    let daemon_set: DaemonSet = object("DaemonSet");
    let [container]: [Container; 1] = daemon_set.spec.template.spec.unwrap().containers.try_into().unwrap();
    container
}

/// All that the role allows, one by one.
fn granted() -> BTreeSet<(String, String, String)> {
    let role: ClusterRole = object("ClusterRole");
    let mut granted = BTreeSet::new();
    for rule in role.rules.unwrap() {
        assert!(rule.non_resource_urls.is_none() && rule.resource_names.is_none());
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    granted.insert((group.clone(), resource.clone(), verb.clone()));
                }
            }
        }
    }
    granted
}

#[tokio::test]
async fn the_role_grants_what_the_agent_asks_for_and_nothing_else() {
    let api = api().await;
    // Lists by pages, too.
    api.list_by_pages();
    let rig = Rig::start(api).await;
    rig.api.put(Kind::Service, service("a", "10.96.0.1"));
    rig.api.put(Kind::Slice, slice("a", &["10.244.1.2"]));
    rig.routes("10.96.0.1", "10.244.1.2:8080").await;
    // A refused object and a conflict that comes back: Events are created, a Service is looked up, and an Event is
    // repeated.
    rig.api.put(Kind::Service, with(service("bad", "10.96.0.2"), "/spec/ports", json!([{ "port": 0 }])));
    rig.posted("demo/bad").await;
    let young =
        || with(service("young", "10.96.0.1"), "/metadata/creationTimestamp", json!("2026-06-01T00:00:00Z"));
    rig.api.put(Kind::Service, young());
    rig.posted("demo/a claimed it before").await;
    rig.api.put(Kind::Service, service("young", "10.96.0.3"));
    rig.routes("10.96.0.3", "reject").await;
    rig.api.put(Kind::Service, young());
    rig.routes("10.96.0.3", "pass").await;
    let is_patch = |access: &Access| access.verb == "patch";
    crate::support::rig::eventually(
        || format!("an Event is repeated: {:?}", rig.api.events()),
        || rig.api.accesses().iter().any(is_patch),
    )
    .await;
    let used: BTreeSet<_> =
        rig.api.accesses().into_iter().map(|a| (a.group, a.resource, a.verb.to_owned())).collect();
    assert_eq!(used, granted());
}

#[test]
fn the_role_is_bound_to_the_account_that_the_agent_runs_as() {
    let account: ServiceAccount = object("ServiceAccount");
    let role: ClusterRole = object("ClusterRole");
    let binding: ClusterRoleBinding = object("ClusterRoleBinding");
    let daemon_set: DaemonSet = object("DaemonSet");
    assert_eq!(Some(&binding.role_ref.name), role.metadata.name.as_ref());
    let [subject] = &binding.subjects.as_deref().unwrap() else { panic!("{:?}", binding.subjects) };
    assert_eq!(
        (Some(&subject.name), subject.namespace.as_ref()),
        (account.metadata.name.as_ref(), account.metadata.namespace.as_ref())
    );
    assert_eq!(daemon_set.metadata.namespace, account.metadata.namespace);
    let spec = daemon_set.spec;
    assert_eq!(spec.selector.match_labels, spec.template.metadata.unwrap().labels);
    let pod = spec.template.spec.unwrap();
    assert_eq!(pod.service_account_name, account.metadata.name);
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
}

#[test]
fn the_container_has_few_privileges_and_only_mounts_that_exist() {
    let security = container().security_context.unwrap();
    assert_eq!(security.privileged, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    let capabilities = security.capabilities.unwrap();
    assert_eq!(capabilities.drop.unwrap(), ["ALL"]);
    assert_eq!(capabilities.add.unwrap(), ["NET_ADMIN", "NET_RAW", "BPF", "PERFMON"]);
    let daemon_set: DaemonSet = object("DaemonSet");
    let volumes = daemon_set.spec.template.spec.unwrap().volumes.unwrap();
    let volumes: BTreeSet<_> = volumes.into_iter().map(|volume| volume.name).collect();
    let mounts: BTreeSet<_> =
        container().volume_mounts.unwrap().into_iter().map(|mount| mount.name).collect();
    assert_eq!(volumes, mounts);
}

#[test]
fn the_probes_ask_where_the_agent_answers() {
    let container = container();
    let ports = container.ports.unwrap();
    let port = |name: &str| ports.iter().find(|port| port.name.as_deref() == Some(name)).unwrap();
    assert_eq!(port("healthz").container_port, 10256, "the default of --healthz-bind-address");
    let live = container.liveness_probe.unwrap().http_get.unwrap();
    let ready = container.readiness_probe.unwrap().http_get.unwrap();
    assert_eq!((live.path.as_deref(), ready.path.as_deref()), (Some("/livez"), Some("/healthz")));
}

#[test]
fn the_arguments_are_those_of_the_program() {
    let arguments = container().args.unwrap();
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_agent")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for argument in arguments {
        let (name, _) = argument.split_once('=').unwrap();
        assert!(help.contains(&format!("{name} <")), "{name} in {help}");
    }
    let environment = container().env.unwrap();
    assert!(help.contains(&format!("[env: {}=", environment[0].name)), "{help}");
}
