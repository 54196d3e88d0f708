//! What a run found: a table to read, `results.json` for scripts, and plots.

mod curves;
mod plot;
mod record;
mod table;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    time::Instant,
};

pub use self::{
    curves::Curves,
    plot::{Plot, Scale, Series},
    record::{Goal, Measure, Ratio, Record},
};
use crate::Failure;

/// All that a run found.
#[derive(Clone, Debug)]
pub struct Report {
    records: Vec<Record>,
    plots: Vec<Plot>,
    begin: Instant,
}

impl Default for Report {
    fn default() -> Self {
        Self { records: Vec::new(), plots: Vec::new(), begin: Instant::now() }
    }
}

impl Report {
    /// Adds a figure, and says it on stderr: a run takes minutes.
    pub fn add(&mut self, record: Record) {
        eprintln!("  {record}");
        self.records.push(record);
    }

    /// Adds a figure unless there is one of its name.
    pub fn add_unless_there(&mut self, record: Record) {
        if self.records.iter().all(|other| other.bench != record.bench) {
            self.add(record);
        }
    }

    /// Adds a plot.
    pub fn plot(&mut self, plot: Plot) {
        self.plots.push(plot);
    }

    /// The figures so far.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The figures as a table.
    pub fn table(&self) -> String {
        table::render(&self.records)
    }

    /// Ends a run: writes the files and prints the table.
    ///
    /// # Errors
    /// Those of [`Report::write`].
    pub fn finish(&self, directory: &Path) -> Result<(), Failure> {
        let written = self.write(directory);
        let (figures, seconds) = (self.records.len(), self.begin.elapsed().as_secs());
        let mut out = io::stdout().lock();
        // Nobody may be reading it any more; the files are there.
        let _ = writeln!(
            out,
            "{}\n{figures} figures in {seconds} s; also in {}",
            self.table(),
            directory.display()
        );
        written
    }

    /// Writes `results.json` and a file for each plot to a directory, which is made where it is missing.
    ///
    /// # Errors
    /// Those of the file system, and a plot that cannot be drawn.
    pub fn write(&self, directory: &Path) -> Result<(), Failure> {
        fs::create_dir_all(directory)?;
        let json = serde_json::to_vec_pretty(&self.records).map_err(io::Error::from)?;
        fs::write(directory.join("results.json"), json)?;
        for plot in self.plots.iter().filter(|plot| !plot.is_empty()) {
            fs::write(directory.join(format!("{}.svg", plot.file)), plot.draw()?)?;
        }
        Ok(())
    }
}
