//! `inspect` beside a pinned datapath in a lab, and when its process was killed.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{self, Child, Command, Output, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use futures::executor::block_on;
use kubenet_core::{
    datapath::Datapath,
    model::{Affinity, Protocol},
    route::{
        Backend, Frontend, FrontendKind, Masquerade, NodeRouting, Revision, Route, RouteTable,
        ServicePortName, Target, WhenEmpty,
    },
};
use kubenet_ebpf::EbpfDatapath;
use kubenet_testkit::{
    conformance,
    lab::{Lab, LabConfig, LabError, Node},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);

/// A BPF file system, mounted until it is dropped. What is pinned in it goes with it.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn mount() -> Self {
        // Named as those of the datapath's own tests, which clear away what killed tests have left.
        let prefix = format!("kubenet-bpffs-{}-", process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(directory.path()).status();
        assert!(mounted.unwrap().success());
        Self(directory)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn lab() -> Option<Lab> {
    match Lab::new(LabConfig::new().pod("client", Node::A).pod("web", Node::A)) {
        Ok(lab) => Some(lab),
        Err(error @ LabError::Unsupported(_)) => {
            conformance::skip(error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn service(port: u16) -> SocketAddr {
    SocketAddr::new([10, 96, 0, 1].into(), port)
}

fn route(port: u16, backends: &[Backend], when_empty: WhenEmpty) -> Arc<Route> {
    let mut route = Route::new(
        Frontend::ip(service(port).ip(), port.try_into().unwrap(), Protocol::Tcp),
        FrontendKind::ClusterIp,
        ServicePortName { namespace: "demo".into(), service: "web".into(), port: format!("p{port}").into() },
        Target { backends: backends.into(), when_empty },
        Masquerade::default(),
    );
    route.affinity = Affinity::new(600);
    Arc::new(route)
}

/// The embedder of a datapath that serves port 80 and keeps silent on port 81: this test program once more, as a
/// process of its own.
struct Embedder(Child);

impl Embedder {
    /// Returns when the routes are in the kernel.
    fn start(lab: &Lab, pins: &Path) -> Self {
        let node = lab.node(Node::A);
        let web = lab.pod("web").unwrap().v4().to_string();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "embed", "--nocapture"])
            .env("KUBENET_INSPECT_NETNS", node.netns().path())
            .env("KUBENET_INSPECT_EXTERNAL", node.external_interface())
            .env("KUBENET_INSPECT_PODS", node.pod_interfaces().join(","))
            .env("KUBENET_INSPECT_PINS", pins)
            .env("KUBENET_INSPECT_WEB", web)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let embedder = Self(child);
        assert!(lines.any(|line| line.unwrap().ends_with("serving")), "it ended before it served");
        embedder
    }

    /// As `kill -9` does.
    fn kill(&mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None, "it ended by itself");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Embedder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "a part of the other tests, as a process of its own"]
fn embed() {
    let Ok(netns) = std::env::var("KUBENET_INSPECT_NETNS") else { return };
    let variable = |name: &str| std::env::var(format!("KUBENET_INSPECT_{name}")).unwrap();
    let mut builder = EbpfDatapath::builder()
        .network_namespace(netns)
        .external_interface(variable("EXTERNAL"))
        .pin_dir(variable("PINS"));
    for pod in variable("PODS").split(',') {
        builder = builder.pod_interface(pod);
    }
    let datapath = builder.build().unwrap();
    let web = Backend::new(variable("WEB").parse().unwrap(), 8080.try_into().unwrap(), true);
    let routes = [route(80, &[web], WhenEmpty::Reject), route(81, &[], WhenEmpty::Drop)];
    let table = RouteTable::new(Revision(1), Arc::new(NodeRouting::default()), routes);
    let report = block_on(datapath.replace(Arc::new(table))).unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    println!("serving");
    // Until it is killed, or the test is.
    io::stdin().read_line(&mut String::new()).unwrap();
}

fn inspect(pins: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inspect")).arg("--pin-dir").arg(pins).args(arguments).output().unwrap()
}

fn json(pins: &Path) -> Value {
    let output = inspect(pins, &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// One that follows, killed when it is dropped.
struct Follower {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Follower {
    fn start(pins: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_inspect"))
            .arg("--pin-dir")
            .arg(pins)
            .arg("--follow")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let follower = Self { child, lines };
        assert_eq!(line, "inspect: following\n");
        follower
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(10 * SOON).unwrap()
    }

    fn next(&self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_shows_what_is_there_beside_the_process_and_when_that_was_killed() {
    let Some(lab) = lab() else { return };
    let bpffs = Bpffs::mount();
    let pins = bpffs.0.path().join("kubenet");
    let missing = inspect(&pins, &[]);
    assert!(!missing.status.success());
    let message = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(message.contains("no maps of this library's layout are pinned"), "{message}");

    let _server = lab.serve("web", 8080).unwrap();
    let mut embedder = Embedder::start(&lab, &pins);
    let mut connection = lab.connect("client", service(80), SOON).unwrap();
    connection.ask(SOON).unwrap();
    for _ in 0..3 {
        lab.http_get("client", service(80), SOON).unwrap();
    }
    assert!(lab.http_get("client", service(81), SOON / 10).is_err());
    let client = lab.pod("client").unwrap().v4().to_string();
    for killed in [false, true] {
        if killed {
            embedder.kill();
            lab.http_get("client", service(80), SOON).unwrap();
        }
        let report = json(&pins);
        assert_eq!(report["draining"], false);
        let routes = report["routes"].as_array().unwrap();
        assert_eq!(routes.len(), 2);
        assert_eq!(routes[0]["frontend"], "10.96.0.1:80/TCP", "{report}");
        assert_eq!(routes[0]["affinity_seconds"], 600);
        let made = 4 + u64::from(killed);
        for counted in [&routes[0], &report["backends"][0]] {
            assert_eq!(counted["connections"], made, "{report}");
            assert!(counted["packets"].as_u64().unwrap() >= 3 * made, "{report}");
            assert!(counted["reply_bytes"].as_u64().unwrap() > 40 * made, "{report}");
        }
        assert_eq!(routes[1]["connections"], 0);
        assert_eq!(report["backends"][0]["local"], true);
        let all = report["connections"].as_array().unwrap();
        let open: Vec<&Value> = all.iter().filter(|c| c["state"] == "open").collect();
        let [live] = open[..] else { panic!("the requests are over: {report}") };
        assert!(all.iter().any(|c| c["state"] == "closing"), "{report}");
        assert_eq!(live["frontend"], service(80).to_string());
        assert!(live["client"].as_str().unwrap().starts_with(&client), "{live}");
        assert_eq!(report["clients"][0]["client"], client);
        assert!(report["counters"]["drop_no_local_backend"].as_u64().unwrap() > 0, "{report}");

        let output = inspect(&pins, &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        for part in
            ["Frontends (2)", "demo/web:p80", "Backends (1)", "Clients with affinity (1)", "drop_route"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}

#[test]
fn it_follows_flows_and_drops_also_when_the_process_was_killed_and_one_at_a_time() {
    let Some(lab) = lab() else { return };
    let bpffs = Bpffs::mount();
    let pins = bpffs.0.path().join("kubenet");
    let _server = lab.serve("web", 8080).unwrap();
    let mut embedder = Embedder::start(&lab, &pins);
    let follower = Follower::start(&pins, &["--json"]);
    let second = inspect(&pins, &["--follow"]);
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("somebody follows"), "{second:?}");
    for killed in [false, true] {
        if killed {
            embedder.kill();
        }
        lab.http_get("client", service(80), SOON).unwrap();
        let event = follower.next();
        assert_eq!((&event["event"], &event["protocol"]), (&"flow".into(), &"TCP".into()), "{event}");
        assert_eq!(event["frontend"], service(80).to_string());
        assert_eq!(event["backend"], format!("{}:8080", lab.pod("web").unwrap().v4()));
    }
    // Killed as well, and the next one takes its place.
    drop(follower);
    let follower = Follower::start(&pins, &["--json"]);
    assert!(lab.http_get("client", service(81), SOON / 10).is_err());
    let event = follower.next();
    assert_eq!(event["reason"], "drop_no_local_backend", "{event}");
    assert_eq!(event["destination"], service(81).to_string());
    drop(follower);

    let mut follower = Follower::start(&pins, &["--events", "1"]);
    lab.http_get("client", service(80), SOON).unwrap();
    let line = follower.line();
    let client = lab.pod("client").unwrap().v4();
    assert!(line.starts_with(&format!("flow     TCP from {client}:")), "{line}");
    assert!(follower.child.wait().unwrap().success());
}
