//! Sampling: repetition penalty, temperature, the filters of `filters.rs`, and a random draw.
//!
//! The steps, their order and their treatment of ties are those of `transformers`. Random numbers come from a
//! counter-based generator keyed by seed and step, so a seed gives the same tokens, and a single step can be repeated.
//! Never returns a token with a NaN logit.

use super::filters;
use crate::models::GenerationConfig;

/// Settings of sampling.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingConfig {
    /// Divisor of the logits; 0 takes the most likely token (greedy). At least 0.
    pub temperature: f64,
    /// Keep the `k` most likely tokens, including ties; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens whose probabilities add up to this; 1 keeps all. From 0 to 1.
    pub top_p: f64,
    /// Keep tokens with at least this share of the largest probability; 0 keeps all. From 0 to 1.
    pub min_p: f64,
    /// Keep the tokens whose surprisal is closest to the entropy, up to this probability; 1 keeps all. Above 0, up to
    /// 1.
    pub typical_p: f64,
    /// Keep tokens with at least this probability; 0 keeps all. From 0 to below 1.
    pub epsilon_cutoff: f64,
    /// Keep tokens with at least this probability, or less if the entropy is high; 0 keeps all. From 0 to below 1.
    pub eta_cutoff: f64,
    /// Keep the most likely tokens up to this share of the entropy, if given. Above 0, up to 1.
    pub top_h: Option<f64>,
    /// Divides positive logits of earlier tokens and multiplies negative ones; 1 disables it. Above 0.
    pub repetition_penalty: f64,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplingConfig {
    /// Greedy, without a penalty.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            top_h: None,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingConfig {
    /// The suggestions of a model's `generation_config.json`: greedy unless `do_sample`; for absent fields,
    /// transformers' temperature 1 and top-k 50.
    #[must_use]
    pub fn suggested_by(generation: &GenerationConfig, seed: u64) -> Self {
        let repetition_penalty = generation.repetition_penalty.unwrap_or(1.0);
        if generation.do_sample != Some(true) {
            return Self {
                repetition_penalty,
                seed,
                ..Self::default()
            };
        }
        Self {
            temperature: generation.temperature.unwrap_or(1.0),
            top_k: generation.top_k.unwrap_or(50),
            top_p: generation.top_p.unwrap_or(1.0),
            min_p: generation.min_p.unwrap_or(0.0),
            typical_p: generation.typical_p.unwrap_or(1.0),
            epsilon_cutoff: generation.epsilon_cutoff.unwrap_or(0.0),
            eta_cutoff: generation.eta_cutoff.unwrap_or(0.0),
            top_h: generation.top_h,
            repetition_penalty,
            seed,
        }
    }

    /// Checks that every setting is in range.
    ///
    /// # Errors
    /// [`SamplingError::Setting`] for the first that is not.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let bound = |name, value: f64, ok: bool, range| {
            if ok {
                Ok(())
            } else {
                Err(SamplingError::Setting { name, value, range })
            }
        };
        let (t, p, m, r) = (self.temperature, self.top_p, self.min_p, self.repetition_penalty);
        bound("temperature", t, t >= 0.0 && t.is_finite(), "0 (greedy) or above")?;
        bound("top_p", p, (0.0..=1.0).contains(&p), "from 0 to 1")?;
        bound("min_p", m, (0.0..=1.0).contains(&m), "from 0 to 1")?;
        let (y, above) = (self.typical_p, "above 0, up to 1");
        bound("typical_p", y, y > 0.0 && y <= 1.0, above)?;
        let h = self.top_h.unwrap_or(1.0);
        bound("top_h", h, h > 0.0 && h <= 1.0, above)?;
        for (name, cutoff) in [("epsilon_cutoff", self.epsilon_cutoff), ("eta_cutoff", self.eta_cutoff)] {
            bound(name, cutoff, (0.0..1.0).contains(&cutoff), "from 0 to below 1")?;
        }
        bound("repetition_penalty", r, r > 0.0 && r.is_finite(), "above 0")
    }
}

/// The reason why no token was sampled.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A setting out of range.
    #[error("sampling: {name} is {value}, it should be {range}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The valid range.
        range: &'static str,
    },
    /// There are no logits.
    #[error("sampling: the vocabulary is empty")]
    Empty,
    /// A logit is NaN or positive infinity: the model's numbers have overflowed.
    #[error("sampling: the logit of token {token} is {value}; the model's output is numerically invalid")]
    NotFinite {
        /// The token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// Every logit is negative infinity.
    #[error("sampling: every token is excluded (all logits are -inf)")]
    AllExcluded,
}

/// Samples tokens; holds the settings and the step.
///
/// ```
/// use metal_candle::inference::{Sampler, SamplingConfig};
///
/// let mut greedy = Sampler::new(SamplingConfig::default())?;
/// assert_eq!(greedy.sample(&mut [0.1, 2.0, -1.0, 2.0], &[])?, 1);
///
/// let config = SamplingConfig { temperature: 0.8, top_p: 0.9, seed: 7, ..Default::default() };
/// let (mut one, mut two) = (Sampler::new(config.clone())?, Sampler::new(config)?);
/// assert_eq!(one.sample(&mut [1.0, 1.1, 0.9], &[])?, two.sample(&mut [1.0, 1.1, 0.9], &[])?);
/// # Ok::<(), metal_candle::inference::SamplingError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplingConfig,
    step: u64,
}

impl Sampler {
    /// A sampler at step 0.
    ///
    /// # Errors
    /// [`SamplingError::Setting`] if a setting is out of range.
    pub fn new(config: SamplingConfig) -> Result<Self, SamplingError> {
        config.validate()?;
        Ok(Self { config, step: 0 })
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &SamplingConfig {
        &self.config
    }

    /// Number of draws so far.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Samples the next token from `logits` `(vocab)`, which it overwrites. `history` holds the tokens that the penalty
    /// applies to, prompt included; ids beyond the vocabulary are ignored. Among equally likely tokens, greedy sampling
    /// takes the lowest id.
    ///
    /// # Errors
    /// [`SamplingError::Empty`], [`SamplingError::NotFinite`], [`SamplingError::AllExcluded`].
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32, SamplingError> {
        check(logits)?;
        penalise(logits, history, self.config.repetition_penalty as f32);
        if self.config.temperature == 0.0 {
            return Ok(likeliest(logits));
        }
        let kept = self.kept(logits);
        let token = draw(&kept, uniform(self.config.seed, self.step));
        self.step += 1;
        Ok(token)
    }

    /// The tokens that may be sampled, with their probabilities, in ascending order.
    fn kept(&self, logits: &mut [f32]) -> Vec<(u32, f32)> {
        // The largest logit is subtracted first, so that a tiny temperature cannot make it infinite.
        let largest = logits[likeliest(logits) as usize];
        let temperature = self.config.temperature as f32;
        for logit in logits.iter_mut() {
            // Equal logits stay equal and finite even if the temperature rounds to 0.
            *logit = if *logit < largest {
                (*logit - largest) / temperature
            } else {
                0.0
            };
        }
        if let Some(share) = self.config.top_h {
            filters::top_h(logits, share);
        }
        let mut kept = filters::top_k(logits, self.config.top_k);
        kept.sort_unstable_by(|(a, x), (b, y)| x.total_cmp(y).then(a.cmp(b)));
        filters::softmax(&mut kept);
        filters::top_p(&mut kept, self.config.top_p);
        filters::min_p(&mut kept, self.config.min_p);
        filters::typical_p(&mut kept, self.config.typical_p);
        filters::epsilon(&mut kept, self.config.epsilon_cutoff);
        filters::eta(&mut kept, self.config.eta_cutoff);
        kept
    }
}

fn check(logits: &[f32]) -> Result<(), SamplingError> {
    if logits.is_empty() {
        return Err(SamplingError::Empty);
    }
    let broken = |l: &f32| l.is_nan() || *l == f32::INFINITY;
    if let Some(token) = logits.iter().position(broken) {
        return Err(SamplingError::NotFinite {
            token,
            value: logits[token],
        });
    }
    if logits.iter().all(|&l| l == f32::NEG_INFINITY) {
        return Err(SamplingError::AllExcluded);
    }
    Ok(())
}

/// The lowest id with the largest logit.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// Penalises each token of the history once, however often it occurred.
fn penalise(logits: &mut [f32], history: &[u32], penalty: f32) {
    let mut seen = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            let changed = if *logit < 0.0 {
                *logit * penalty
            } else {
                *logit / penalty
            };
            // Only excluded tokens stay infinite, whatever the penalty.
            if logit.is_finite() {
                *logit = changed.clamp(f32::MIN, f32::MAX);
            }
        }
    }
}

/// The token whose interval of the cumulative distribution contains the number from `[0, 1)`.
fn draw(kept: &[(u32, f32)], uniform: f64) -> u32 {
    let whole: f64 = kept.iter().map(|&(_, p)| f64::from(p)).sum();
    let mut left = uniform * whole;
    let mut token = 0;
    // From the most likely token down: the loop mostly ends early.
    for &(id, probability) in kept.iter().rev() {
        token = id;
        left -= f64::from(probability);
        if left < 0.0 {
            break;
        }
    }
    token
}

/// A number from `[0, 1)` for a seed and a step: two rounds of the `SplitMix64` finaliser, one to spread the seed and
/// one over seed and step, with 53 bits kept.
fn uniform(seed: u64, step: u64) -> f64 {
    let key = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let bits = mix(key.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood, 2014): every input bit affects every output bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
