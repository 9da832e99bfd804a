//! Why text cannot be generated.

use super::SamplingError;
use crate::text::TextError;

/// A request that cannot be served. The generator works on with the next one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompt has no tokens.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error("token {id} at position {position} of the prompt is outside the vocabulary of {vocab_size} tokens")]
    TokenOutOfVocabulary {
        /// The token.
        id: u32,
        /// Its position in the prompt.
        position: usize,
        /// Number of tokens of the model.
        vocab_size: usize,
    },
    /// A stop token that the model does not have.
    #[error("stop token {id} is outside the vocabulary of {vocab_size} tokens, so it would never be met")]
    StopTokenOutOfVocabulary {
        /// The token.
        id: u32,
        /// Number of tokens of the model.
        vocab_size: usize,
    },
    /// Prompt and answer do not fit the model's context.
    #[error(
        "the prompt of {prompt} tokens and up to {max_new_tokens} new ones exceed the model's context of {limit} tokens \
         (max_position_embeddings); shorten the prompt or lower max_new_tokens"
    )]
    ContextTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to generate at most.
        max_new_tokens: usize,
        /// Tokens of the context.
        limit: usize,
    },
    /// A conversation was given to a model without a chat template.
    #[error("the model has no chat template, so it cannot answer a conversation; give the prompt as text")]
    NoChatTemplate,
    /// A stop string that would stop before anything is said.
    #[error("a stop string is empty")]
    EmptyStopString,
    /// A token cannot be chosen.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The engine failed.
    #[error(transparent)]
    Graph(#[from] metal_candle_graph::Error),
}
