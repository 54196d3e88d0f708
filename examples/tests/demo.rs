//! The demo as a script would use it. `.ci/run` runs it with real packets.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn demo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_demo")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every field that scripts rely on.
fn check_report(path: &Path, datapaths: &[&str], requests: u64) {
    let report: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(report["simulated"], true);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.iter().map(|run| run["datapath"].as_str().unwrap()).collect::<Vec<_>>(), datapaths);
    for run in runs {
        assert!(run["program_ms"].is_number());
        assert_eq!(run["requests"], requests);
        assert_eq!(run["failures"], 0);
        let from: u64 = ["pod", "node", "outside"].iter().map(|who| run["from"][who].as_u64().unwrap()).sum();
        assert_eq!(from, requests);
        let backends: u64 = run["backends"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(backends, requests);
        assert!(run["connect_us"]["p50"].is_u64() && run["connect_us"]["p99"].is_u64());
    }
    for part in ["changes", "swaps"] {
        assert!(report[part]["count"].as_u64().unwrap() >= 10);
        assert!(report[part]["requests"].as_u64().unwrap() >= requests);
        assert_eq!(report[part]["failures"], 0);
    }
    assert!(report["swaps"]["connections_kept"].as_u64().unwrap() > 0);
    assert_eq!(report["swaps"]["connections_cut"], 0);
}

#[test]
fn the_simulation_writes_the_report_that_scripts_rely_on() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let output = demo(&["--datapath", "memory", "--requests", "500", "--json", json.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("SIMULATED"));
    check_report(&json, &["memory"], 500);
}

/// Only root can become somebody else, and others need not.
#[cfg(target_os = "linux")]
#[test]
fn without_root_it_says_so_and_simulates() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let json = directory.path().join("report.json");
    // The binary may stand where only root can read.
    let binary = directory.path().join("demo");
    fs::copy(env!("CARGO_BIN_EXE_demo"), &binary).unwrap();
    let manifests = directory.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/manifests")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), manifests.join(file.file_name())).unwrap();
    }
    let mut command = Command::new(&binary);
    command.args(["--requests", "500", "--manifests", manifests.to_str().unwrap()]);
    command.args(["--json", json.to_str().unwrap()]);
    if fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0) {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("root is needed"), "{}", text(&output.stderr));
    check_report(&json, &["memory"], 500);
}

#[test]
fn a_malformed_manifest_is_named_and_nothing_runs() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.yaml");
    let manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\n\
                    spec:\n  clusterIP: 10.96.0.10\n  ports: [{port: 0}]\n";
    fs::write(&file, manifest).unwrap();
    let output = demo(&["--datapath", "memory", "--manifests", file.to_str().unwrap()]);
    assert!(!output.status.success());
    let error = text(&output.stderr);
    for part in ["bad.yaml", "document 1", "Service demo/web", "spec.ports[0].port", "1 to 65535"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn memory_and_a_real_datapath_do_not_mix() {
    let output = demo(&["--datapath", "memory,ebpf"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("--datapath"));
}
