//! The settings of a `LoRA` layer: plain numbers, validated when a layer is created.

use crate::error::{Result, TrainingError};

/// Rank, alpha and dropout of a `LoRA` adapter.
///
/// # Example
///
/// ```
/// use metal_candle::training::LoRAConfig;
///
/// let config = LoRAConfig { rank: 4, alpha: 8.0, dropout: 0.05 };
/// assert_eq!(config.scaling(), 2.0);
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoRAConfig {
    /// Rank of the update; 4 to 32 is usual. A higher rank means more capacity and more parameters.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`; twice the rank is usual.
    pub alpha: f32,
    /// Dropout probability in `[0, 1)` on `x A` in training; 0 disables it.
    pub dropout: f32,
}

impl Default for LoRAConfig {
    /// Rank 8, alpha 16, no dropout.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
        }
    }
}

impl LoRAConfig {
    /// The scale of the update, `alpha / rank`.
    #[must_use]
    pub fn scaling(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`TrainingError::InvalidConfig`] if `rank` is 0, `alpha` is not finite and above 0, or `dropout` is outside `[0, 1)`.
    pub fn validate(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(TrainingError::config("LoRA rank is 0, it must be at least 1"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(TrainingError::config(format!(
                "LoRA alpha is {}, it must be finite and above 0",
                self.alpha
            )));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(TrainingError::config(format!(
                "LoRA dropout is {}, it must be at least 0 and below 1",
                self.dropout
            )));
        }
        Ok(())
    }
}
