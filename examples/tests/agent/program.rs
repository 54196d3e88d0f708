//! The program, as a DaemonSet would start and end it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::support::{
    api::{ApiServer, Kind},
    objects::{node, service, with},
    rig::eventually,
};

/// A running program, ended with the test.
pub(crate) struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Program {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_agent"))
            .args(arguments)
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                written.lock().push_str(&format!("{line}\n"));
            }
        });
        Self { child, log }
    }

    pub(crate) async fn says(&self, text: &str) {
        let says = || self.log.lock().contains(text);
        eventually(|| format!("{text:?} in {}", self.log.lock()), says).await;
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Waits for its end: whether it succeeded.
    pub(crate) async fn ends(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < deadline, "it goes on: {}", self.log.lock());
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn kubeconfig(server: &str) -> tempfile::NamedTempFile {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: '{server}'}}}}]\n\
         users: [{{name: test, user: {{}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

const QUIET: [&str; 3] = ["--datapath=memory", "--healthz-bind-address=", "--metrics-bind-address="];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_it_and_leaves_the_kernel_forwarding() {
    for signal in ["TERM", "INT"] {
        let api = ApiServer::start().await;
        api.put(Kind::Node, node());
        api.put(
            Kind::Service,
            with(service("bad", "10.96.0.1"), "/spec/ports", serde_json::json!([{ "port": 0 }])),
        );
        let kubeconfig = kubeconfig(&api.url());
        let kubeconfig = format!("--kubeconfig={}", kubeconfig.path().display());
        let mut program = Program::start(&[&QUIET[..], &["--node-name=node-a", &kubeconfig]].concat());
        program.says("the kernel is programmed from now on").await;
        program.says("Service demo/bad: spec.ports[0].port").await;
        program.signal(signal);
        assert!(program.ends().await, "{}", program.log.lock());
        program.says("the kernel goes on forwarding").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_of_the_api_server_can_be_given() {
    let api = ApiServer::start().await;
    api.put(Kind::Node, node());
    let kubeconfig = kubeconfig("http://192.0.2.1:1");
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.path().display());
    let address = format!("--apiserver={}", api.url());
    let program = Program::start(&[&QUIET[..], &["--node-name=node-a", &kubeconfig, &address]].concat());
    program.says("the kernel is programmed from now on").await;
}

#[tokio::test]
async fn without_credentials_it_says_so() {
    for arguments in [&["--node-name=node-a"][..], &["--node-name=node-a", "--kubeconfig=/nonexistent"]] {
        let mut program = Program::start(&[&QUIET[..], arguments].concat());
        assert!(!program.ends().await);
        program.says("agent: ").await;
    }
}
