//! Learning-rate schedules of a run, by Hugging Face's formulas: linear warm-up, then constant, linear or cosine.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Constant at the peak.
    Constant,
    /// Linear decay to zero.
    Linear,
    /// Cosine decay to zero.
    #[default]
    Cosine,
}

impl Schedule {
    /// The factor on the peak learning rate for the optimizer step `step` (from 0) of `total`: `step / warmup` during
    /// the warm-up, then 1, `1 - p` or `(1 + cos(pi p)) / 2` with `p` the completed fraction of the remaining steps.
    ///
    /// ```
    /// use metal_candle::training::Schedule;
    ///
    /// assert_eq!(Schedule::Cosine.factor(0, 2, 10), 0.0);
    /// assert_eq!(Schedule::Cosine.factor(2, 2, 10), 1.0);
    /// assert_eq!(Schedule::Linear.factor(6, 2, 10), 0.5);
    /// ```
    #[must_use]
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let done = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => (1.0 - done).max(0.0),
            Self::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * done).cos())).max(0.0),
        }
    }
}
