//! `loss.svg`: the training loss step by step and smoothed, and the validation loss.

use std::path::Path;

use metal_candle::graph::io::write_atomically;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::error::{Failure, Result};

const SIZE: (u32, u32) = (960, 540);
const INK: RGBColor = RGBColor(51, 51, 51);
const FAINT: RGBColor = RGBColor(232, 232, 232);
const STEPS: RGBColor = RGBColor(183, 209, 236);
const SMOOTH: RGBColor = RGBColor(31, 111, 180);
const VALIDATION: RGBColor = RGBColor(217, 108, 36);
/// The smoothed line averages over a window of the run's length divided by this.
const WINDOW: usize = 20;

type Point = (f64, f64);
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Losses by step.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Curve {
    training: Vec<Point>,
    validation: Vec<Point>,
    any: bool,
}

impl Curve {
    /// Adds the loss of a step; a non-finite one leaves a gap.
    pub fn step(&mut self, step: usize, loss: f64) {
        self.any = true;
        if loss.is_finite() {
            self.training.push((step as f64, loss));
        }
    }

    /// Adds the validation loss after a step.
    pub fn evaluation(&mut self, step: usize, loss: f64) {
        if loss.is_finite() {
            self.validation.push((step as f64, loss));
        }
    }

    /// Whether there was no step.
    pub fn is_empty(&self) -> bool {
        !self.any
    }

    /// Each loss averaged with its neighbours.
    fn smoothed(&self) -> Vec<Point> {
        let points = &self.training;
        let reach = points.len() / WINDOW / 2;
        let mean = |i: usize| {
            // A symmetric window, so that the ends are not biased.
            let reach = reach.min(i).min(points.len() - 1 - i);
            let near = &points[i - reach..=i + reach];
            (
                points[i].0,
                near.iter().map(|(_, loss)| loss).sum::<f64>() / near.len() as f64,
            )
        };
        (0..points.len()).map(mean).collect()
    }
}

/// Draws and writes the plot.
///
/// # Errors
/// On a system error.
pub fn write(path: &Path, curve: &Curve) -> Result<()> {
    let svg = draw(curve).map_err(|why| Failure::Run(format!("{}: cannot be drawn: {why}", path.display())))?;
    Ok(write_atomically(path, |out| out.write_all(svg.as_bytes()))?)
}

fn draw(curve: &Curve) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let last = curve
            .training
            .iter()
            .chain(&curve.validation)
            .map(|p| p.0)
            .fold(2.0, f64::max);
        let highest = curve
            .training
            .iter()
            .chain(&curve.validation)
            .map(|p| p.1)
            .fold(0.0, f64::max);
        let top = if highest > 0.0 { highest * 1.05 } else { 1.0 };
        let mut chart = ChartBuilder::on(&root)
            .caption("Training loss", ("sans-serif", 28).into_font().color(&INK))
            .margin(20)
            .margin_right(32)
            .x_label_area_size(56)
            .y_label_area_size(72)
            .build_cartesian_2d(1.0..last, 0.0..top)?;
        axes(&mut chart)?;
        lines(&mut chart, curve)?;
        root.present()?;
    }
    Ok(svg)
}

fn axes(chart: &mut Chart<'_, '_>) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let font = |size: u32| ("sans-serif", size).into_font().color(&INK);
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(RGBColor(153, 153, 153))
        .x_labels(10)
        .y_labels(8)
        .x_desc("step")
        .y_desc("loss per token")
        .axis_desc_style(font(20))
        .label_style(font(18))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| short(*y))
        .draw()?;
    Ok(())
}

fn lines<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>, curve: &Curve) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let swatch = |colour: RGBColor, width: u32| {
        move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(width))
    };
    let each = LineSeries::new(curve.training.iter().copied(), STEPS.stroke_width(1));
    chart.draw_series(each)?.label("each step").legend(swatch(STEPS, 2));
    let smooth = LineSeries::new(curve.smoothed(), SMOOTH.stroke_width(3));
    chart.draw_series(smooth)?.label("smoothed").legend(swatch(SMOOTH, 3));
    if !curve.validation.is_empty() {
        chart.draw_series(LineSeries::new(
            curve.validation.iter().copied(),
            VALIDATION.stroke_width(2),
        ))?;
        let points = curve
            .validation
            .iter()
            .map(|point| Circle::new(*point, 5, VALIDATION.filled()));
        let dot = |(x, y): (i32, i32)| Circle::new((x + 11, y), 5, VALIDATION.filled());
        chart.draw_series(points)?.label("validation").legend(dot);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(16)
        .legend_area_size(36)
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT)
        .label_font(("sans-serif", 18).into_font().color(&INK))
        .draw()?;
    Ok(())
}

/// A loss with as many digits as an axis needs.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(steps: usize) -> Curve {
        let mut curve = Curve::default();
        for step in 1..=steps {
            curve.step(step, 3.0 / step as f64 + f64::from(u8::from(step % 2 == 0)) * 0.1);
        }
        curve
    }

    #[test]
    fn non_finite_losses_are_left_out() {
        let mut with_gaps = curve(40);
        with_gaps.step(41, f64::NAN);
        with_gaps.evaluation(41, f64::INFINITY);
        assert_eq!(with_gaps, curve(40));
        let mut nothing = Curve::default();
        nothing.step(1, f64::NAN);
        assert!(!nothing.is_empty());
        assert!(draw(&nothing).unwrap().contains("Training loss"));
    }

    #[test]
    fn smoothing_keeps_a_straight_line_and_reduces_noise() {
        let mut straight = Curve::default();
        (1..=100).for_each(|step| straight.step(step, 5.0 - 0.01 * step as f64));
        for (smooth, point) in straight.smoothed().iter().zip(&straight.training) {
            assert!((smooth.1 - point.1).abs() < 1e-12);
        }
        let roughness = |points: &[Point]| points[40..60].windows(2).map(|w| (w[1].1 - w[0].1).abs()).sum::<f64>();
        assert!(roughness(&curve(100).smoothed()) < 0.5 * roughness(&curve(100).training));
    }

    #[test]
    fn the_plot_shows_every_series() {
        let mut curve = curve(30);
        curve.evaluation(30, 0.5);
        let svg = draw(&curve).unwrap();
        for text in [
            "Training loss",
            "step",
            "loss per token",
            "smoothed",
            "validation",
            "<circle",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!draw(&super::tests::curve(1)).unwrap().contains("validation"));
    }

    #[test]
    fn axis_labels_are_short() {
        assert_eq!(
            [0.0, 0.5, 2.0, 10.0, 0.125].map(short),
            ["0", "0.5", "2", "10", "0.125"]
        );
    }
}
