//! The tokenizer of a Hugging Face folder: `tokenizer.json`, with the special tokens and the chat template of the
//! folder.
//!
//! Encoding never truncates or pads, whatever `tokenizer.json` says: that is left to the caller. Nothing here reads a
//! pickle or a `SentencePiece` model; a folder needs its `tokenizer.json`.

use std::path::Path;

use super::assemble::{Inner, assemble};
use super::folder::Sources;
use super::{ChatTemplate, TextError, first_line, guarded};

/// Token ids with their positions in the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The byte range of each token in the text; may be empty, or shared by tokens that split one character.
    pub offsets: Vec<(usize, usize)>,
    /// For each token, whether the tokenizer added it (such as a begin-of-text token) instead of finding it in the
    /// text.
    pub added: Vec<bool>,
}

/// Converts text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    stop: Vec<u32>,
    chat_template: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, if they exist, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json`, `chat_template.jinja` and `additional_chat_templates/tool_use.jinja` (which take
    /// precedence over templates in `tokenizer_config.json`). A chat template that does not compile is an error when it
    /// is rendered.
    ///
    /// # Errors
    ///
    /// A [`TextError`] that names the unreadable or invalid file and field.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self, TextError> {
        Self::build(&Sources::from_folder(folder.as_ref())?)
    }

    /// A tokenizer from the contents of `tokenizer.json` and `tokenizer_config.json` (`{}` if there is none).
    ///
    /// # Errors
    ///
    /// Those of [`from_folder`](Self::from_folder).
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config_json: &[u8]) -> Result<Self, TextError> {
        Self::build(&Sources::from_bytes(tokenizer_json, tokenizer_config_json)?)
    }

    fn build(sources: &Sources) -> Result<Self, TextError> {
        let names = sources.special_tokens()?;
        let inner = assemble(sources, &names)?;
        let id = |field: &str| sources.special_id(&inner, &names, field);
        let (bos, eos, pad) = (id("bos_token")?, id("eos_token")?, id("pad_token")?);
        let ends = sources.generation_ids("eos_token_id")?;
        let first = |field: &str| Ok::<_, TextError>(sources.generation_ids(field)?.first().copied());
        let bos = bos.or(first("bos_token_id")?);
        let pad = pad.or(first("pad_token_id")?);
        let eos = eos.or(ends.first().copied());
        let mut stop: Vec<u32> = eos.into_iter().collect();
        for end in ends {
            if !stop.contains(&end) {
                stop.push(end);
            }
        }
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let chat_template = sources.chat_template()?;
        Ok(Self {
            inner,
            vocab_size,
            bos,
            eos,
            pad,
            stop,
            chat_template,
        })
    }

    /// Encodes a text; with `add_special_tokens`, including the tokens that `tokenizer.json` adds (begin-of-text).
    ///
    /// # Errors
    ///
    /// [`TextError::Encode`] if the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.encode_with_offsets(text, add_special_tokens)
            .map(|encoded| encoded.ids)
    }

    /// [`encode`](Self::encode), with the position of each token in the text.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode).
    pub fn encode_with_offsets(&self, text: &str, add_special_tokens: bool) -> Result<Encoded, TextError> {
        let encoding = guarded(|| {
            self.inner
                .encode(text, add_special_tokens)
                .map_err(|error| error.to_string())
        })
        .map_err(|reason| TextError::Encode {
            reason: first_line(&reason),
        })?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            added: encoding
                .get_special_tokens_mask()
                .iter()
                .map(|mask| *mask != 0)
                .collect(),
        })
    }

    /// Decodes token ids. Ids without a token (some models have more embedding rows than their tokenizer has tokens)
    /// are skipped, and with `skip_special` special tokens too.
    ///
    /// # Errors
    ///
    /// [`TextError::Decode`] if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        guarded(|| self.inner.decode(ids, skip_special).map_err(|error| error.to_string())).map_err(|reason| {
            TextError::Decode {
                reason: first_line(&reason),
            }
        })
    }

    /// The largest token id plus one: the minimum vocabulary size of a model for this tokenizer.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token by its exact text.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether a token is special, such as begin-of-text or end-of-turn.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| token.special)
    }

    /// The token at the start of a text, if it is an added token, matched as a whole.
    pub(super) fn leading_added_token(&self, text: &str) -> Option<u32> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let begins = added
            .iter()
            .filter(|(_, token)| !token.content.is_empty() && text.starts_with(&token.content));
        begins.max_by_key(|(_, token)| token.content.len()).map(|(id, _)| *id)
    }

    /// The begin-of-text token: `bos_token` of `tokenizer_config.json`, else of `generation_config.json`.
    #[must_use]
    pub fn bos_token_id(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text token: `eos_token` of `tokenizer_config.json`, else of `generation_config.json`.
    #[must_use]
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos
    }

    /// The padding token: `pad_token` of `tokenizer_config.json`, else of `generation_config.json`.
    #[must_use]
    pub fn pad_token_id(&self) -> Option<u32> {
        self.pad
    }

    /// Every token that ends generation: end-of-text first, then the others of `generation_config.json`.
    #[must_use]
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.stop
    }

    /// The chat template, if the folder has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The same tokenizer with another chat template.
    #[must_use]
    pub fn with_chat_template(mut self, template: ChatTemplate) -> Self {
        self.chat_template = Some(template);
        self
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
