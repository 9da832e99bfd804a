//! `LoRA` adapters: PEFT's `adapter_config.json` and `adapter_model.safetensors`.
//!
//! What PEFT wrote is read, and PEFT reads what is written here. Settings that would change the numbers and are not
//! implemented are refused by name, and so is every tensor that is missing, extra or misshapen: an adapter
//! is either applied as a whole or not at all. Reading and writing know no model, modules are names and sizes there;
//! [`apply`] and [`attach`] put an adapter around a model's layers, one at a time, and [`detach`] takes it off.

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
