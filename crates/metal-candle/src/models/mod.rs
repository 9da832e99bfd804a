//! Models: what a Hugging Face folder says about itself, and the architectures built from it.
//!
//! A model file (`llama.rs`, `qwen2.rs`, named by `model_type`) says how one decoder layer is put together; `decoder.rs`
//! is what they share. Models hold no kernel, know no adapter and never ask which device they are on.

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
mod settings_file;
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
pub(crate) use settings_file::read_settings;
