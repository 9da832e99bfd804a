//! Incremental decoding of token ids that arrive one at a time, as in generation.
//!
//! A character may be spread over several tokens, and the text of a token may depend on preceding tokens (many
//! tokenizers drop the space of the first word). So a short window is decoded with and without the new token, and the
//! difference is emitted once its characters are complete. Emitted text is never revised.

use super::{TextError, Tokenizer};

/// The replacement character for bytes that are not (yet) a character.
const BROKEN: char = '\u{FFFD}';

/// Incremental decoder: the results of [`push`](Self::push) and [`finish`](Self::finish) concatenate to
/// [`Tokenizer::decode`] of all tokens.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// Start of the window; `ids[window..handed]` has been emitted and is the context of the following tokens.
    window: usize,
    handed: usize,
    /// Text of `ids[window..handed]`.
    context: String,
    /// Whether the last visible token represents a single byte.
    in_bytes: bool,
}

impl<'a> TextStream<'a> {
    /// An empty stream; `skip_special` omits special tokens from the text.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        let context = String::new();
        Self {
            tokenizer,
            skip_special,
            ids: Vec::new(),
            window: 0,
            handed: 0,
            context,
            in_bytes: false,
        }
    }

    /// Adds the next token and returns the text that is now complete, if any; never part of a character.
    ///
    /// # Errors
    ///
    /// [`TextError::Decode`] if the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TextError> {
        self.ids.push(id);
        self.look_at(id);
        let text = self.tokenizer.decode(&self.ids[self.window..], self.skip_special)?;
        // Byte tokens are decoded together: wait for the end of the run. A replacement character may still become a
        // real one.
        if self.in_bytes || text.ends_with(BROKEN) {
            return Ok(None);
        }
        let Some(new) = text
            .strip_prefix(&self.context)
            .filter(|new| !new.is_empty())
            .map(str::to_owned)
        else {
            return Ok(None);
        };
        self.window = self.handed;
        self.handed = self.ids.len();
        self.context = self.tokenizer.decode(&self.ids[self.window..], self.skip_special)?;
        Ok(Some(new))
    }

    /// Ends the stream and returns the remaining text, with incomplete characters replaced by U+FFFD.
    ///
    /// # Errors
    ///
    /// [`TextError::Decode`] if the tokenizer's decoder fails.
    pub fn finish(self) -> Result<String, TextError> {
        let text = self.tokenizer.decode(&self.ids[self.window..], self.skip_special)?;
        Ok(text.strip_prefix(&self.context).unwrap_or_default().to_owned())
    }

    /// Records whether the text ends in a byte token (`<0xE2>`); skipped tokens do not end a run.
    fn look_at(&mut self, id: u32) {
        if self.skip_special && self.tokenizer.is_special(id) {
            return;
        }
        if let Some(token) = self.tokenizer.token(id) {
            let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            self.in_bytes = byte.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok());
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
