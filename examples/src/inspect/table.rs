//! Columns that are as wide as what is in them.

use std::fmt;

/// A table with a title; the last columns hold numbers.
pub(super) struct Table {
    title: &'static str,
    heads: Vec<&'static str>,
    numbers: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const T: usize, const N: usize>(
        title: &'static str,
        texts: [&'static str; T],
        numbers: [&'static str; N],
    ) -> Self {
        Self { title, heads: texts.into_iter().chain(numbers).collect(), numbers: N, rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn line<'a>(&self, widths: &[usize], cells: impl Iterator<Item = &'a str>) -> String {
        let texts = self.heads.len() - self.numbers;
        let mut line = String::new();
        for (i, (cell, width)) in cells.zip(widths).enumerate() {
            let cell = if i < texts { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
            line.push_str(&cell);
        }
        line.trim_end().to_owned()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.title, self.rows.len())?;
        if self.rows.is_empty() {
            return Ok(());
        }
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count());
            cells.chain([self.heads[i].len()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        writeln!(f, "{}", self.line(&widths, self.heads.iter().copied()))?;
        for row in &self.rows {
            writeln!(f, "{}", self.line(&widths, row.iter().map(String::as_str)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_on_the_left_and_numbers_on_the_right() {
        let mut table = Table::new("Things", ["NAME"], ["COUNT"]);
        assert_eq!(table.to_string(), "Things (0)\n");
        table.row(["one".to_owned(), "1".to_owned()]);
        table.row(["a longer one".to_owned(), "1234567".to_owned()]);
        let expected = "Things (2)\n\
                        NAME            COUNT\n\
                        one                 1\n\
                        a longer one  1234567\n";
        assert_eq!(table.to_string(), expected);
    }
}
