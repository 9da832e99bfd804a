//! Learning-rate schedules: the rate as a pure function of the step. They hold no state and change no optimizer.

use std::f64::consts::PI;

use crate::error::{Result, TrainingError};

/// How the learning rate changes during training.
///
/// # Example
///
/// ```
/// use metal_candle::training::LRScheduler;
///
/// let schedule = LRScheduler::warmup_cosine(100, 1000, 1e-4, 1e-6);
/// assert!(schedule.validate().is_ok());
/// assert_eq!(schedule.get_lr(0), 0.0);
/// assert_eq!(schedule.get_lr(50), 5e-5);
/// assert_eq!(schedule.get_lr(100), 1e-4);
/// assert_eq!(schedule.get_lr(1000), 1e-6);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum LRScheduler {
    /// A constant rate.
    Constant {
        /// The rate.
        lr: f32,
    },

    /// Linear warm-up from 0 to `max_lr`, constant afterwards.
    Linear {
        /// Steps until `max_lr` is reached.
        warmup_steps: usize,
        /// The rate after the warm-up.
        max_lr: f32,
    },

    /// Cosine decay from `max_lr` to `min_lr`, constant afterwards:
    /// `min_lr + (max_lr - min_lr) * (1 + cos(pi * step / total_steps)) / 2`.
    Cosine {
        /// Steps until `min_lr` is reached.
        total_steps: usize,
        /// The initial rate.
        max_lr: f32,
        /// The final rate.
        min_lr: f32,
    },

    /// Linear warm-up from 0 to `max_lr`, then cosine decay to `min_lr`, constant afterwards.
    WarmupCosine {
        /// Steps of the warm-up.
        warmup_steps: usize,
        /// Steps until `min_lr` is reached, including the warm-up.
        total_steps: usize,
        /// The peak rate.
        max_lr: f32,
        /// The final rate.
        min_lr: f32,
    },
}

impl LRScheduler {
    /// [`LRScheduler::Constant`].
    #[must_use]
    pub const fn constant(lr: f32) -> Self {
        Self::Constant { lr }
    }

    /// [`LRScheduler::Linear`].
    #[must_use]
    pub const fn linear(warmup_steps: usize, max_lr: f32) -> Self {
        Self::Linear { warmup_steps, max_lr }
    }

    /// [`LRScheduler::Cosine`].
    #[must_use]
    pub const fn cosine(total_steps: usize, max_lr: f32, min_lr: f32) -> Self {
        Self::Cosine {
            total_steps,
            max_lr,
            min_lr,
        }
    }

    /// [`LRScheduler::WarmupCosine`].
    #[must_use]
    pub const fn warmup_cosine(warmup_steps: usize, total_steps: usize, max_lr: f32, min_lr: f32) -> Self {
        Self::WarmupCosine {
            warmup_steps,
            total_steps,
            max_lr,
            min_lr,
        }
    }

    /// The learning rate of `step`, counted from 0.
    #[must_use]
    pub fn get_lr(&self, step: usize) -> f32 {
        match *self {
            Self::Constant { lr } => lr,
            Self::Linear { warmup_steps, max_lr } => line(step, warmup_steps, max_lr),
            Self::Cosine {
                total_steps,
                max_lr,
                min_lr,
            } => cosine(step, total_steps, max_lr, min_lr),
            Self::WarmupCosine {
                warmup_steps, max_lr, ..
            } if step < warmup_steps => line(step, warmup_steps, max_lr),
            Self::WarmupCosine {
                warmup_steps,
                total_steps,
                max_lr,
                min_lr,
            } => cosine(
                step - warmup_steps,
                total_steps.saturating_sub(warmup_steps),
                max_lr,
                min_lr,
            ),
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`TrainingError::InvalidConfig`] unless the (highest) rate is finite and above 0, `min_lr` is at least 0 and below
    /// `max_lr`, a warm-up has at least one step, and steps remain after it.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::Constant { lr } => check_rate("lr", lr),
            Self::Linear { warmup_steps, max_lr } => {
                check_steps("warmup_steps", warmup_steps, 0)?;
                check_rate("max_lr", max_lr)
            }
            Self::Cosine {
                total_steps,
                max_lr,
                min_lr,
            } => {
                check_steps("total_steps", total_steps, 0)?;
                check_range(max_lr, min_lr)
            }
            Self::WarmupCosine {
                warmup_steps,
                total_steps,
                max_lr,
                min_lr,
            } => {
                check_steps("warmup_steps", warmup_steps, 0)?;
                check_steps("total_steps", total_steps, warmup_steps)?;
                check_range(max_lr, min_lr)
            }
        }
    }
}

/// The fraction of `step` in `end`, at most 1. In f64, which represents every step number exactly.
fn progress(step: usize, end: usize) -> f64 {
    if step >= end { 1.0 } else { step as f64 / end as f64 }
}

fn line(step: usize, end: usize, max_lr: f32) -> f32 {
    (f64::from(max_lr) * progress(step, end)) as f32
}

fn cosine(step: usize, end: usize, max_lr: f32, min_lr: f32) -> f32 {
    let (max, min) = (f64::from(max_lr), f64::from(min_lr));
    (min + 0.5 * (max - min) * (1.0 + (PI * progress(step, end)).cos())) as f32
}

fn check_steps(name: &str, steps: usize, more_than: usize) -> Result<()> {
    if steps > more_than {
        return Ok(());
    }
    Err(TrainingError::config(format!(
        "learning-rate schedule: {name} is {steps}, it must be more than {more_than}"
    )))
}

fn check_rate(name: &str, lr: f32) -> Result<()> {
    if lr.is_finite() && lr > 0.0 {
        return Ok(());
    }
    Err(TrainingError::config(format!(
        "learning-rate schedule: {name} is {lr}, it must be finite and above 0"
    )))
}

fn check_range(max_lr: f32, min_lr: f32) -> Result<()> {
    check_rate("max_lr", max_lr)?;
    if (0.0..max_lr).contains(&min_lr) {
        return Ok(());
    }
    Err(TrainingError::config(format!(
        "learning-rate schedule: min_lr is {min_lr}, it must be at least 0 and below max_lr {max_lr}"
    )))
}
