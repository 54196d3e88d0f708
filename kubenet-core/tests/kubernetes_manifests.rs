//! Manifest files: what is read, what is skipped, and what each kind of mistake is answered with.
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;

use kubenet_core::kubernetes::Manifests;

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: { name: web, namespace: demo }
spec:
  type: NodePort
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  ports:
  - { name: http, port: 80, targetPort: 8080, nodePort: 30080, protocol: TCP }
";

const WEB_1: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: demo
  labels: { kubernetes.io/service-name: web }
addressType: IPv4
ports:
- { name: http, port: 8080 }
endpoints:
- addresses: [10.244.1.10]
  nodeName: node-a
";

fn read(text: &str) -> Manifests {
    Manifests::parse("m.yaml", text).unwrap_or_else(|error| panic!("{error}"))
}

/// What is wrong with a text, line by line.
fn wrong(name: &str, text: &str) -> Vec<String> {
    let error = Manifests::parse(name, text).expect_err("must be refused");
    error.problems().iter().map(ToString::to_string).collect()
}

fn names<T: ToString>(names: impl IntoIterator<Item = T>) -> Vec<String> {
    names.into_iter().map(|n| n.to_string()).collect()
}

#[test]
fn documents_of_a_yaml_file_are_read_in_order() {
    let other = WEB.replace("web", "dns").replace("30080", "30053");
    let manifests = read(&format!("# a comment\n---{WEB}---\n---\n# nothing\n--- {WEB_1}\n---{other}...\n"));
    assert_eq!(names(manifests.services.iter().map(|s| s.name())), ["demo/web", "demo/dns"]);
    assert_eq!(names(manifests.slices.iter().map(|s| s.name())), ["demo/web-1"]);
    assert_eq!(manifests.notices, []);
    assert_eq!(manifests.skipped, []);
    let web = &manifests.services[0];
    assert_eq!(names(web.cluster_ips()), ["10.96.0.10", "fd00:96::10"]);
    assert_eq!(web.ports()[0].node_port().map(u16::from), Some(30080));
    let slice = &manifests.slices[0];
    assert!(slice.endpoints()[0].is_on("node-a"));
    assert_eq!(slice.ports()[0].port.map(u16::from), Some(8080));
}

#[test]
fn no_document_gives_no_objects() {
    for text in
        ["", "\n", "# only a comment\n", "---\n", "---\n---\n", "\u{feff}", "%YAML 1.2\n---\n", "null"]
    {
        assert_eq!(read(text), Manifests::default(), "{text:?}");
    }
}

#[test]
fn json_is_read_too() {
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},
        "spec":{"clusterIP":"10.96.0.10","ports":[{"port":80}]}}"#;
    for name in ["m.json", "m.yaml", "m"] {
        assert_eq!(Manifests::parse(name, json).unwrap().services.len(), 1, "{name}");
        let two = format!("{json}\n{}", json.replace("web", "dns"));
        assert_eq!(Manifests::parse(name, &two).unwrap().services.len(), 2, "{name}");
    }
    let wrong = wrong("m.json", &format!("{json}\n\n{{\"kind\": }}"));
    assert_eq!(wrong, ["m.json: document 2: line 4: must be JSON: expected value"]);
}

#[test]
fn a_yaml_flow_mapping_is_no_broken_json() {
    let text = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}}";
    assert_eq!(read(text).services.len(), 1);
}

#[test]
fn lists_are_unfolded() {
    let item = |name: &str| {
        format!("{{metadata: {{name: {name}}}, spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}}}")
    };
    let full = format!("{{apiVersion: v1, kind: Service, {}", &item("a")[1..]);
    for list in [
        format!("{{apiVersion: v1, kind: List, items: [{full}]}}"),
        format!(
            "{{apiVersion: v1, kind: ServiceList, metadata: {{resourceVersion: '7'}}, items: [{}]}}",
            item("a")
        ),
        format!("{{apiVersion: v1, kind: List, items: [{{apiVersion: v1, kind: List, items: [{full}]}}]}}"),
    ] {
        assert_eq!(names(read(&list).services.iter().map(|s| s.name())), ["default/a"], "{list}");
    }
    let slices = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSliceList, items: [{addressType: IPv4, \
                  metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, endpoints: []}]}";
    assert_eq!(read(slices).slices.len(), 1);
    assert_eq!(read("{apiVersion: v1, kind: List}"), Manifests::default());
    assert_eq!(
        wrong(
            "m.yaml",
            &format!("{{apiVersion: v1, kind: List, items: [{full}, {}]}}", full.replace("80", "0"))
        ),
        [
            "m.yaml: document 1: items[1]: Service default/a: must not be defined twice: it is in m.yaml: \
             document 1: items[0] already",
            "m.yaml: document 1: items[1]: Service default/a: spec.ports[0].port: \"0\": must be 1 to 65535",
        ]
    );
    assert_eq!(
        wrong("m.yaml", "{apiVersion: v1, kind: List, items: {a: b}}"),
        ["m.yaml: document 1: List: items: must be a sequence of objects, and is an object"]
    );
}

#[test]
fn a_missing_namespace_is_default() {
    assert_eq!(names([read(&WEB.replace(", namespace: demo", "")).services[0].name()]), ["default/web"]);
}

#[test]
fn other_kinds_are_skipped_and_listed() {
    let manifests = read(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: demo}}\n---\n\
         {apiVersion: v1, kind: Endpoints, metadata: {name: web}}\n---\n\
         {apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: web}}\n---\n\
         {apiVersion: v1, kind: Service, metadata: {name: h}, spec: {clusterIP: None}}",
    );
    assert_eq!(
        names(&manifests.skipped),
        [
            "m.yaml: document 1: Deployment demo/web: another kind of object",
            "m.yaml: document 2: Endpoints default/web: Endpoints are not read; EndpointSlices are",
            "m.yaml: document 3: Service default/web: another kind of object",
            "m.yaml: document 4: Service default/h: headless: it has no virtual address",
        ]
    );
    assert_eq!(manifests.services, []);
}

#[test]
fn an_unknown_version_of_our_kinds_is_an_error() {
    assert_eq!(
        wrong("m.yaml", &WEB_1.replace("discovery.k8s.io/v1", "discovery.k8s.io/v1beta1")),
        ["m.yaml: document 1: EndpointSlice demo/web-1: apiVersion: \"discovery.k8s.io/v1beta1\": must be \
          discovery.k8s.io/v1 for EndpointSlice"]
    );
    for (from, to) in [("v1", "v2"), ("v1", "apps/v1"), ("kind: Service", "kind: service")] {
        assert_eq!(wrong("m.yaml", &WEB.replacen(from, to, 1)).len(), 1, "{to}");
    }
}

#[test]
fn what_is_no_object_is_an_error() {
    assert_eq!(
        wrong(
            "m.yaml",
            "--- hello\n--- [1]\n--- {kind: Service}\n--- {apiVersion: v1}\n--- {apiVersion: 1, kind: List}"
        ),
        [
            "m.yaml: document 1: must be an object with apiVersion and kind, and is a string",
            "m.yaml: document 2: must be an object with apiVersion and kind, and is a sequence",
            "m.yaml: document 3: Service: apiVersion: must be set",
            "m.yaml: document 4: object: kind: must be set",
            "m.yaml: document 5: List: apiVersion: must be a string, and is a number",
        ]
    );
}

#[test]
fn a_wrong_type_is_an_error_with_its_path() {
    assert_eq!(
        wrong("m.yaml", &WEB.replace("port: 80,", "port: '80',")),
        [
            "m.yaml: document 1: Service demo/web: spec.ports[0].port: must be a whole number, and is string \"80\""
        ]
    );
    assert_eq!(
        wrong("m.yaml", &WEB.replace("[10.96.0.10, 'fd00:96::10']", "10.96.0.10")),
        [
            "m.yaml: document 1: Service demo/web: spec.clusterIPs: must be a sequence, and is string \"10.96.0.10\""
        ]
    );
    for (from, to) in [
        ("spec:\n", "spec: []\nx:\n"),
        ("{ name: web, namespace: demo }", "web"),
        ("nodePort: 30080", "nodePort: 99999999999"),
        ("port: 80,", "port: 80.5,"),
        ("name: http", "name: true"),
    ] {
        assert!(!wrong("m.yaml", &WEB.replace(from, to)).is_empty(), "{to}");
    }
}

#[test]
fn a_syntax_error_names_document_and_line_and_hides_no_other_problem() {
    let text = format!(
        "{WEB}---\na: [\n---{}",
        WEB.replace("name: web", "name: Web").replace("port: 80,", "port: 0,")
    );
    let wrong = wrong("m.yaml", &text);
    assert_eq!(wrong.len(), 2, "{wrong:#?}");
    assert!(wrong[0].starts_with("m.yaml: document 2: line 1"), "{}", wrong[0]);
    assert!(wrong[0].contains("must be YAML: "), "{}", wrong[0]);
    assert!(
        wrong[1].starts_with("m.yaml: document 3: Service demo/Web: metadata.name: \"Web\": "),
        "{}",
        wrong[1]
    );
}

#[test]
fn a_key_that_stands_twice_is_an_error() {
    for (name, text) in [("m.yaml", "a: 1\na: 2\n"), ("m.json", r#"{"a": 1, "a": 2}"#)] {
        let wrong = wrong(name, text);
        assert!(wrong[0].contains("document 1"), "{}", wrong[0]);
        assert!(wrong[0].contains("twice") || wrong[0].contains("duplicate"), "{}", wrong[0]);
    }
}

#[test]
fn all_problems_of_all_objects_are_reported() {
    let text = format!(
        "{}---{}",
        WEB.replace("10.96.0.10", "10.96.0.300").replace("port: 80,", "port: 70000,").replace("TCP", "tcp"),
        WEB_1.replace("IPv4", "IPv6")
    );
    assert_eq!(
        wrong("m.yaml", &text),
        [
            "m.yaml: document 1: Service demo/web: spec.clusterIPs[0]: \"10.96.0.300\": must be an IPv4 or IPv6 address",
            "m.yaml: document 1: Service demo/web: spec.ports[0].protocol: \"tcp\": must be TCP, UDP or SCTP",
            "m.yaml: document 1: Service demo/web: spec.ports[0].port: \"70000\": must be 1 to 65535",
            "m.yaml: document 2: EndpointSlice demo/web-1: endpoints[0].addresses[0]: \"10.244.1.10\": must be an \
             IPv6 address",
        ]
    );
}

#[test]
fn the_same_object_twice_is_an_error_that_names_both_places() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), format!("{WEB_1}---{WEB}")).unwrap();
    fs::write(directory.path().join("b.yml"), WEB).unwrap();
    let error = Manifests::load(directory.path()).unwrap_err().to_string();
    let at = directory.path().display();
    assert_eq!(
        error,
        format!(
            "{at}/b.yml: document 1: Service demo/web: must not be defined twice: it is in {at}/a.yaml: document 2 \
             already"
        )
    );
}

#[test]
fn a_directory_is_read_in_the_order_of_names() {
    let directory = tempfile::tempdir().unwrap();
    let service = |name: &str| WEB.replace("web", name);
    fs::write(directory.path().join("2.yml"), service("b")).unwrap();
    fs::write(directory.path().join("1.yaml"), service("a")).unwrap();
    fs::write(
        directory.path().join("3.json"),
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},
            "spec":{"clusterIP":"10.96.0.3","ports":[{"port":80}]}}"#,
    )
    .unwrap();
    fs::write(directory.path().join("README.md"), "no manifest").unwrap();
    fs::create_dir(directory.path().join("4.yaml")).unwrap();
    let manifests = Manifests::load(directory.path()).unwrap();
    assert_eq!(names(manifests.services.iter().map(|s| s.name())), ["demo/a", "demo/b", "default/c"]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display().to_string();
    let fails = |path: String| Manifests::load(path).unwrap_err().to_string();
    assert_eq!(fails(at.clone()), format!("{at}: must hold *.yaml, *.yml or *.json files"));
    assert!(
        fails(format!("{at}/none.yaml"))
            .starts_with(&format!("{at}/none.yaml: cannot be read: No such file"))
    );
    fs::write(directory.path().join("a.yaml"), b"a: \xff\n").unwrap();
    fs::write(directory.path().join("b.yaml"), "a: [").unwrap();
    let error = fails(at.clone());
    assert!(
        error.starts_with(&format!(
            "{at}/a.yaml: must be UTF-8 text, which it is not at byte 3\n{at}/b.yaml: "
        ))
    );
}

#[test]
fn fields_that_the_api_does_not_have_are_noticed() {
    let manifests = read(&WEB.replace("targetPort", "target"));
    assert_eq!(
        names(&manifests.notices),
        ["Service demo/web: spec.ports[0].target: not a field of the API: ignored"]
    );
    let manifests = read(
        "{apiVersion: v1, kind: Service, metadata: {name: a, creationTimestamp: null, annotations: {}}, \
         spec: {clusterIp: 10.0.0.1, selector: {}}, status: {loadBalancer: {}}}",
    );
    assert_eq!(
        names(&manifests.notices),
        ["Service default/a: spec.clusterIp: not a field of the API: ignored"]
    );
    assert_eq!(manifests.skipped.len(), 1);
}

#[test]
fn aliases_are_followed_and_bombs_are_not() {
    let text = "
apiVersion: v1
kind: Service
metadata: { name: &name web, labels: { app: *name } }
spec: { clusterIP: 10.0.0.1, ports: [&p {port: 80, name: a}, {<<: *p, port: 81, name: b}] }
";
    assert_eq!(read(text).services[0].ports().len(), 2);

    let mut laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for i in 1..40 {
        let alias = format!("*a{}", i - 1);
        laughs.push_str(&format!("a{i}: &a{i} [{}]\n", [alias.as_str(); 9].join(", ")));
    }
    let big = "x".repeat(1 << 20);
    let many = ["*big"; 5000].join(", ");
    let keys: String = (0..2000).map(|i| format!("k{i}: 1, ")).collect();
    let merges = "- {<<: *m}\n".repeat(5000);
    for bomb in [
        laughs,
        format!("big: &big {big}\nall: [{many}]\n"),
        format!("- &m {{{keys}}}\n{merges}"),
        "a: &a [*a]\n".into(),
        "[".repeat(100_000),
        format!("{}1{}", "[".repeat(100), "]".repeat(100)),
        "a:\n".to_owned() + &(1..2000).map(|i| format!("{}- \n", " ".repeat(i))).collect::<String>(),
    ] {
        let began = std::time::Instant::now();
        let wrong = wrong("m.yaml", &bomb);
        assert!(wrong[0].contains("must be YAML"), "{}", wrong[0]);
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
        assert!(wrong[0].len() < 1000, "{}", wrong[0]);
    }
    let deep = format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100));
    assert!(wrong("m.json", &deep)[0].contains("nested deeper"));
}

#[test]
fn the_examples_of_this_repository_are_valid() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/manifests");
    if !std::path::Path::new(directory).exists() {
        return; // the package alone
    }
    let manifests = Manifests::load(directory).unwrap();
    assert_eq!(names(manifests.services.iter().map(|s| s.name())), ["demo/web", "demo/dns", "demo/empty"]);
    let endpoints: Vec<_> = manifests.slices.iter().map(|s| s.endpoints().len()).collect();
    assert_eq!(endpoints, [4, 4, 2]);
    assert_eq!(manifests.notices, []);
    assert_eq!(manifests.skipped, []);
}

#[test]
fn one_bad_object_does_not_hide_the_others_and_of_two_of_one_name_the_first_counts() {
    let text = "
apiVersion: v1
kind: Service
metadata: { name: good, namespace: demo }
spec: { clusterIP: 10.96.0.1, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: bad, namespace: demo }
spec: { clusterIP: 10.96.0.2, ports: [{ port: 0 }] }
---
apiVersion: v1
kind: Service
metadata: { name: good, namespace: demo }
spec: { clusterIP: 10.96.0.3, ports: [{ port: 80 }] }
";
    let error = Manifests::parse("web.yaml", text).unwrap_err();
    let objects: Vec<_> = error.problems().iter().map(|problem| problem.object.clone()).collect();
    assert_eq!(objects, ["Service demo/bad", "Service demo/good"]);
    let usable = error.into_usable();
    assert_eq!(usable.services.len(), 1);
    assert_eq!(usable.services[0].cluster_ips()[0].to_string(), "10.96.0.1");
}

#[test]
fn nodes_are_read_and_have_no_namespace() {
    let text = "
apiVersion: v1
kind: NodeList
items:
- metadata: { name: node-a, labels: { topology.kubernetes.io/zone: a } }
  status: { addresses: [{ type: InternalIP, address: 10.0.0.1 }] }
- metadata: { name: node-b }
  status: { addresses: [{ type: InternalIP, address: x }] }
- metadata: { name: node-a }
";
    let error = Manifests::parse("nodes.yaml", text).unwrap_err();
    let problems: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "nodes.yaml: document 1: items[1]: Node node-b: status.addresses[0].address: \"x\": must be an IPv4 or IPv6 \
             address",
            "nodes.yaml: document 1: items[2]: Node node-a: must not be defined twice: it is in nodes.yaml: document 1: \
             items[0] already",
        ]
    );
    let usable = error.into_usable();
    assert_eq!(usable.nodes.len(), 1);
    assert_eq!(usable.nodes[0].zone(), Some("a"));
}
