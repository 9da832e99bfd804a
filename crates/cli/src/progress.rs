//! Progress on stderr: a bar with loss, tokens per second and time left on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use metal_candle::training::StepReport;

use crate::console;
use crate::report::{count, time_left};

/// Time between lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(5);
/// Weight of the newest step in the speed shown.
const NEWEST: f64 = 0.1;

/// Progress of a training run.
pub struct Progress {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    speed: Speed,
}

impl Progress {
    /// Begins at step 0.
    pub fn start(total_steps: usize) -> Self {
        Self {
            bar: bar(total_steps, "training"),
            last_line: None,
            speed: Speed::default(),
        }
    }

    /// A step was done.
    pub fn step(&mut self, report: &StepReport) {
        self.speed.add(report);
        let left = self.speed.seconds * report.total_steps.saturating_sub(report.step) as f64;
        let skipped = if report.skipped { " (step left out)" } else { "" };
        let text = format!(
            "loss {:.4}{skipped}, {} tokens/s, {} left",
            report.loss,
            self.speed.text(),
            time_left(left)
        );
        if let Some(bar) = &self.bar {
            bar.set_position(report.step as u64);
            bar.set_message(text);
        } else if report.step == report.total_steps || self.last_line.is_none_or(|last| last.elapsed() >= EVERY) {
            console::warn(&format!(
                "step {}/{}, epoch {:.2}, {text}",
                report.step, report.total_steps, report.epoch
            ));
            self.last_line = Some(Instant::now());
        }
    }

    /// The validation loss was measured.
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

/// Progress of something that is only counted; shown on a terminal alone.
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
    if !stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr()).with_prefix(prefix);
    let template = "{prefix:.bold} {bar:28.cyan/dim} {pos}/{len}  {wide_msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar.tick();
    Some(bar)
}

/// Tokens and seconds of a step, averaged with the newest counting most.
#[derive(Default)]
struct Speed {
    seconds: f64,
    tokens: f64,
}

impl Speed {
    fn add(&mut self, report: &StepReport) {
        // The first step also plans; once there is a second, it is forgotten.
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

    #[test]
    fn the_first_step_does_not_slow_the_rest_down() {
        let mut speed = Speed::default();
        for (step, seconds) in [(1, 10.0), (2, 0.5), (3, 0.5)] {
            speed.add(&report(step, seconds));
        }
        assert_eq!(speed.text(), "200");
    }
}
