//! `trace` as scripts use it, and what it sees in the kernel. The latter needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

#[cfg(target_os = "linux")]
mod agreement;
#[cfg(target_os = "linux")]
mod honesty;
#[cfg(target_os = "linux")]
mod kernel;
#[cfg(target_os = "linux")]
mod random;
mod reference;

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Manifests in a file, to be asked about.
pub(crate) struct Cluster {
    directory: TempDir,
}

impl Cluster {
    pub(crate) fn new(manifest: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cluster.yaml"), manifest).unwrap();
        Self { directory }
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.directory.path().join("cluster.yaml")
    }

    pub(crate) fn trace(&self, arguments: &[&str], input: &str) -> Output {
        self.trace_in(&[], arguments, input)
    }

    /// With these in the environment.
    pub(crate) fn trace_in(&self, env: &[(&str, &str)], arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_trace"))
            .envs(env.iter().copied())
            .arg("--manifests")
            .arg(self.manifests())
            .args(["--node-name", "node-a", "--cluster-cidr", "10.244.0.0/16,fd00:244::/32"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    pub(crate) fn answers(&self, arguments: &[&str], flows: &[(&str, &str, u16, &str)]) -> Vec<Value> {
        let line = |&(from, to, port, protocol): &(&str, &str, u16, &str)| {
            json!({ "from": from, "to": to, "port": port, "protocol": protocol }).to_string() + "\n"
        };
        let input: String = flows.iter().map(line).collect();
        let output = self.trace(&[arguments, &["--flows", "-"]].concat(), &input);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let answers: Vec<Value> =
            text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(answers.len(), flows.len());
        answers
    }

    pub(crate) fn answer(&self, arguments: &[&str], flow: (&str, &str, u16, &str)) -> Value {
        self.answers(arguments, &[flow]).remove(0)
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn backends(answer: &Value) -> Vec<&str> {
    answer["backends"].as_array().unwrap().iter().map(|backend| backend.as_str().unwrap()).collect()
}

pub(crate) fn why(answer: &Value) -> String {
    let lines = answer["why"].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}
