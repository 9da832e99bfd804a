//! Examples: token ids with a loss mask.
//!
//! Of a conversation the model is trained on the assistant's messages and their end-of-turn tokens; of a prompt and its
//! completion, on the completion and the end-of-text token; of a text, on everything. `maker.rs` converts single rows;
//! here are the options, the counts, and the data set.

use std::path::Path;

use super::maker::Maker;
use super::{DataError, DataWarning, Rows, split_indices};
use crate::text::Tokenizer;

/// A training sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// For each token, whether it is a target; as long as `tokens`. The first token has no predecessor to predict it
    /// from, so it is never a target.
    pub supervised: Vec<bool>,
}

impl Example {
    /// The number of targets.
    #[must_use]
    pub fn supervised_tokens(&self) -> usize {
        self.supervised.iter().skip(1).filter(|is| **is).count()
    }
}

/// How rows are converted to examples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetOptions {
    /// Longest example in tokens, at least 2; longer ones are truncated.
    pub max_length: usize,
    /// Train on every token, including prompts and user messages.
    pub train_on_inputs: bool,
}

impl Default for DatasetOptions {
    fn default() -> Self {
        Self {
            max_length: 1024,
            train_on_inputs: false,
        }
    }
}

/// Counts of a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatasetStats {
    /// Number of examples.
    pub examples: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Tokens that are targets.
    pub supervised_tokens: usize,
    /// Length of the longest example in tokens.
    pub longest: usize,
    /// Examples truncated to `max_length`.
    pub truncated: usize,
    /// Rows that gave no example, because they have no targets (within `max_length`).
    pub dropped: usize,
    /// Those of them whose targets come after `max_length` tokens.
    pub cut_off: usize,
    /// Line of the first dropped row.
    pub first_dropped: Option<usize>,
}

/// Examples for training or validation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    examples: Vec<Example>,
    truncated: Vec<bool>,
    dropped: usize,
    cut_off: usize,
    first_dropped: Option<usize>,
    warnings: Vec<DataWarning>,
}

impl Dataset {
    /// Reads and tokenises a file of rows: JSONL, a JSON array, or pretty-printed objects.
    ///
    /// # Errors
    ///
    /// Those of [`Rows::read`] and [`from_rows`](Self::from_rows).
    pub fn from_jsonl(
        path: impl AsRef<Path>,
        tokenizer: &Tokenizer,
        options: &DatasetOptions,
    ) -> Result<Self, DataError> {
        Self::from_rows(&Rows::read(path)?, tokenizer, options)
    }

    /// Tokenises rows.
    ///
    /// # Errors
    ///
    /// A [`DataError`] with file and line if a row cannot be rendered or tokenised; [`DataError::NothingSupervised`] if
    /// no row has a target.
    pub fn from_rows(rows: &Rows, tokenizer: &Tokenizer, options: &DatasetOptions) -> Result<Self, DataError> {
        if options.max_length < 2 {
            let reason = format!(
                "must be at least 2 (a token and the one after it), got {}",
                options.max_length
            );
            return Err(DataError::Option {
                name: "max_length",
                reason,
            });
        }
        let prompts = match tokenizer.chat_template() {
            Some(_) => None,
            None => rows.with_alpaca_prompt(),
        };
        let rows = prompts.as_ref().unwrap_or(rows);
        let mut maker = Maker::new(rows, tokenizer, options.train_on_inputs);
        let mut dataset = Self::default();
        for row in &rows.rows {
            let mut example = maker.example(row)?;
            let (whole, long) = (example.supervised_tokens(), example.tokens.len() > options.max_length);
            example.tokens.truncate(options.max_length);
            example.supervised.truncate(options.max_length);
            if example.supervised_tokens() > 0 {
                dataset.examples.push(example);
                dataset.truncated.push(long);
            } else {
                dataset.dropped += 1;
                dataset.cut_off += usize::from(whole > 0);
                dataset.first_dropped.get_or_insert(row.line);
            }
        }
        if dataset.examples.is_empty() {
            let advice = maker.advice((dataset.cut_off > 0).then_some(options.max_length));
            return Err(DataError::NothingSupervised {
                file: rows.file.clone(),
                rows: rows.rows.len(),
                advice,
            });
        }
        dataset.warnings = maker.warnings();
        Ok(dataset)
    }

    /// A data set of given examples.
    ///
    /// # Errors
    ///
    /// [`DataError::Option`] if `tokens` and `supervised` of an example differ in length.
    pub fn from_examples(examples: Vec<Example>) -> Result<Self, DataError> {
        if let Some(index) = examples
            .iter()
            .position(|example| example.tokens.len() != example.supervised.len())
        {
            let Example { tokens, supervised } = &examples[index];
            let reason = format!(
                "example {index}: {} tokens but {} supervised flags",
                tokens.len(),
                supervised.len()
            );
            return Err(DataError::Option {
                name: "examples",
                reason,
            });
        }
        let truncated = vec![false; examples.len()];
        Ok(Self {
            examples,
            truncated,
            ..Self::default()
        })
    }

    /// The examples, in the order of the file.
    #[must_use]
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Warnings about the rows.
    #[must_use]
    pub fn warnings(&self) -> &[DataWarning] {
        &self.warnings
    }

    /// Counts of the data set.
    #[must_use]
    pub fn stats(&self) -> DatasetStats {
        let lengths = || self.examples.iter().map(|example| example.tokens.len());
        DatasetStats {
            examples: self.examples.len(),
            tokens: lengths().sum(),
            supervised_tokens: self.examples.iter().map(Example::supervised_tokens).sum(),
            longest: lengths().max().unwrap_or(0),
            truncated: self.truncated.iter().filter(|is| **is).count(),
            dropped: self.dropped,
            cut_off: self.cut_off,
            first_dropped: self.first_dropped,
        }
    }

    /// Splits off the fraction `0 <= fraction < 1` of the examples for validation, chosen by the seed; returns the
    /// training and the validation set. Warnings and the count of dropped rows stay with the training set.
    ///
    /// # Errors
    ///
    /// [`DataError::Option`] for a fraction outside `0..1`, or above 0 with a single example.
    pub fn split(self, fraction: f64, seed: u64) -> Result<(Self, Self), DataError> {
        let wrong = |reason| {
            Err(DataError::Option {
                name: "validation fraction",
                reason,
            })
        };
        if !(0.0..1.0).contains(&fraction) {
            return wrong(format!("must be at least 0 and below 1, got {fraction}"));
        }
        if fraction > 0.0 && self.examples.len() == 1 {
            return wrong(
                "one example cannot be both trained on and validated with; add rows or set it to 0".to_owned(),
            );
        }
        let (train, validate) = split_indices(self.examples.len(), fraction, seed);
        let take = |indices: &[usize]| Self {
            examples: indices.iter().map(|index| self.examples[*index].clone()).collect(),
            truncated: indices.iter().map(|index| self.truncated[*index]).collect(),
            ..Self::default()
        };
        let train = Self {
            dropped: self.dropped,
            cut_off: self.cut_off,
            first_dropped: self.first_dropped,
            warnings: self.warnings.clone(),
            ..take(&train)
        };
        Ok((train, take(&validate)))
    }
}

#[cfg(test)]
#[path = "example_tests.rs"]
mod tests;
