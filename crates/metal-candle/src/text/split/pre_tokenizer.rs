//! The pre-tokenizer of `tokenizer.json`, with our own split patterns in place of the library's.
//!
//! Nothing here knows a model or a vocabulary. Steps without a pattern use the library, whose results are Python's.

use serde_json::Value as Json;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::pattern::Invert;
use tokenizers::{PreTokenizedString, PreTokenizer, Result, SplitDelimiterBehavior};

use super::pattern::SplitPattern;

/// The pattern of `ByteLevel`, from GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Maximum nesting of sequences.
const MAX_DEPTH: usize = 16;

/// A pre-tokenizer.
#[derive(Clone, Debug)]
pub(in crate::text) enum PreSplit {
    /// A pre-tokenizer without a pattern.
    Library(Box<PreTokenizerWrapper>),
    Sequence(Vec<PreSplit>),
    Split {
        pattern: SplitPattern,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// Byte-level encoding, after a split with GPT-2's pattern.
    Bytes {
        pattern: SplitPattern,
        add_prefix_space: bool,
        letters: ByteLevel,
    },
}

impl PreSplit {
    /// Parses the field `pre_tokenizer`.
    pub fn from_json(value: &Json) -> std::result::Result<Self, String> {
        read(value, 0)
    }
}

fn read(value: &Json, depth: usize) -> std::result::Result<PreSplit, String> {
    if depth > MAX_DEPTH {
        return Err("pre_tokenizer: sequences are nested too deeply".to_owned());
    }
    let parsed =
        |value: &Json| serde_json::from_value(value.clone()).map_err(|error| format!("pre_tokenizer: {error}"));
    match value["type"].as_str() {
        Some("Sequence") => {
            let parts = value["pretokenizers"]
                .as_array()
                .ok_or("pre_tokenizer: a sequence without \"pretokenizers\"")?;
            let parts = parts
                .iter()
                .map(|part| read(part, depth + 1))
                .collect::<std::result::Result<_, _>>()?;
            Ok(PreSplit::Sequence(parts))
        }
        Some("Split") => {
            let behavior = serde_json::from_value(value["behavior"].clone());
            let invert = value["invert"]
                .as_bool()
                .ok_or("pre_tokenizer: Split: \"invert\" must be true or false")?;
            Ok(PreSplit::Split {
                pattern: split_pattern(&value["pattern"])?,
                behavior: behavior.map_err(|error| format!("pre_tokenizer: Split: behavior: {error}"))?,
                invert,
            })
        }
        Some("ByteLevel") if value["use_regex"] != Json::Bool(false) => {
            let PreTokenizerWrapper::ByteLevel(level) = parsed(value)? else {
                return Err("pre_tokenizer: ByteLevel: unexpected fields".to_owned());
            };
            Ok(PreSplit::Bytes {
                pattern: SplitPattern::new(GPT2)?,
                add_prefix_space: level.add_prefix_space,
                letters: level.add_prefix_space(false).use_regex(false),
            })
        }
        _ => Ok(PreSplit::Library(Box::new(parsed(value)?))),
    }
}

fn split_pattern(value: &Json) -> std::result::Result<SplitPattern, String> {
    if let Some(text) = value["String"].as_str() {
        return SplitPattern::literal(text);
    }
    let pattern = value["Regex"]
        .as_str()
        .ok_or("pre_tokenizer: Split: \"pattern\" must have a \"String\" or a \"Regex\"")?;
    SplitPattern::new(pattern)
}

impl PreTokenizer for PreSplit {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> Result<()> {
        match self {
            Self::Library(inner) => inner.pre_tokenize(text),
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            Self::Split {
                pattern,
                behavior,
                invert: false,
            } => text.split(|_, part| part.split(pattern, *behavior)),
            Self::Split {
                pattern,
                behavior,
                invert: true,
            } => text.split(|_, part| part.split(Invert(pattern), *behavior)),
            Self::Bytes {
                pattern,
                add_prefix_space,
                letters,
            } => {
                text.split(|_, mut part| {
                    if *add_prefix_space && !part.get().starts_with(' ') {
                        part.prepend(" ");
                    }
                    part.split(pattern, SplitDelimiterBehavior::Isolated)
                })?;
                letters.pre_tokenize(text)
            }
        }
    }
}
