//! Training: adapter layers, losses, the optimizer and learning-rate schedules.
//!
//! The eager part has the names of version 1: every call runs at once on Candle, and gradients come from Candle's
//! `backward`. Nothing here uses Candle's fused softmax or norms, which silently stop gradients.

mod adamw;
mod lora_config;
mod lora_layer;
#[cfg(feature = "graph")]
mod lora_lazy;
pub mod loss;
mod lr_scheduler;
#[cfg(feature = "graph")]
mod schedule;
#[cfg(feature = "graph")]
mod stepper;
#[cfg(feature = "graph")]
mod trainer;
#[cfg(feature = "graph")]
mod trainer_config;

pub use adamw::{AdamW, AdamWConfig};
pub use lora_config::LoRAConfig;
pub use lora_layer::LoRALayer;
pub use loss::{cross_entropy_loss, cross_entropy_loss_with_smoothing};
pub use lr_scheduler::LRScheduler;
#[cfg(feature = "graph")]
pub use schedule::Schedule;
#[cfg(feature = "graph")]
pub use stepper::{StepOutcome, Stepper};
#[cfg(feature = "graph")]
pub use trainer::{Event, StepReport, Summary, Trainer};
#[cfg(feature = "graph")]
pub use trainer_config::TrainerConfig;

pub use crate::error::TrainingError;

/// The path of version 1 to the adapter layer.
pub mod lora {
    pub use super::{LoRAConfig, LoRALayer};
}

/// The path of version 1 to the optimizer.
pub mod optimizer {
    pub use super::{AdamW, AdamWConfig};
}

/// The path of version 1 to the learning-rate schedules.
pub mod scheduler {
    pub use super::LRScheduler;
}
