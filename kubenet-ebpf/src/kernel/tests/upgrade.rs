//! Programs of another build take the place of those that serve.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use aya::programs::{SchedClassifier, TcAttachType};
use kubenet_testkit::lab::{Lab, LabConfig, Node, Place};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

const SOON: Duration = Duration::from_secs(2);
const PORT: u16 = 8080;

/// A mounted BPF file system.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("kubenet-upgrade-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

/// One life of the datapath, with programs of this build or of another one.
fn live(lab: &Lab, pins: &Path, other_build: bool, table: &RouteTable) -> ApplyReport {
    let node = lab.node(Node::A);
    let mut builder = EbpfBuilder::default()
        .network_namespace(node.netns().path())
        .external_interface(node.external_interface())
        .pin_dir(pins);
    if let Ok(cgroup) = lab.cgroup() {
        builder = builder.cgroup(cgroup);
    }
    for pod in node.pod_interfaces() {
        builder = builder.pod_interface(pod);
    }
    let life = || {
        object::tests::OTHER_BUILD.set(other_build);
        let pins = open_pins(&builder).unwrap();
        let engine = Engine::start(builder, pins, Capabilities::basic(), EventHub::default());
        engine.unwrap().replace(table).unwrap()
    };
    // The namespace is a thread's own.
    std::thread::scope(|scope| scope.spawn(life).join().unwrap())
}

/// What tells the programs at the external interface from those of another build.
fn builds(lab: &Lab) -> BTreeSet<u32> {
    let node = lab.node(Node::A);
    let interface = node.external_interface();
    let list = || {
        let directions = [TcAttachType::Ingress, TcAttachType::Egress];
        directions.map(|direction| SchedClassifier::query_tcx(interface, direction).unwrap().1)
    };
    // Constants are no part of a program's tag, but the verifier follows them.
    let count = |program: &aya::programs::ProgramInfo| program.verified_instruction_count().unwrap();
    node.netns().run(list).unwrap().iter().flatten().map(count).collect()
}

#[test]
fn programs_of_another_build_go_on_with_every_connection() {
    let config = LabConfig::new().pod("client", Node::A).pod("there", Node::B);
    let Some(lab) = lab(config) else { return };
    let mounted = Mounted::new();
    let pins = mounted.0.join("kubenet-test");
    let _server = lab.serve("there", PORT).unwrap();
    let backend = Backend::new(lab.pod("there").unwrap().v4().into(), PORT.try_into().unwrap(), false);
    let route = Route::new(
        Frontend::ip([10, 96, 0, 1].into(), 80.try_into().unwrap(), Protocol::Tcp),
        FrontendKind::ClusterIp,
        ServicePortName { namespace: "demo".into(), service: "web".into(), port: "".into() },
        Target { backends: [backend].into(), when_empty: WhenEmpty::Reject },
        Masquerade { pods: false, node: true, outside: true },
    );
    let node = Arc::new(lab.node_info(Node::A).unwrap().routing());
    let table = RouteTable::new(Revision(1), node, [Arc::new(route)]);
    let to = ([10, 96, 0, 1], 80).into();

    assert_eq!(live(&lab, &pins, false, &table).upserted, 1);
    let this_build = builds(&lab);
    let clients = [Place::Pod("client".into()), Place::Node(Node::A), Place::Outside];
    let mut known = clients.clone().map(|client| lab.connect(client, to, SOON).unwrap());
    for other_build in [true, false, true] {
        assert_eq!(live(&lab, &pins, other_build, &table).upserted, 0);
        assert_eq!(builds(&lab) == this_build, !other_build, "other programs hang there now");
        for connection in &mut known {
            connection.ask(SOON).unwrap();
        }
        for client in clients.clone() {
            assert_eq!(lab.http_get(client, to, SOON).unwrap().backend, "there");
        }
    }
    remove_pins(&pins).unwrap();
    assert!(!pins.exists() && builds(&lab).is_empty());
}
