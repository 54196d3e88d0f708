//! What a packet's cost is made of.

use std::{collections::BTreeMap, fmt::Write as _};

use super::count::Counts;

/// Lines of the source that are named: the costliest.
const SOURCE: usize = 12;

pub(super) fn render(counts: &Counts) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ =
        writeln!(text, "    {:<20} {:>8} {:>6} {:>6}  first touched at", "map", "look-ups", "lines", "cold");
    for (map, of) in &counts.maps {
        let by: Vec<&str> = of.by.iter().map(String::as_str).collect();
        let (lookups, lines, cold) = (number(of.lookups), number(of.lines), number(of.cold));
        let _ = writeln!(text, "    {map:<20} {lookups:>8} {lines:>6} {cold:>6}  {}", by.join(" "));
    }
    let _ = writeln!(text, "    helpers: {}", list(&counts.helpers, usize::MAX));
    let _ = writeln!(text, "    instructions by function: {}", list(&counts.functions, usize::MAX));
    let _ = writeln!(text, "    by line of the source: {}", list(&counts.source, SOURCE));
    let (atomics, removed) = (number(counts.atomics), number(counts.removed));
    let _ = writeln!(text, "    atomic operations: {atomics}; branches that the verifier removes: {removed}");
    text
}

/// The greatest ones.
fn list(of: &BTreeMap<String, f64>, most: usize) -> String {
    let mut all: Vec<_> = of.iter().collect();
    all.sort_by(|a, b| b.1.total_cmp(a.1));
    let parts: Vec<String> =
        all.iter().take(most).map(|(name, count)| format!("{name} {}", number(**count))).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn number(count: f64) -> String {
    if (count - count.round()).abs() < 0.005 { format!("{count:.0}") } else { format!("{count:.2}") }
}
