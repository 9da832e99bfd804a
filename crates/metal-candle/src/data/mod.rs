//! Training data: rows of JSON become [`Example`]s (token ids with a loss mask), and examples become [`Batch`]es of
//! equal shape.
//!
//! [`Rows`] reads rows, [`Dataset`] renders and tokenises them, [`Batches`] shuffles and pads or packs them. All data
//! is in plain vectors: nothing here knows a tensor, a model or a device, and a seed gives the same batches on every
//! machine.

mod batch;
mod example;
mod foreign;
mod jsonl;
mod layout;
mod maker;
mod pack;
mod shuffle;
mod source;
mod turns;
mod warning;

use crate::text::TextError;

pub use batch::{Batch, BatchIter, BatchOptions, Batches, Cursor, IGNORED, Layout, bucket_length};
pub use example::{Dataset, DatasetOptions, DatasetStats, Example};
pub use jsonl::{FileLayout, Row, RowContent, RowFormat, Rows};
pub use shuffle::{permutation, split_indices};
pub use warning::DataWarning;

/// An error between a data file and a batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file could not be read.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The file.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file does not contain JSON rows, but an archive, a table or binary data.
    #[error("{file}: {reason}")]
    NotRows {
        /// The file.
        file: String,
        /// What it contains, and how to convert it.
        reason: String,
    },
    /// A malformed row, or one of another format.
    #[error("{file}:{line}: {reason}{}", further(*more))]
    Row {
        /// The file.
        file: String,
        /// The first malformed line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
        /// Number of further malformed lines.
        more: usize,
    },
    /// The file has no rows.
    #[error(
        "{file}: no rows; expected JSON objects, one a line, with \"messages\", \"conversations\", \"instruction\" and \
         \"output\", \"prompt\" and \"completion\", or \"text\""
    )]
    Empty {
        /// The file.
        file: String,
    },
    /// Rows of `messages` require a chat template.
    #[error(
        "{file}: rows of \"messages\" need a chat template, and this model's folder has none; \
         add a chat_template.jinja to it, or use \"prompt\" and \"completion\" rows"
    )]
    NoChatTemplate {
        /// The file.
        file: String,
    },
    /// Rows of plain text end with the end-of-text token, which the tokenizer does not define.
    #[error(
        "{file}: the tokenizer names no end-of-text token, so the model could not learn to stop; \
         set \"eos_token\" in tokenizer_config.json"
    )]
    NoEndOfText {
        /// The file.
        file: String,
    },
    /// A row could not be tokenised.
    #[error("{file}:{line}: {source}")]
    Text {
        /// The file.
        file: String,
        /// The row's line, from 1.
        line: usize,
        /// The error of the tokenizer or template.
        source: TextError,
    },
    /// An assistant message cannot be located in the rendered conversation.
    #[error("{file}:{line}: message {message}: {reason}")]
    Turn {
        /// The file.
        file: String,
        /// The row's line, from 1.
        line: usize,
        /// The index of the assistant message, from 1.
        message: usize,
        /// The reason, and what to do.
        reason: &'static str,
    },
    /// No example has a target.
    #[error("{file}: no token to train on in {rows} rows: {advice}")]
    NothingSupervised {
        /// The file.
        file: String,
        /// Rows of the file.
        rows: usize,
        /// What to do.
        advice: String,
    },
    /// An invalid setting.
    #[error("{name}: {reason}")]
    Option {
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The end of a message about bad lines.
fn further(more: usize) -> String {
    match more {
        0 => String::new(),
        1 => " (and 1 further bad line)".to_owned(),
        more => format!(" (and {more} further bad lines)"),
    }
}
