//! Rotary position embeddings as a model folder describes them: base frequency and scaling.
//!
//! Frequencies are computed in f32, step by step as `transformers` does, because its rounding is part of what
//! the weights were trained with.

use super::{ConfigError, Fields};

const SUPPORTED: &str = "default, linear, llama3";

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
    /// Not at all.
    Default,
    /// All frequencies divided by a factor.
    Linear {
        /// The divisor, above 0.
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
}

impl RopeConfig {
    /// Reads `rope_theta` with `rope_scaling`, or the newer `rope_parameters` that holds both.
    pub(super) fn read(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<Self, ConfigError> {
        // transformers prefers the older key where both are there.
        let scaling = match fields.object("rope_scaling")? {
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
        let scaling = scaling.map_or(Ok(RopeScaling::Default), |s| {
            RopeScaling::read(&s, max_position_embeddings)
        })?;
        Ok(Self { theta, scaling })
    }

    /// Angle per position of each pair of a head's dimensions, in radians: `head_dim / 2` values,
    /// `theta^(-2i / head_dim)` adjusted by the scaling.
    ///
    /// ```
    /// use metal_candle::models::{RopeConfig, RopeScaling};
    ///
    /// let rope = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 2.0 } };
    /// assert_eq!(rope.inverse_frequencies(4), [0.5, 0.005]);
    /// ```
    #[must_use]
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let theta = self.theta as f32;
        let frequency = |i: usize| 1.0 / theta.powf((2 * i) as f32 / head_dim as f32);
        (0..head_dim / 2).map(|i| self.scaling.adjust(frequency(i))).collect()
    }
}

impl RopeScaling {
    fn read(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<Self, ConfigError> {
        let key = if fields.get("rope_type").is_some() {
            "rope_type"
        } else {
            "type"
        };
        match fields.str(key)?.unwrap_or("default") {
            "default" => Ok(Self::Default),
            "linear" => Ok(Self::Linear {
                factor: positive(fields, "factor")?,
            }),
            "llama3" => {
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
                let original = fields
                    .usize("original_max_position_embeddings")?
                    .unwrap_or(max_position_embeddings);
                if original == 0 {
                    return Err(fields.invalid("original_max_position_embeddings", "is 0"));
                }
                Ok(Self::Llama3 {
                    factor: positive(fields, "factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: original,
                })
            }
            other => Err(fields.unsupported(key, &other.into(), SUPPORTED)),
        }
    }

    fn adjust(&self, frequency: f32) -> f32 {
        match *self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let original = original_max_position_embeddings as f64;
                let factor = factor as f32;
                let wavelength = std::f64::consts::TAU as f32 / frequency;
                if wavelength < (original / high_freq_factor) as f32 {
                    return frequency;
                }
                if wavelength > (original / low_freq_factor) as f32 {
                    return frequency / factor;
                }
                let smooth = (original as f32 / wavelength - low_freq_factor as f32)
                    / (high_freq_factor - low_freq_factor) as f32;
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// A required number above 0.
fn positive(fields: &Fields<'_>, field: &str) -> Result<f64, ConfigError> {
    let value = fields.required_f64(field)?;
    if value > 0.0 && value <= 1e9 {
        return Ok(value);
    }
    Err(fields.invalid(field, format!("is {value}, which is not between 0 and 1e9")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Head dimension 16; the expected values are `inv_freq` of transformers 5's `LlamaRotaryEmbedding`.
    #[test]
    #[expect(clippy::excessive_precision, reason = "the constants are f32 values printed in full")]
    fn frequencies_equal_transformers() {
        let llama3 = |factor, original| RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: original,
        };
        for (theta, scaling, expected) in [
            (
                1e4,
                RopeScaling::Default,
                [
                    1.0,
                    0.316_227_763_9,
                    0.100_000_001_5,
                    0.031_622_778_62,
                    0.009_999_999_777,
                    0.003_162_277_862,
                    0.001_000_000_047,
                    0.000_316_227_786_2,
                ],
            ),
            (
                1e4,
                RopeScaling::Linear { factor: 4.0 },
                [
                    0.25,
                    0.079_056_940_97,
                    0.025_000_000_37,
                    0.007_905_694_656,
                    0.002_499_999_944,
                    0.000_790_569_465_6,
                    0.000_250_000_011_9,
                    7.905_694_656e-5,
                ],
            ),
            (
                5e5,
                llama3(8.0, 8192),
                [
                    1.0,
                    0.193_922_758_1,
                    0.037_606_030_7,
                    0.007_292_665_076,
                    0.000_524_846_022,
                    3.428_102_355e-5,
                    6.647_869_668e-6,
                    1.289_173_156e-6,
                ],
            ),
            (
                1e4,
                llama3(32.0, 64),
                [
                    1.0,
                    0.236_687_108_9,
                    0.003_725_355_025,
                    0.000_988_211_832,
                    0.000_312_499_993,
                    9.882_118_32e-5,
                    3.125_000_148e-5,
                    9.882_118_32e-6,
                ],
            ),
        ] {
            let found = RopeConfig {
                theta,
                scaling: scaling.clone(),
            }
            .inverse_frequencies(16);
            for (f, e) in found.iter().zip::<[f32; 8]>(expected) {
                assert!((f - e).abs() <= 3e-7 * e, "{scaling:?}: {f} against {e}");
            }
            assert_eq!(found.len(), 8);
        }
    }
}
