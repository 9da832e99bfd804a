//! Pre-tokenization: how tokenizers split a text, as in the Python tokenizers.
//!
//! The Python wheel runs split patterns with Oniguruma; here they are translated for Rust's engines, and run with a
//! limit on work, so that no pattern hangs the process. Nothing here knows a vocabulary.

mod brackets;
mod normalizer;
mod pattern;
mod pre_tokenizer;
mod translate;

pub(super) use normalizer::translate_patterns;
pub(super) use pre_tokenizer::PreSplit;

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
