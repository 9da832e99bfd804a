//! One generated token as a streaming callback receives it: id, text and probability.
//!
//! The probability is the model's own: it is computed from the logits before penalty, temperature and the filters of
//! the sampler. Costs nothing if only text is requested.

use std::cell::RefCell;
use std::ops::ControlFlow;

use super::{Sampler, SamplingError};

/// A generated token; see [`Generator::generate_stream`](super::Generator::generate_stream).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StreamToken {
    /// The token's id.
    pub token_id: u32,
    /// The text completed by this token. `None` if there is none: for a special token, a part of a character, or text
    /// that may be the beginning of a stop string. The texts of all tokens concatenate to the text of the answer.
    pub text: Option<String>,
    /// The model's logit of this token, before penalty and temperature.
    pub logit: f32,
    /// The probability of this token under the model's own distribution, softmax of all logits; from 0 to 1.
    pub probability: f32,
    /// The natural logarithm of [`Self::probability`], computed directly.
    pub log_probability: f32,
    /// Whether this is one of the tokens that end the answer.
    pub is_eos: bool,
}

impl StreamToken {
    /// `token` with its entry of `logits` `(vocab)`, without text.
    fn of(logits: &[f32], token: u32, is_eos: bool) -> Self {
        let logit = logits[token as usize];
        let log_probability = f64::from(logit) - log_sum_exp(logits);
        Self {
            token_id: token,
            text: None,
            logit,
            probability: log_probability.exp() as f32,
            log_probability: log_probability as f32,
            is_eos,
        }
    }
}

/// `ln(sum(exp(logits)))`, in f64.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    largest + sum.ln()
}

/// The callback of a stream, and the text that it has not received yet.
pub(super) struct Listener<'l> {
    pub on_token: &'l mut dyn FnMut(&StreamToken) -> ControlFlow<()>,
    pub text: &'l RefCell<String>,
    pub stop_tokens: &'l [u32],
}

/// A sampler that reports its choices to a listener, if there is one.
pub(super) struct Chooser<'l> {
    sampler: Sampler,
    listener: Option<Listener<'l>>,
    /// The last token, until it is reported.
    pending: Option<StreamToken>,
}

impl<'l> Chooser<'l> {
    pub fn new(sampler: Sampler, listener: Option<Listener<'l>>) -> Self {
        Self {
            sampler,
            listener,
            pending: None,
        }
    }

    /// Like [`Sampler::sample`], with the logits modified by `process`.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        history: &[u32],
        process: impl FnOnce(&mut [f32]),
    ) -> Result<u32, SamplingError> {
        let Some(listener) = &self.listener else {
            process(logits);
            return self.sampler.sample(logits, history);
        };
        let original = logits.to_vec();
        process(logits);
        let token = self.sampler.sample(logits, history)?;
        let is_eos = listener.stop_tokens.contains(&token);
        self.pending = Some(StreamToken::of(&original, token, is_eos));
        Ok(token)
    }

    /// Reports the last token to the listener, with the text that has been streamed since the preceding one.
    pub fn tell(&mut self) -> ControlFlow<()> {
        let (Some(listener), Some(mut token)) = (&mut self.listener, self.pending.take()) else {
            return ControlFlow::Continue(());
        };
        token.text = Some(listener.text.take()).filter(|text| !text.is_empty());
        (listener.on_token)(&token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_the_softmax_of_the_logits() {
        let logits = [1.0, 2.0, f32::NEG_INFINITY, 0.5];
        let tokens: Vec<_> = (0..4).map(|id| StreamToken::of(&logits, id, false)).collect();
        let expected = [0.231_223_91, 0.628_531_7, 0.0, 0.140_244_4];
        for (token, expected) in tokens.iter().zip(expected) {
            assert!((token.probability - expected).abs() < 1e-6, "{token:?}");
            assert!((token.log_probability.exp() - expected).abs() < 1e-6, "{token:?}");
        }
        assert_eq!(tokens[2].log_probability, f32::NEG_INFINITY);
    }

    #[test]
    fn an_unlikely_token_keeps_its_logarithm() {
        let token = StreamToken::of(&[1000.0, 0.0], 1, false);
        assert_eq!((token.probability, token.log_probability), (0.0, -1000.0));
    }

    #[test]
    fn a_token_is_reported_once_with_the_text_since_the_last() {
        let (text, mut told) = (RefCell::new(String::new()), Vec::new());
        let mut on_token = |token: &StreamToken| {
            told.push((token.token_id, token.text.clone(), token.logit, token.is_eos));
            ControlFlow::Continue(())
        };
        let listener = Listener {
            on_token: &mut on_token,
            text: &text,
            stop_tokens: &[0],
        };
        let config = super::super::SamplingConfig {
            repetition_penalty: 4.0,
            ..Default::default()
        };
        let mut chooser = Chooser::new(Sampler::new(config).unwrap(), Some(listener));
        assert!(chooser.tell().is_continue());
        assert_eq!(chooser.sample(&mut [1.0, 2.0], &[], |_| ()), Ok(1));
        text.borrow_mut().push_str("one");
        assert!(chooser.tell().is_continue() && chooser.tell().is_continue());
        // The penalty determines the choice; the reported logit is the model's.
        assert_eq!(chooser.sample(&mut [1.0, 2.0], &[1], |_| ()), Ok(0));
        assert!(chooser.tell().is_continue());
        assert_eq!(told, [(1, Some("one".into()), 2.0, false), (0, None, 1.0, true)]);
    }
}
