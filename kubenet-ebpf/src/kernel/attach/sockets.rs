//! Programs in the cgroup.

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use kubenet_core::datapath::{DatapathError, ErrorKind};
use nix::errno::Errno;

use super::{
    super::link::{BpfLink, Place},
    Attachments,
    programs::{Programs, SOCKET_PROGRAMS, errno},
};
use crate::error::caused;

/// The name of a link's pin.
pub(super) fn pin_name(program: &str) -> String {
    format!("cgroup_{}", program.trim_start_matches("kubenet_"))
}

/// The program that hangs by the pin of that name.
pub(super) fn parse_pin_name(name: &str) -> Option<&'static str> {
    SOCKET_PROGRAMS.into_iter().map(|(program, _)| program).find(|program| pin_name(program) == name)
}

impl Attachments {
    pub(super) fn hangs_in_cgroup(&self, program: &str, number: u64) -> bool {
        self.sockets.get(program).is_some_and(|link| link.hangs_at(Place::Cgroup(number)))
    }

    /// Attaches the socket programs that do not hang in the cgroup, and puts ours in the place of those of
    /// another process.
    pub(super) fn attach_sockets(
        &mut self,
        programs: &Programs,
        operation: &'static str,
    ) -> Result<(), DatapathError> {
        let Some(path) = self.cgroup.clone() else { return Ok(()) };
        let failed = |kind, what: String, source: Box<dyn std::error::Error + Send + Sync>| {
            caused(operation, kind, format!("cgroup {}: {what}", path.display()), source)
        };
        let opened = File::open(&path).and_then(|cgroup| Ok((cgroup.metadata()?.ino(), cgroup)));
        let (number, cgroup) =
            opened.map_err(|e| failed(ErrorKind::Unavailable, "cannot be opened".into(), e.into()))?;
        let mut detached = Vec::new();
        for (name, attach_type) in SOCKET_PROGRAMS {
            let cannot = |e: aya::programs::ProgramError| {
                let kind = match errno(&e) {
                    Some(Errno::EPERM) => ErrorKind::Permission,
                    Some(Errno::ENODEV | Errno::ENOENT) => ErrorKind::Unavailable,
                    _ => ErrorKind::Internal,
                };
                failed(kind, format!("cannot attach the program {name}"), e.into())
            };
            if self.hangs_in_cgroup(name, number) {
                if let Some(link) = self.sockets.get_mut(name)
                    && link.program() != programs.id(name)
                {
                    let updated = programs.socket_fd(name).and_then(|program| Ok(link.update(program)?));
                    updated.map_err(cannot)?;
                }
                continue;
            }
            let link = programs.socket_fd(name).and_then(|program| {
                let mut link = BpfLink::cgroup(program, cgroup.as_fd(), attach_type)?;
                self.pin(&mut link, &pin_name(name))?;
                Ok(link)
            });
            if self.sockets.insert(name, link.map_err(cannot)?).is_some() {
                detached.push(name);
            }
        }
        if !detached.is_empty() {
            let what = detached.join(", ");
            self.drift(format!("cgroup {}: somebody detached {what}: put right", path.display()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_pin_says_which_program_it_is() {
        for (program, _) in SOCKET_PROGRAMS {
            assert_eq!(parse_pin_name(&pin_name(program)), Some(program));
        }
        assert_eq!(parse_pin_name("cgroup_bind4"), None);
    }
}
