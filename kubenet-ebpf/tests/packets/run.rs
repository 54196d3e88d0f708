//! Runs the programs of TC on single frames.

use std::time::Duration;

use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions, TestRunResult};

use crate::{
    bench::{Bench, without_signals},
    frame::Frame,
};

/// Where a frame comes in or goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    FromPod,
    FromExternal,
    ToDevice,
}

const POD_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const EXTERNAL_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

/// What a program did.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: i32,
    pub bytes: Vec<u8>,
}

impl Bench {
    /// Sends a frame to the hook's device, whose MAC address it is given.
    pub fn send(&mut self, hook: Hook, frame: &mut Frame) -> Outcome {
        frame.mac_to = self.mac(hook);
        self.send_bytes(hook, &frame.bytes(), 0)
    }

    pub fn interface(&self, hook: Hook) -> u32 {
        if hook == Hook::FromPod { self.pod0 } else { self.ext0 }
    }

    pub fn mac(&self, hook: Hook) -> [u8; 6] {
        if hook == Hook::FromPod { POD_MAC } else { EXTERNAL_MAC }
    }

    /// Sends bytes; with a `gso_size`, as one packet that is to be cut into such segments.
    pub fn send_bytes(&mut self, hook: Hook, bytes: &[u8], gso_size: u32) -> Outcome {
        self.run(hook, bytes, gso_size, 1).0
    }

    /// The same into a buffer, for many packets. Returns the action, and the length of what comes out.
    pub fn run_into(&mut self, hook: Hook, bytes: &[u8], gso_size: u32, out: &mut [u8]) -> (i32, usize) {
        let result = self.test_run(hook, bytes, gso_size, 1, out);
        (result.return_value as i32, result.data_size_out as usize)
    }

    fn run(&mut self, hook: Hook, bytes: &[u8], gso_size: u32, rounds: u32) -> (Outcome, Duration) {
        let mut out = vec![0; bytes.len() + 256];
        let result = self.test_run(hook, bytes, gso_size, rounds, &mut out);
        out.truncate(result.data_size_out as usize);
        (Outcome { action: result.return_value as i32, bytes: out }, result.duration)
    }

    /// The same from several threads at once.
    pub fn run_beside(&self, hook: Hook, bytes: &[u8]) -> i32 {
        let mut out = vec![0; bytes.len() + 256];
        self.test_run(hook, bytes, 0, 1, &mut out).return_value as i32
    }

    fn test_run(
        &self,
        hook: Hook,
        bytes: &[u8],
        gso_size: u32,
        rounds: u32,
        out: &mut [u8],
    ) -> TestRunResult {
        let (name, device) = match hook {
            Hook::FromPod => ("kubenet_from_pod", self.pod0),
            Hook::FromExternal => ("kubenet_from_external", self.ext0),
            Hook::ToDevice => ("kubenet_to_device", self.ext0),
        };
        // Fields of struct __sk_buff.
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&device.to_ne_bytes());
        if gso_size != 0 {
            context[164..168].copy_from_slice(&2u32.to_ne_bytes());
            context[176..180].copy_from_slice(&gso_size.to_ne_bytes());
        }
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(out),
            ctx_in: Some(&context),
            repeat: rounds,
            ..Default::default()
        };
        let program: &SchedClassifier =
            self.ebpf.program(name).and_then(|program| program.try_into().ok()).expect(name);
        program.test_run(options).expect("test run")
    }

    /// The least that a packet costs the program at the pod, each time run on its own output so many times.
    pub fn cost(&mut self, bytes: &[u8], rounds: u32) -> Duration {
        (0..200).map(|_| self.run(Hook::FromPod, bytes, 0, rounds).1).min().unwrap_or_default()
    }

    /// Instructions that the verifier walked through, of every program, where the kernel tells.
    pub fn verified_instructions(&mut self) -> Vec<(String, u32)> {
        let programs = self.ebpf.programs_mut();
        let info = programs.map(|(name, program)| {
            match program {
                Program::CgroupSockAddr(program) => without_signals(|| program.load()),
                Program::CgroupSock(program) => without_signals(|| program.load()),
                Program::Xdp(program) => without_signals(|| program.load()),
                _ => {}
            }
            (name.to_owned(), program.info().expect("loaded"))
        });
        info.filter_map(|(name, info)| Some((name, info.verified_instruction_count()?))).collect()
    }
}
