//! Fine-tune language models with `LoRA` and generate text with the adapters.
//!
//! Two layers share this crate. The eager one, always built, runs each operation on [Candle](candle_core) as it is
//! called: [`training`] holds adapter layers, losses, optimizer and schedules for programs that write their own loop.
//! The lazy one (feature `graph`, on by default) records operations first and runs them as one plan.
//!
//! The crate never downloads anything and never prints: errors are an [`Error`], output is up to the caller.
//!
//! # Example
//!
//! One training step of an adapter on top of a frozen layer, with Candle's own autograd:
//!
//! ```
//! use candle_core::Tensor;
//! use metal_candle::Device;
//! use metal_candle::training::{AdamW, AdamWConfig, LoRAConfig, LoRALayer};
//!
//! # fn main() -> metal_candle::Result<()> {
//! let device = Device::new_cpu();
//! let lora = LoRALayer::new(16, 8, &LoRAConfig::default(), &device)?;
//! let mut optimizer = AdamW::new(AdamWConfig::default())?;
//!
//! let x = Tensor::randn(0f32, 1f32, (4, 16), device.as_candle_device())?;
//! let frozen = Tensor::randn(0f32, 1f32, (16, 8), device.as_candle_device())?;
//! let y = (x.matmul(&frozen)? + lora.forward(&x)?)?;
//!
//! let gradients = y.sqr()?.mean_all()?.backward()?;
//! for parameter in lora.trainable_variables() {
//!     if let Some(gradient) = gradients.get(parameter) {
//!         optimizer.step_var(parameter, gradient)?;
//!     }
//! }
//! assert_eq!(optimizer.step_count(), 1);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "graph")]
pub mod adapters;
#[cfg(feature = "graph")]
pub mod data;
pub mod error;
#[cfg(feature = "graph")]
pub mod graph;
#[cfg(feature = "graph")]
pub mod inference;
#[cfg(feature = "graph")]
pub mod models;
#[cfg(feature = "graph")]
pub mod nn;
#[cfg(feature = "graph")]
pub mod text;
pub mod training;

mod device;
mod tensor_ext;

/// The paths of version 1 to devices and tensor extensions.
pub mod backend {
    pub use crate::{Device, DeviceInfo, DeviceType, TensorExt};

    /// The path of version 1 to [`Device`].
    pub mod device {
        pub use crate::{Device, DeviceInfo, DeviceType};
    }

    /// The path of version 1 to [`TensorExt`].
    pub mod tensor {
        pub use crate::TensorExt;
    }
}

/// Compiles the programs of the README as documentation tests.
#[cfg(all(doctest, feature = "graph"))]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// Compiles those of the migration guide.
#[cfg(all(doctest, feature = "graph"))]
#[doc = include_str!("../../../MIGRATION.md")]
struct Migration;

pub use device::{Device, DeviceInfo, DeviceType};
pub use error::{Error, Result};
#[cfg(feature = "graph")]
pub use inference::{Generator, StreamToken};
pub use tensor_ext::TensorExt;
#[cfg(feature = "graph")]
pub use training::Trainer;
pub use training::{
    AdamW, AdamWConfig, LRScheduler, LoRAConfig, LoRALayer, cross_entropy_loss, cross_entropy_loss_with_smoothing,
};

/// The version of this crate, as in its `Cargo.toml`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
