//! Small programs with results that are known.

use super::*;

const ADD: u8 = 0x0;
const SUB: u8 = 0x1;
const DIV: u8 = 0x3;
const LSH: u8 = 0x6;
const RSH: u8 = 0x7;
const NEG: u8 = 0x8;
const MOD: u8 = 0x9;
const MOV: u8 = 0xb;
const ARSH: u8 = 0xc;
const EXIT: Insn = Insn { code: 0x95, dst: 0, src: 0, off: 0, imm: 0 };

/// Arithmetic with an immediate, on 64 bits and on 32.
fn wide(operation: u8, dst: u8, imm: i32) -> Insn {
    Insn::new(operation << 4 | 7, dst, 0, 0, imm)
}

fn narrow(operation: u8, dst: u8, imm: i32) -> Insn {
    Insn::new(operation << 4 | 4, dst, 0, 0, imm)
}

/// Arithmetic with a register, on 64 bits.
fn both(operation: u8, dst: u8, src: u8) -> Insn {
    Insn::new(operation << 4 | 0xf, dst, src, 0, 0)
}

fn number(dst: u8, value: u64) -> [Insn; 2] {
    [Insn::new(0x18, dst, 0, 0, value as i32), Insn::new(0, 0, 0, 0, (value >> 32) as i32)]
}

fn node() -> Node {
    Node { clock_ns: 7, jiffies: 3, random: 1, way: None }
}

fn attempt(code: Vec<Insn>, maps: &mut [Map]) -> Result<Outcome, Stopped> {
    run(&Program::of(code), Context::Xdp, maps, &mut node(), &[1, 2, 3, 4, 5, 6, 7, 8], 9)
}

/// What a program leaves in r0, of which both halves are looked at.
fn result(code: impl IntoIterator<Item = Insn>) -> u64 {
    let code: Vec<Insn> = code.into_iter().collect();
    let high = [&code[..], &[wide(RSH, 0, 32), EXIT]].concat();
    let low = [&code[..], &[EXIT]].concat();
    let [high, low] = [high, low].map(|code| u64::from(attempt(code, &mut []).unwrap().verdict));
    high << 32 | low
}

#[test]
fn immediates_have_signs_and_32_bits_leave_zeros_above() {
    assert_eq!(result([wide(MOV, 0, -1)]), u64::MAX);
    assert_eq!(result([narrow(MOV, 0, -1)]), 0xffff_ffff);
    assert_eq!(result([wide(MOV, 0, -1), narrow(ADD, 0, 1)]), 0);
    assert_eq!(result([wide(MOV, 0, 0), wide(SUB, 0, 1)]), u64::MAX);
    assert_eq!(result([wide(MOV, 0, 0), narrow(SUB, 0, 1)]), 0xffff_ffff);
    assert_eq!(result([wide(MOV, 0, 5), wide(NEG, 0, 0)]), -5_i64 as u64);
    assert_eq!(result([wide(MOV, 0, 5), narrow(NEG, 0, 0)]), 0xffff_fffb);
    assert_eq!(result(number(0, 0x1234_5678_9abc_def0)), 0x1234_5678_9abc_def0);
}

#[test]
fn division_by_zero_is_zero_and_its_remainder_what_there_was() {
    for divide in [wide(MOV, 1, 0), wide(MOV, 1, 3)] {
        let zero = divide.imm == 0;
        assert_eq!(result([wide(MOV, 0, 17), divide, both(DIV, 0, 1)]), if zero { 0 } else { 5 });
        assert_eq!(result([wide(MOV, 0, 17), divide, both(MOD, 0, 1)]), if zero { 17 } else { 2 });
    }
    // Without signs; on 32 bits, what is above goes all the same.
    assert_eq!(result([wide(MOV, 0, -1), wide(DIV, 0, 2)]), u64::MAX / 2);
    assert_eq!(result([wide(MOV, 0, -1), narrow(MOD, 0, 0)]), 0xffff_ffff);
}

#[test]
fn shifts_take_as_many_bits_as_there_are() {
    assert_eq!(result([wide(MOV, 0, 1), wide(LSH, 0, 65)]), 2);
    assert_eq!(result([wide(MOV, 0, 1), narrow(LSH, 0, 33)]), 2);
    assert_eq!(result([wide(MOV, 0, -8), wide(ARSH, 0, 1)]), -4_i64 as u64);
    assert_eq!(result([wide(MOV, 0, -8), narrow(ARSH, 0, 1)]), 0xffff_fffc);
    assert_eq!(result([wide(MOV, 0, -8), wide(RSH, 0, 60)]), 15);
}

#[test]
fn bytes_are_swapped_towards_big_endian_alone() {
    let swap = |code: u8, bits: i32| {
        let [first, second] = number(0, 0x0102_0304_0506_0708);
        result([first, second, Insn::new(code, 0, 0, 0, bits)])
    };
    assert_eq!([16, 32, 64].map(|bits| swap(0xdc, bits)), [0x0807, 0x0807_0605, 0x0807_0605_0403_0201]);
    assert_eq!([16, 32, 64].map(|bits| swap(0xd4, bits)), [0x0708, 0x0506_0708, 0x0102_0304_0506_0708]);
}

#[test]
fn jumps_compare_with_and_without_signs_on_both_widths() {
    // r0 = 1 if the jump is taken.
    let taken = |code: u8, dst: i32, imm: i32| {
        result([wide(MOV, 1, dst), wide(MOV, 0, 1), Insn::new(code, 1, 0, 1, imm), wide(MOV, 0, 0)]) == 1
    };
    // Greater, on 64 bits: without signs, and with them.
    assert!(taken(0x25, -1, 1) && !taken(0x65, -1, 1));
    // Less, on 32 bits.
    assert!(!taken(0xa6, -1, 1) && taken(0xc6, -1, 1));
    // Equal, not equal, any bit in common.
    assert!(taken(0x15, 3, 3) && !taken(0x55, 3, 3) && taken(0x45, 6, 2) && !taken(0x45, 4, 2));
    // Of 2^32 and 0, the lower halves are alike.
    let wider = |code: u8| {
        let jump = Insn::new(code, 1, 0, 1, 0);
        result([wide(MOV, 1, 1), wide(LSH, 1, 32), wide(MOV, 0, 1), jump, wide(MOV, 0, 0)]) == 1
    };
    assert!(wider(0x16) && !wider(0x15));
}

#[test]
fn memory_is_little_endian_in_all_sizes() {
    // A double word on the stack, and parts of it.
    let part = |code: u8, off: i16| {
        let [first, second] = number(1, 0x8877_6655_4433_2211);
        result([first, second, Insn::new(0x7b, 10, 1, -8, 0), Insn::new(code, 0, 10, off, 0)])
    };
    assert_eq!([part(0x71, -8), part(0x69, -6), part(0x61, -4)], [0x11, 0x4433, 0x8877_6655]);
    assert_eq!(part(0x79, -8), 0x8877_6655_4433_2211);
    // Stores of immediates, which have signs.
    let store = Insn::new(0x7a, 10, 0, -8, -2);
    assert_eq!(result([store, Insn::new(0x79, 0, 10, -8, 0)]), -2_i64 as u64);
}

#[test]
fn atomic_operations_fetch_where_they_say_so() {
    let atomic = |code: u8, kind: i32, then: Insn| {
        let store = Insn::new(0x7a, 10, 0, -8, 5);
        result([store, wide(MOV, 0, 5), wide(MOV, 1, 3), Insn::new(code, 10, 1, -8, kind), then])
    };
    let (memory, register) = (Insn::new(0x79, 0, 10, -8, 0), both(MOV, 0, 1));
    assert_eq!((atomic(0xdb, 0, memory), atomic(0xdb, 0, register)), (8, 3));
    assert_eq!((atomic(0xc3, 1, memory), atomic(0xc3, 1, register)), (8, 5));
    assert_eq!((atomic(0xdb, 0xe1, memory), atomic(0xdb, 0xe1, register)), (3, 5));
    assert_eq!((atomic(0xdb, 0xf1, memory), atomic(0xdb, 0xf1, both(MOV, 0, 0))), (3, 5));
    assert_eq!(atomic(0xdb, 0xa0, memory), 6);
}

#[test]
fn functions_have_a_stack_of_their_own_and_keep_what_callers_need() {
    let call = Insn::new(0x85, 0, 1, 0, 4);
    let code = [
        wide(MOV, 6, 40),
        Insn::new(0x7a, 10, 0, -8, 2),
        wide(MOV, 1, 1),
        call,
        Insn::new(0x79, 1, 10, -8, 0),
        both(ADD, 0, 6),
        both(ADD, 0, 1),
        EXIT,
        // The function.
        wide(MOV, 6, 0),
        Insn::new(0x7a, 10, 0, -8, 100),
        both(MOV, 0, 1),
        EXIT,
    ];
    let outcome = attempt(code.to_vec(), &mut []).unwrap();
    assert_eq!((outcome.verdict, outcome.trace.instructions()), (43, 12));
}

#[test]
fn a_packet_is_where_the_context_says_and_no_longer() {
    let (data, end) = (Insn::new(0x61, 2, 1, 0, 0), Insn::new(0x61, 3, 1, 4, 0));
    let length = [data, end, both(MOV, 0, 3), both(SUB, 0, 2), EXIT];
    assert_eq!(attempt(length.to_vec(), &mut []).unwrap().verdict, 8);
    let write = [data, Insn::new(0x72, 2, 0, 7, 0xee), Insn::new(0x69, 0, 2, 6, 0), EXIT];
    let outcome = attempt(write.to_vec(), &mut []).unwrap();
    assert_eq!((outcome.verdict, &outcome.frame[..]), (0xee07, &[1, 2, 3, 4, 5, 6, 7, 0xee][..]));
    let beyond = [data, Insn::new(0x69, 0, 2, 7, 0), EXIT];
    let stopped = attempt(beyond.to_vec(), &mut []).unwrap_err();
    assert!(matches!(stopped.fault, Fault::Address { len: 2, .. }), "{stopped}");
}

#[test]
fn what_is_not_known_is_named() {
    let fault = |code: &[Insn]| attempt(code.to_vec(), &mut []).unwrap_err().to_string();
    assert!(fault(&[Insn::new(0xe7, 0, 0, 0, 0)]).contains("instruction 0xe7"));
    // A division with signs, which came with the fourth version.
    assert!(fault(&[Insn::new(0x37, 0, 0, 1, 2)]).contains("0x37"));
    assert!(fault(&[Insn::new(0xdb, 10, 0, -8, 0x77)]).contains("0xdb"));
    assert!(fault(&[Insn::new(0xb7, 11, 0, 0, 0)]).contains("r11"));
    assert!(fault(&[Insn::new(0x85, 0, 0, 0, 51)]).contains("redirect_map"));
    assert!(fault(&[Insn::new(0x85, 0, 0, 0, 4711)]).contains("#4711"));
    assert!(fault(&[Insn::new(0x05, 0, 0, -1, 0)]).contains("does not end"));
    assert!(fault(&[Insn::new(0x85, 0, 1, 0, -1)]).contains("too deep"));
    assert!(fault(&[wide(MOV, 0, 0)]).contains("no instruction"));
    assert!(fault(&[Insn::new(0x79, 0, 10, 0, 0)]).contains("no 8 bytes"));
    assert!(fault(&[Insn::new(0x79, 0, 10, -513, 0)]).contains("no 8 bytes"));
}

mod of_maps {
    use super::*;

    fn map(name: &str, kind: Kind, value: usize, constants: bool) -> Map {
        Map::new(Shape { name: name.to_owned(), kind, key: 4, value, entries: 10, constants }, Nothing)
    }

    fn handle(dst: u8, map: i32) -> [Insn; 2] {
        [Insn::new(0x18, dst, 1, 0, map), Insn::new(0, 0, 0, 0, 0)]
    }

    /// Looks up key `key`, which it puts on the stack.
    fn look_up(map: i32, key: i32) -> Vec<Insn> {
        let [first, second] = handle(1, map);
        let key = Insn::new(0x62, 10, 0, -4, key);
        vec![key, both(MOV, 2, 10), wide(ADD, 2, -4), first, second, Insn::new(0x85, 0, 0, 0, 1)]
    }

    fn touched(trace: &Trace) -> Vec<(Part, u64)> {
        trace.lines.keys().map(|line| (line.part, line.number)).collect()
    }

    #[test]
    fn of_an_array_what_is_accessed_counts_and_stays() {
        let mut maps = [map("array", Kind::Array, 128, false)];
        let access =
            [Insn::new(0x07, 0, 0, 0, 60), Insn::new(0x7a, 0, 0, 0, 5), Insn::new(0x79, 0, 0, 0, 0), EXIT];
        let outcome = attempt([&look_up(1, 3)[..], &access].concat(), &mut maps).unwrap();
        assert_eq!(outcome.verdict, 5);
        // The fourth value is two lines from the seventh on, and eight bytes lie in both.
        assert_eq!(touched(&outcome.trace), [(Part::Elements, 6), (Part::Elements, 7)]);
        let read = [Insn::new(0x07, 0, 0, 0, 60), Insn::new(0x71, 0, 0, 0, 0), EXIT];
        assert_eq!(attempt([&look_up(1, 3)[..], &read].concat(), &mut maps).unwrap().verdict, 5);
        // Nothing is behind the last one.
        assert_eq!(attempt([&look_up(1, 10)[..], &[EXIT]].concat(), &mut maps).unwrap().verdict, 0);
        let beyond = [Insn::new(0x79, 0, 0, 121, 0), EXIT];
        assert!(attempt([&look_up(1, 3)[..], &beyond].concat(), &mut maps).is_err());
    }

    #[test]
    fn a_hash_table_has_a_bucket_for_each_key_and_elements_where_there_are_some() {
        let mut maps = [map("array", Kind::Array, 8, false), map("hash", Kind::Hash, 32, false)];
        let missed = attempt([&look_up(2, 7)[..], &[EXIT]].concat(), &mut maps).unwrap();
        assert_eq!((missed.verdict, touched(&missed.trace)), (0, vec![(Part::Bucket, 0)]));
        assert_eq!((missed.trace.lookups.get(&1), missed.trace.calls.get(&1)), (Some(&1), Some(&1)));

        let [first, second] = handle(1, 2);
        let update = |call: i32| {
            vec![
                Insn::new(0x62, 10, 0, -4, 7),
                Insn::new(0x7a, 10, 0, -40, 99),
                both(MOV, 2, 10),
                wide(ADD, 2, -4),
                both(MOV, 3, 10),
                wide(ADD, 3, -40),
                wide(MOV, 4, 0),
                first,
                second,
                Insn::new(0x85, 0, 0, 0, call),
                EXIT,
            ]
        };
        let updated = attempt(update(2), &mut maps).unwrap();
        let all = [(Part::Elements, 0), (Part::Elements, 1), (Part::Bucket, 0)];
        assert_eq!((updated.verdict, &touched(&updated.trace)[..]), (0, &all[..]));
        let read = [Insn::new(0x79, 0, 0, 0, 0), EXIT];
        let found = attempt([&look_up(2, 7)[..], &read].concat(), &mut maps).unwrap();
        // The value stands behind 48 bytes and the key, which is as long as eight.
        assert_eq!(
            (found.verdict, &touched(&found.trace)[..]),
            (99, &all[..1].iter().chain(&all[2..]).copied().collect::<Vec<_>>()[..])
        );

        assert_eq!(attempt(update(3), &mut maps).unwrap().verdict, 0);
        assert_eq!(attempt(update(3), &mut maps).unwrap().verdict as i32, -2);
        assert_eq!(attempt([&look_up(2, 7)[..], &[EXIT]].concat(), &mut maps).unwrap().verdict, 0);
    }

    #[test]
    fn branches_on_constants_are_not_counted() {
        let branches = |constants: bool| {
            let mut maps = [map(".rodata", Kind::Array, 8, constants)];
            let code = [
                Insn::new(0x18, 1, 2, 0, 1),
                Insn::new(0, 0, 0, 0, 4),
                Insn::new(0x61, 2, 1, 0, 0),
                narrow(0x5, 2, 1),
                wide(MOV, 0, 1),
                Insn::new(0x16, 2, 0, 1, 0),
                wide(MOV, 0, 2),
                // The immediate might be another's.
                Insn::new(0x15, 0, 0, 0, 1),
                EXIT,
            ];
            let outcome = attempt(code.to_vec(), &mut maps).unwrap();
            (outcome.verdict, outcome.trace.instructions(), outcome.trace.removed)
        };
        assert_eq!((branches(false), branches(true)), ((1, 7, 0), (1, 6, 1)));
    }

    #[test]
    fn each_cpu_has_pointers_to_its_values() {
        let mut maps = [map("per_cpu", Kind::PerCpuArray, 8, false)];
        let outcome = attempt([&look_up(1, 9)[..], &[Insn::new(0x79, 0, 0, 0, 0), EXIT]].concat(), &mut maps);
        let lines = touched(&outcome.unwrap().trace);
        assert_eq!(lines, [(Part::Elements, 1), (Part::Pointers, 1)]);
    }
}
