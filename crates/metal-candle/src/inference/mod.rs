//! Text generation: from a prompt to tokens, from logits to a token, from tokens to text.
//!
//! A [`Decoder`] caches keys and values, so that each new token costs one short pass; prefill and decoding run as
//! compiled steps. A [`Generator`] generates text with it. Nothing here depends on an architecture.

mod cache;
mod decoder;
mod filters;
mod generate_error;
mod generator;
mod logits_processors;
mod sampling;
mod stop;
mod stream_token;

pub use cache::KvCache;
pub use decoder::Decoder;
pub use generate_error::GenerateError;
pub use generator::{FinishReason, Generation, GenerationOptions, Generator, Prompt};
pub use logits_processors::LogitsProcessors;
pub use sampling::{Sampler, SamplingConfig, SamplingError};
pub use stream_token::StreamToken;
