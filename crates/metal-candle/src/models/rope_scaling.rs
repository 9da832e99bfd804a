//! Rotary position embeddings as a model folder specifies them: base frequency and scaling.
//!
//! Both spellings are read: `rope_theta` beside `rope_scaling` (transformers 4), and `rope_parameters` with both inside
//! (transformers 5). The frequencies are computed in `rope_frequencies.rs`.

use super::{ConfigError, Fields};

const SUPPORTED: &str = "default, linear, dynamic, llama3, yarn";

/// The rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the wavelengths, `rope_theta`.
    pub theta: f64,
    /// How frequencies are adjusted for longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are adjusted for contexts longer than those of pre-training.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Unchanged.
    Default,
    /// All frequencies divided by a factor.
    Linear {
        /// The divisor, above 0.
        factor: f64,
    },
    /// The base grows with sequences longer than `max_position_embeddings`. Up to that length, the maximum for
    /// generation and training, frequencies are those of [`Default`](Self::Default).
    Dynamic {
        /// Growth factor of the base, above 0.
        factor: f64,
    },
    /// Long wavelengths divided by a factor, short ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// The divisor of long wavelengths, above 0.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` positions are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` positions are kept.
        high_freq_factor: f64,
        /// Context length of pre-training, in tokens.
        original_max_position_embeddings: usize,
    },
    /// Long wavelengths divided by a factor, short ones kept, with a linear ramp over the dimensions between, and cosines
    /// and sines scaled (`YaRN`).
    Yarn {
        /// The divisor of long wavelengths, above 0.
        factor: f64,
        /// Scale of cosines and sines.
        attention_factor: f64,
        /// Dimensions with more rotations than this within the original context are kept.
        beta_fast: f64,
        /// Dimensions with fewer rotations than this within the original context are divided.
        beta_slow: f64,
        /// Whether the ends of the ramp are rounded to integers.
        truncate: bool,
        /// Context length of pre-training, in tokens.
        original_max_position_embeddings: usize,
    },
}

impl RopeConfig {
    /// Reads `rope_theta` with `rope_scaling`, or the newer `rope_parameters` that holds both.
    pub(super) fn read(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<Self, ConfigError> {
        // transformers prefers the older key if both exist; an empty object counts as absent.
        let scaling = match fields.object("rope_scaling")?.filter(|s| !s.is_empty()) {
            Some(scaling) => Some(scaling),
            None => fields.object("rope_parameters")?,
        };
        let nested = scaling.as_ref().map(|s| s.f64("rope_theta")).transpose()?.flatten();
        let theta = nested.or(fields.f64("rope_theta")?).unwrap_or(10_000.0);
        if !(theta > 0.0 && theta <= 1e15) {
            return Err(fields.invalid("rope_theta", format!("is {theta}, which is not between 0 and 1e15")));
        }
        for source in [Some(fields), scaling.as_ref()].into_iter().flatten() {
            match source.get("partial_rotary_factor") {
                Some(part) if part.as_f64() != Some(1.0) => {
                    return Err(source.unsupported("partial_rotary_factor", part, "1.0"));
                }
                _ => {}
            }
        }
        let scaling = scaling.map_or(Ok(RopeScaling::Default), |scaling| {
            let context = ContextLengths::read(fields, &scaling, max_position_embeddings)?;
            RopeScaling::read(&scaling, theta, context)
        })?;
        Ok(Self { theta, scaling })
    }

    /// Scale of cosines and sines; 1 except for `YaRN`.
    #[must_use]
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            RopeScaling::Default
            | RopeScaling::Linear { .. }
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Llama3 { .. } => 1.0,
        }
    }
}

/// Context lengths, in tokens.
#[derive(Clone, Copy)]
struct ContextLengths {
    /// Of pre-training.
    original: usize,
    /// Of the model.
    longest: usize,
}

impl ContextLengths {
    /// As in transformers, `original_max_position_embeddings` of the file takes precedence over that of the scaling.
    fn read(file: &Fields<'_>, scaling: &Fields<'_>, longest: usize) -> Result<Self, ConfigError> {
        const FIELD: &str = "original_max_position_embeddings";
        for fields in [file, scaling] {
            match fields.usize(FIELD)? {
                Some(0) => return Err(fields.invalid(FIELD, "is 0")),
                Some(original) => return Ok(Self { original, longest }),
                None => {}
            }
        }
        Ok(Self {
            original: longest,
            longest,
        })
    }
}

impl RopeScaling {
    fn read(fields: &Fields<'_>, theta: f64, context: ContextLengths) -> Result<Self, ConfigError> {
        let key = if fields.get("rope_type").is_some() {
            "rope_type"
        } else {
            "type"
        };
        match fields.str(key)?.unwrap_or("default") {
            "default" => {
                // For a model whose layers differ, objects are keyed by layer type.
                for kind in ["full_attention", "sliding_attention"] {
                    if let Some(nested) = fields.get(kind) {
                        return Err(fields.unsupported(kind, nested, "one rotary embedding for all layers"));
                    }
                }
                Ok(Self::Default)
            }
            "linear" => Ok(Self::Linear {
                factor: positive(fields, "factor")?,
            }),
            "dynamic" => Ok(Self::Dynamic {
                factor: positive(fields, "factor")?,
            }),
            "llama3" => Self::llama3(fields, context),
            "yarn" => Self::yarn(fields, theta, context),
            other => Err(fields.unsupported(key, &other.into(), SUPPORTED)),
        }
    }

    fn llama3(fields: &Fields<'_>, context: ContextLengths) -> Result<Self, ConfigError> {
        let (low, high) = (
            positive(fields, "low_freq_factor")?,
            positive(fields, "high_freq_factor")?,
        );
        if low >= high {
            return Err(fields.invalid(
                "high_freq_factor",
                format!("is {high}, not above low_freq_factor, {low}"),
            ));
        }
        Ok(Self::Llama3 {
            factor: positive(fields, "factor")?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: context.original,
        })
    }

    fn yarn(fields: &Fields<'_>, theta: f64, context: ContextLengths) -> Result<Self, ConfigError> {
        if theta <= 1.0 {
            return Err(fields.invalid("rope_theta", format!("is {theta}; yarn needs one above 1")));
        }
        let factor = match fields.get("factor") {
            Some(_) => positive(fields, "factor")?,
            None => context.longest as f64 / context.original as f64,
        };
        // 0 means the default, as in transformers.
        let or = |field, default| match fields.f64(field)? {
            None | Some(0.0) => Ok(default),
            Some(_) => positive(fields, field),
        };
        Ok(Self::Yarn {
            factor,
            attention_factor: attention_factor(fields, factor)?,
            beta_fast: or("beta_fast", 32.0)?,
            beta_slow: or("beta_slow", 1.0)?,
            truncate: fields.bool("truncate")?.unwrap_or(true),
            original_max_position_embeddings: context.original,
        })
    }
}

/// The `YaRN` scale of cosines and sines: as given, else by the two `mscale` settings, else by `factor` alone.
fn attention_factor(fields: &Fields<'_>, factor: f64) -> Result<f64, ConfigError> {
    if let Some(given) = fields.f64("attention_factor")? {
        if given > 0.0 && given <= 1e9 {
            return Ok(given);
        }
        let reason = format!("is {given}, which is not between 0 and 1e9");
        return Err(fields.invalid("attention_factor", reason));
    }
    let scale = |by: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * by * factor.ln() + 1.0
        }
    };
    let set = |field| Ok::<_, ConfigError>(fields.f64(field)?.filter(|x| *x != 0.0));
    let value = match (set("mscale")?, set("mscale_all_dim")?) {
        (Some(above), Some(below)) => scale(above) / scale(below),
        _ => scale(1.0),
    };
    if value.is_finite() {
        return Ok(value);
    }
    Err(fields.invalid("mscale_all_dim", "makes the attention factor infinite"))
}

/// A required number above 0.
fn positive(fields: &Fields<'_>, field: &str) -> Result<f64, ConfigError> {
    let value = fields.required_f64(field)?;
    if value > 0.0 && value <= 1e9 {
        return Ok(value);
    }
    Err(fields.invalid(field, format!("is {value}, which is not between 0 and 1e9")))
}
