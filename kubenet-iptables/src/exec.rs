//! Finds the iptables programs, runs them, and says what their failures mean.

use std::{
    env, fmt,
    io::{self, Read, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kubenet_core::{datapath::ErrorKind, model::IpFamily};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::config::Settings;

/// One of the two variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    pub(crate) const fn other(self) -> Self {
        match self {
            Backend::Legacy => Backend::Nft,
            Backend::Nft => Backend::Legacy,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Backend::Legacy => "legacy",
            Backend::Nft => "nft",
        }
    }

    /// As the programs print it after their version.
    const fn in_version(self) -> &'static str {
        match self {
            Backend::Legacy => "(legacy)",
            Backend::Nft => "(nf_tables)",
        }
    }

    pub(crate) const fn datapath_name(self) -> &'static str {
        match self {
            Backend::Legacy => "iptables-legacy",
            Backend::Nft => "iptables-nft",
        }
    }
}

/// A program that could not be run, or that failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ExecError {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    #[source]
    pub(crate) source: Option<io::Error>,
}

impl ExecError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Whether running the same again, with other input, may help: the program ran and refused.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.kind, ErrorKind::Conflict | ErrorKind::Unsupported | ErrorKind::Internal)
            && self.source.is_none()
    }
}

impl Settings {
    fn limit(&self) -> Duration {
        self.time_limit.saturating_add(self.lock_wait)
    }

    fn directories(&self) -> Vec<PathBuf> {
        if let Some(directory) = &self.directory {
            return vec![directory.clone()];
        }
        let mut directories: Vec<_> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
        // Where they are, whatever an embedder's PATH is.
        directories.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
        directories
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        let is_program = |path: &PathBuf| {
            path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        self.directories().into_iter().map(|directory| directory.join(name)).find(is_program)
    }

    /// The variant of the program that is called without naming one.
    pub(crate) fn default_backend(&self) -> Option<Backend> {
        let program = self.find("iptables-restore")?;
        let mut command = Command::new(&program);
        command.arg("--version");
        let version = run(command, &program, "", self.limit())
            .inspect_err(|error| tracing::warn!(%error, "the variant of a program is not known"))
            .ok()?;
        [Backend::Nft, Backend::Legacy].into_iter().find(|b| version.contains(b.in_version()))
    }

    /// The programs of one family.
    pub(crate) fn tools(&self, backend: Backend, family: IpFamily) -> Result<Tools, ExecError> {
        let base = match family {
            IpFamily::V4 => "iptables",
            IpFamily::V6 => "ip6tables",
        };
        let word = backend.word();
        let pair = |restore: &str, save: &str| Some((self.find(restore)?, self.find(save)?));
        let named = pair(&format!("{base}-{word}-restore"), &format!("{base}-{word}-save"));
        let plain = || {
            let found = pair(&format!("{base}-restore"), &format!("{base}-save"))?;
            (self.default_backend() == Some(backend)).then_some(found)
        };
        let Some((restore, save)) = named.or_else(plain) else {
            return Err(ExecError::new(
                ErrorKind::Unsupported,
                format!(
                    "{base}-{word}-restore and {base}-{word}-save are not in {}: install iptables, or name their \
                     directory with IptablesDatapath::builder().program_directory(..)",
                    self.place()
                ),
            ));
        };
        Ok(Tools { family, variant: backend, restore, save, settings: self.clone() })
    }

    pub(crate) fn place(&self) -> String {
        match &self.directory {
            Some(directory) => directory.display().to_string(),
            None => "PATH".to_owned(),
        }
    }
}

/// The programs of one variant and family.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) family: IpFamily,
    pub(crate) variant: Backend,
    restore: PathBuf,
    save: PathBuf,
    settings: Settings,
}

impl Tools {
    /// Hands a transaction to the kernel.
    pub(crate) fn restore(&self, input: &str) -> Result<(), ExecError> {
        let mut command = self.command(&self.restore);
        command.arg("--noflush");
        let seconds =
            self.settings.lock_wait.as_secs() + u64::from(self.settings.lock_wait.subsec_nanos() > 0);
        if seconds > 0 {
            command.arg(format!("--wait={seconds}"));
        }
        run(command, &self.restore, input, self.settings.limit()).map(drop)
    }

    /// What the kernel holds, as text.
    pub(crate) fn save(&self) -> Result<String, ExecError> {
        let mut text = String::new();
        for table in crate::rule::Table::ALL {
            let mut command = self.command(&self.save);
            command.args(["-t", table.as_str()]);
            text.push_str(&run(command, &self.save, "", self.settings.limit())?);
        }
        if text.lines().any(|l| l.starts_with("# Table") && l.contains("is incompatible")) {
            let message = format!(
                "{} cannot show a table: some rule there was made by nft; its tables `filter` and `nat` must \
                 hold rules of iptables only",
                self.save.display()
            );
            return Err(ExecError::new(ErrorKind::Conflict, message));
        }
        Ok(text)
    }

    /// Whether a table exists, as far as that can be told without making it.
    pub(crate) fn has_table(&self, table: &str) -> bool {
        self.variant == Backend::Nft || crate::probe::legacy_table_exists(self.family, table)
    }

    /// One table, where it exists.
    pub(crate) fn save_table(&self, table: &str) -> Result<String, ExecError> {
        let mut command = self.command(&self.save);
        command.args(["-t", table]);
        run(command, &self.save, "", self.settings.limit())
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(lock_file) = &self.settings.lock_file {
            command.env("XTABLES_LOCKFILE", lock_file);
        }
        command
    }
}

/// Runs a program; what it prints.
fn run(mut command: Command, program: &Path, input: &str, limit: Duration) -> Result<String, ExecError> {
    let failed = |what: &str, error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::Unsupported,
            io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            _ => ErrorKind::Unavailable,
        };
        ExecError { kind, message: format!("{} could not be {what}", program.display()), source: Some(error) }
    };
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Not in the terminal's group: a Ctrl-C for the embedder does not end a transaction. And with a group
        // of its own it can be ended with all that it started.
        .process_group(0)
        .spawn()
        .map_err(|e| failed("started", e))?;
    let mut group = Group { child, ended: false };
    let ended = group.finish(input, limit).map_err(|e| failed("waited for", e))?;
    let Some((status, stdout, stderr)) = ended else {
        let message = format!(
            "{} did not end within {limit:?} and was killed; see IptablesDatapath::builder().time_limit(..)",
            program.display()
        );
        return Err(ExecError::new(ErrorKind::Unavailable, message));
    };
    if status.success() {
        return Ok(stdout);
    }
    Err(classify(program, status, &stderr, input))
}

/// A program and what it started. Dropping it kills them all, unless the program has ended in time.
struct Group {
    child: Child,
    ended: bool,
}

impl Group {
    /// Feeds the program and waits until it has ended and nobody holds its output any more; `None` when that
    /// takes too long.
    fn finish(&mut self, input: &str, limit: Duration) -> io::Result<Option<(ExitStatus, String, String)>> {
        let begun = Instant::now();
        let rest = || limit.saturating_sub(begun.elapsed());
        let child = &mut self.child;
        // Threads of their own, as the child may write before it has read everything. Nobody waits for them:
        // what left the group may hold a pipe for good. It may also end early; its exit status then says why.
        let (stdin, input) = (child.stdin.take(), input.to_owned());
        let feed = move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes()));
        thread::Builder::new().name("kubenet-exec".into()).spawn(feed)?;
        let (stdout, stderr) = (read_all(child.stdout.take())?, read_all(child.stderr.take())?);
        let (Some(stdout), Some(stderr)) = (receive(&stdout, rest()), receive(&stderr, rest())) else {
            return Ok(None);
        };
        let mut pause = Duration::from_micros(100);
        loop {
            if let Some(status) = child.try_wait()? {
                self.ended = true;
                return Ok(Some((status, stdout, stderr)));
            }
            if rest().is_zero() {
                return Ok(None);
            }
            // Its output ends when the program does, so this is short.
            thread::sleep(pause.min(rest()));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Not waited for yet, so the number is not another group's.
        if !self.ended
            && let Ok(id) = i32::try_from(self.child.id())
        {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

fn read_all(pipe: Option<impl Read + Send + 'static>) -> io::Result<mpsc::Receiver<String>> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new().name("kubenet-exec".into()).spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        let _ = tell.send(String::from_utf8_lossy(&bytes).into_owned());
    })?;
    Ok(told)
}

fn receive(text: &mpsc::Receiver<String>, limit: Duration) -> Option<String> {
    match text.recv_timeout(limit) {
        Ok(text) => Some(text),
        Err(mpsc::RecvTimeoutError::Timeout) => None,
        Err(mpsc::RecvTimeoutError::Disconnected) => Some(String::new()),
    }
}

/// What a failure means.
fn classify(program: &Path, status: ExitStatus, stderr: &str, input: &str) -> ExecError {
    let has = |parts: &[&str]| parts.iter().any(|part| stderr.contains(part));
    let (kind, hint) = if let Some(signal) = status.signal() {
        (ErrorKind::Unavailable, format!(" (killed by signal {signal})"))
    } else if has(&["Permission denied", "must be root", "Operation not permitted"]) {
        (ErrorKind::Permission, ": run as root or with CAP_NET_ADMIN".to_owned())
    } else if has(&["lock file"]) {
        let hint = ": the file of the lock that programs of iptables share cannot be opened: make its directory, or \
                    name another file with IptablesDatapath::builder().lock_file(..)";
        (ErrorKind::Unavailable, hint.to_owned())
    } else if has(&["xtables lock"]) {
        let hint =
            ": another program holds the lock of iptables; see IptablesDatapath::builder().lock_wait(..)";
        (ErrorKind::Unavailable, hint.to_owned())
    } else if has(&[
        "do you need to insmod",
        "can't initialize",
        "Couldn't load match",
        "Couldn't load target",
    ]) {
        (ErrorKind::Unsupported, ": the kernel or iptables lacks a module".to_owned())
    } else if has(&["No chain/target/match", "does not exist", "Chain already exists", "Directory not empty"])
        || has(&["No such file or directory", "Device or resource busy", "CHAIN_", "RULE_"])
    {
        (ErrorKind::Conflict, ": the rules are not what was assumed".to_owned())
    } else if status.code() == Some(4) || has(&["Resource temporarily unavailable", "Cannot allocate memory"])
    {
        (ErrorKind::Unavailable, String::new())
    } else {
        (ErrorKind::Internal, String::new())
    };
    let mut message = format!("{} failed with {}{hint}", program.display(), Code(status));
    let said: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    if !said.is_empty() {
        message.push_str("; it said: ");
        message.push_str(&said.join(" / "));
    }
    if let Some(line) = failing_line(stderr, input) {
        message.push_str("; the line is: ");
        message.extend(line.chars().take(300));
    }
    ExecError::new(kind, message)
}

struct Code(ExitStatus);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.code() {
            Some(code) => write!(f, "status {code}"),
            None => f.write_str("no status"),
        }
    }
}

/// The line of the input that the program names: `line 17 failed`, `Error occurred at line: 17`.
fn failing_line<'a>(stderr: &str, input: &'a str) -> Option<&'a str> {
    let after = stderr.split("line").nth(1)?.trim_start_matches([':', ' ']);
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    input.lines().nth(digits.parse::<usize>().ok()?.checked_sub(1)?)
}

#[cfg(test)]
mod tests;
