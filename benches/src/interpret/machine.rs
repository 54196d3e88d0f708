use super::{
    fault::{Fault, Stopped},
    helpers,
    insn::{Insn, alu, atomic, compare, to_endian},
    maps::Map,
    memory::{FRAMES, Memory},
    program::Program,
    trace::Trace,
};

/// More than any program of ours runs.
const MOST_INSTRUCTIONS: u64 = 1 << 20;
const FRAME: usize = 10;

/// What helpers answer that has nothing to do with maps.
#[derive(Clone, Debug)]
pub struct Node {
    /// Of the monotonic clock, also the coarse one.
    pub clock_ns: u64,
    /// Since the machine began.
    pub jiffies: u64,
    /// The next numbers that look random come of it; it is not 0.
    pub random: u64,
    /// The way that all packets go; `None`: none is found.
    pub way: Option<Way>,
}

/// What `bpf_fib_lookup` finds.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The device.
    pub device: u32,
    /// Its address.
    pub source: [u8; 6],
    /// That of the next hop.
    pub destination: [u8; 6],
    /// Of the device.
    pub mtu: u16,
    /// The next hop, of each family.
    pub gateway4: [u8; 4],
    /// The next hop, of each family.
    pub gateway6: [u8; 16],
}

/// Where a program hangs, which says what its context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `struct xdp_md`.
    Xdp,
    /// `struct __sk_buff`.
    Tc,
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the program returned.
    pub verdict: u32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// What it did meanwhile.
    pub trace: Trace,
}

/// The first bytes of a context: the fields that programs read and test runs set.
fn context(of: Context, frame: &[u8], device: u32) -> Vec<u8> {
    let [data, end] = Memory::packet_range(frame.len());
    let mut bytes = vec![0; if of == Context::Xdp { 24 } else { 192 }];
    let mut set = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    match of {
        Context::Xdp => {
            // `data`, `data_end`, `data_meta`, `ingress_ifindex`.
            [data, end, data, device]
                .into_iter()
                .enumerate()
                .for_each(|(place, value)| set(place * 4, value));
        }
        Context::Tc => {
            let ethertype = frame.get(12..14).map_or(0, |t| u32::from(u16::from_le_bytes([t[0], t[1]])));
            // `len`, `protocol`, `ingress_ifindex`, `ifindex`, `data`, `data_end`.
            for (at, value) in
                [(0, frame.len() as u32), (16, ethertype), (36, device), (40, device), (76, data), (80, end)]
            {
                set(at, value);
            }
        }
    }
    bytes
}

/// Runs a program on a frame that comes in by a device.
///
/// # Errors
/// The program does what is not known here, or what the verifier would not let it do.
pub fn run(
    program: &Program,
    of: Context,
    maps: &mut [Map],
    node: &mut Node,
    frame: &[u8],
    device: u32,
) -> Result<Outcome, Stopped> {
    let memory =
        Memory::new(frame.to_vec(), context(of, frame, device), maps, Trace::new(program.code.len()));
    let mut machine = Machine {
        program,
        memory,
        node,
        registers: [0; 11],
        constant: [false; 11],
        callers: Vec::new(),
        at: 0,
        steps: 0,
    };
    machine.registers[1] = Memory::context_address();
    machine.registers[FRAME] = Memory::frame_pointer(0);
    let stopped = |machine: &Machine<'_>, fault| Stopped {
        function: program.function_of(machine.at).to_owned(),
        at: machine.at,
        fault,
    };
    loop {
        match machine.step() {
            Ok(false) => {}
            Ok(true) => break,
            Err(fault) => return Err(stopped(&machine, fault)),
        }
    }
    let verdict = machine.registers[0] as u32;
    Ok(Outcome { verdict, frame: machine.memory.packet, trace: machine.memory.trace })
}

struct Caller {
    back: usize,
    saved: [u64; 4],
    constant: [bool; 4],
}

struct Machine<'a> {
    program: &'a Program,
    memory: Memory<'a>,
    node: &'a mut Node,
    registers: [u64; 11],
    /// The register's value comes from constants of the loader alone, so that the verifier knows it.
    constant: [bool; 11],
    callers: Vec<Caller>,
    at: usize,
    steps: u64,
}

impl Machine<'_> {
    /// Runs an instruction. Whether it was the last.
    fn step(&mut self) -> Result<bool, Fault> {
        let insn = *self.program.code.get(self.at).ok_or(Fault::OutOfProgram)?;
        if usize::from(insn.dst) > FRAME || usize::from(insn.src) > FRAME {
            return Err(Fault::Instruction(insn));
        }
        self.steps += 1;
        if self.steps > MOST_INSTRUCTIONS {
            return Err(Fault::Endless);
        }
        self.memory.trace.at = self.at;
        let mut next = self.at + 1;
        let mut counts = true;
        match insn.class() {
            0 => {
                self.load_wide(insn)?;
                next += 1;
            }
            1 if insn.code & 0xe0 == 0x60 => self.load(insn)?,
            2 if insn.code & 0xe0 == 0x60 => self.store(insn, i64::from(insn.imm) as u64)?,
            3 if insn.code & 0xe0 == 0x60 => self.store(insn, self.registers[usize::from(insn.src)])?,
            3 if matches!(insn.code, 0xc3 | 0xdb) => self.atomic(insn)?,
            4 | 7 => self.arithmetic(insn)?,
            5 | 6 => match (insn.operation(), insn.class()) {
                (8, 5) => match insn.src {
                    0 => self.call_helper(insn)?,
                    1 => next = self.call(insn)?,
                    _ => return Err(Fault::Instruction(insn)),
                },
                (9, 5) => match self.callers.pop() {
                    None => {
                        self.count();
                        return Ok(true);
                    }
                    Some(caller) => next = self.leave(&caller),
                },
                _ => (next, counts) = self.jump(insn)?,
            },
            _ => return Err(Fault::Instruction(insn)),
        }
        if counts {
            self.count();
        } else {
            self.memory.trace.removed += 1;
        }
        self.at = next;
        Ok(false)
    }

    fn count(&mut self) {
        self.memory.trace.ran[self.at] += 1;
    }

    fn set(&mut self, register: u8, value: u64, constant: bool) {
        self.registers[usize::from(register)] = value;
        self.constant[usize::from(register)] = constant;
    }

    /// The second operand, and whether it is as good as a constant beside another one.
    fn operand(&self, insn: Insn) -> (u64, bool) {
        if insn.is_register() {
            let source = usize::from(insn.src);
            (self.registers[source], self.constant[source])
        } else {
            (i64::from(insn.imm) as u64, true)
        }
    }

    fn arithmetic(&mut self, insn: Insn) -> Result<(), Fault> {
        let wide = insn.class() == 7;
        let unknown = Fault::Instruction(insn);
        // What later kernels know by an offset: division and moves with signs.
        if insn.off != 0 {
            return Err(unknown);
        }
        let (dst, was) = (self.registers[usize::from(insn.dst)], self.constant[usize::from(insn.dst)]);
        if insn.operation() == 0xd {
            if wide {
                return Err(unknown);
            }
            let value = to_endian(insn.is_register(), insn.imm, dst).ok_or(unknown)?;
            self.set(insn.dst, value, was);
            return Ok(());
        }
        let (src, is) = self.operand(insn);
        let value = alu(insn.operation(), wide, dst, src).ok_or(unknown)?;
        // An immediate that is moved may be another's on another path.
        let constant = if insn.operation() == 0xb { insn.is_register() && is } else { was && is };
        self.set(insn.dst, value, constant);
        Ok(())
    }

    /// A load of 64 bits from the program itself: a number, a map or the address of a global variable.
    fn load_wide(&mut self, insn: Insn) -> Result<(), Fault> {
        let more = self.program.code.get(self.at + 1).ok_or(Fault::OutOfProgram)?.imm;
        let map = (insn.imm as usize).checked_sub(1).filter(|map| *map < self.memory.maps.len());
        let value = match (insn.code, insn.src, map) {
            (0x18, 0, _) => u64::from(insn.imm as u32) | u64::from(more as u32) << 32,
            (0x18, 1, Some(map)) => Memory::handle(map),
            (0x18, 2, Some(map)) => {
                self.memory.maps[map].global(map)?;
                Memory::value_address(map, u64::from(more as u32))
            }
            _ => return Err(Fault::Instruction(insn)),
        };
        self.set(insn.dst, value, false);
        Ok(())
    }

    fn address(&self, base: u8, off: i16) -> u64 {
        self.registers[usize::from(base)].wrapping_add_signed(i64::from(off))
    }

    fn load(&mut self, insn: Insn) -> Result<(), Fault> {
        let at = self.address(insn.src, insn.off);
        let value = self.memory.load(at, insn.size())?;
        let map = self.memory.value_map(at);
        let constant = map.is_some_and(|map| self.memory.maps[map].shape.constants);
        self.set(insn.dst, value, constant);
        Ok(())
    }

    fn store(&mut self, insn: Insn, value: u64) -> Result<(), Fault> {
        self.memory.store(self.address(insn.dst, insn.off), insn.size(), value)
    }

    fn atomic(&mut self, insn: Insn) -> Result<(), Fault> {
        let (at, size) = (self.address(insn.dst, insn.off), insn.size());
        let old = self.memory.load(at, size)?;
        let src = self.registers[usize::from(insn.src)];
        let (new, fetched) =
            atomic(insn.imm, size == 8, old, src, self.registers[0]).ok_or(Fault::Instruction(insn))?;
        self.memory.store(at, size, new)?;
        self.memory.trace.atomics += 1;
        if let Some(fetched) = fetched {
            let to = if insn.imm == 0xf1 { 0 } else { insn.src };
            self.set(to, fetched, false);
        }
        Ok(())
    }

    /// Where a jump leads, and whether the verifier leaves it in the program.
    fn jump(&mut self, insn: Insn) -> Result<(usize, bool), Fault> {
        let behind = self.at + 1;
        let to = |off: i16| behind.checked_add_signed(isize::from(off)).ok_or(Fault::OutOfProgram);
        let wide = insn.class() == 5;
        if insn.operation() == 0 {
            return if wide { Ok((to(insn.off)?, true)) } else { Err(Fault::Instruction(insn)) };
        }
        let (src, is) = self.operand(insn);
        let dst = usize::from(insn.dst);
        let taken = compare(insn.operation(), wide, self.registers[dst], src);
        let next = if taken.ok_or(Fault::Instruction(insn))? { to(insn.off)? } else { behind };
        Ok((next, !(self.constant[dst] && is)))
    }

    fn call_helper(&mut self, insn: Insn) -> Result<(), Fault> {
        let [_, a, b, c, d, e, ..] = self.registers;
        *self.memory.trace.calls.entry(insn.imm).or_default() += 1;
        let answer = helpers::call(&mut self.memory, self.node, insn.imm, [a, b, c, d, e])?;
        self.set(0, answer, false);
        self.constant[1..=5].fill(false);
        Ok(())
    }

    fn call(&mut self, insn: Insn) -> Result<usize, Fault> {
        if self.callers.len() + 1 >= FRAMES {
            return Err(Fault::TooDeep);
        }
        let mut caller = Caller { back: self.at + 1, saved: [0; 4], constant: [false; 4] };
        caller.saved.copy_from_slice(&self.registers[6..10]);
        caller.constant.copy_from_slice(&self.constant[6..10]);
        self.callers.push(caller);
        self.constant.fill(false);
        self.registers[FRAME] = Memory::frame_pointer(self.callers.len());
        (self.at + 1).checked_add_signed(insn.imm as isize).ok_or(Fault::OutOfProgram)
    }

    fn leave(&mut self, caller: &Caller) -> usize {
        self.constant.fill(false);
        self.registers[6..10].copy_from_slice(&caller.saved);
        self.constant[6..10].copy_from_slice(&caller.constant);
        self.registers[FRAME] = Memory::frame_pointer(self.callers.len());
        caller.back
    }
}
