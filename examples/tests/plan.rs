//! `plan` as scripts use it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

fn plan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plan"))
        .args([
            "--node-name",
            "node-a",
            "--node-ip",
            "10.89.0.1,fd00:89::1",
            "--cluster-cidr",
            "10.244.0.0/16",
        ])
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");

#[test]
fn the_whole_is_printed_by_family() {
    let output = plan(&["--manifests", MANIFESTS]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let text = text(&output.stdout);
    let (v4, v6) = text.split_once("# IPv6: ip6tables-restore --noflush\n").unwrap();
    assert!(v4.starts_with("# IPv4: iptables-restore --noflush\n*filter\n"));
    assert!(v4.contains("-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 "));
    assert!(
        v4.contains("-I PREROUTING 1 -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n")
    );
    assert!(v6.contains("-A KUBE-SERVICES -d fd00:96::10/128 -p tcp -m tcp --dport 80 "));
}

#[test]
fn with_what_was_before_only_the_change_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    for file in fs::read_dir(MANIFESTS).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap();
        let text = fs::read_to_string(&file).unwrap().replace("10.244.1.10", "10.244.1.77");
        fs::write(directory.path().join(name), text).unwrap();
    }
    let changed = directory.path().to_str().unwrap();
    let output = plan(&["--manifests", changed, "--previous", MANIFESTS, "--family", "ipv4"]);
    let change = text(&output.stdout);
    assert!(
        change.contains("10.244.1.77:8080") && !change.contains("--to-destination 10.244.1.10:"),
        "{change}"
    );
    assert!(!change.contains("-A KUBE-SERVICES") && !change.contains("PREROUTING"), "{change}");
    let nothing = plan(&["--manifests", MANIFESTS, "--previous", MANIFESTS]);
    assert!(nothing.status.success() && nothing.stdout.is_empty(), "{}", text(&nothing.stdout));
}

#[test]
fn session_affinity_is_a_look_at_the_lists_of_clients() {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let manifest = fs::read_to_string(Path::new(MANIFESTS).join("1-web.yaml")).unwrap();
    let sticky = manifest.replacen("\nspec:\n", "\nspec:\n  sessionAffinity: ClientIP\n", 1);
    assert_ne!(sticky, manifest);
    fs::write(file.path(), sticky).unwrap();
    let output = plan(&["--manifests", file.path().to_str().unwrap(), "--family", "ipv4"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let all = text(&output.stdout);
    let of_backend = "--mask 255.255.255.255 --rsource -j DNAT --to-destination 10.244.1.10:8080";
    let rules: Vec<_> = all.lines().filter(|line| line.ends_with(of_backend)).collect();
    assert_eq!(rules.len(), 2, "{all}");
    assert!(rules[0].contains(" -m recent --update --seconds 10800 --name KUBE-SEP-"), "{all}");
    assert!(rules[1].contains(" -m recent --set --name KUBE-SEP-"), "{all}");
}

#[test]
fn loopback_node_ports_come_with_their_guard_and_a_note() {
    let output = plan(&["--manifests", MANIFESTS, "--localhost-node-ports"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("net.ipv4.conf.all.route_localnet=1"), "{}", text(&output.stderr));
    let all = text(&output.stdout);
    let (v4, v6) = all.split_once("# IPv6").unwrap();
    assert!(v4.contains("-I INPUT 1 -d 127.0.0.0/8 ") && v4.contains("-A KUBE-LOCALNET -m comment"), "{v4}");
    assert!(!v6.contains("KUBE-LOCALNET"), "{v6}");
}

#[test]
fn iptables_takes_it() {
    let program = ["/usr/sbin/iptables-restore", "/sbin/iptables-restore"];
    let Some(program) = program.into_iter().find(|program| Path::new(program).exists()) else {
        return kubenet_testkit::conformance::skip("iptables is not installed");
    };
    let output = plan(&["--manifests", MANIFESTS, "--family", "ipv4"]);
    // In a network namespace of its own: nothing of this machine's is looked at or changed.
    let mut child = Command::new("unshare")
        .args(["--net", program, "--noflush", "--test"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&output.stdout).unwrap();
    let tested = child.wait_with_output().unwrap();
    let said = text(&tested.stderr);
    if said.contains("Operation not permitted") {
        return kubenet_testkit::conformance::skip("root is needed to make a network namespace");
    }
    assert!(tested.status.success(), "{said}");
}

#[test]
fn calls_that_cannot_be_are_refused() {
    for (arguments, part) in [
        (&["--manifests", MANIFESTS, "--chain-prefix", "kube"][..], "chain_prefix \"kube\""),
        (&["--manifests", "/nowhere"], "/nowhere: cannot be read"),
    ] {
        let output = plan(arguments);
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(text(&output.stderr).contains(part), "{part}: {}", text(&output.stderr));
    }
}
