//! Programs that fail where told.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// A directory with stand-ins for the programs. Each does what the file `fail-<family>` in it says, once it
/// is there, or calls the real one.
pub struct Programs(TempDir);

impl Programs {
    pub fn new(variant: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for base in ["iptables", "ip6tables"] {
            for what in ["restore", "save"] {
                let name = format!("{base}-{variant}-{what}");
                let real = ["/usr/sbin", "/sbin"].map(|d| Path::new(d).join(&name));
                let real = real.into_iter().find(|path| path.exists()).unwrap();
                let fault = directory.path().join(format!("fail-{base}-{what}"));
                let script = format!(
                    "#!/bin/sh\nif [ -e {0} ]; then . {0}; fi\nexec {1} \"$@\"\n",
                    fault.display(),
                    real.display()
                );
                let path = directory.path().join(&name);
                fs::write(&path, script).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        Self(directory)
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    pub fn fail(&self, program: &str, script: &str) {
        fs::write(self.0.path().join(format!("fail-{program}")), script).unwrap();
    }

    pub fn heal(&self) {
        for entry in fs::read_dir(self.0.path()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("fail-") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    /// From its `n`th call on, of `calls` calls, a program is killed after it has read some of its input.
    pub fn kill(&self, program: &str, n: usize, calls: usize) {
        self.count(
            program,
            &format!(
                "[ $n -ge {n} ] && [ $n -lt {} ] && {{ head -c 3000 >/dev/null; kill -9 $$; }}",
                n + calls
            ),
        );
    }

    /// Lets the programs that write rules behave as where a match is missing.
    pub fn lack(&self, name: &str) {
        for program in ["iptables-restore", "ip6tables-restore"] {
            let input = self.0.path().join(format!("fail-input-{program}"));
            let (file, real) = (input.display(), "real=$(grep -o '^exec [^ ]*' \"$0\" | cut -d' ' -f2)");
            self.fail(
                program,
                &format!(
                    "cat >{file}; if grep -q -- '-m {name} ' {file}; then n=$(grep -n -m1 -- '-m {name} ' {file} | cut \
                     -d: -f1); echo \"Couldn't load match \\`{name}':No such file or directory\" >&2; echo \"Error occurred \
                     at line: $n\" >&2; exit 2; fi; {real}; exec $real \"$@\" <{file}"
                ),
            );
        }
    }

    /// Counts the calls of a program in `$n`, from 0, and then does what the script says.
    pub fn count(&self, program: &str, script: &str) {
        let file = self.0.path().join(format!("fail-count-{program}"));
        fs::write(&file, "0").unwrap();
        let file = file.display();
        self.fail(program, &format!("n=$(cat {file}); echo $((n + 1)) >{file}; {script}"));
    }

    /// How often a program was called since it is counted.
    pub fn calls(&self, program: &str) -> usize {
        let text = fs::read_to_string(self.0.path().join(format!("fail-count-{program}"))).unwrap();
        text.trim().parse().unwrap()
    }
}
