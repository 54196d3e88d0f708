//! Many measurements of one thing.

use std::time::Duration;

/// Measurements in seconds.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.push_seconds(sample.as_secs_f64());
    }

    /// Adds one that is finer than a nanosecond.
    pub fn push_seconds(&mut self, seconds: f64) {
        self.0.push(seconds);
    }

    /// Adds those of another run.
    pub fn extend(&mut self, other: Samples) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sample that this share of all is not above; `None` without samples.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted.get(rank - 1).copied()
    }

    /// The one in the middle.
    pub fn median(&self) -> Option<f64> {
        self.percentile(50.0)
    }

    /// The mean.
    pub fn mean(&self) -> Option<f64> {
        (!self.is_empty()).then(|| self.0.iter().sum::<f64>() / self.len() as f64)
    }

    /// The least.
    pub fn least(&self) -> Option<f64> {
        self.0.iter().copied().min_by(f64::total_cmp)
    }

    /// All together.
    pub fn sum(&self) -> f64 {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(99.0), None);
        (1..=200).rev().for_each(|ms| samples.push(Duration::from_millis(ms)));
        assert_eq!((samples.median(), samples.percentile(99.0)), (Some(0.1), Some(0.198)));
        assert_eq!((samples.least(), samples.percentile(100.0)), (Some(0.001), Some(0.2)));
    }
}
