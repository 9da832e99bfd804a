//! Models: the settings and weights of a Hugging Face folder, and the architectures built from them.
//!
//! A model file (`llama.rs`, `qwen2.rs`, named by `model_type`) defines one decoder layer; `decoder.rs` is the common
//! part. Models contain no kernel, know no adapter and do not depend on the device.

mod config;
mod config_error;
mod decoder;
mod fields;
mod folder;
mod generation_config;
mod llama;
mod load_error;
mod load_options;
mod loader;
mod parameters;
mod qwen2;
mod random;
mod rope_frequencies;
mod rope_scaling;
mod weights;

pub use config::{Architecture, ModelConfig};
pub use config_error::ConfigError;
pub use decoder::CausalLm;
pub(crate) use fields::Fields;
pub use generation_config::GenerationConfig;
pub use load_error::{LoadError, TensorFaults};
pub use load_options::LoadOptions;
pub use loader::{LoadedModel, from_parts, from_recorded, load, load_model, load_model_with, load_with};
pub use metal_candle_graph::QuantFormat;
pub use random::{random, random_parameters, random_with};
pub use rope_scaling::{RopeConfig, RopeScaling};
