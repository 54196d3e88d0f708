//! Points that are gathered while a run goes on, until they are lines of a plot.

use super::{Measure, Plot, Scale, Series};

/// Lines by their names, in the order in which they were begun.
#[derive(Clone, Debug, Default)]
pub struct Curves(Vec<Series>);

impl Curves {
    /// Adds a point to a line. What was not found is left out.
    pub fn point(&mut self, line: &str, x: f64, y: impl Into<Measure>) {
        let y = y.into();
        let Some(height) = y.number() else { return };
        let place = self.0.iter().position(|series| series.name == line).unwrap_or_else(|| {
            self.0.push(Series { name: line.to_owned(), points: Vec::new(), bounds: Vec::new() });
            self.0.len() - 1
        });
        let Some(series) = self.0.get_mut(place) else { return };
        series.points.push((x, height));
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        if matches!(y, Measure::AtLeast(_)) {
            series.bounds.push((x, height));
        }
    }

    /// The plot of them: by factors where the highest is far above the lowest.
    pub fn plot(self, file: impl Into<String>, title: impl Into<String>, x: &str, y: &str) -> Plot {
        const FAR: f64 = 30.0;
        let heights = self.0.iter().flat_map(|series| &series.points).map(|point| point.1);
        let (low, high) = heights.fold((f64::INFINITY, 0.0_f64), |(low, high), y| (low.min(y), high.max(y)));
        let scale = if high > low * FAR { Scale::Log } else { Scale::Linear };
        let (file, title) = (file.into(), title.into());
        Plot { file, title, x: x.into(), y: y.into(), scale, series: self.0 }
    }
}
