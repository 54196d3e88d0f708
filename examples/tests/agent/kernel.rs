//! The program on a node of the lab: real requests while it runs, and after it was ended.

use std::{net::TcpListener, path::Path, process::Command, time::Duration};

use kubenet_testkit::{
    conformance,
    lab::{Lab, LabConfig, LabError, Node},
};
use serde_json::json;

use crate::{
    program::{Program, kubeconfig},
    support::{
        api::{ApiServer, Kind},
        objects::{node, service, slice, with},
    },
};

fn lab() -> Option<Lab> {
    match Lab::new(LabConfig::new().pod("web", Node::A).pod("other", Node::A).pod("client", Node::A)) {
        Ok(lab) => Some(lab),
        Err(error @ LabError::Unsupported(_)) => {
            conformance::skip(error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A BPF file system, mounted until it is dropped. What is pinned in it goes with it.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn mount() -> Self {
        let directory = tempfile::Builder::new().prefix("kubenet-bpffs-agent-").tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(directory.path()).status();
        assert!(mounted.unwrap().success());
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iptables_rules_go_on_when_the_agent_is_ended_or_killed() {
    let Some(lab) = lab() else { return };
    // Nothing can be pinned there.
    let chosen = ["--datapath=auto", "--pin-dir=/proc/kubenet"].map(str::to_owned);
    goes_on(&lab, &chosen, "iptables is chosen").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pinned_ebpf_programs_go_on_when_the_agent_is_ended_or_killed() {
    let Some(lab) = lab() else { return };
    let bpffs = Bpffs::mount();
    let chosen = [
        "--datapath=auto".to_owned(),
        format!("--pin-dir={}", bpffs.path().join("kubenet").display()),
        format!("--cgroup={}", lab.cgroup().unwrap().display()),
        "--pod-interface-prefix=kn".to_owned(),
    ];
    goes_on(&lab, &chosen, "eBPF is chosen").await;
    assert!(bpffs.path().join("kubenet").exists(), "what serves is pinned");
}

async fn goes_on(lab: &Lab, chosen: &[String], says: &str) {
    let _servers = ["web", "other"].map(|pod| lab.serve(pod, 8080).unwrap());
    let address = |pod| lab.pod(pod).unwrap().v4().to_string();
    let netns = lab.node(Node::A).netns();
    let listener = netns.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
    let api = ApiServer::start_on(listener).await;
    let here = json!([{ "type": "InternalIP", "address": Node::A.v4().to_string() }]);
    api.put(Kind::Node, with(node(), "/status/addresses", here));
    api.put(Kind::Service, service("web", "10.96.0.10"));
    let kubeconfig = kubeconfig(&api.url());
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.path().display());
    let to = "10.96.0.10:80".parse().unwrap();
    let ask = || lab.http_get("client", to, Duration::from_secs(2)).map(|answer| answer.backend);

    // The second one finds what the first one left, and takes it up where another endpoint serves.
    for (signal, pod) in [("KILL", "web"), ("TERM", "other")] {
        api.put(Kind::Slice, slice("web", &[&address(pod)]));
        let mut arguments = vec![
            "--healthz-bind-address=",
            "--metrics-bind-address=",
            "--node-name=node-a",
            "--cluster-cidr=10.244.0.0/16",
            &kubeconfig,
        ];
        arguments.extend(chosen.iter().map(String::as_str));
        let mut program = netns.run(|| Program::start(&arguments)).unwrap();
        program.says(says).await;
        program.says("the kernel is programmed from now on").await;
        let mut served = ask();
        for _ in 0..100 {
            if served.as_deref().is_ok_and(|backend| backend == pod) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            served = ask();
        }
        assert_eq!(served.unwrap(), pod);
        program.signal(signal);
        assert_eq!(program.ends().await, signal == "TERM");
        for _ in 0..10 {
            assert_eq!(ask().unwrap(), pod, "after SIG{signal}");
        }
    }
}
