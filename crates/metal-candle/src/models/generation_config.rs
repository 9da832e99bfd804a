//! `generation_config.json`: the generation settings suggested by a model's authors; often absent.

use std::path::Path;

use serde_json::{Value, json};

use super::fields::shortened;
use super::{ConfigError, Fields};
use metal_candle_graph::io::read_json_object;

/// The suggestions that this library follows; all are optional, and an absent file counts as empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// End-of-text tokens; empty if not given.
    pub eos_token_ids: Vec<u32>,
    /// Begin-of-text token.
    pub bos_token_id: Option<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// Whether to sample instead of taking the most likely token.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// Keep the `k` most likely tokens.
    pub top_k: Option<usize>,
    /// Keep the most likely tokens up to this probability.
    pub top_p: Option<f64>,
    /// Keep tokens with at least this share of the largest probability.
    pub min_p: Option<f64>,
    /// Keep the tokens with the most typical surprisal up to this probability.
    pub typical_p: Option<f64>,
    /// Keep tokens with at least this probability.
    pub epsilon_cutoff: Option<f64>,
    /// Keep tokens with at least this probability, or less if the entropy is high.
    pub eta_cutoff: Option<f64>,
    /// Keep the most likely tokens up to this share of the entropy.
    pub top_h: Option<f64>,
    /// Penalty on earlier tokens.
    pub repetition_penalty: Option<f64>,
    /// Maximum number of generated tokens.
    pub max_new_tokens: Option<usize>,
    /// Maximum number of tokens of prompt and answer together.
    pub max_length: Option<usize>,
    /// Minimum number of tokens of prompt and answer together.
    pub min_length: Option<usize>,
    /// Minimum number of generated tokens.
    pub min_new_tokens: Option<usize>,
    /// No n-gram of this size occurs twice; 0 disables the rule.
    pub no_repeat_ngram_size: Option<usize>,
    /// Token sequences that are never generated.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Tokens that are never generated.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that never begin an answer.
    pub begin_suppress_tokens: Vec<u32>,
    /// Settings that are not implemented, such as `num_beams = 4`; the others are followed.
    pub unsupported: Vec<String>,
}

/// Settings that are not implemented, each with its values that have no effect, besides null and absent.
fn not_implemented() -> [(&'static str, Vec<Value>); 20] {
    let (zero, one, no) = ([json!(0), json!(0.0)], [json!(1), json!(1.0)], [json!(false)]);
    [
        ("num_beams", one.to_vec()),
        ("num_beam_groups", one.to_vec()),
        ("diversity_penalty", zero.to_vec()),
        ("constraints", Vec::new()),
        ("force_words_ids", Vec::new()),
        ("num_return_sequences", one.to_vec()),
        ("penalty_alpha", zero.to_vec()),
        ("dola_layers", Vec::new()),
        ("guidance_scale", one.to_vec()),
        ("sequence_bias", Vec::new()),
        ("encoder_repetition_penalty", one.to_vec()),
        ("encoder_no_repeat_ngram_size", zero.to_vec()),
        ("forced_bos_token_id", Vec::new()),
        ("forced_eos_token_id", Vec::new()),
        ("exponential_decay_length_penalty", Vec::new()),
        ("remove_invalid_values", no.to_vec()),
        ("watermarking_config", Vec::new()),
        ("token_healing", no.to_vec()),
        ("stop_strings", Vec::new()),
        ("max_time", Vec::new()),
    ]
}

impl GenerationConfig {
    /// Reads `generation_config.json` of a model folder; returns defaults if there is none.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is not JSON or a field has the wrong type.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join("generation_config.json");
        if path.symlink_metadata().is_err() {
            return Ok(Self::default());
        }
        let map = read_json_object(&path)?;
        Self::from_fields(&Fields::new(&path, &map))
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            eos_token_ids: fields.token_ids("eos_token_id")?,
            bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
            pad_token_id: fields.token_ids("pad_token_id")?.first().copied(),
            do_sample: fields.bool("do_sample")?,
            temperature: fields.f64("temperature")?,
            top_k: fields.usize("top_k")?,
            top_p: fields.f64("top_p")?,
            min_p: fields.f64("min_p")?,
            typical_p: fields.f64("typical_p")?,
            epsilon_cutoff: fields.f64("epsilon_cutoff")?,
            eta_cutoff: fields.f64("eta_cutoff")?,
            top_h: fields.f64("top_h")?,
            repetition_penalty: fields.f64("repetition_penalty")?,
            max_new_tokens: fields.usize("max_new_tokens")?,
            max_length: fields.usize("max_length")?,
            min_length: fields.usize("min_length")?,
            min_new_tokens: fields.usize("min_new_tokens")?,
            no_repeat_ngram_size: fields.usize("no_repeat_ngram_size")?,
            bad_words_ids: fields.token_id_lists("bad_words_ids")?,
            suppress_tokens: fields.token_ids("suppress_tokens")?,
            begin_suppress_tokens: fields.token_ids("begin_suppress_tokens")?,
            unsupported: unsupported(fields),
        })
    }
}

/// The settings in effect that are not implemented.
fn unsupported(fields: &Fields<'_>) -> Vec<String> {
    let asks = |(field, neutral): (&'static str, Vec<Value>)| {
        let value = fields.get(field).filter(|value| !neutral.contains(value))?;
        Some(format!("{field} = {}", shortened(value)))
    };
    not_implemented().into_iter().filter_map(asks).collect()
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
    fn ids_that_are_no_tokens_are_left_out() {
        assert!(read(r#"{"eos_token_id": -1}"#).unwrap().eos_token_ids.is_empty());
        assert_eq!(read(r#"{"eos_token_id": [-1, 4]}"#).unwrap().eos_token_ids, [4]);
        let config = read(r#"{"suppress_tokens": [-1, 3], "bad_words_ids": [[5, -1], [6], [7, 8]]}"#).unwrap();
        assert_eq!(config.suppress_tokens, [3]);
        assert_eq!(config.bad_words_ids, [vec![6], vec![7, 8]]);
    }

    #[test]
    fn what_is_not_implemented_is_named_where_it_matters() {
        let neutral =
            r#"{"num_beams": 1, "penalty_alpha": 0.0, "typical_p": 0.9, "guidance_scale": null, "max_time": null}"#;
        assert!(read(neutral).unwrap().unsupported.is_empty());
        let asked =
            r#"{"do_sample": true, "num_beams": 4, "typical_p": 0.9, "forced_eos_token_id": 2, "stop_strings": ["x"]}"#;
        assert_eq!(
            read(asked).unwrap().unsupported,
            ["num_beams = 4", "forced_eos_token_id = 2", r#"stop_strings = ["x"]"#]
        );
    }

    #[test]
    fn wrong_types_name_the_field() {
        for (text, field) in [
            (r#"{"eos_token_id": "x"}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1, 2.5]}"#, "eos_token_id"),
            (r#"{"bad_words_ids": [1, 2]}"#, "bad_words_ids"),
            (r#"{"bad_words_ids": [["x"]]}"#, "bad_words_ids"),
            (r#"{"suppress_tokens": "none"}"#, "suppress_tokens"),
            (r#"{"no_repeat_ngram_size": -1}"#, "no_repeat_ngram_size"),
            (r#"{"temperature": NaN}"#, "temperature"),
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
