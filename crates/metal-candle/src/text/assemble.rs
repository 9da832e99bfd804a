//! Builds the tokenizer described by `tokenizer.json`, with our own split patterns and the tokens that the settings
//! add.
//!
//! Nothing here reads a file.

use serde::Deserialize;
use serde_json::Value as Json;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder, TokenizerImpl,
};

use super::folder::{CONFIG, Sources, SpecialTokens, TOKENIZER, without_mark};
use super::split::{PreSplit, translate_patterns};
use super::{TextError, first_line, guarded};

/// The library's tokenizer around our pre-tokenizer.
pub(super) type Inner = TokenizerImpl<ModelWrapper, NormalizerWrapper, PreSplit, PostProcessorWrapper, DecoderWrapper>;

/// `tokenizer.json`. Truncation and padding are left to the caller.
#[derive(Deserialize)]
struct File {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedWithId>,
    normalizer: Option<Json>,
    pre_tokenizer: Option<Json>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<Json>,
    model: ModelWrapper,
}

#[derive(Deserialize)]
struct AddedWithId {
    #[serde(flatten)]
    token: AddedToken,
}

/// Builds the tokenizer with every token that the settings name.
pub(super) fn assemble(sources: &Sources, names: &SpecialTokens) -> Result<Inner, TextError> {
    let file = sources.name(TOKENIZER);
    let wrong = |reason: String| TextError::Tokenizer {
        file: file.clone(),
        reason: first_line(&reason),
    };
    let mut inner = guarded(|| build(&sources.tokenizer)).map_err(wrong)?;
    let added = decoder_tokens(sources, names)?;
    let extra = sources.extra_special_tokens()?;
    guarded(|| {
        inner.add_tokens(added).map_err(|error| error.to_string())?;
        mark_special(&mut inner, names)?;
        let unknown = extra
            .into_iter()
            .filter(|text| !is_added(&inner, text))
            .collect::<Vec<_>>();
        let unknown = unknown.into_iter().map(|text| AddedToken::from(text, true));
        inner.add_special_tokens(unknown).map_err(|error| error.to_string())
    })
    .map_err(wrong)?;
    if sources.config.get("split_special_tokens") == Some(&Json::Bool(true)) {
        inner.set_encode_special_tokens(true);
    }
    Ok(inner)
}

fn build(bytes: &[u8]) -> Result<Inner, String> {
    let mut file: File = serde_json::from_slice(without_mark(bytes)).map_err(|error| error.to_string())?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(format!("unknown version {version:?}"));
    }
    for part in [&mut file.normalizer, &mut file.decoder].into_iter().flatten() {
        translate_patterns(part)?;
    }
    let present = |part: Option<Json>| part.filter(|part| !part.is_null());
    let normalizer = present(file.normalizer).map(serde_json::from_value::<NormalizerWrapper>);
    let decoder = present(file.decoder).map(serde_json::from_value::<DecoderWrapper>);
    let pre_tokenizer = present(file.pre_tokenizer).as_ref().map(PreSplit::from_json);
    let mut inner = TokenizerBuilder::new()
        .with_model(file.model)
        .with_normalizer(normalizer.transpose().map_err(|error| format!("normalizer: {error}"))?)
        .with_pre_tokenizer(pre_tokenizer.transpose()?)
        .with_post_processor(file.post_processor)
        .with_decoder(decoder.transpose().map_err(|error| format!("decoder: {error}"))?)
        .build()
        .map_err(|error| error.to_string())?;
    let tokens = file.added_tokens.into_iter().map(|added| added.token);
    inner.add_tokens(tokens).map_err(|error| error.to_string())?;
    Ok(inner)
}

/// The tokens of `added_tokens_decoder`, by id: as in transformers, all of them are added, and their flags take
/// precedence. The ids are those of the vocabulary.
fn decoder_tokens(sources: &Sources, names: &SpecialTokens) -> Result<Vec<AddedToken>, TextError> {
    let field = "added_tokens_decoder";
    let tokens = match sources.config.get(field) {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(Json::Object(tokens)) => tokens,
        Some(_) => return Err(sources.field(CONFIG, field, "expected an object of tokens by their ids")),
    };
    let mut found = Vec::new();
    for (id, token) in tokens {
        let wrong = |reason: String| sources.field(CONFIG, field, format!("token {:?}: {reason}", first_line(id)));
        let id: u32 = id.parse().map_err(|_| wrong("expected an id".to_owned()))?;
        let mut token: SettingsToken =
            serde_json::from_value(token.clone()).map_err(|error| wrong(error.to_string()))?;
        token.special |= names.values().any(|(text, _)| *text == token.content);
        found.push((id, token.into_added()));
    }
    found.sort_by_key(|(id, _)| *id);
    Ok(found.into_iter().map(|(_, token)| token).collect())
}

/// An added token as in `tokenizer_config.json`; absent fields have the defaults of Python's `AddedToken(content)`.
#[allow(clippy::struct_excessive_bools)] // the flags of the file
#[derive(Deserialize)]
struct SettingsToken {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl SettingsToken {
    fn into_added(self) -> AddedToken {
        AddedToken::from(self.content, self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

fn is_added(inner: &Inner, text: &str) -> bool {
    inner.get_added_vocabulary().get_vocab().contains_key(text)
}

/// Tokens that the configuration calls special are matched as a whole and skipped when decoding, even if they are
/// ordinary tokens of the model. As in transformers, the flags of an added token take precedence.
fn mark_special(inner: &mut Inner, names: &SpecialTokens) -> Result<(), String> {
    for (text, _) in names.values() {
        if inner.token_to_id(text).is_some() && !is_added(inner, text) {
            let token = AddedToken::from(text.clone(), true);
            inner.add_special_tokens([token]).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
