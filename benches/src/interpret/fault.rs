use std::fmt;

use super::insn::Insn;
use crate::Failure;

/// Why a program stopped before its end.
#[derive(Debug)]
pub enum Fault {
    /// An instruction that is not known here.
    Instruction(Insn),
    /// The program counter is outside the program.
    OutOfProgram,
    /// Nothing is there, or not so many bytes.
    Address {
        /// Where.
        at: u64,
        /// How many bytes.
        len: usize,
    },
    /// A helper function that is not implemented, by its number.
    Helper(i32),
    /// A helper was not given a map.
    NotAMap(u64),
    /// Functions call each other too deep.
    TooDeep,
    /// The program does not end.
    Endless,
    /// What a map holds could not be found out.
    Source(String, Failure),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Instruction(insn) => write!(f, "the instruction {insn} is not known"),
            Fault::OutOfProgram => f.write_str("there is no instruction"),
            Fault::Address { at, len } => write!(f, "there are no {len} bytes at {at:#x}"),
            Fault::Helper(id) => {
                write!(f, "the helper {} is not implemented: add it to helpers.rs", super::helpers::name(*id))
            }
            Fault::NotAMap(at) => write!(f, "{at:#x} is not a map"),
            Fault::TooDeep => f.write_str("functions call each other too deep"),
            Fault::Endless => f.write_str("the program does not end"),
            Fault::Source(map, error) => write!(f, "the map {map} cannot be read: {error}"),
        }
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Fault::Source(_, error) => Some(error.as_ref()),
            _ => None,
        }
    }
}

/// A fault and where it happened.
#[derive(Debug)]
pub struct Stopped {
    /// Name of the function.
    pub function: String,
    /// Number of the instruction in the linked program.
    pub at: usize,
    /// What happened.
    pub fault: Fault,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} stopped at instruction {}: {}", self.function, self.at, self.fault)
    }
}

impl std::error::Error for Stopped {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.fault)
    }
}
