//! Records the events of a run: a line of `metrics.jsonl`, a point of the plot, and the progress display.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use metal_candle::training::{Event, StepReport};
use serde_json::{Value, json};

use crate::error::{Failure, Result};
use crate::plot::Curve;
use crate::progress::Progress;

/// Records a run.
pub struct Recorder {
    file: File,
    path: PathBuf,
    progress: Progress,
    curve: Curve,
    failure: Option<Failure>,
}

impl Recorder {
    /// Writes to `file`; messages call it `path`.
    pub fn new(file: File, path: PathBuf, total_steps: usize) -> Self {
        Self {
            file,
            path,
            progress: Progress::start(total_steps),
            curve: Curve::default(),
            failure: None,
        }
    }

    /// Records an event; breaks if it cannot be written.
    pub fn observe(&mut self, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Step(report) => {
                self.curve.step(report.step, report.loss);
                self.progress.step(report);
            }
            Event::Evaluation { step, loss, .. } => {
                self.curve.evaluation(*step, *loss);
                self.progress.evaluation(*step, *loss);
            }
            Event::Evaluating {
                batches, total_batches, ..
            } => self.progress.evaluating(*batches, *total_batches),
            _ => {}
        }
        let Some(line) = line(event) else {
            return ControlFlow::Continue(());
        };
        // One write per line: readers never see a partial line, and nothing is left in a buffer.
        match self.file.write_all(format!("{line}\n").as_bytes()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failure = Some(Failure::Run(format!(
                    "{}: cannot be written: {error}",
                    self.path.display()
                )));
                ControlFlow::Break(())
            }
        }
    }

    /// Whether no step was recorded.
    pub fn is_empty(&self) -> bool {
        self.curve.is_empty()
    }

    /// Ends the progress display; returns the curve, and the first write error.
    pub fn finish(self) -> (Curve, Result<()>) {
        self.progress.finish();
        (self.curve, self.failure.map_or(Ok(()), Err))
    }
}

/// An event with the names of Hugging Face's logs, if it is recorded.
fn line(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Step(StepReport {
            step,
            epoch,
            loss,
            grad_norm,
            learning_rate,
            tokens,
            supervised_tokens,
            seconds,
            skipped,
            ..
        }) => {
            json!({
                "step": step,
                "epoch": number(*epoch),
                "loss": number(*loss),
                "grad_norm": number(*grad_norm),
                "learning_rate": number(*learning_rate),
                "tokens": tokens,
                "supervised_tokens": supervised_tokens,
                "seconds": number(*seconds),
                "skipped": skipped,
            })
        }
        Event::Evaluation {
            step,
            loss,
            supervised_tokens,
        } => {
            json!({ "step": step, "eval_loss": number(*loss), "eval_supervised_tokens": supervised_tokens })
        }
        _ => return None,
    })
}

/// JSON has no NaN and infinity; they are written as strings.
fn number(value: f64) -> Value {
    if value.is_finite() {
        json!(value)
    } else {
        json!(value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_non_finite_values() {
        let event = Event::Evaluation {
            step: 3,
            loss: f64::NAN,
            supervised_tokens: 7,
        };
        assert_eq!(
            line(&event).unwrap().to_string(),
            r#"{"step":3,"eval_loss":"NaN","eval_supervised_tokens":7}"#
        );
    }
}
