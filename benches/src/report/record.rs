use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeStruct};

/// One measured thing beside its baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its name, on which scripts rely.
    pub bench: String,
    /// Unit of value and baseline.
    pub unit: &'static str,
    /// What was found.
    pub value: Measure,
    /// What it is compared with.
    pub baseline: Measure,
    /// What the baseline is, in words.
    pub baseline_is: String,
    /// How the two are compared.
    pub ratio: Ratio,
    /// What was aimed at.
    pub goals: Vec<Goal>,
}

/// A figure, as far as there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// There is none.
    Missing,
    /// It was measured.
    Known(f64),
    /// It was given up there: it is at least this.
    AtLeast(f64),
}

/// Which of the two is divided by the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ratio {
    /// Baseline by value: so many times faster, or smaller.
    Gain,
    /// Value by baseline: so many times the cost.
    Cost,
    /// Value by baseline, where more is better.
    Share,
}

/// What was aimed at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The ratio is at least this.
    RatioAtLeast(f64),
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// The value is at most this.
    ValueAtMost(f64),
}

impl Record {
    /// A figure that is compared with nothing.
    pub fn new(bench: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            bench: bench.into(),
            unit,
            value: Measure::Known(value),
            baseline: Measure::Missing,
            baseline_is: String::new(),
            ratio: Ratio::Cost,
            goals: Vec::new(),
        }
    }

    /// Compares it.
    #[must_use]
    pub fn against(mut self, baseline: impl Into<Measure>, is: impl Into<String>, ratio: Ratio) -> Self {
        self.baseline = baseline.into();
        self.baseline_is = is.into();
        self.ratio = ratio;
        self
    }

    /// Replaces the value.
    #[must_use]
    pub fn with_value(mut self, value: impl Into<Measure>) -> Self {
        self.value = value.into();
        self
    }

    /// Aims at something.
    #[must_use]
    pub fn aim(mut self, goal: Goal) -> Self {
        self.goals.push(goal);
        self
    }

    /// The ratio, which is a bound where one of the two is.
    pub fn ratio(&self) -> Option<f64> {
        let (value, baseline) = (self.value.number()?, self.baseline.number()?);
        let (over, under) = match self.ratio {
            Ratio::Gain => (baseline, value),
            Ratio::Cost | Ratio::Share => (value, baseline),
        };
        (under > 0.0).then_some(over / under)
    }

    /// Whether value or baseline were given up.
    pub fn is_bound(&self) -> bool {
        [self.value, self.baseline].iter().any(|measure| matches!(measure, Measure::AtLeast(_)))
    }

    /// Whether all goals are met; `None` where there are none. What was not found meets no goal.
    pub fn met(&self) -> Option<bool> {
        let value_is_bound = matches!(self.value, Measure::AtLeast(_));
        let met = |goal: &Goal| match *goal {
            Goal::RatioAtLeast(least) => self.ratio().is_some_and(|ratio| ratio >= least),
            Goal::RatioAtMost(most) => self.ratio().is_some_and(|ratio| ratio <= most),
            Goal::ValueAtMost(most) => self.value.number().is_some_and(|value| value <= most),
        };
        (!self.goals.is_empty()).then(|| !value_is_bound && self.goals.iter().all(met))
    }
}

impl Measure {
    /// The number, be it a bound.
    pub fn number(self) -> Option<f64> {
        match self {
            Measure::Missing => None,
            Measure::Known(number) | Measure::AtLeast(number) => Some(number),
        }
    }

    /// The same in another unit.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        match self {
            Measure::Missing => Measure::Missing,
            Measure::Known(number) => Measure::Known(number * factor),
            Measure::AtLeast(number) => Measure::AtLeast(number * factor),
        }
    }
}

impl From<f64> for Measure {
    fn from(number: f64) -> Self {
        Measure::Known(number)
    }
}

impl From<Option<f64>> for Measure {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Measure::Missing, Measure::Known)
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Measure::Missing => f.pad("-"),
            Measure::Known(number) => f.pad(&digits(*number)),
            Measure::AtLeast(number) => f.pad(&format!("≥ {}", digits(*number))),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::RatioAtLeast(least) => write!(f, "≥ {least} ×"),
            Goal::RatioAtMost(most) => write!(f, "≤ {most} ×"),
            Goal::ValueAtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.bench, self.value, self.unit)?;
        match self.baseline {
            Measure::Missing => Ok(()),
            baseline => write!(f, " ({}: {baseline})", self.baseline_is),
        }
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_struct("Record", 10)?;
        map.serialize_field("bench", &self.bench)?;
        map.serialize_field("value", &self.value.number())?;
        map.serialize_field("unit", self.unit)?;
        map.serialize_field("baseline", &self.baseline.number())?;
        map.serialize_field("ratio", &self.ratio())?;
        map.serialize_field(
            "ratio_is",
            match self.ratio {
                Ratio::Gain => "baseline / value",
                Ratio::Cost | Ratio::Share => "value / baseline",
            },
        )?;
        map.serialize_field("bound", &self.is_bound())?;
        map.serialize_field("baseline_is", &self.baseline_is)?;
        map.serialize_field("goals", &self.goals.iter().map(Goal::to_string).collect::<Vec<_>>())?;
        map.serialize_field("met", &self.met())?;
        map.end()
    }
}

/// Three digits that count.
pub(super) fn digits(number: f64) -> String {
    let decimals = match number.abs() {
        0.0 => 0,
        below if below < 1.0 => 3,
        below if below < 10.0 => 2,
        below if below < 100.0 => 1,
        _ => 0,
    };
    format!("{number:.decimals$}")
}
