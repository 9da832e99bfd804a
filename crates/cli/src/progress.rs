//! Progress on stderr: on a terminal a bar with loss, tokens per second and time left; elsewhere, and on terminals
//! without cursor movement (`TERM=dumb`), occasional lines. Narrow terminals show less, but always step, loss and time
//! left.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use metal_candle::training::StepReport;

use crate::console;
use crate::report::{count, time_left};

/// Time between lines without a terminal.
const EVERY: Duration = Duration::from_secs(5);
/// Weight of the newest step in the speed shown.
const NEWEST: f64 = 0.1;

/// Progress of a training run.
pub struct Progress {
    bar: Option<ProgressBar>,
    layout: LineLayout,
    last_line: Option<Instant>,
    speed: Speed,
}

impl Progress {
    /// Begins at step 0.
    pub fn start(total_steps: usize) -> Self {
        Self {
            bar: bar(total_steps, "training"),
            layout: LineLayout::first(columns()),
            last_line: None,
            speed: Speed::default(),
        }
    }

    /// A step was done.
    pub fn step(&mut self, report: &StepReport) {
        self.speed.add(report);
        let left = self.speed.seconds * report.total_steps.saturating_sub(report.step) as f64;
        let (speed, left) = (self.speed.text(), time_left(left));
        let text = LineLayout::Wide.text(report, &speed, &left);
        if let Some(bar) = &self.bar {
            let layout = LineLayout::fitting(columns(), report, &speed, &left);
            if layout != self.layout {
                self.layout = layout;
                style(bar, layout);
            }
            bar.set_position(report.step as u64);
            bar.set_message(layout.text(report, &speed, &left));
        } else if report.step == report.total_steps || self.last_line.is_none_or(|last| last.elapsed() >= EVERY) {
            console::warn(&format!(
                "step {}/{}, epoch {:.2}, {text}",
                report.step, report.total_steps, report.epoch
            ));
            self.last_line = Some(Instant::now());
        }
    }

    /// A batch of the validation set was evaluated.
    pub fn evaluating(&mut self, batches: usize, total: usize) {
        let text = format!("validation {batches}/{total}");
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None if self.last_line.is_none_or(|last| last.elapsed() >= EVERY) => {
                console::warn(&text);
                self.last_line = Some(Instant::now());
            }
            None => {}
        }
    }

    /// The validation loss was evaluated.
    pub fn evaluation(&self, step: usize, loss: f64) {
        let text = format!("step {step}: validation loss {loss:.4}");
        match &self.bar {
            Some(bar) => bar.println(text),
            None => console::warn(&text),
        }
    }

    /// Clears the bar.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress of a counted activity; shown on a terminal only.
pub struct Counter(Option<ProgressBar>);

impl Counter {
    /// Begins at 0 of `total`.
    pub fn start(total: usize, what: &str) -> Self {
        let bar = bar(total, "");
        if let Some(bar) = &bar {
            bar.set_message(what.to_owned());
        }
        Self(bar)
    }

    /// One more is done.
    pub fn advance(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }

    /// Clears the bar.
    pub fn finish(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: usize, prefix: &'static str) -> Option<ProgressBar> {
    let target = ProgressDrawTarget::stderr();
    if target.is_hidden() {
        return None;
    }
    let bar = ProgressBar::with_draw_target(Some(total as u64), target).with_prefix(prefix);
    style(&bar, LineLayout::first(columns()));
    bar.tick();
    Some(bar)
}

/// Width of the terminal, which may change at any time.
fn columns() -> usize {
    usize::from(::console::Term::stderr().size().1)
}

fn style(bar: &ProgressBar, layout: LineLayout) {
    if let Ok(style) = ProgressStyle::with_template(layout.template()) {
        bar.set_style(style.progress_chars("━━─"));
    }
}

/// The layout of a line, by the width of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineLayout {
    /// Everything.
    Wide,
    /// A short bar, without the name of the activity.
    Medium,
    /// No bar and no speed.
    Narrow,
    /// Numbers only.
    Least,
}

impl LineLayout {
    const ALL: [Self; 4] = [Self::Wide, Self::Medium, Self::Narrow, Self::Least];

    /// The layout before the first step.
    fn first(width: usize) -> Self {
        if width < 60 { Self::Narrow } else { Self::Wide }
    }

    fn template(self) -> &'static str {
        match self {
            Self::Wide => "{prefix:.bold} {bar:28.cyan/dim} {pos}/{len}  {wide_msg}",
            Self::Medium => "{bar:10.cyan/dim} {pos}/{len}  {wide_msg}",
            Self::Narrow | Self::Least => "{pos}/{len} {wide_msg}",
        }
    }

    /// Columns before the message, without step and total.
    fn columns(self) -> usize {
        match self {
            Self::Wide => "training ".len() + 28 + " /  ".len(),
            Self::Medium => 10 + " /  ".len(),
            Self::Narrow | Self::Least => "/ ".len(),
        }
    }

    fn text(self, report: &StepReport, speed: &str, left: &str) -> String {
        let loss = report.loss;
        let skipped = if report.skipped { " (step skipped)" } else { "" };
        match self {
            Self::Wide | Self::Medium => format!("loss {loss:.4}{skipped}, {speed} tokens/s, {left} left"),
            Self::Narrow => format!("loss {loss:.4}, {left} left"),
            Self::Least => format!("{loss:.3} {}", left.replace(' ', "")),
        }
    }

    /// The first layout that fits into a line of `width` columns; the last if none does.
    fn fitting(width: usize, report: &StepReport, speed: &str, left: &str) -> Self {
        let steps = report.step.to_string().len() + report.total_steps.to_string().len();
        // Some terminals wrap when a line is full.
        let fits = |layout: &Self| layout.columns() + steps + layout.text(report, speed, left).len() < width;
        Self::ALL.into_iter().find(fits).unwrap_or(Self::Least)
    }
}

/// Tokens and seconds of a step, averaged with the newest counting most.
#[derive(Default)]
struct Speed {
    seconds: f64,
    tokens: f64,
}

impl Speed {
    fn add(&mut self, report: &StepReport) {
        // The first step includes planning; it is ignored from the second step on.
        let weight = if report.step <= 2 { 1.0 } else { NEWEST };
        self.seconds += weight * (report.seconds - self.seconds);
        self.tokens += weight * (report.tokens as f64 - self.tokens);
    }

    fn text(&self) -> String {
        if self.seconds > 0.0 {
            count((self.tokens / self.seconds) as usize)
        } else {
            "-".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: usize, seconds: f64) -> StepReport {
        StepReport {
            step,
            total_steps: 9,
            epoch: 0.0,
            loss: 1.0,
            grad_norm: 1.0,
            learning_rate: 1.0,
            tokens: 100,
            supervised_tokens: 50,
            seconds,
            skipped: false,
        }
    }

    /// What a line of each width shows.
    #[test]
    fn narrow_terminals_show_step_loss_and_time_left() {
        let report = StepReport {
            total_steps: 1200,
            loss: 2.34567,
            ..report(37, 1.0)
        };
        let shown = |width: usize| {
            let (speed, left) = ("12,345", "3 min 05 s");
            let layout = LineLayout::fitting(width, &report, speed, left);
            (
                layout,
                layout.columns() + 6 + layout.text(&report, speed, left).len(),
                layout.text(&report, speed, left),
            )
        };
        let all = "loss 2.3457, 12,345 tokens/s, 3 min 05 s left";
        for (width, layout, text) in [
            (200, LineLayout::Wide, all),
            (100, LineLayout::Wide, all),
            (80, LineLayout::Medium, all),
            (66, LineLayout::Medium, all),
            (65, LineLayout::Narrow, "loss 2.3457, 3 min 05 s left"),
            (40, LineLayout::Narrow, "loss 2.3457, 3 min 05 s left"),
            (36, LineLayout::Least, "2.346 3min05s"),
            (24, LineLayout::Least, "2.346 3min05s"),
        ] {
            let (found, columns, message) = shown(width);
            assert_eq!((found, message.as_str()), (layout, text), "{width} columns");
            assert!(columns < width, "{width} columns");
        }
        assert_eq!(shown(1).0, LineLayout::Least);
    }

    #[test]
    fn the_first_step_does_not_slow_the_rest_down() {
        let mut speed = Speed::default();
        for (step, seconds) in [(1, 10.0), (2, 0.5), (3, 0.5)] {
            speed.add(&report(step, seconds));
        }
        assert_eq!(speed.text(), "200");
    }
}
