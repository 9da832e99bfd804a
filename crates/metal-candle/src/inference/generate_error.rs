//! The errors of text generation.

use super::SamplingError;
use crate::text::TextError;

/// A rejected request. The generator can serve further ones.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompt has no tokens.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// A token of the prompt that is outside the vocabulary.
    #[error("token {id} at position {position} of the prompt is outside the vocabulary of {vocab_size} tokens")]
    TokenOutOfVocabulary {
        /// The token.
        id: u32,
        /// Its position in the prompt.
        position: usize,
        /// Vocabulary size.
        vocab_size: usize,
    },
    /// A stop token that is outside the vocabulary.
    #[error("stop token {id} is outside the vocabulary of {vocab_size} tokens, so it would never be generated")]
    StopTokenOutOfVocabulary {
        /// The token.
        id: u32,
        /// Vocabulary size.
        vocab_size: usize,
    },
    /// Prompt and answer exceed the model's context.
    #[error(
        "the prompt of {prompt} tokens and up to {max_new_tokens} new ones exceed the model's context of {limit} tokens \
         (max_position_embeddings); shorten the prompt or lower max_new_tokens"
    )]
    ContextTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Maximum number of tokens to generate.
        max_new_tokens: usize,
        /// Tokens of the context.
        limit: usize,
    },
    /// A conversation was given to a model without a chat template.
    #[error("the model has no chat template, so it cannot answer a conversation; give the prompt as text")]
    NoChatTemplate,
    /// An empty stop string, which would stop at once.
    #[error("a stop string is empty")]
    EmptyStopString,
    /// No token can be sampled.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// An error of the engine.
    #[error(transparent)]
    Graph(#[from] metal_candle_graph::Error),
}
