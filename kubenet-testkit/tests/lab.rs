//! The lab itself. Needs root.
#![cfg(all(feature = "lab", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use kubenet_core::model::IpFamily;
use kubenet_testkit::lab::{Ground, Lab, LabConfig, LabError, Node, Place, RequestError};

const SECOND: Duration = Duration::from_secs(1);

/// A lab, or `None` with a printed reason where this machine cannot have one.
fn lab(config: LabConfig) -> Option<Lab> {
    match Lab::new(config) {
        Ok(lab) => Some(lab),
        Err(LabError::Unsupported(why)) => {
            kubenet_testkit::conformance::skip(why);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn two_pods() -> LabConfig {
    LabConfig::new().pod("a1", Node::A).pod("b1", Node::B)
}

fn namespaces(id: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.contains(id)).collect()
}

#[test]
fn pods_nodes_and_outside_reach_each_other_in_both_families() {
    let Some(lab) = lab(two_pods()) else { return };
    let _servers = [lab.serve("b1", 8080).unwrap(), lab.serve(Node::B, 9090).unwrap()];
    for &family in lab.families() {
        let b1 = SocketAddr::new(lab.address(&"b1".into(), family).unwrap(), 8080);
        let node_b = SocketAddr::new(lab.address(&Node::B.into(), family).unwrap(), 9090);
        let pairs = [("a1".into(), b1), (Node::A.into(), b1), (Node::B.into(), b1), ("b1".into(), node_b)];
        for (from, to) in pairs.into_iter().chain([(Place::Outside, node_b)]) {
            let expected = lab.address(&from, family).unwrap();
            let name = if to == b1 { "b1" } else { "node-b" };
            for answer in [lab.http_get(&from, to, SECOND), lab.udp_ask(&from, to, SECOND)] {
                let answer = answer.unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
                assert_eq!((answer.backend.as_str(), answer.peer.ip()), (name, expected), "{from} to {to}");
            }
        }
    }
}

#[test]
fn a_client_tells_refused_from_timed_out_and_from_cut() {
    let Some(lab) = lab(two_pods()) else { return };
    let server = lab.serve("b1", 8080).unwrap();
    let b1 = IpAddr::from(lab.pod("b1").unwrap().v4());
    let short = Duration::from_millis(200);
    assert!(lab.http_get("a1", (b1, 1).into(), SECOND).unwrap_err().is_refused());
    assert!(lab.udp_ask("a1", (b1, 1).into(), SECOND).unwrap_err().is_refused());
    // Cluster IPs go to the outside host, which keeps silent.
    assert!(lab.http_get("a1", "10.96.0.1:80".parse().unwrap(), short).unwrap_err().is_timed_out());
    assert!(lab.udp_ask("a1", "10.96.0.1:80".parse().unwrap(), short).unwrap_err().is_timed_out());

    let mut connection = lab.connect("a1", (b1, 8080).into(), SECOND).unwrap();
    connection.ask(SECOND).unwrap();
    connection.ask(SECOND).unwrap();
    drop(server);
    let cut = connection.ask(SECOND).unwrap_err();
    assert!(matches!(cut, RequestError::Reset | RequestError::Closed), "{cut}");
    assert!(matches!(lab.http_get("nobody", (b1, 1).into(), SECOND), Err(RequestError::Lab(_))));
}

#[test]
fn the_outside_host_has_no_way_to_pods() {
    let Some(lab) = lab(two_pods()) else { return };
    let _server = lab.serve("a1", 8080).unwrap();
    let a1 = SocketAddr::new(lab.pod("a1").unwrap().v4().into(), 8080);
    assert!(matches!(lab.http_get(Place::Outside, a1, SECOND), Err(RequestError::Unreachable)));
}

#[test]
fn pods_come_and_go_at_run_time() {
    let Some(lab) = lab(two_pods()) else { return };
    let long = "a-pod-with-a-long-name";
    let pod = lab.add_pod(long, Node::A).unwrap();
    assert!(lab.add_pod(long, Node::B).is_err());
    assert!(lab.add_pod("Not_A_Name", Node::B).is_err());
    assert_eq!(lab.node(Node::A).pod_interfaces().len(), 2);
    let _server = lab.serve(long, 8080).unwrap();
    let address = SocketAddr::new(pod.v4().into(), 8080);
    assert_eq!(lab.http_get("b1", address, SECOND).unwrap().backend, long);
    let node = lab.node(Node::A).netns();
    let listed = || node.run(|| Command::new("ip").args(["link", "show", pod.host_interface()]).output());
    assert!(listed().unwrap().unwrap().status.success());
    lab.remove_pod(long).unwrap();
    assert!(!listed().unwrap().unwrap().status.success());
    assert!(lab.pod(long).is_err());
    assert!(lab.http_get("b1", address, Duration::from_millis(200)).is_err());
}

#[test]
fn node_info_describes_the_lab() {
    let Some(lab) = lab(two_pods()) else { return };
    let routing = lab.node_info(Node::A).unwrap().routing();
    for pod in lab.pods() {
        assert!(routing.local_detector.is_pod(pod.v4().into(), None));
        assert!(pod.v6().is_none_or(|v6| routing.local_detector.is_pod(v6.into(), None)));
    }
    for &family in lab.families() {
        assert_eq!(routing.primary_address(family), lab.address(&Node::A.into(), family).ok());
        assert!(!routing.local_detector.is_pod(lab.address(&Place::Outside, family).unwrap(), None));
    }
}

#[test]
fn labs_live_side_by_side_with_and_without_ipv6() {
    let Some(one) = lab(two_pods().ipv6(false)) else { return };
    let Some(two) = lab(two_pods()) else { return };
    assert_ne!(one.id(), two.id());
    assert_eq!(one.families(), [IpFamily::V4]);
    let _server = one.serve("b1", 8080).unwrap();
    let b1 = SocketAddr::new(one.pod("b1").unwrap().v4().into(), 8080);
    one.http_get("a1", b1, SECOND).unwrap();
    assert!(two.http_get("a1", b1, SECOND).unwrap_err().is_refused());
    let mine = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    if let (Ok(a), Ok(b)) = (one.cgroup(), two.cgroup()) {
        assert_eq!(a, b);
        assert!(mine.contains(&format!("kubenet-{}", std::process::id())), "{mine}");
    }
}

#[test]
fn drop_removes_everything() {
    let Some(lab) = lab(two_pods()) else { return };
    let id = lab.id().to_owned();
    assert_eq!(namespaces(&id).len(), 6);
    let _server = lab.serve("b1", 8080).unwrap();
    drop(lab);
    assert_eq!(namespaces(&id), Vec::<String>::new());
}

#[test]
fn a_panic_removes_everything() {
    let mut id = None;
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let lab = lab(two_pods());
        id = lab.as_ref().map(|lab| lab.id().to_owned());
        panic!("wanted by the test");
    }));
    assert!(caught.is_err());
    let Some(id) = id else { return };
    assert_eq!(namespaces(&id), Vec::<String>::new());
}

/// Not a test of its own: the process that the next tests kill.
#[test]
fn child_that_waits_with_a_lab() {
    let Some(what) = std::env::var_os("KUBENET_LAB_CHILD") else { return };
    let lab = lab(two_pods()).unwrap();
    println!("\nlab {}", lab.id());
    if what == "keep" {
        lab.keep().unwrap();
        return;
    }
    std::thread::sleep(Duration::from_secs(60));
}

/// Starts a process with a lab, ends it with a signal, and returns the lab's id and the exit status.
fn killed_by(signal: &str) -> (String, u32, std::process::ExitStatus) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_waits_with_a_lab", "--nocapture"])
        .env("KUBENET_LAB_CHILD", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let id = lines.filter_map(|l| l.strip_prefix("lab ").map(str::to_owned)).next().unwrap();
    assert_eq!(namespaces(&id).len(), 6);
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    (id, child.id(), child.wait().unwrap())
}

#[test]
fn a_signal_removes_everything_and_ends_the_process() {
    if lab(LabConfig::new()).is_none() {
        return;
    }
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let (id, pid, status) = killed_by(signal);
        assert_eq!(status.code(), Some(code));
        assert_eq!(namespaces(&id), Vec::<String>::new());
        assert!(!Path::new(&format!("/sys/fs/cgroup/unified/kubenet-{pid}")).exists());
    }
}

#[test]
fn the_next_lab_removes_what_a_killed_process_left() {
    if lab(LabConfig::new()).is_none() {
        return;
    }
    let (id, pid, _) = killed_by("-KILL");
    let next = lab(LabConfig::new()).unwrap();
    assert_eq!(namespaces(&id), Vec::<String>::new());
    if let Ok(cgroup) = next.cgroup() {
        assert!(!cgroup.with_file_name(format!("kubenet-{pid}")).exists());
    }
}

#[test]
fn a_kept_lab_stays_until_its_instructions_are_followed() {
    if lab(LabConfig::new()).is_none() {
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_waits_with_a_lab", "--nocapture"])
        .env("KUBENET_LAB_CHILD", "keep")
        .output()
        .unwrap();
    let (out, said) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    let id = out.lines().find_map(|l| l.strip_prefix("lab ")).unwrap();
    let _next = lab(LabConfig::new()).unwrap();
    assert_eq!(namespaces(id).len(), 6);
    let remove = said.lines().skip_while(|l| !l.starts_with("Remove it")).nth(1).unwrap();
    assert!(Command::new("sh").args(["-c", remove]).status().unwrap().success());
    assert_eq!(namespaces(id), Vec::<String>::new());
    assert!(!Path::new("/run/kubenet-lab").join(id).exists());
}

#[test]
fn a_pod_gets_the_addresses_that_it_wants() {
    let Some(lab) = lab(LabConfig::new().pod("a1", Node::A)) else { return };
    let wanted = ["10.244.1.3".parse().unwrap(), "fd00:244:1::77".parse().unwrap()];
    let chosen = lab.add_pod_with("a2", Node::A, &wanted).unwrap();
    assert_eq!([chosen.v4().into(), chosen.v6().map_or(wanted[1], IpAddr::V6)], wanted);
    assert_ne!(lab.add_pod("a3", Node::A).unwrap().v4(), chosen.v4());
    for refused in [wanted[0], "10.244.2.9".parse().unwrap()] {
        assert!(lab.add_pod_with("a4", Node::A, &[refused]).is_err());
    }
    let _server = lab.serve("a2", 8080).unwrap();
    assert_eq!(lab.http_get("a3", (wanted[0], 8080).into(), SECOND).unwrap().backend, "a2");
}

#[test]
fn a_ground_has_the_shape_that_it_is_given_and_goes_as_a_lab_does() {
    if lab(LabConfig::new()).is_none() {
        return;
    }
    let mut ground = Ground::new(false).unwrap();
    let (near, far) = (ground.add("near", true).unwrap(), ground.add("far", false).unwrap());
    let wire = format!("link add eth0 type veth peer name eth0 netns {}\n", far.name());
    ground.ip("near", &wire).unwrap();
    for (part, address) in [("near", "192.0.2.1"), ("far", "192.0.2.2")] {
        ground.ip(part, &format!("link set eth0 up\naddr add {address}/24 dev eth0\n")).unwrap();
    }
    ground.wait_until_running("near", &["eth0"]).unwrap();
    let forwards = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    assert_eq!((near.run(forwards).unwrap(), far.run(forwards).unwrap()), ("1\n".into(), "0\n".into()));
    // More at once than the kernel tells of unless it is told to.
    let refused = near.run(|| {
        let refused = |_: &usize| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("192.0.2.2:9").unwrap();
            socket.set_read_timeout(Some(SECOND)).unwrap();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        };
        (0..500).filter(refused).count()
    });
    assert_eq!(refused.unwrap(), 500);
    assert!(ground.netns("else").is_err() && ground.ip("near", "link set nothing up\n").is_err());
    let names = [near.name().to_owned(), far.name().to_owned()];
    drop(ground);
    assert!(names.iter().all(|name| namespaces(name).is_empty()), "{names:?}");
}
