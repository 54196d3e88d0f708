//! The programs of the object: loading them, and their ids.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf,
    programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, Xdp, tc::TcError},
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

/// The program for what the driver hands over.
pub(super) const XDP_PROGRAM: &str = "kubenet_xdp";

/// Which programs are used beside those of TC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) sockets: bool,
    pub(crate) xdp: bool,
}

/// The verifier gives up with `EAGAIN` when the thread is notified of something.
const VERIFIER_RETRIES: u32 = 10;

/// Programs that are in the kernel.
pub(crate) struct Programs {
    ebpf: Ebpf,
    ids: BTreeMap<String, u32>,
    /// Why the kernel does not take the XDP program.
    no_xdp: Option<String>,
}

impl Programs {
    /// Loads the programs into the kernel, those for sockets and for XDP only where they are used.
    pub(crate) fn load(mut ebpf: Ebpf, wanted: Wanted) -> Result<Self, DatapathError> {
        // A pending signal, even an ignored one for the end of a child, stops the verifier: others may take it.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let result = load_programs(&mut ebpf, wanted);
        if let Ok(before) = before
            && let Err(e) = before.thread_set_mask()
        {
            tracing::warn!("signals stay blocked on the datapath's thread: {e}");
        }
        let (ids, no_xdp) = result?;
        Ok(Self { ids, no_xdp, ebpf })
    }

    /// The object, whose maps may be taken now: the programs have theirs.
    pub(crate) fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Why there is no XDP program.
    pub(super) fn why_no_xdp(&self) -> Option<&str> {
        self.no_xdp.as_deref()
    }

    /// The id of a loaded program; 0 where it is none.
    pub(super) fn id(&self, name: &str) -> u32 {
        self.ids.get(name).copied().unwrap_or_default()
    }

    pub(super) fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, ProgramError> {
        self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
    }

    /// The file descriptor of a program for packets.
    pub(super) fn packet_fd(&self, name: &str) -> Result<BorrowedFd<'_>, ProgramError> {
        if name == XDP_PROGRAM {
            let program: &Xdp = self.ebpf.program(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
            return Ok(program.fd()?.as_fd());
        }
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

fn load_programs(
    ebpf: &mut Ebpf,
    wanted: Wanted,
) -> Result<(BTreeMap<String, u32>, Option<String>), DatapathError> {
    let mut ids = BTreeMap::new();
    let mut no_xdp = (!wanted.xdp).then(|| "this kernel cannot run it: see kubenet_ebpf::probe".to_owned());
    for (name, program) in ebpf.programs_mut() {
        let mut load = || match program {
            Program::SchedClassifier(program) => program.load().and_then(|()| Ok(program.info()?.id())),
            Program::Xdp(program) if wanted.xdp => program.load().and_then(|()| Ok(program.info()?.id())),
            Program::CgroupSockAddr(program) if wanted.sockets => {
                program.load().and_then(|()| Ok(program.info()?.id()))
            }
            Program::CgroupSock(program) if wanted.sockets => {
                program.load().and_then(|()| Ok(program.info()?.id()))
            }
            Program::CgroupSockAddr(_) | Program::CgroupSock(_) | Program::Xdp(_) => Ok(0),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        let mut result = load();
        for _ in 0..VERIFIER_RETRIES {
            if !matches!(&result, Err(e) if errno(e) == Some(Errno::EAGAIN)) {
                break;
            }
            result = load();
        }
        if name == XDP_PROGRAM
            && let Err(e) = &result
        {
            no_xdp = Some(format!("this kernel does not take it: {e}"));
            continue;
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
    Ok((ids, no_xdp))
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
