//! Programs, from objects.

use std::collections::{BTreeMap, HashMap, HashSet};

use aya_obj::{Object, generated::bpf_insn};

use super::insn::Insn;
use crate::Failure;

/// A program with all functions that it calls.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Its instructions. Loads of maps name them by their place in `maps`, from 1 on.
    pub code: Vec<Insn>,
    /// Names of maps of the object.
    pub maps: Vec<String>,
    /// Which of them the program uses, in the order in which it first does. The kernel has the same order.
    pub used: Vec<usize>,
    /// Where functions begin, and their names.
    functions: BTreeMap<usize, String>,
    /// From this instruction on: file and line of the source.
    lines: BTreeMap<usize, (String, u32)>,
}

impl Program {
    /// One of a compiled object, by its name.
    ///
    /// # Errors
    /// There is no such program, or the object is not understood.
    pub fn read(object: &[u8], name: &str) -> Result<Self, Failure> {
        let mut object = Object::parse(object)?;
        let mut maps: Vec<String> = object.maps.keys().cloned().collect();
        maps.sort_unstable();
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let shapes = object.maps.clone();
        let numbered =
            maps.iter().zip(1..).filter_map(|(name, number)| Some((&name[..], number, shapes.get(name)?)));
        object.relocate_maps(numbered, &text)?;
        let key = object.programs.get(name).ok_or_else(|| format!("no program {name}"))?.function_key();
        // Types of functions tell them apart when they are linked.
        let names: HashMap<u32, String> = (object.functions.values())
            .filter_map(|function| {
                Some((function.func_info.func_info.first()?.type_id, function.name.clone()))
            })
            .collect();
        object.relocate_calls(&text)?;
        let linked = object.functions.get(&key).ok_or_else(|| format!("no function {name}"))?;
        let code: Vec<Insn> = linked.instructions.iter().map(|insn: &bpf_insn| insn.into()).collect();
        let info = &linked.func_info.func_info;
        let functions =
            info.iter().filter_map(|f| Some((f.insn_off as usize, names.get(&f.type_id)?.clone())));
        let strings = object.btf.as_ref().map(Strings::new);
        let lines = linked.line_info.line_info.iter().filter_map(|line| {
            let file = strings.as_ref()?.at(line.file_name_off)?;
            let file = file.rsplit('/').next().unwrap_or_default().to_owned();
            Some((line.insn_off as usize, (file, line.line_col >> 10)))
        });
        let (functions, lines) = (functions.collect(), lines.collect());
        Ok(Self { used: used(&code), code, maps, functions, lines })
    }

    /// One without maps and names.
    pub fn of(code: Vec<Insn>) -> Self {
        Self { code, ..Self::default() }
    }

    /// Which function an instruction is of.
    pub fn function_of(&self, at: usize) -> &str {
        self.functions.range(..=at).next_back().map_or("the program", |(_, name)| name)
    }

    /// File and line of the source that an instruction is of.
    pub fn line_of(&self, at: usize) -> Option<(&str, u32)> {
        self.lines.range(..=at).next_back().map(|(_, (file, line))| (&file[..], *line))
    }
}

fn used(code: &[Insn]) -> Vec<usize> {
    let mut used = Vec::new();
    let mut rest = code.iter();
    while let Some(insn) = rest.next() {
        if insn.code != 0x18 {
            continue;
        }
        // The second half may look like anything.
        rest.next();
        let map = (insn.imm as usize).wrapping_sub(1);
        if matches!(insn.src, 1 | 2) && !used.contains(&map) {
            used.push(map);
        }
    }
    used
}

/// The strings of type information.
struct Strings(Vec<u8>);

impl Strings {
    fn new(btf: &aya_obj::btf::Btf) -> Self {
        let mut bytes = btf.to_bytes();
        // `hdr_len`, `str_off` behind the header.
        let word =
            |at: usize| bytes.get(at..at + 4)?.first_chunk().map(|word| u32::from_ne_bytes(*word) as usize);
        let begin = word(4).zip(word(16)).map_or(bytes.len(), |(header, off)| header + off);
        Self(bytes.split_off(begin.min(bytes.len())))
    }

    fn at(&self, offset: u32) -> Option<String> {
        let bytes = self.0.get(offset as usize..)?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}
