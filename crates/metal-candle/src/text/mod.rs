//! Text and tokens: [`Tokenizer`] converts text to token ids and back, [`ChatTemplate`] renders a conversation as text,
//! [`TextStream`] converts ids that arrive one by one to text without splitting characters.
//!
//! All files are untrusted. A malformed file gives a [`TextError`] that names the file and the field; it never panics,
//! and chat templates run with a budget. Nothing here knows a model or a tensor.

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
pub(crate) use message::REASONING;
pub(crate) use message::{kind as json_kind, unquote};
pub(crate) use stand_in::{Extent, Found, StandIns, strings};
pub use stream::TextStream;
pub use tokenizer::{Encoded, Tokenizer};
pub use turn_end::end_of_turn_tokens;

/// An error of tokenizers and chat templates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file could not be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file exceeds the size limit.
    #[error("{}: larger than {} MiB, the limit; is it the right file?", file.display(), limit >> 20)]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The folder has a vocabulary in another format than `tokenizer.json`.
    #[error("{}: has {found} but no tokenizer.json; make one with `pip install transformers sentencepiece protobuf tiktoken` and then: {command}", folder.display())]
    Unconverted {
        /// The folder.
        folder: PathBuf,
        /// The vocabulary file.
        found: String,
        /// The command that converts it.
        command: String,
    },
    /// A file is not a JSON object.
    #[error("{file}: not a JSON object: {reason}")]
    NotJson {
        /// The file.
        file: String,
        /// The parser's message, with line and column.
        reason: String,
    },
    /// A field has the wrong type, or names something that does not exist.
    #[error("{file}: field \"{field}\": {reason}")]
    Field {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `tokenizer.json` is malformed.
    #[error("{file}: not a Hugging Face fast tokenizer: {reason}")]
    Tokenizer {
        /// The file.
        file: String,
        /// The parser's message.
        reason: String,
    },
    /// A text could not be encoded.
    #[error("the tokenizer cannot encode this text: {reason}")]
    Encode {
        /// The tokenizer's message.
        reason: String,
    },
    /// Token ids could not be decoded.
    #[error("the tokenizer cannot decode these tokens: {reason}")]
    Decode {
        /// The tokenizer's message.
        reason: String,
    },
    /// A chat template does not parse.
    #[error("{file}: chat template, line {line}: {reason}")]
    TemplateSyntax {
        /// The file with the template.
        file: String,
        /// Line within the template, from 1.
        line: usize,
        /// The parser's message.
        reason: String,
    },
    /// A chat template failed on this conversation.
    #[error("{file}: chat template, line {line}: cannot render this conversation: {reason}")]
    TemplateRender {
        /// The file with the template.
        file: String,
        /// Line within the template, from 1.
        line: usize,
        /// What failed.
        reason: String,
    },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("{file}: the chat template refuses this conversation: {message}")]
    TemplateRefused {
        /// The file with the template.
        file: String,
        /// The template's own message.
        message: String,
    },
    /// The template exceeded a limit of work, output or time.
    #[error("{file}: chat template stopped: {reason}")]
    TemplateBudget {
        /// The file with the template.
        file: String,
        /// The exceeded limit.
        reason: String,
    },
    /// A chat message is not an object with a role.
    #[error("chat message: {reason}")]
    Message {
        /// What is wrong with it.
        reason: String,
    },
}

/// Runs library code that may panic on a malformed file, and converts the panic to its message.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Err(format!("internal failure: {text}"))
    })
}

/// [`guarded`], on a separate thread with a large stack: templates are processed recursively, and nested values are
/// dropped recursively.
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
