use std::fs;

use super::*;

fn kind(code: i32, stderr: &str) -> ErrorKind {
    classify(Path::new("iptables-restore"), ExitStatus::from_raw(code << 8), stderr, "*nat\nbad\n").kind
}

#[test]
fn failures_are_told_apart() {
    let lock = "Another app is currently holding the xtables lock; still 0s 0us time ahead to have a chance";
    assert_eq!(kind(4, lock), ErrorKind::Unavailable);
    let root =
        "iptables-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied";
    assert_eq!(kind(4, root), ErrorKind::Permission);
    assert_eq!(
        kind(4, "Fatal: can't open lock file /run/xtables.lock: Permission denied"),
        ErrorKind::Permission
    );
    let no_directory = "Fatal: can't open lock file /run/xtables.lock: No such file or directory";
    assert_eq!(kind(4, no_directory), ErrorKind::Unavailable);
    let table = "can't initialize ip6tables table `nat': Table does not exist (do you need to insmod?)";
    assert_eq!(kind(3, table), ErrorKind::Unsupported);
    let gone = "iptables-restore: line 4 failed: No chain/target/match by that name.";
    assert_eq!(kind(1, gone), ErrorKind::Conflict);
    assert_eq!(kind(2, "iptables-restore: line 2 failed"), ErrorKind::Internal);
    let killed = classify(Path::new("x"), ExitStatus::from_raw(9), "", "");
    assert_eq!(killed.kind, ErrorKind::Unavailable);
}

fn sh(script: &str, limit: Duration) -> Result<String, ExecError> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    run(command, Path::new("sh"), "input\n", limit)
}

/// Gone, or dead and not waited for by whom it was left to.
fn has_ended(id: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", id.trim())).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

#[test]
fn a_program_that_hangs_is_killed_with_all_that_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("id");
    let id = file.display();
    for script in [
        format!("echo $$ >{id}; exec sleep 600"),
        format!("sleep 600 & echo $! >{id}; wait"),
        // The program itself ends: what it started holds its output, or its errors only.
        format!("sleep 600 & echo $! >{id}"),
        format!("sleep 600 >/dev/null & echo $! >{id}"),
        // It lives on without an output.
        format!("exec >/dev/null 2>&1; echo $$ >{id}; sleep 600; true"),
    ] {
        let begun = Instant::now();
        let error = sh(&script, Duration::from_millis(500)).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(10), "{script}");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("time_limit"), "{}", error.message);
        let id = fs::read_to_string(&file).unwrap();
        while !has_ended(&id) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{script}");
            thread::sleep(Duration::from_millis(10));
        }
    }
    // What left the group is not ours to end, and is not waited for.
    let begun = Instant::now();
    sh("setsid sleep 15", Duration::from_millis(500)).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_program_that_ends_in_time_is_heard_and_fed() {
    let limit = Duration::from_secs(60);
    assert_eq!(sh("cat; echo no >&2", limit).unwrap(), "input\n");
    let error = sh("echo Permission denied >&2; exit 4", Duration::MAX).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Permission);
    let much = "x\n".repeat(1 << 20);
    let cat = Path::new("/bin/cat");
    assert!(run(Command::new(cat), cat, &much, limit).unwrap() == much);
    run(Command::new("/bin/true"), cat, &much, limit).unwrap();
}

#[test]
fn asking_for_the_version_has_a_limit_too() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("iptables-restore");
    fs::write(&program, "#!/bin/sh\nsleep 600\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = Settings {
        directory: Some(directory.path().to_owned()),
        lock_wait: Duration::ZERO,
        lock_file: None,
        time_limit: Duration::from_millis(500),
    };
    let begun = Instant::now();
    assert_eq!(settings.default_backend(), None);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_failing_line_is_quoted() {
    let status = ExitStatus::from_raw(2 << 8);
    let error = classify(Path::new("r"), status, "Error occurred at line: 2\nTry `-h'", "*nat\nbad rule\n");
    assert!(error.message.ends_with("the line is: bad rule"), "{}", error.message);
}
