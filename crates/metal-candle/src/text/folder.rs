//! The files of a tokenizer's folder, read with a size limit, and their fields.
//!
//! Nothing here builds a tokenizer.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::assemble::Inner;
use super::chat_template::{MAX_SOURCE, Variant};
use super::message::kind;
use super::{ChatTemplate, TextError, first_line};

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL: &str = "special_tokens_map.json";
pub(super) const GENERATION: &str = "generation_config.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";
pub(super) const TEMPLATE_FOLDER: &str = "additional_chat_templates";
/// Largest `tokenizer.json` accepted; the largest in use have about 35 MB.
const MAX_TOKENIZER: u64 = 128 << 20;
/// Largest settings file accepted.
const MAX_SETTINGS: u64 = 16 << 20;
/// The fields that name a special token.
const SPECIAL_FIELDS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
];
/// Vocabulary files that transformers can convert to `tokenizer.json`.
const OTHER_VOCABULARIES: [&str; 5] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
];

/// Special tokens by field: text, and the file that names it.
pub(super) type SpecialTokens = BTreeMap<&'static str, (String, &'static str)>;

/// Names and texts of tokens.
type Variables = Vec<(Arc<str>, Arc<str>)>;

/// The contents of a folder, with file names for error messages.
#[derive(Default)]
pub(super) struct Sources {
    folder: String,
    pub tokenizer: Vec<u8>,
    pub config: Map<String, Json>,
    special: Map<String, Json>,
    generation: Map<String, Json>,
    /// Templates in separate files, by name.
    templates: BTreeMap<String, Variant>,
}

impl Sources {
    pub fn from_folder(folder: &Path) -> Result<Self, TextError> {
        let Some(tokenizer) = read_bounded(&folder.join(TOKENIZER), MAX_TOKENIZER)? else {
            return Err(no_tokenizer(folder));
        };
        let object = |name: &str| match read_bounded(&folder.join(name), MAX_SETTINGS)? {
            Some(bytes) => parse_object(&folder.join(name).display().to_string(), &bytes),
            None => Ok(Map::new()),
        };
        let mut templates = BTreeMap::new();
        let additional = folder.join(TEMPLATE_FOLDER).join("tool_use.jinja");
        for (name, path) in [("default", folder.join(TEMPLATE)), ("tool_use", additional)] {
            if let Some(template) = read_template(&path) {
                templates.insert(name.to_owned(), template);
            }
        }
        Ok(Self {
            folder: folder.display().to_string(),
            tokenizer,
            config: object(CONFIG)?,
            special: object(SPECIAL)?,
            generation: object(GENERATION)?,
            templates,
        })
    }

    pub fn from_bytes(tokenizer: &[u8], config: &[u8]) -> Result<Self, TextError> {
        Ok(Self {
            tokenizer: tokenizer.to_vec(),
            config: parse_object(CONFIG, config)?,
            ..Self::default()
        })
    }

    /// A file's name with its folder.
    pub fn name(&self, file: &str) -> String {
        if self.folder.is_empty() {
            file.to_owned()
        } else {
            Path::new(&self.folder).join(file).display().to_string()
        }
    }

    pub fn field(&self, file: &str, field: &str, reason: impl Into<String>) -> TextError {
        TextError::Field {
            file: self.name(file),
            field: field.to_owned(),
            reason: reason.into(),
        }
    }

    /// The special tokens named by the files; `tokenizer_config.json` takes precedence over `special_tokens_map.json`.
    pub fn special_tokens(&self) -> Result<SpecialTokens, TextError> {
        let mut names = SpecialTokens::new();
        for (file, fields) in [(SPECIAL, &self.special), (CONFIG, &self.config)] {
            for field in SPECIAL_FIELDS {
                if let Some(value) = fields.get(field).filter(|value| !value.is_null()) {
                    names.insert(field, (self.token_text(file, field, value)?, file));
                }
            }
        }
        Ok(names)
    }

    /// The text of a token: a string, or an added token (`{"content": "</s>", "lstrip": false, ...}`).
    fn token_text(&self, file: &str, field: &str, value: &Json) -> Result<String, TextError> {
        match value {
            Json::String(text) => Ok(text.clone()),
            Json::Object(token) => match token.get("content") {
                Some(Json::String(text)) => Ok(text.clone()),
                other => {
                    let reason = format!("expected \"content\" (string), found {}", kind(other));
                    Err(self.field(file, field, reason))
                }
            },
            other => {
                let reason = format!("expected a token (string or object), found {}", kind(Some(other)));
                Err(self.field(file, field, reason))
            }
        }
    }

    /// Special tokens without a role, under either name of the field.
    pub fn extra_special_tokens(&self) -> Result<Vec<String>, TextError> {
        let fields = ["extra_special_tokens", "additional_special_tokens"];
        let mut found = Vec::new();
        for (file, of) in [(CONFIG, &self.config), (SPECIAL, &self.special)] {
            for field in fields {
                let values: Vec<&Json> = match of.get(field) {
                    Some(Json::Array(list)) => list.iter().collect(),
                    Some(Json::Object(named)) => named.values().collect(),
                    _ => continue,
                };
                for value in values {
                    let text = self.token_text(file, field, value)?;
                    if !found.contains(&text) {
                        found.push(text);
                    }
                }
            }
        }
        Ok(found)
    }

    pub fn special_id(&self, inner: &Inner, names: &SpecialTokens, field: &str) -> Result<Option<u32>, TextError> {
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

    /// A token id, or a list of them, from `generation_config.json`; negative ids are ignored, as in transformers.
    pub fn generation_ids(&self, field: &str) -> Result<Vec<u32>, TextError> {
        let is_negative = |value: &Json| value.as_i64().is_some_and(|id| id < 0);
        let id = |value: &Json| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                let found = first_line(&value.to_string());
                self.field(GENERATION, field, format!("expected a token id, found {found}"))
            })
        };
        match self.generation.get(field) {
            None | Some(Json::Null) => Ok(Vec::new()),
            Some(Json::Array(ids)) => ids.iter().filter(|id| !is_negative(id)).map(id).collect(),
            Some(value) if is_negative(value) => Ok(Vec::new()),
            Some(value) => Ok(vec![id(value)?]),
        }
    }

    /// The variables of chat templates: every named special token.
    fn template_variables(&self) -> Result<Variables, TextError> {
        let mut named: BTreeMap<String, String> = BTreeMap::new();
        for (file, fields) in [(SPECIAL, &self.special), (CONFIG, &self.config)] {
            for (name, value) in fields {
                let is_token = name.ends_with("_token") && (value.is_string() || value.get("content").is_some());
                if is_token {
                    named.insert(name.clone(), self.token_text(file, name, value)?);
                }
            }
            if let Some(Json::Object(tokens)) = fields.get("extra_special_tokens") {
                for (name, value) in tokens {
                    named.insert(name.clone(), self.token_text(file, name, value)?);
                }
            }
        }
        Ok(named
            .into_iter()
            .map(|(name, text)| (name.into(), text.into()))
            .collect())
    }

    /// The chat template: files take precedence over the field of `tokenizer_config.json`, which may be one or a list
    /// by names.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, TextError> {
        let mut templates = self.templates.clone();
        if templates.is_empty() {
            templates = self.configured_templates()?;
        }
        if templates.is_empty() {
            return Ok(None);
        }
        let tool_use = templates.remove("tool_use");
        let default = templates.remove("default").unwrap_or_else(|| {
            let names: Vec<&str> = templates
                .keys()
                .map(String::as_str)
                .chain(tool_use.as_ref().map(|_| "tool_use"))
                .collect();
            let reason = format!("the model has no template named \"default\", only {}", names.join(", "));
            Variant::broken(&self.name(CONFIG), &reason)
        });
        Ok(Some(ChatTemplate::from_variants(
            default,
            tool_use,
            self.template_variables()?,
        )))
    }

    fn configured_templates(&self) -> Result<BTreeMap<String, Variant>, TextError> {
        let (field, file) = ("chat_template", self.name(CONFIG));
        let wrong = |value| {
            self.field(
                CONFIG,
                field,
                format!("expected a template (string), found {}", kind(value)),
            )
        };
        let mut templates = BTreeMap::new();
        match self.config.get(field) {
            None | Some(Json::Null) => {}
            Some(Json::String(source)) => {
                templates.insert("default".to_owned(), Variant::new(&file, source));
            }
            Some(Json::Array(list)) => {
                for entry in list {
                    let (name, source) = (entry.get("name"), entry.get("template"));
                    let (Some(Json::String(name)), Some(Json::String(source))) = (name, source) else {
                        let reason = "expected a list of objects with \"name\" and \"template\" (strings)";
                        return Err(self.field(CONFIG, field, reason));
                    };
                    templates.insert(name.clone(), Variant::new(&file, source));
                }
            }
            Some(Json::Object(named)) => {
                for (name, source) in named {
                    let Json::String(source) = source else {
                        return Err(wrong(Some(source)));
                    };
                    templates.insert(name.clone(), Variant::new(&file, source));
                }
            }
            other => return Err(wrong(other)),
        }
        Ok(templates)
    }
}

/// A template in a separate file, if it exists.
fn read_template(path: &Path) -> Option<Variant> {
    let file = path.display().to_string();
    match read_bounded(path, MAX_SOURCE as u64) {
        Ok(None) => None,
        Ok(Some(bytes)) => Some(match String::from_utf8(bytes) {
            Ok(source) => Variant::new(&file, &source),
            Err(error) => Variant::broken(&file, &format!("it is not UTF-8: {}", error.utf8_error())),
        }),
        Err(error) => {
            let reason = error.to_string();
            Some(Variant::broken(
                &file,
                reason.strip_prefix(&format!("{file}: ")).unwrap_or(&reason),
            ))
        }
    }
}

/// The contents of a file, or `None` if it does not exist; never reads more than the limit.
fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TextError> {
    let failed = |source| TextError::Read {
        file: path.to_owned(),
        source,
    };
    let too_large = || TextError::TooLarge {
        file: path.to_owned(),
        limit,
    };
    // Checked before opening: opening a pipe would wait for its writer.
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !about.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    if about.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(Some(bytes))
}

/// The error that tells how to convert other vocabularies.
fn no_tokenizer(folder: &Path) -> TextError {
    let found = OTHER_VOCABULARIES.iter().find(|name| folder.join(name).is_file());
    let shown = folder.display();
    match found {
        Some(name) => TextError::Unconverted {
            folder: folder.to_owned(),
            found: (*name).to_owned(),
            command: format!(
                "python -c \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained(r'{shown}').save_pretrained(r'{shown}')\""
            ),
        },
        None => TextError::Read {
            file: folder.join(TOKENIZER),
            source: std::io::ErrorKind::NotFound.into(),
        },
    }
}

/// The bytes without a byte order mark.
pub(super) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

fn parse_object(file: &str, bytes: &[u8]) -> Result<Map<String, Json>, TextError> {
    serde_json::from_slice(without_mark(bytes)).map_err(|error| TextError::NotJson {
        file: file.to_owned(),
        reason: error.to_string(),
    })
}
