//! Settings of a training run, under the names of Hugging Face's `TrainingArguments`.

use serde::{Deserialize, Serialize};

use super::TrainingError;
use super::schedule::Schedule;
use crate::error::{Result, setting_text};

/// More epochs are surely a mistake.
const MOST_EPOCHS: f64 = 1e5;

/// Settings of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Number of epochs; may be a fraction.
    pub num_train_epochs: f64,
    /// Number of optimizer steps; if given, it overrides the epochs.
    pub max_steps: Option<usize>,
    /// Rows per batch; with `packing`, a batch holds as many tokens as this many rows of `max_length`.
    pub per_device_train_batch_size: usize,
    /// Batches per optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Longest row in tokens.
    pub max_length: usize,
    /// Packs several examples into one row; they do not see each other. The row length is chosen for the data, up to
    /// `max_length`.
    pub packing: bool,
    /// The learning rate after the warm-up.
    pub lr_scheduler_type: Schedule,
    /// Steps of the warm-up; if given, it overrides the ratio.
    pub warmup_steps: Option<usize>,
    /// Warm-up as a share of all steps.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the denominator.
    pub adam_epsilon: f64,
    /// Global norm for gradient clipping; 0 disables it.
    pub max_grad_norm: f64,
    /// Steps between evaluations; the validation set is always evaluated at the end.
    pub eval_steps: Option<usize>,
    /// Seed of data order and dropout.
    pub seed: u64,
    /// Maximum number of consecutive steps with a non-finite loss or gradient; such steps are skipped.
    pub max_nonfinite_steps: usize,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            num_train_epochs: 3.0,
            max_steps: None,
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 1,
            max_length: 1024,
            packing: false,
            lr_scheduler_type: Schedule::Cosine,
            warmup_steps: None,
            warmup_ratio: 0.03,
            weight_decay: 0.01,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            eval_steps: None,
            seed: 42,
            max_nonfinite_steps: 5,
        }
    }
}

impl TrainerConfig {
    /// Checks that every setting is in range.
    ///
    /// # Errors
    /// Naming the setting, its value and its range.
    pub fn validate(&self) -> Result<()> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        // The optimizer computes in f32, where 1e-50 is 0 and 0.99999999 is 1.
        let positive32 = |x: f64| positive(f64::from(x as f32));
        let share = |x: f64| x >= 0.0 && (x as f32) < 1.0;
        let checks = [
            (
                positive32(self.learning_rate),
                "learning_rate",
                self.learning_rate,
                "finite and above 0",
            ),
            (
                self.max_steps.is_some() || (positive(self.num_train_epochs) && self.num_train_epochs <= MOST_EPOCHS),
                "num_train_epochs",
                self.num_train_epochs,
                "above 0 and at most 100000",
            ),
            (self.max_steps != Some(0), "max_steps", 0.0, "at least 1"),
            (
                self.per_device_train_batch_size > 0,
                "per_device_train_batch_size",
                0.0,
                "at least 1",
            ),
            (
                self.gradient_accumulation_steps > 0,
                "gradient_accumulation_steps",
                0.0,
                "at least 1",
            ),
            (self.max_length > 1, "max_length", self.max_length as f64, "at least 2"),
            (
                share(self.warmup_ratio),
                "warmup_ratio",
                self.warmup_ratio,
                "at least 0 and below 1",
            ),
            (
                (self.weight_decay as f32).is_finite() && self.weight_decay >= 0.0,
                "weight_decay",
                self.weight_decay,
                "finite and at least 0",
            ),
            (
                share(self.adam_beta1),
                "adam_beta1",
                self.adam_beta1,
                "at least 0 and below 1",
            ),
            (
                share(self.adam_beta2),
                "adam_beta2",
                self.adam_beta2,
                "at least 0 and below 1",
            ),
            (
                positive32(self.adam_epsilon),
                "adam_epsilon",
                self.adam_epsilon,
                "finite and above 0",
            ),
            (
                self.max_grad_norm == 0.0 || positive32(self.max_grad_norm),
                "max_grad_norm",
                self.max_grad_norm,
                "finite and at least 0",
            ),
            (self.eval_steps != Some(0), "eval_steps", 0.0, "at least 1"),
        ];
        match checks.into_iter().find(|(fits, ..)| !fits) {
            None => Ok(()),
            Some((_, name, value, range)) => Err(TrainingError::config(format!(
                "{name} must be {range}, got {}",
                setting_text(value)
            ))),
        }
    }

    /// Steps of the warm-up in a run of `total` steps.
    #[must_use]
    pub fn warmup_of(&self, total: usize) -> usize {
        self.warmup_steps
            .unwrap_or_else(|| (total as f64 * self.warmup_ratio).ceil() as usize)
    }

    /// The learning rate of step `step` (from 0) of `total`.
    #[must_use]
    pub fn learning_rate_at(&self, step: usize, total: usize) -> f64 {
        self.learning_rate * self.lr_scheduler_type.factor(step, self.warmup_of(total), total)
    }
}
