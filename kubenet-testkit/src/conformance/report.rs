use std::{collections::BTreeMap, fmt, time::Duration};

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As the rule says.
    Passed,
    /// Otherwise; the text says what was expected and what was seen.
    Failed(String),
    /// The datapath says in its capabilities that it does not serve this.
    NotSupported(String),
}

/// A case and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CaseReport {
    /// The rule, and where it was tried: `hairpin/cluster-ip/TCP/IPv4`.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// How a datapath did. Displays as a table; cases that are not supported are counted by their reason.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The datapath's name.
    pub datapath: String,
    /// Whether packets were only described, not sent.
    pub simulated: bool,
    /// Every case, in the order of the suite.
    pub cases: Vec<CaseReport>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| matches!(case.outcome, Outcome::Failed(_)))
    }

    /// The cases that the datapath does not support.
    pub fn not_supported(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| matches!(case.outcome, Outcome::NotSupported(_)))
    }

    /// The number of cases that passed.
    pub fn passed(&self) -> usize {
        self.cases.iter().filter(|case| case.outcome == Outcome::Passed).count()
    }

    /// For tests: prints the table and ends the test when a case failed.
    ///
    /// # Panics
    /// A case failed, or none passed.
    pub fn assert_all_passed(&self) {
        println!("{self}");
        let failures = self.failures().count();
        assert!(failures == 0, "{}: {failures} cases of the conformance suite failed\n{self}", self.datapath);
        assert!(self.passed() > 0, "{}: no case of the conformance suite ran", self.datapath);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.simulated { "simulated" } else { "real packets" };
        writeln!(f, "conformance of {} ({how})", self.datapath)?;
        let width = self.cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
        let mut not_supported = BTreeMap::<_, usize>::new();
        for CaseReport { name, outcome, took } in &self.cases {
            let (word, why) = match outcome {
                Outcome::Passed => ("ok", ""),
                Outcome::Failed(why) => ("FAILED", why.as_str()),
                Outcome::NotSupported(why) => {
                    *not_supported.entry(why).or_default() += 1;
                    continue;
                }
            };
            let line = format!("  {name:width$}  {:>5} ms  {word:6}  {why}", took.as_millis());
            writeln!(f, "{}", line.trim_end())?;
        }
        for (why, cases) in not_supported {
            writeln!(f, "  {cases} cases not supported: {why}")?;
        }
        write!(
            f,
            "{}: {} passed, {} failed, {} not supported, in {:.1} s",
            self.datapath,
            self.passed(),
            self.failures().count(),
            self.not_supported().count(),
            self.took.as_secs_f64()
        )
    }
}
