//! Lines on axes, as SVG.

use plotters::{
    coord::ranged1d::{AsRangedCoord, ValueFormatter},
    prelude::*,
};

use super::record::digits;
use crate::Failure;

const SIZE: (u32, u32) = (900, 560);

/// How an axis grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By factors.
    Log,
}

/// Lines over one pair of axes.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Name of the file, without its ending.
    pub file: String,
    /// What it shows.
    pub title: String,
    /// What the horizontal axis is; by factors.
    pub x: String,
    /// What the vertical axis is.
    pub y: String,
    /// How the vertical axis grows.
    pub scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
}

/// A line.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it stands for.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
    /// Those of the points that are only known to lie higher.
    pub bounds: Vec<(f64, f64)>,
}

impl Plot {
    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.points.is_empty())
    }

    /// The picture.
    ///
    /// # Errors
    /// Values that cannot be drawn, such as none at all.
    pub fn draw(&self) -> Result<String, Failure> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let range = |of: fn(&(f64, f64)) -> f64| {
            let numbers = points().map(of).filter(|number| number.is_finite());
            numbers.fold((f64::INFINITY, 0.0_f64), |(low, high), number| (low.min(number), high.max(number)))
        };
        let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
        if left > right || low > high {
            return Err(format!("the plot {} has nothing to show", self.file).into());
        }
        let x = (left.max(0.5) / 1.2..right * 1.2).log_scale();
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            area.fill(&WHITE)?;
            match self.scale {
                Scale::Log => {
                    let floor = if low > 0.0 { low } else { 1e-3 };
                    self.draw_on(&area, x, (floor / 1.5..high * 1.5).log_scale())?;
                }
                Scale::Linear => self.draw_on(&area, x, 0.0..high * 1.1)?,
            }
            area.present()?;
        }
        Ok(svg)
    }

    fn draw_on<'a, X, Y>(
        &self,
        area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
        x: X,
        y: Y,
    ) -> Result<(), Failure>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(x, y)?;
        let number = |number: &f64| digits(*number);
        chart
            .configure_mesh()
            .label_style(("sans-serif", 15))
            .axis_desc_style(("sans-serif", 16))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .light_line_style(WHITE)
            .draw()?;
        for (place, series) in self.series.iter().enumerate().filter(|(_, s)| !s.points.is_empty()) {
            let colour = Palette99::pick(place).to_rgba();
            chart
                .draw_series(LineSeries::new(series.points.iter().copied(), colour.stroke_width(2)))?
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            let known = series.points.iter().filter(|point| !series.bounds.contains(point));
            chart.draw_series(known.map(|point| Circle::new(*point, 3, colour.filled())))?;
            let bounds = series.bounds.iter();
            chart.draw_series(bounds.map(|point| TriangleMarker::new(*point, 7, colour.stroke_width(2))))?;
        }
        chart
            .configure_series_labels()
            .label_font(("sans-serif", 15))
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    }
}
