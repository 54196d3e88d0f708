//! Runs BPF programs step by step, to count what they cost where the machine has no counters.
//!
//! A program runs on copies: a value is read from the kernel's map when it is first looked up, and what the program
//! writes, later packets find, and the kernel never sees.
//!
//! # What is counted
//!
//! **Instructions**, as the object has them: a load of 64 bits is one, and so is a call, be it of a helper. A branch
//! on constants of the loader (`.rodata`) is none, as the verifier removes it; it leaves the load of the constant, so
//! that is one. What it leaves out besides, which is little, is counted: newer kernels know that an array has the
//! element that a constant names. What it puts in is not: a look-up in an array is six to eight instructions in place
//! of a call, a field of a `struct __sk_buff` takes one to four.
//!
//! **Lines** of 64 bytes of maps' memory that a packet touches. Stack, packet and context are not among them.
//! - Arrays begin with a line; each value with a multiple of 8 bytes. Only what the program accesses of a value counts.
//!   Those of each CPU have one line more per look-up, for the pointers to the values.
//! - A look-up in a hash table touches the head of a bucket, which no other key has, and what precedes the value in
//!   the element (48 bytes and the key), if there is one. Elements begin with a line. No two keys share a bucket: in
//!   a table that is full, look-ups touch more. An update touches the value as well. The lists of those that forget
//!   old elements are not counted.
//! - A look-up in a trie touches a node for each prefix that holds the key, and at least one.
//! - Not counted: what describes the maps themselves, which all packets share and only read, and what the kernel
//!   touches for other helpers.

mod fault;
mod helpers;
mod insn;
mod kernel;
mod machine;
mod maps;
mod memory;
mod program;
#[cfg(test)]
mod tests;
mod trace;

pub use self::{
    fault::{Fault, Stopped},
    helpers::{is_inline, name},
    insn::Insn,
    kernel::maps,
    machine::{Context, Node, Outcome, Way, run},
    maps::{Kind, Map, Nothing, Shape, Source},
    program::Program,
    trace::{Line, Part, Trace},
};
