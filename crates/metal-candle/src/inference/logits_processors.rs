//! Logits processors: which tokens are forbidden, given the tokens so far.
//!
//! Each rule is that of the processor of `transformers` with the same setting: the logits of forbidden tokens become
//! negative infinity, all others keep their bits. Rules that change other logits are in `sampling.rs`.

use crate::models::GenerationConfig;

/// Rules that forbid tokens. The default forbids nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogitsProcessors {
    /// No n-gram of this size occurs twice, including those of the prompt; 0 disables the rule.
    pub no_repeat_ngram_size: usize,
    /// Token sequences that are never completed; sequences of a single stop token are ignored.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// No stop token before prompt and answer together have this many tokens.
    pub min_length: usize,
    /// No stop token before the answer has this many tokens.
    pub min_new_tokens: usize,
    /// Tokens that are never generated.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that never begin an answer.
    pub begin_suppress_tokens: Vec<u32>,
}

impl LogitsProcessors {
    /// The suggestions of a model's `generation_config.json`.
    #[must_use]
    pub fn suggested_by(generation: &GenerationConfig) -> Self {
        Self {
            no_repeat_ngram_size: generation.no_repeat_ngram_size.unwrap_or(0),
            bad_words_ids: generation.bad_words_ids.clone(),
            min_length: generation.min_length.unwrap_or(0),
            min_new_tokens: generation.min_new_tokens.unwrap_or(0),
            suppress_tokens: generation.suppress_tokens.clone(),
            begin_suppress_tokens: generation.begin_suppress_tokens.clone(),
        }
    }

    /// Forbids tokens in `logits` `(vocab)`. `history` holds the tokens so far, the first `prompt` of which are the
    /// prompt; `stop_tokens` end an answer. Ids beyond the vocabulary are ignored.
    ///
    /// ```
    /// use metal_candle::inference::LogitsProcessors;
    ///
    /// let mut processors = LogitsProcessors::default();
    /// processors.no_repeat_ngram_size = 2;
    /// let mut logits = [0.0; 4];
    /// // 1 was followed by 2 before, and is the last token again.
    /// processors.apply(&mut logits, &[1, 2, 1], 3, &[]);
    /// assert_eq!(logits, [0.0, 0.0, f32::NEG_INFINITY, 0.0]);
    /// ```
    pub fn apply(&self, logits: &mut [f32], history: &[u32], prompt: usize, stop_tokens: &[u32]) {
        let mut forbid = |id: &u32| {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        };
        repeated(history, self.no_repeat_ngram_size).for_each(&mut forbid);
        for words in &self.bad_words_ids {
            let Some((last, before)) = words.split_last() else {
                continue;
            };
            let ends = before.is_empty() && stop_tokens.contains(last);
            if history.ends_with(before) && !ends {
                forbid(last);
            }
        }
        let new = history.len().saturating_sub(prompt);
        if history.len() < self.min_length || new < self.min_new_tokens {
            stop_tokens.iter().for_each(&mut forbid);
        }
        self.suppress_tokens.iter().for_each(&mut forbid);
        if new == 0 {
            self.begin_suppress_tokens.iter().for_each(&mut forbid);
        }
    }
}

/// The tokens that would complete an n-gram of `size` tokens that `history` already contains.
fn repeated(history: &[u32], size: usize) -> impl Iterator<Item = &u32> {
    let begun = &history[history.len().saturating_sub(size.saturating_sub(1))..];
    let completes = move |run: &&[u32]| size > 0 && run[..size - 1] == *begun;
    history
        .windows(size.max(1))
        .filter(completes)
        .filter_map(|run| run.last())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    /// One line of the fixture: settings, tokens, and the tokens that the processors of transformers forbid.
    #[derive(Deserialize)]
    struct Case {
        settings: serde_json::Map<String, serde_json::Value>,
        history: Vec<u32>,
        prompt: usize,
        eos: Vec<u32>,
        forbidden: BTreeSet<usize>,
    }

    #[test]
    fn forbidden_tokens_are_those_of_transformers() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/parity/logits_processors.json"
        );
        let text = std::fs::read_to_string(path).unwrap();
        let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
        assert!(cases.len() >= 40, "{}", cases.len());
        let mut acted = 0;
        for (number, case) in cases.iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let settings = serde_json::Value::Object(case.settings.clone()).to_string();
            std::fs::write(folder.path().join("generation_config.json"), settings).unwrap();
            let generation = GenerationConfig::read(folder.path()).unwrap();
            let mut logits = [0.5; 12];
            let processors = LogitsProcessors::suggested_by(&generation);
            processors.apply(&mut logits, &case.history, case.prompt, &case.eos);
            let found: BTreeSet<usize> = (0..logits.len())
                .filter(|id| logits[*id] == f32::NEG_INFINITY)
                .collect();
            assert_eq!(found, case.forbidden, "case {number}: {:?}", case.settings);
            acted += usize::from(!found.is_empty());
        }
        assert!(acted >= 20, "{acted}");
    }

    proptest! {
        /// A direct implementation: a token is forbidden exactly if adding it repeats an n-gram.
        #[test]
        fn a_run_is_repeated_by_forbidden_tokens_only(history in prop::collection::vec(0u32..4, 0..14), size in 1usize..5) {
            let processors = LogitsProcessors { no_repeat_ngram_size: size, ..LogitsProcessors::default() };
            let mut logits = [0.0; 4];
            processors.apply(&mut logits, &history, 0, &[]);
            for token in 0..4u32 {
                let longer = [&history[..], &[token]].concat();
                let last = longer.len().checked_sub(size).map(|at| &longer[at..]);
                let repeats = last.is_some_and(|last| history.windows(size).any(|run| run == last));
                prop_assert_eq!(logits[token as usize] == f32::NEG_INFINITY, repeats, "{:?} then {}", &history, token);
            }
        }
    }
}
