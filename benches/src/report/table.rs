//! The figures for people.

use super::{Ratio, Record, record::digits};

const HEAD: [&str; 7] = ["bench", "value", "baseline", "unit", "ratio", "goal", "baseline is"];
/// Columns of numbers.
const RIGHT: [usize; 3] = [1, 2, 4];

pub(super) fn render(records: &[Record]) -> String {
    let rows: Vec<[String; 7]> =
        [HEAD.map(str::to_owned)].into_iter().chain(records.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if RIGHT.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
        if number == 0 {
            text += &"-".repeat(widths.iter().sum::<usize>() + 2 * (HEAD.len() - 1));
            text.push('\n');
        }
    }
    text
}

fn row(record: &Record) -> [String; 7] {
    let ratio = record.ratio().map_or_else(String::new, |ratio| {
        let bound = match (record.is_bound(), record.ratio) {
            (false, _) => "",
            (true, Ratio::Gain) => "≥ ",
            (true, Ratio::Cost | Ratio::Share) => "≤ ",
        };
        let word = match record.ratio {
            Ratio::Gain => "× better",
            Ratio::Cost => "× the cost",
            Ratio::Share => "× as much",
        };
        format!("{bound}{} {word:<10}", digits(ratio))
    });
    let goals: Vec<_> = record.goals.iter().map(ToString::to_string).collect();
    let goal = match record.met() {
        None => String::new(),
        Some(true) => format!("{}: met", goals.join(", ")),
        Some(false) => format!("{}: MISSED", goals.join(", ")),
    };
    [
        record.bench.clone(),
        record.value.to_string(),
        record.baseline.to_string(),
        record.unit.to_owned(),
        ratio,
        goal,
        record.baseline_is.clone(),
    ]
}
