//! Text in and out of a model: [`Tokenizer`] turns text into token ids and back, [`ChatTemplate`] turns a
//! conversation into text, [`TextStream`] turns ids that arrive one by one into text that is never broken.
//!
//! Everything here reads files that a stranger may have written. A malformed file gives a [`TextError`] that names the
//! file and the field; it never panics, and a chat template runs with a budget. Nothing here knows a model or a tensor.

mod assemble;
mod chat_template;
mod clock;
mod folder;
mod generation_tags;
mod jinja;
mod json;
mod message;
pub(crate) mod python_json;
mod split;
mod stand_in;
mod stream;
mod tokenizer;
mod turn_end;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

pub use chat_template::ChatTemplate;
pub(crate) use generation_tags::generation_spans;
pub use message::ChatMessage;
pub(crate) use message::{kind as json_kind, unquote};
pub(crate) use stand_in::{Extent, Found, StandIns, strings};
pub use stream::TextStream;
pub use tokenizer::{Encoded, Tokenizer};
pub use turn_end::end_of_turn_tokens;

/// What can go wrong with tokenizers and chat templates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file could not be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file is larger than any that is in use.
    #[error("{}: larger than {} MiB, which no such file in use is; is it the right one?", file.display(), limit >> 20)]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Most bytes that are read.
        limit: u64,
    },
    /// The folder has a vocabulary that is not in the form of `tokenizer.json`.
    #[error("{}: has {found} but no tokenizer.json; make one with `pip install transformers sentencepiece protobuf tiktoken` and then: {command}", folder.display())]
    Unconverted {
        /// The folder.
        folder: PathBuf,
        /// The vocabulary that was found.
        found: String,
        /// The command that converts it.
        command: String,
    },
    /// A file is not the JSON object it should be.
    #[error("{file}: not a JSON object: {reason}")]
    NotJson {
        /// The file.
        file: String,
        /// The parser's reason, with line and column.
        reason: String,
    },
    /// A field of a file has the wrong type, or names something that does not exist.
    #[error("{file}: field \"{field}\": {reason}")]
    Field {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `tokenizer.json` does not describe a tokenizer.
    #[error("{file}: not a Hugging Face fast tokenizer: {reason}")]
    Tokenizer {
        /// The file.
        file: String,
        /// The parser's reason.
        reason: String,
    },
    /// A text could not be encoded.
    #[error("the tokenizer cannot encode this text: {reason}")]
    Encode {
        /// The tokenizer's reason.
        reason: String,
    },
    /// Token ids could not be decoded.
    #[error("the tokenizer cannot decode these tokens: {reason}")]
    Decode {
        /// The tokenizer's reason.
        reason: String,
    },
    /// A chat template does not parse.
    #[error("{file}: chat template, line {line}: {reason}")]
    TemplateSyntax {
        /// Where the template stands.
        file: String,
        /// Line within the template, from 1.
        line: usize,
        /// The parser's reason.
        reason: String,
    },
    /// A chat template failed on this conversation.
    #[error("{file}: chat template, line {line}: cannot render this conversation: {reason}")]
    TemplateRender {
        /// Where the template stands.
        file: String,
        /// Line within the template, from 1.
        line: usize,
        /// What failed.
        reason: String,
    },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("{file}: the chat template refuses this conversation: {message}")]
    TemplateRefused {
        /// Where the template stands.
        file: String,
        /// The template's own words.
        message: String,
    },
    /// The template did more work or wrote more text than a conversation can need.
    #[error("{file}: chat template stopped: {reason}")]
    TemplateBudget {
        /// Where the template stands.
        file: String,
        /// Which limit was met.
        reason: String,
    },
    /// A chat message is not an object with a role.
    #[error("chat message: {reason}")]
    Message {
        /// What is wrong with it.
        reason: String,
    },
}

/// Runs code of a library that may panic on a hostile file, and turns the panic into its message.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Err(format!("internal failure: {text}"))
    })
}

/// [`guarded`], on a thread of its own with a deep stack: templates are followed by recursion, and values that nest are
/// dropped by it.
fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    const STACK: usize = 256 << 20; // reserved, not used, until something nests that deep
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let thread = thread.spawn_scoped(scope, || guarded(|| Ok(work())));
        let thread = thread.map_err(|error| format!("no thread for it: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("internal failure".to_owned()))
    })
}

/// The first line of an error text, so that one bad file does not fill the screen.
fn first_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let line = text.lines().next().unwrap_or_default();
    let cut = line.char_indices().nth(LONGEST).map_or(line.len(), |(at, _)| at);
    if cut < line.len() {
        format!("{}...", &line[..cut])
    } else {
        line.to_owned()
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod micro_template_tests;
