//! `generation_config.json`: how a model's authors suggest to generate; often absent.

use std::path::Path;

use metal_candle_graph::io::read_json_object;

use super::{ConfigError, Fields};

/// The suggestions that this library follows; every one is optional, an absent file is all of them absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a text; empty if not given.
    pub eos_token_ids: Vec<u32>,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Token that fills batches.
    pub pad_token_id: Option<u32>,
    /// Whether to draw at random instead of taking the likeliest token.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// Keep the `k` likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens up to this probability.
    pub top_p: Option<f64>,
    /// Keep tokens at least this likely relative to the likeliest.
    pub min_p: Option<f64>,
    /// Penalty on tokens that occurred.
    pub repetition_penalty: Option<f64>,
    /// Most tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// Most tokens of prompt and answer together.
    pub max_length: Option<usize>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` of a model folder; all defaults if there is none.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is there and is not JSON or a field has the wrong type.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join("generation_config.json");
        if path.symlink_metadata().is_err() {
            return Ok(Self::default());
        }
        let map = read_json_object(&path)?;
        let fields = Fields::new(&path, &map);
        Ok(Self {
            eos_token_ids: fields.token_ids("eos_token_id")?,
            bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
            pad_token_id: fields.token_ids("pad_token_id")?.first().copied(),
            do_sample: fields.bool("do_sample")?,
            temperature: fields.f64("temperature")?,
            top_k: fields.usize("top_k")?,
            top_p: fields.f64("top_p")?,
            min_p: fields.f64("min_p")?,
            repetition_penalty: fields.f64("repetition_penalty")?,
            max_new_tokens: fields.usize("max_new_tokens")?,
            max_length: fields.usize("max_length")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<GenerationConfig, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        GenerationConfig::read(folder.path())
    }

    #[test]
    fn absent_is_default() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            GenerationConfig::read(folder.path()).unwrap(),
            GenerationConfig::default()
        );
    }

    #[test]
    fn one_or_several_ends() {
        assert_eq!(read(r#"{"eos_token_id": 7}"#).unwrap().eos_token_ids, [7]);
        let many = read(r#"{"eos_token_id": [7, 9], "temperature": 0.6, "do_sample": true, "top_k": null}"#).unwrap();
        assert_eq!(many.eos_token_ids, [7, 9]);
        assert_eq!(
            (many.temperature, many.do_sample, many.top_k),
            (Some(0.6), Some(true), None)
        );
    }

    #[test]
    fn wrong_types_name_the_field() {
        for (text, field) in [
            (r#"{"eos_token_id": "x"}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1, -2]}"#, "eos_token_id"),
            (r#"{"eos_token_id": 4294967296}"#, "eos_token_id"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"top_k": 1.5}"#, "top_k"),
        ] {
            let fault = read(text).unwrap_err();
            assert!(
                matches!(&fault, ConfigError::Type { field: f, .. } if f == field),
                "{fault}"
            );
        }
    }
}
