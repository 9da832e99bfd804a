//! `LoRA` adapters: PEFT's `adapter_config.json` and `adapter_model.safetensors`.
//!
//! PEFT can read the adapters written here, and vice versa. Settings that would change the computation and are not
//! implemented are refused by name, and so is every missing, extra or misshapen tensor: an adapter is either applied as
//! a whole or not at all. Reading and writing are independent of models and use only names and sizes of modules;
//! [`apply`] and [`attach`] wrap the layers of a model, which can have one adapter at a time, and [`detach`] removes
//! it.

mod config;
mod error;
mod files;
mod target_modules;
mod wrap;

pub use config::{AdapterConfig, PerModule};
pub use error::AdapterError;
pub use files::{Adapter, AdapterReport, LoraPair, write_adapter};
pub use target_modules::{TargetModules, select};
pub use wrap::{AdaptedModule, AdapterParameters, LoraLinear, apply, apply_adapter, attach, detach};
