//! Generating text: from logits to tokens.

mod sampling;

pub use sampling::{Sampler, SamplingConfig, SamplingError};
