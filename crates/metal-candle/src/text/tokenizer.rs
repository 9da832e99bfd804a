//! The tokenizer of a Hugging Face folder: `tokenizer.json`, and the special tokens and chat template named beside it.
//!
//! Encoding never truncates or pads, whatever `tokenizer.json` asks for: that is the caller's business. Nothing here
//! reads a pickle or a `SentencePiece` model; a folder needs its `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json};
use tokenizers::AddedToken;

use super::message::kind;
use super::{ChatTemplate, TextError, first_line, guarded};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const GENERATION: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";
/// The fields that name a special token; templates see them as variables.
const SPECIAL_FIELDS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
];

/// Token ids with the place in the text that each one stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token, the bytes `start..end` of the text; may be empty, or shared by tokens that split one character.
    pub offsets: Vec<(usize, usize)>,
    /// For each token, whether the tokenizer added it (a begin-of-text token, say) rather than found it in the text.
    pub added: Vec<bool>,
}

/// Text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    stop: Vec<u32>,
    chat_template: Option<ChatTemplate>,
}

/// The contents of a folder, each with the name that errors give it.
#[derive(Default)]
struct Sources {
    folder: String,
    tokenizer: Vec<u8>,
    config: Map<String, Json>,
    special: Map<String, Json>,
    generation: Map<String, Json>,
    template: Option<String>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json` and `chat_template.jinja` (which goes before a template in `tokenizer_config.json`).
    ///
    /// # Errors
    ///
    /// A [`TextError`] that names the file and the field that cannot be read or makes no sense.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self, TextError> {
        let folder = folder.as_ref();
        let path = folder.join(TOKENIZER);
        let tokenizer = std::fs::read(&path).map_err(|source| TextError::Read { file: path, source })?;
        let object = |name: &str| match read_optional(&folder.join(name))? {
            Some(bytes) => parse_object(&folder.join(name).display().to_string(), &bytes),
            None => Ok(Map::new()),
        };
        let path = folder.join(TEMPLATE);
        let template = match read_optional(&path)? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|error| TextError::TemplateSyntax {
                file: path.display().to_string(),
                line: 1,
                reason: error.to_string(),
            })?),
            None => None,
        };
        Self::build(&Sources {
            folder: folder.display().to_string(),
            tokenizer,
            config: object(CONFIG)?,
            special: object(SPECIAL)?,
            generation: object(GENERATION)?,
            template,
        })
    }

    /// A tokenizer from the contents of `tokenizer.json` and `tokenizer_config.json` (`{}` where there is none).
    ///
    /// # Errors
    ///
    /// Those of [`from_folder`](Self::from_folder).
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config_json: &[u8]) -> Result<Self, TextError> {
        Self::build(&Sources {
            tokenizer: tokenizer_json.to_vec(),
            config: parse_object(CONFIG, tokenizer_config_json)?,
            ..Sources::default()
        })
    }

    fn build(sources: &Sources) -> Result<Self, TextError> {
        let file = sources.name(TOKENIZER);
        let wrong = |reason: String| TextError::Tokenizer {
            file: file.clone(),
            reason: first_line(&reason),
        };
        let mut inner = guarded(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(&sources.tokenizer).map_err(|error| error.to_string())?;
            inner.with_padding(None);
            inner.with_truncation(None).map_err(|error| error.to_string())?;
            Ok(inner)
        })
        .map_err(wrong)?;
        let names = sources.special_tokens()?;
        guarded(|| mark_special(&mut inner, &names)).map_err(wrong)?;
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
        let chat_template = sources.chat_template(&names)?;
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

    /// The ids of a text; with `add_special_tokens`, also what `tokenizer.json` puts around a text (begin-of-text).
    ///
    /// # Errors
    ///
    /// [`TextError::Encode`] where the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.encode_with_offsets(text, add_special_tokens)
            .map(|encoded| encoded.ids)
    }

    /// [`encode`](Self::encode), with the place of each token in the text.
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

    /// The text of token ids. Ids that have no token (some models have more rows than their tokenizer has tokens) are
    /// skipped, as are special tokens with `skip_special`.
    ///
    /// # Errors
    ///
    /// [`TextError::Decode`] where the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        guarded(|| self.inner.decode(ids, skip_special).map_err(|error| error.to_string())).map_err(|reason| {
            TextError::Decode {
                reason: first_line(&reason),
            }
        })
    }

    /// One more than the largest token id: the least number of embedding rows a model needs for this tokenizer.
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

    /// Whether a token is special: not text but a mark, as begin-of-text or end-of-turn are.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| token.special)
    }

    /// The token that a text begins with, where that is one that was added to the vocabulary whole.
    pub(super) fn leading_added_token(&self, text: &str) -> Option<u32> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let begins = added
            .iter()
            .filter(|(_, token)| !token.content.is_empty() && text.starts_with(&token.content));
        begins.max_by_key(|(_, token)| token.content.len()).map(|(id, _)| *id)
    }

    /// Begin-of-text, by `bos_token` of `tokenizer_config.json`, else `generation_config.json`.
    #[must_use]
    pub fn bos_token_id(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-text, by `eos_token` of `tokenizer_config.json`, else `generation_config.json`.
    #[must_use]
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos
    }

    /// Padding, by `pad_token` of `tokenizer_config.json`, else `generation_config.json`.
    #[must_use]
    pub fn pad_token_id(&self) -> Option<u32> {
        self.pad
    }

    /// Every token that ends generation: end-of-text first, then the others of `generation_config.json`.
    #[must_use]
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.stop
    }

    /// The chat template, where the folder has one.
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

/// A special token by its field: its text and the file that names it.
type SpecialTokens = BTreeMap<&'static str, (String, &'static str)>;

impl Sources {
    /// A file's name with its folder.
    fn name(&self, file: &str) -> String {
        if self.folder.is_empty() {
            file.to_owned()
        } else {
            Path::new(&self.folder).join(file).display().to_string()
        }
    }

    fn field(&self, file: &str, field: &str, reason: impl Into<String>) -> TextError {
        TextError::Field {
            file: self.name(file),
            field: field.to_owned(),
            reason: reason.into(),
        }
    }

    /// The special tokens that the files name; `tokenizer_config.json` goes before `special_tokens_map.json`.
    fn special_tokens(&self) -> Result<SpecialTokens, TextError> {
        let mut names = SpecialTokens::new();
        for (file, fields) in [(SPECIAL, &self.special), (CONFIG, &self.config)] {
            for field in SPECIAL_FIELDS {
                let text = match fields.get(field) {
                    None | Some(Json::Null) => continue,
                    Some(Json::String(text)) => text,
                    // An added token: {"content": "</s>", "lstrip": false, ...}
                    Some(Json::Object(token)) => match token.get("content") {
                        Some(Json::String(text)) => text,
                        other => {
                            let reason = format!("expected \"content\" (string), found {}", kind(other));
                            return Err(self.field(file, field, reason));
                        }
                    },
                    other => {
                        let reason = format!("expected a token (string or object), found {}", kind(other));
                        return Err(self.field(file, field, reason));
                    }
                };
                names.insert(field, (text.clone(), file));
            }
        }
        Ok(names)
    }

    fn special_id(
        &self,
        inner: &tokenizers::Tokenizer,
        names: &SpecialTokens,
        field: &str,
    ) -> Result<Option<u32>, TextError> {
        let Some((text, file)) = names.get(field) else {
            return Ok(None);
        };
        let unknown = || {
            self.field(
                file,
                field,
                format!("the vocabulary of {TOKENIZER} has no token {text:?}"),
            )
        };
        inner.token_to_id(text).map(Some).ok_or_else(unknown)
    }

    /// A token id, or a list of them, of `generation_config.json`.
    fn generation_ids(&self, field: &str) -> Result<Vec<u32>, TextError> {
        let id = |value: &Json| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                let found = first_line(&value.to_string());
                self.field(GENERATION, field, format!("expected a token id, found {found}"))
            })
        };
        match self.generation.get(field) {
            None | Some(Json::Null) => Ok(Vec::new()),
            Some(Json::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }

    fn chat_template(&self, names: &SpecialTokens) -> Result<Option<ChatTemplate>, TextError> {
        let variables = || names.iter().map(|(field, (text, _))| (*field, text.as_str()));
        if let Some(source) = &self.template {
            return ChatTemplate::new(&self.name(TEMPLATE), source, variables()).map(Some);
        }
        let field = "chat_template";
        let source = match self.config.get(field) {
            None | Some(Json::Null) => return Ok(None),
            Some(Json::String(source)) => source,
            Some(Json::Array(list)) => {
                let named = list
                    .iter()
                    .find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"));
                match named.and_then(|entry| entry.get("template")) {
                    Some(Json::String(source)) => source,
                    _ => {
                        return Err(self.field(CONFIG, field, "the list has no template named \"default\""));
                    }
                }
            }
            other => {
                return Err(self.field(
                    CONFIG,
                    field,
                    format!("expected a template (string), found {}", kind(other)),
                ));
            }
        };
        ChatTemplate::new(&self.name(CONFIG), source, variables()).map(Some)
    }
}

/// Tokens that the configuration calls special are matched whole in a text and skipped when decoding, as in
/// transformers, even where `tokenizer.json` has them as ordinary tokens of the model.
fn mark_special(inner: &mut tokenizers::Tokenizer, names: &SpecialTokens) -> Result<(), String> {
    for (text, _) in names.values() {
        let known = inner.token_to_id(text);
        let special = |id| {
            inner
                .get_added_vocabulary()
                .get_added_tokens_decoder()
                .get(&id)
                .is_some_and(|t| t.special)
        };
        if known.is_some_and(|id| !special(id)) {
            let token = AddedToken::from(text.clone(), true);
            inner.add_special_tokens([token]).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Read {
            file: path.to_owned(),
            source,
        }),
    }
}

fn parse_object(file: &str, bytes: &[u8]) -> Result<Map<String, Json>, TextError> {
    serde_json::from_slice(bytes).map_err(|error| TextError::NotJson {
        file: file.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
