//! The inverse frequencies of rotary position embeddings, from base, scaling and head dimension.
//!
//! They are computed in f32, step by step as in `transformers`, because the weights were trained with its rounding.

use super::{RopeConfig, RopeScaling};

impl RopeConfig {
    /// Angle per position for each pair of channels of a head, in radians: `head_dim / 2` values, `theta^(-2i /
    /// head_dim)` adjusted by the scaling.
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
        let wavelengths = (0..head_dim / 2).map(|i| theta.powf((2 * i) as f32 / head_dim as f32));
        match self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => wavelengths.map(|w| 1.0 / w).collect(),
            RopeScaling::Linear { factor } => wavelengths.map(|w| 1.0 / w / factor as f32).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let bounds = (
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings as f64,
                );
                wavelengths.map(|w| llama3(1.0 / w, factor as f32, bounds)).collect()
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                original_max_position_embeddings,
                ..
            } => {
                // The dimension with this many rotations within the original context.
                let original = original_max_position_embeddings as f64;
                let (size, log) = (head_dim as f64, self.theta.ln());
                let dimension = |turns: f64| size * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * log);
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let ramp = Ramp::new(low.max(0.0), high.min(size - 1.0));
                let mixed = |(i, w): (usize, f32)| {
                    let kept = 1.0 - ramp.at(i);
                    1.0 / (factor as f32 * w) * (1.0 - kept) + 1.0 / w * kept
                };
                wavelengths.enumerate().map(mixed).collect()
            }
        }
    }
}

/// One frequency, by `(low_freq_factor, high_freq_factor, original context)`.
fn llama3(frequency: f32, factor: f32, (low, high, original): (f64, f64, f64)) -> f32 {
    let wavelength = std::f64::consts::TAU as f32 / frequency;
    if wavelength < (original / high) as f32 {
        return frequency;
    }
    if wavelength > (original / low) as f32 {
        return frequency / factor;
    }
    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * frequency / factor + smooth * frequency
}

/// A linear ramp from 0 to 1 between two dimensions.
struct Ramp {
    from: f32,
    width: f32,
}

impl Ramp {
    fn new(from: f64, to: f64) -> Self {
        // A width of zero would divide by zero.
        let width = if to - from == 0.0 { 0.001 } else { to - from };
        Self {
            from: from as f32,
            width: width as f32,
        }
    }

    fn at(&self, dimension: usize) -> f32 {
        ((dimension as f32 - self.from) / self.width).clamp(0.0, 1.0)
    }
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
            compare(theta, &scaling, expected);
        }
    }

    #[test]
    #[expect(clippy::excessive_precision, reason = "the constants are f32 values printed in full")]
    fn frequencies_of_yarn_equal_transformers() {
        for (theta, scaling, expected) in [
            (
                1e6,
                RopeScaling::Yarn {
                    factor: 4.0,
                    attention_factor: 1.0,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    truncate: true,
                    original_max_position_embeddings: 32_768,
                },
                [
                    1.0,
                    0.177_827_939_4,
                    0.031_622_778_62,
                    0.004_217_559_937,
                    0.000_500_000_023_7,
                    4.445_698_505e-5,
                    7.905_693_565e-6,
                    1.405_853_368e-6,
                ],
            ),
            (
                1e4,
                RopeScaling::Yarn {
                    factor: 8.0,
                    attention_factor: 1.0,
                    beta_fast: 16.0,
                    beta_slow: 2.0,
                    truncate: false,
                    original_max_position_embeddings: 64,
                },
                [
                    1.0,
                    0.120_533_987_9,
                    0.012_500_000_19,
                    0.003_952_847_328,
                    0.001_249_999_972,
                    0.000_395_284_732_8,
                    0.000_125_000_005_9,
                    3.952_847_328e-5,
                ],
            ),
        ] {
            compare(theta, &scaling, expected);
        }
    }

    fn compare(theta: f64, scaling: &RopeScaling, expected: [f32; 8]) {
        let rope = RopeConfig {
            theta,
            scaling: scaling.clone(),
        };
        let found = rope.inverse_frequencies(16);
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 3e-7 * e, "{scaling:?}: {f} against {e}");
        }
        assert_eq!(found.len(), 8);
    }
}
