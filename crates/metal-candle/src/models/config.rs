//! `config.json`: the sizes and settings of a model, checked before anything is built from them.
//!
//! Fields have Hugging Face's names and defaults. The file is untrusted: sizes are bounded, so that no product of them
//! overflows, and what is not implemented is refused by name instead of ignored.

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::{Map, Value};

use super::{ConfigError, Fields, RopeConfig};
use metal_candle_graph::io::read_json_object;

type Result<T> = std::result::Result<T, ConfigError>;

/// Values of `num_key_value_heads` and `sliding_window` for a `qwen2` model whose file lacks them, as in transformers.
const QWEN2_KEY_VALUE_HEADS: usize = 32;
const QWEN2_SLIDING_WINDOW: usize = 4096;

/// The model families that can be loaded, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// `llama`: Llama 1 to 3 and models exported as such.
    Llama,
    /// `qwen2`: Qwen 1.5 to 2.5; query, key and value have biases.
    Qwen2,
}

impl Architecture {
    /// Every supported architecture.
    pub const ALL: [Self; 2] = [Self::Llama, Self::Qwen2];

    /// The `model_type` in `config.json`.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }

    /// transformers' default of `max_position_embeddings`.
    fn default_positions(self) -> usize {
        match self {
            Self::Llama => 2048,
            Self::Qwen2 => 32_768,
        }
    }
}

/// The settings of a decoder-only language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The file with the settings, for messages.
    pub path: PathBuf,
    /// The model family.
    pub architecture: Architecture,
    /// Hidden size.
    pub hidden_size: usize,
    /// Inner size of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Head dimension; even.
    pub head_dim: usize,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Maximum context length, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether query, key and value have biases; in `llama` the output projection then too.
    pub attention_bias: bool,
    /// Whether the MLP's linear layers have biases.
    pub mlp_bias: bool,
    /// Sliding window of each layer, in tokens, the current one included; `None` for full attention.
    pub sliding_windows: Vec<Option<usize>>,
    /// The dtype the weights were saved in, if given.
    pub dtype: Option<DType>,
    /// Begin-of-text token.
    pub bos_token_id: Option<u32>,
    /// End-of-text tokens; empty if not given.
    pub eos_token_ids: Vec<u32>,
    /// Settings of the file that are not followed; each a sentence for the user.
    pub warnings: Vec<String>,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and the field that is missing, mistyped, unsupported or inconsistent.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let map = read_json_object(&path)?;
        Self::from_json(&path, &map)
    }

    /// Builds the settings from a parsed file; `path` is used in messages only.
    ///
    /// ```
    /// use metal_candle::models::ModelConfig;
    /// let json = serde_json::json!({
    ///     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 48,
    ///     "num_hidden_layers": 2, "num_attention_heads": 4,
    /// });
    /// let config = ModelConfig::from_json("config.json".as_ref(), json.as_object().unwrap())?;
    /// assert_eq!((config.head_dim, config.num_key_value_heads), (4, 4));
    /// # Ok::<(), metal_candle::models::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_json(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let fields = Fields::new(path, map);
        let architecture = architecture(path, &fields)?;
        refuse_unsupported(&fields)?;
        let llama = architecture == Architecture::Llama;
        let num_hidden_layers = size(&fields, "num_hidden_layers", 1024, None)?;
        let positions = Some(architecture.default_positions());
        let max_position_embeddings = size(&fields, "max_position_embeddings", 1 << 30, positions)?;
        let heads = HeadSizes::read(&fields, architecture)?;
        Ok(Self {
            path: path.to_owned(),
            architecture,
            hidden_size: heads.hidden,
            intermediate_size: size(&fields, "intermediate_size", 1 << 22, None)?,
            num_hidden_layers,
            num_attention_heads: heads.query,
            num_key_value_heads: heads.key_value,
            head_dim: heads.dim,
            vocab_size: size(&fields, "vocab_size", 1 << 26, None)?,
            max_position_embeddings,
            rms_norm_eps: epsilon(&fields)?,
            rope: RopeConfig::read(&fields, max_position_embeddings)?,
            tie_word_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: !llama || fields.bool("attention_bias")?.unwrap_or(false),
            mlp_bias: llama && fields.bool("mlp_bias")?.unwrap_or(false),
            sliding_windows: sliding_windows(&fields, architecture, num_hidden_layers)?,
            dtype: dtype(&fields)?,
            bos_token_id: special_tokens(&fields, "bos_token_id", llama.then_some(1))?
                .first()
                .copied(),
            eos_token_ids: special_tokens(&fields, "eos_token_id", llama.then_some(2))?,
            warnings: warnings(&fields)?,
        })
    }

    /// Angle per position for each pair of channels of a head: `head_dim / 2` values; see [`RopeConfig`].
    #[must_use]
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        self.rope.inverse_frequencies(self.head_dim)
    }
}

fn architecture(path: &Path, fields: &Fields<'_>) -> Result<Architecture> {
    let found = fields.str("model_type")?.ok_or_else(|| fields.missing("model_type"))?;
    Architecture::ALL
        .into_iter()
        .find(|a| a.model_type() == found)
        .ok_or_else(|| ConfigError::UnknownArchitecture {
            path: path.to_owned(),
            found: found.to_owned(),
            supported: Architecture::ALL.map(Architecture::model_type).join(", "),
        })
}

/// The sizes of attention, which depend on each other.
struct HeadSizes {
    hidden: usize,
    query: usize,
    key_value: usize,
    dim: usize,
}

impl HeadSizes {
    fn read(fields: &Fields<'_>, architecture: Architecture) -> Result<Self> {
        let hidden = size(fields, "hidden_size", 1 << 20, None)?;
        let query = size(fields, "num_attention_heads", 1 << 12, None)?;
        // null means as many as query heads; an absent field, in `qwen2`, means 32 if that divides them.
        let absent = architecture == Architecture::Qwen2 && !fields.has("num_key_value_heads");
        let default = if absent && query.is_multiple_of(QWEN2_KEY_VALUE_HEADS) {
            QWEN2_KEY_VALUE_HEADS
        } else {
            query
        };
        let key_value = size(fields, "num_key_value_heads", 1 << 12, Some(default))?;
        if !query.is_multiple_of(key_value) {
            let reason = format!("is {key_value}, which does not divide num_attention_heads, {query}");
            return Err(fields.invalid("num_key_value_heads", reason));
        }
        if fields.get("head_dim").is_none() && !hidden.is_multiple_of(query) {
            let reason =
                format!("is {hidden}, not a multiple of num_attention_heads, {query}, and there is no head_dim");
            return Err(fields.invalid("hidden_size", reason));
        }
        let dim = size(fields, "head_dim", 1 << 14, Some(hidden / query))?;
        if !dim.is_multiple_of(2) {
            return Err(fields.invalid("head_dim", format!("is {dim}; rotary embeddings need an even one")));
        }
        Ok(Self {
            hidden,
            query,
            key_value,
            dim,
        })
    }
}

/// An integer from 1 to `limit`; products of two cannot overflow.
fn size(fields: &Fields<'_>, field: &str, limit: usize, default: Option<usize>) -> Result<usize> {
    let value = fields.usize(field)?.or(default).ok_or_else(|| fields.missing(field))?;
    if (1..=limit).contains(&value) {
        return Ok(value);
    }
    Err(fields.invalid(field, format!("is {value}, which is not between 1 and {limit}")))
}

fn epsilon(fields: &Fields<'_>) -> Result<f64> {
    let value = fields.f64("rms_norm_eps")?.unwrap_or(1e-6);
    if value > 0.0 && value < 1.0 {
        return Ok(value);
    }
    Err(fields.invalid("rms_norm_eps", format!("is {value}, which is not between 0 and 1")))
}

/// Refuses settings that change what a model computes and are not implemented.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<()> {
    // The two names of x * sigmoid(x) in transformers.
    one_of(fields, "hidden_act", &["silu".into(), "swish".into()], "silu, swish")?;
    let causal = "true, for a model that generates text";
    one_of(fields, "is_causal", &[true.into()], causal)?;
    for (field, supported) in [
        (
            "quantization_config",
            "weights in f32, f16 or bf16: save the model dequantised, then load it with quantisation",
        ),
        ("per_layer_config", "the same sizes in every layer"),
    ] {
        if let Some(found) = fields.get(field) {
            return Err(fields.unsupported(field, found, supported));
        }
    }
    Ok(())
}

/// Warnings about settings that affect only training and are not implemented.
fn warnings(fields: &Fields<'_>) -> Result<Vec<String>> {
    let dropout = fields.f64("attention_dropout")?.filter(|rate| *rate != 0.0);
    let said = |rate| format!("config.json: attention_dropout = {rate} is not applied in training");
    Ok(dropout.map(said).into_iter().collect())
}

/// Checks a field with few supported values, the first of which is the default.
fn one_of(fields: &Fields<'_>, field: &str, values: &[Value], supported: &'static str) -> Result<()> {
    match fields.get(field) {
        Some(value) if !values.contains(value) => Err(fields.unsupported(field, value, supported)),
        _ => Ok(()),
    }
}

/// Token ids of a field; if it is absent, but not null, transformers' default for the architecture.
fn special_tokens(fields: &Fields<'_>, field: &str, default: Option<u32>) -> Result<Vec<u32>> {
    if fields.has(field) {
        return fields.token_ids(field);
    }
    Ok(default.into_iter().collect())
}

fn dtype(fields: &Fields<'_>) -> Result<Option<DType>> {
    let key = if fields.get("dtype").is_some() {
        "dtype"
    } else {
        "torch_dtype"
    };
    let Some(text) = fields.str(key)? else {
        return Ok(None);
    };
    match text.trim_start_matches("torch.") {
        "bfloat16" => Ok(Some(DType::BF16)),
        "float16" => Ok(Some(DType::F16)),
        "float32" | "float" => Ok(Some(DType::F32)),
        "float64" | "double" => Ok(Some(DType::F64)),
        _ => Err(fields.unsupported(key, &text.into(), "bfloat16, float16, float32, float64")),
    }
}

/// The window of each layer. Only `qwen2` has windows: in the layers given by `layer_types`, or from
/// `max_window_layers` on.
fn sliding_windows(fields: &Fields<'_>, architecture: Architecture, layers: usize) -> Result<Vec<Option<usize>>> {
    if architecture == Architecture::Llama {
        return Ok(vec![None; layers]);
    }
    let window = match fields.bool("use_sliding_window")? {
        Some(true) if fields.has("sliding_window") && fields.get("sliding_window").is_none() => None,
        Some(true) => Some(size(fields, "sliding_window", 1 << 30, Some(QWEN2_SLIDING_WINDOW))?),
        _ => None,
    };
    let Some(types) = fields.texts("layer_types")? else {
        let first = fields.usize("max_window_layers")?.unwrap_or(28);
        return Ok((0..layers).map(|i| window.filter(|_| i >= first)).collect());
    };
    if types.len() != layers {
        return Err(fields.invalid(
            "layer_types",
            format!("has {} entries for {layers} layers", types.len()),
        ));
    }
    let one = |kind: String| match (kind.as_str(), window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(_)) => Ok(window),
        ("sliding_attention", None) => {
            Err(fields.invalid("layer_types", "has sliding_attention but no sliding window is in use"))
        }
        _ => Err(fields.unsupported(
            "layer_types",
            &kind.as_str().into(),
            "full_attention, sliding_attention",
        )),
    };
    types.into_iter().map(one).collect()
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
