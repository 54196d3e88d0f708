//! Runs iproute2.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::LabError;

/// Runs `ip -batch -` with these lines, inside a named namespace or, to create namespaces, here.
pub(super) fn batch(netns: Option<&str>, lines: &str) -> Result<(), LabError> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            LabError::Unsupported("the program `ip` is missing: install iproute2".into())
        }
        _ => LabError::Io { what: "start ip".into(), source: e },
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A failed write shows in the exit status, with a better message.
        let _ = stdin.write_all(lines.as_bytes());
    }
    let output = child.wait_with_output().map_err(LabError::io("wait for ip"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    // `Command failed -:3` names the line that broke.
    let line = message
        .rsplit("Command failed -:")
        .next()
        .and_then(|n| n.parse::<usize>().ok())
        .and_then(|n| lines.lines().nth(n.saturating_sub(1)))
        .unwrap_or("-batch");
    let place = netns.map(|n| format!("-n {n} ")).unwrap_or_default();
    if message.contains("Operation not permitted") || message.contains("Permission denied") {
        return Err(LabError::Unsupported(format!("root is needed (ip {place}{line}: {message})")));
    }
    if message.contains("Operation not supported") || message.contains("Unknown device type") {
        let lacking = format!("the kernel lacks veth, bridges or IPv6 (ip {place}{line}: {message})");
        return Err(LabError::Unsupported(lacking));
    }
    Err(LabError::Command { command: format!("ip {place}{line}"), message })
}
