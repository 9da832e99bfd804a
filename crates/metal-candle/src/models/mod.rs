//! Models: what a Hugging Face folder says about itself, and the architectures built from it.

mod config;
mod config_error;
mod fields;
mod generation_config;
mod parameters;
mod rope_scaling;

pub use config::{Architecture, ModelConfig};
pub use config_error::ConfigError;
pub(crate) use fields::Fields;
pub use generation_config::GenerationConfig;
pub use rope_scaling::{RopeConfig, RopeScaling};
