//! The programs of the object: loading them, and their ids.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf,
    programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, tc::TcError},
};
use kubenet_core::datapath::{DatapathError, ErrorKind};
use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow},
};

use crate::error::caused;

/// Programs of the socket hooks, and what they hang at (`enum bpf_attach_type`).
pub(super) const SOCKET_PROGRAMS: [(&str, u32); 9] = [
    ("kubenet_connect4", 10),
    ("kubenet_connect6", 11),
    ("kubenet_sendmsg4", 14),
    ("kubenet_sendmsg6", 15),
    ("kubenet_recvmsg4", 19),
    ("kubenet_recvmsg6", 20),
    ("kubenet_getpeername4", 29),
    ("kubenet_getpeername6", 30),
    ("kubenet_sock_release", 34),
];

/// The verifier gives up with `EAGAIN` when the thread is notified of something.
const VERIFIER_RETRIES: u32 = 10;

/// Programs that are in the kernel.
pub(crate) struct Programs {
    ebpf: Ebpf,
    ids: BTreeMap<String, u32>,
}

impl Programs {
    /// Loads the programs into the kernel, those for sockets only where they are used.
    pub(crate) fn load(mut ebpf: Ebpf, sockets: bool) -> Result<Self, DatapathError> {
        // A pending signal, even an ignored one for the end of a child, stops the verifier: others may take it.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let result = load_programs(&mut ebpf, sockets);
        if let Ok(before) = before
            && let Err(e) = before.thread_set_mask()
        {
            tracing::warn!("signals stay blocked on the datapath's thread: {e}");
        }
        Ok(Self { ids: result?, ebpf })
    }

    /// The object, whose maps may be taken now: the programs have theirs.
    pub(crate) fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// The id of a loaded program; 0 where it is none.
    pub(super) fn id(&self, name: &str) -> u32 {
        self.ids.get(name).copied().unwrap_or_default()
    }

    pub(super) fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, ProgramError> {
        self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
    }

    /// The file descriptor of a program for packets.
    pub(super) fn classifier_fd(&self, name: &str) -> Result<BorrowedFd<'_>, ProgramError> {
        let program: &SchedClassifier = self.ebpf.program(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        Ok(program.fd()?.as_fd())
    }

    /// The file descriptor of a program for sockets.
    pub(super) fn socket_fd(&self, name: &str) -> Result<BorrowedFd<'_>, ProgramError> {
        match self.ebpf.program(name).ok_or(ProgramError::NotLoaded)? {
            Program::CgroupSock(program) => Ok(program.fd()?.as_fd()),
            program => Ok(<&CgroupSockAddr>::try_from(program)?.fd()?.as_fd()),
        }
    }
}

fn load_programs(ebpf: &mut Ebpf, sockets: bool) -> Result<BTreeMap<String, u32>, DatapathError> {
    let mut ids = BTreeMap::new();
    for (name, program) in ebpf.programs_mut() {
        let mut load = || match program {
            Program::SchedClassifier(program) => program.load().and_then(|()| Ok(program.info()?.id())),
            Program::CgroupSockAddr(program) if sockets => {
                program.load().and_then(|()| Ok(program.info()?.id()))
            }
            Program::CgroupSock(program) if sockets => program.load().and_then(|()| Ok(program.info()?.id())),
            Program::CgroupSockAddr(_) | Program::CgroupSock(_) => Ok(0),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        let mut result = load();
        for _ in 0..VERIFIER_RETRIES {
            if !matches!(&result, Err(e) if errno(e) == Some(Errno::EAGAIN)) {
                break;
            }
            result = load();
        }
        let id = result.map_err(|e| {
            let kind = match errno(&e) {
                Some(Errno::EPERM | Errno::EACCES) if verifier_is_silent(&e) => ErrorKind::Permission,
                _ => ErrorKind::Unsupported,
            };
            caused("build", kind, format!("the kernel does not take the program {name}"), e)
        })?;
        ids.insert(name.to_owned(), id);
    }
    Ok(ids)
}

/// The verifier refuses programs with `EACCES`, too, but says why.
fn verifier_is_silent(error: &ProgramError) -> bool {
    match error {
        ProgramError::LoadError { verifier_log, .. } => verifier_log.to_string().is_empty(),
        _ => true,
    }
}

pub(super) fn errno(error: &ProgramError) -> Option<Errno> {
    let code = match error {
        ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        ProgramError::IOError(e) | ProgramError::TcError(TcError::IoError(e)) => e.raw_os_error(),
        _ => None,
    };
    code.map(Errno::from_raw)
}
