//! The oldest kernel: what the programs call, and since when there is that. The crate's page has the table for users.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs, io,
};

use aya::{EbpfLoader, programs::Program};
use aya_obj::{Object, generated::bpf_insn};

use super::object::OBJECT;

/// Major and minor.
type Version = (u32, u32);

/// What the crate aims for.
const OLDEST: Version = (5, 10);

/// Helper functions by their numbers, and when they came.
const HELPERS: &[(i32, &str, Version)] = &[
    (1, "bpf_map_lookup_elem", (3, 19)),
    (2, "bpf_map_update_elem", (3, 19)),
    (3, "bpf_map_delete_elem", (3, 19)),
    (5, "bpf_ktime_get_ns", (4, 1)),
    (7, "bpf_get_prandom_u32", (4, 1)),
    (8, "bpf_get_smp_processor_id", (4, 1)),
    (9, "bpf_skb_store_bytes", (4, 1)),
    (10, "bpf_l3_csum_replace", (4, 1)),
    (11, "bpf_l4_csum_replace", (4, 1)),
    (12, "bpf_tail_call", (4, 2)),
    (18, "bpf_skb_vlan_push", (4, 3)),
    (19, "bpf_skb_vlan_pop", (4, 3)),
    (23, "bpf_redirect", (4, 4)),
    (26, "bpf_skb_load_bytes", (4, 5)),
    (28, "bpf_csum_diff", (4, 6)),
    (38, "bpf_skb_change_tail", (4, 9)),
    (39, "bpf_skb_pull_data", (4, 9)),
    (40, "bpf_csum_update", (4, 9)),
    (43, "bpf_skb_change_head", (4, 10)),
    (44, "bpf_xdp_adjust_head", (4, 10)),
    // For the address of a socket.
    (46, "bpf_get_socket_cookie", (5, 7)),
    (50, "bpf_skb_adjust_room", (4, 13)),
    (51, "bpf_redirect_map", (4, 14)),
    (65, "bpf_xdp_adjust_tail", (5, 8)),
    (69, "bpf_fib_lookup", (4, 18)),
    (93, "bpf_spin_lock", (5, 1)),
    (94, "bpf_spin_unlock", (5, 1)),
    (118, "bpf_jiffies64", (5, 6)),
    (122, "bpf_get_netns_cookie", (5, 7)),
    (130, "bpf_ringbuf_output", (5, 8)),
    (131, "bpf_ringbuf_reserve", (5, 8)),
    (132, "bpf_ringbuf_submit", (5, 8)),
    (133, "bpf_ringbuf_discard", (5, 8)),
    (134, "bpf_ringbuf_query", (5, 8)),
    (152, "bpf_redirect_neigh", (5, 10)),
    (155, "bpf_redirect_peer", (5, 10)),
    (160, "bpf_ktime_get_coarse_ns", (5, 11)),
    (187, "bpf_set_retval", (5, 18)),
    (188, "bpf_xdp_get_buff_len", (5, 18)),
    (189, "bpf_xdp_load_bytes", (5, 18)),
    (190, "bpf_xdp_store_bytes", (5, 18)),
];

/// Constants that the loader sets to 0 where the kernel lacks what they stand for.
const SWITCHES: [&str; 3] = ["have_coarse_clock", "have_set_retval", "fib_flags"];

const CALL: u8 = 0x85;
const PSEUDO_CALL: u8 = 1;
const PSEUDO_KFUNC: u8 = 2;
/// Atomic operations on words of 4 and 8 bytes. All kernels know the plain addition alone.
const ATOMIC: [u8; 2] = [0xc3, 0xdb];

/// Copies a register.
const MOV: u8 = 0xbf;
/// Adds a constant to a register.
const ADD: u8 = 0x07;
/// Points behind the stack of a function.
const FRAME: u8 = 10;

/// What a program and the functions that it calls may have together. Up to 6.8, and later without the JIT, each
/// one's stack counts in whole steps.
const STACK: usize = 512;
const STACK_STEP: usize = 32;
const STACK_SLOT: usize = 8;
/// How deep functions may call each other.
const MAX_CALLS: usize = 8;

/// The instructions of each program, with those of the functions that it calls.
fn programs() -> BTreeMap<String, Vec<bpf_insn>> {
    linked(&mut Object::parse(OBJECT).unwrap())
}

fn linked(object: &mut Object) -> BTreeMap<String, Vec<bpf_insn>> {
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&text).unwrap();
    let functions = &object.functions;
    let of =
        |program: &aya_obj::Program| functions.get(&program.function_key()).unwrap().instructions.clone();
    object.programs.iter().map(|(name, program)| (name.clone(), of(program))).collect()
}

fn helpers(instructions: &[bpf_insn]) -> BTreeSet<i32> {
    let calls = instructions.iter().filter(|i| i.code == CALL && i.src_reg() == 0);
    calls.map(|i| i.imm).collect()
}

fn newer() -> impl Iterator<Item = &'static (i32, &'static str, Version)> {
    HELPERS.iter().filter(|(_, _, since)| *since > OLDEST)
}

#[test]
fn every_helper_of_every_program_is_in_the_table() {
    let programs = programs();
    assert!(programs.len() >= 12, "{:?}", programs.keys());
    for (program, instructions) in &programs {
        for helper in helpers(instructions) {
            assert!(
                HELPERS.iter().any(|(id, ..)| *id == helper),
                "{program} calls the helper {helper}: add it to the table, with the kernel that it needs"
            );
        }
        let kfuncs = instructions.iter().filter(|i| i.code == CALL && i.src_reg() == PSEUDO_KFUNC);
        assert_eq!(kfuncs.count(), 0, "{program} calls functions of the kernel, which needs 5.13");
        let unknown = instructions.iter().filter(|i| i.code == CALL && i.src_reg() > PSEUDO_CALL);
        assert_eq!(unknown.count(), 0, "{program}");
        let atomic = instructions.iter().filter(|i| ATOMIC.contains(&i.code) && i.imm != 0);
        assert_eq!(atomic.count(), 0, "{program} has atomic operations that need 5.12");
    }
}

#[test]
fn the_page_of_the_crate_names_what_is_newer_than_the_oldest_kernel() {
    let page = include_str!("../lib.rs");
    let used: BTreeSet<i32> = programs().values().flat_map(|program| helpers(program)).collect();
    for (id, name, (major, minor)) in newer().filter(|(id, ..)| used.contains(id)) {
        let row = page.lines().find(|line| line.starts_with("//! |") && line.contains(&format!("`{name}`")));
        let row = row.unwrap_or_else(|| panic!("no row for {name}, helper {id}"));
        assert!(row.contains(&format!("| {major}.{minor} |")), "{row}");
    }
}

/// What the verifier sees of a function.
struct Function {
    name: String,
    stack: usize,
    /// Where the functions begin that it calls.
    calls: BTreeSet<usize>,
}

/// The functions of a linked program by where they begin: the program itself is at 0.
fn functions(
    name: &str,
    program: &[bpf_insn],
    names: &HashMap<Vec<u8>, String>,
) -> BTreeMap<usize, Function> {
    let callee = |(at, i): (usize, &bpf_insn)| {
        let is_call = i.code == CALL && i.src_reg() == PSEUDO_CALL;
        is_call.then(|| at.checked_add_signed(i.imm as isize + 1).unwrap())
    };
    let mut begins: BTreeSet<usize> = program.iter().enumerate().filter_map(callee).collect();
    begins.insert(0);
    let ends = begins.iter().skip(1).copied().chain([program.len()]);
    let function = |(begin, end): (&usize, usize)| {
        let body = &program[*begin..end];
        let calls = body.iter().enumerate().filter_map(|(at, i)| callee((begin + at, i))).collect();
        let name = match begin {
            0 => name.to_owned(),
            _ => names.get(&codes(body)).cloned().unwrap_or_else(|| format!("the function at {begin}")),
        };
        (*begin, Function { name, stack: stack(body), calls })
    };
    begins.iter().zip(ends).map(function).collect()
}

/// Tells functions apart, linked or not. Two that are alike have stacks that are alike.
fn codes(body: &[bpf_insn]) -> Vec<u8> {
    body.iter().map(|i| i.code).collect()
}

/// The deepest place on its stack that a function accesses, or hands over. The verifier tells the same numbers.
fn stack(body: &[bpf_insn]) -> usize {
    let mut pointers = BTreeMap::from([(FRAME, 0)]);
    let mut deepest = 0;
    for i in body {
        let to = i.dst_reg();
        match (i.code, i.code & 7) {
            (MOV, _) => match pointers.get(&i.src_reg()).copied() {
                Some(at) => drop(pointers.insert(to, at)),
                None => drop(pointers.remove(&to)),
            },
            (ADD, _) => {
                if let Some(at) = pointers.get_mut(&to) {
                    *at += i.imm;
                    deepest = deepest.min(*at);
                }
            }
            // Stores, of a constant and of a register.
            (_, 2 | 3) => {
                if let Some(at) = pointers.get(&to) {
                    deepest = deepest.min(at + i32::from(i.off));
                }
            }
            // A load.
            (_, 1) => {
                if let Some(at) = pointers.get(&i.src_reg()) {
                    deepest = deepest.min(at + i32::from(i.off));
                }
                pointers.remove(&to);
            }
            // Everything else that writes a register: constants and arithmetic.
            (_, 0 | 4 | 7) => drop(pointers.remove(&to)),
            _ => {}
        }
    }
    (deepest.unsigned_abs() as usize).next_multiple_of(STACK_SLOT)
}

/// Of the call chains from here, the one that needs the most stack, and the length of the longest.
fn deepest(functions: &BTreeMap<usize, Function>, at: usize) -> (usize, Vec<String>, usize) {
    let function = &functions[&at];
    let below = function.calls.iter().map(|callee| deepest(functions, *callee));
    let (mut most, mut longest) = ((0, Vec::new()), 0);
    for (stack, chain, len) in below {
        longest = longest.max(len);
        if stack > most.0 {
            most = (stack, chain);
        }
    }
    most.1.insert(0, format!("{}: {}", function.name, function.stack));
    (most.0 + function.stack.max(1).next_multiple_of(STACK_STEP), most.1, longest + 1)
}

#[test]
fn the_stack_suffices_where_each_function_takes_whole_steps_of_it() {
    let mut object = Object::parse(OBJECT).unwrap();
    let names = object.functions.values().map(|f| (codes(&f.instructions), f.name.clone())).collect();
    let mut called = 0;
    for (program, instructions) in linked(&mut object) {
        let functions = functions(&program, &instructions, &names);
        called += functions.len() - 1;
        let (bytes, chain, calls) = deepest(&functions, 0);
        let stacks: Vec<String> = functions.values().map(|f| f.stack.to_string()).collect();
        println!("{program}: {bytes} bytes in {chain:?}, {calls} deep; by function {}", stacks.join("+"));
        assert!(bytes > 0 && bytes <= STACK, "{program} takes {bytes} of {STACK} bytes: {chain:?}");
        assert!(calls <= MAX_CALLS, "{program} calls {calls} functions deep");
    }
    assert!(called > 20, "only {called} functions are called: the test proves nothing");
}

/// As an older kernel's verifier would, this one refuses what it does not know, if a program can get there.
#[test]
fn without_what_is_newer_the_programs_load_all_the_same() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: needs root");
        return eprintln!("skipped: needs root");
    }
    let mut old = OBJECT.to_vec();
    let mut hidden = 0;
    for (id, ..) in newer() {
        let mut call = [CALL, 0, 0, 0, 0, 0, 0, 0];
        call[4..].copy_from_slice(&id.to_le_bytes());
        let found: Vec<usize> = (0..old.len() - 8).step_by(8).filter(|at| old[*at..at + 8] == call).collect();
        for at in found {
            old[at + 4..at + 8].copy_from_slice(&9999i32.to_le_bytes());
            hidden += 1;
        }
    }
    assert!(hidden > 0, "nothing was hidden: the test proves nothing");
    assert!(load(&old, 1).is_err(), "the verifier takes anything");
    load(&old, 0).unwrap_or_else(|e| panic!("{e}"));
    if let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") {
        eprintln!("{hidden} calls hidden from kernel {}", release.trim());
    }
}

/// Loads every program that all kernels are to take, with what is newer switched on or off.
fn load(object: &[u8], on: u32) -> io::Result<()> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for switch in SWITCHES {
        loader.override_global(switch, if switch == "fib_flags" { &0 } else { &on }, true);
    }
    let mut ebpf = loader.load(object).map_err(io::Error::other)?;
    for (name, program) in ebpf.programs_mut() {
        let load = |program: &mut Program| match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            // Optional: the loader asks for it by itself.
            _ => Ok(()),
        };
        // A pending signal stops the verifier.
        let mut result = load(program);
        for _ in 0..10 {
            if result.is_ok() {
                break;
            }
            result = load(program);
        }
        result.map_err(|e| io::Error::other(format!("{name}: {e}")))?;
    }
    Ok(())
}
