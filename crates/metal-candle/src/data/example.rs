//! Examples: token ids, and which of them the model learns to say.
//!
//! Of a conversation the model learns what the assistant says and the end-of-turn token after it; of a prompt and its
//! completion, the completion and the end-of-text token; of a text, everything. A conversation is tokenised once, whole,
//! as it will be when generating; the assistant's turns are found in the text by rendering its beginnings.

use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use super::{DataError, Row, RowContent, RowFormat, Rows, split_indices};
use crate::text::{ChatMessage, ChatTemplate, Encoded, TextError, Tokenizer};

/// One sequence to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// For each token, whether it is a target; as long as `tokens`. The first token has nothing before it to be
    /// predicted from, so it is never a target.
    pub supervised: Vec<bool>,
}

impl Example {
    /// How many tokens are targets.
    #[must_use]
    pub fn supervised_tokens(&self) -> usize {
        self.supervised.iter().skip(1).filter(|is| **is).count()
    }
}

/// How rows become examples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetOptions {
    /// Longest example in tokens, at least 2; the rest of a longer one is cut off.
    pub max_length: usize,
    /// Learn every token: prompts and user messages too.
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

/// What a data set holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatasetStats {
    /// Examples.
    pub examples: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Tokens that are targets.
    pub supervised_tokens: usize,
    /// Tokens of the longest example.
    pub longest: usize,
    /// Examples that lost their end to `max_length`.
    pub truncated: usize,
    /// Rows that are no example, because nothing in them (or before the cut) is to be learnt.
    pub dropped: usize,
}

/// Examples to train on or to validate with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    examples: Vec<Example>,
    truncated: Vec<bool>,
    dropped: usize,
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
    /// A [`DataError`] with file and line where a row cannot be rendered or tokenised;
    /// [`DataError::NothingSupervised`] where no row has anything to learn.
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
        let maker = Maker {
            rows,
            tokenizer,
            everything: options.train_on_inputs,
        };
        let (mut dataset, mut cut_off) = (Self::default(), false);
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
                cut_off |= whole > 0;
            }
        }
        if dataset.examples.is_empty() {
            let advice = maker.advice(cut_off.then_some(options.max_length));
            return Err(DataError::NothingSupervised {
                file: rows.file.clone(),
                rows: rows.rows.len(),
                advice,
            });
        }
        Ok(dataset)
    }

    /// A data set of examples made elsewhere.
    ///
    /// # Errors
    ///
    /// [`DataError::Option`] where `tokens` and `supervised` of an example differ in length.
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
            dropped: 0,
        })
    }

    /// The examples, in the order of the file.
    #[must_use]
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Counts of what the data set holds.
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
        }
    }

    /// Splits off the fraction `0 <= fraction < 1` of the examples for validation, chosen by the seed: what to train on,
    /// and what to validate with. The count of dropped rows stays with the first.
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
        let take = |indices: &[usize], dropped| Self {
            examples: indices.iter().map(|index| self.examples[*index].clone()).collect(),
            truncated: indices.iter().map(|index| self.truncated[*index]).collect(),
            dropped,
        };
        Ok((take(&train, self.dropped), take(&validate, 0)))
    }
}

/// Makes examples of one file's rows.
struct Maker<'a> {
    rows: &'a Rows,
    tokenizer: &'a Tokenizer,
    everything: bool,
}

impl Maker<'_> {
    fn example(&self, row: &Row) -> Result<Example, DataError> {
        let mut example = match &row.content {
            RowContent::Messages {
                messages,
                learn_from,
                tools,
            } => self.chat(row, messages, *learn_from, tools.as_ref())?,
            RowContent::PromptCompletion { prompt, completion } => self.completion(row, prompt, completion)?,
            RowContent::Text(text) => {
                let mut tokens = self.encode(row, text)?;
                self.end(&mut tokens)?;
                Example {
                    supervised: vec![true; tokens.len()],
                    tokens,
                }
            }
        };
        if self.everything {
            example.supervised.fill(true);
        }
        if let Some(first) = example.supervised.first_mut() {
            *first = false;
        }
        Ok(example)
    }

    fn text_error(&self, row: &Row) -> impl Fn(TextError) -> DataError {
        let (file, line) = (self.rows.file.clone(), row.line);
        move |source| DataError::Text {
            file: file.clone(),
            line,
            source,
        }
    }

    /// A text with what the tokenizer puts before it, without what it puts after it.
    fn encode(&self, row: &Row, text: &str) -> Result<Vec<u32>, DataError> {
        let mut encoded = self
            .tokenizer
            .encode_with_offsets(text, true)
            .map_err(self.text_error(row))?;
        // Of an empty text only what stands in front can be kept: nothing tells the two apart.
        while encoded.ids.len() > 1 && encoded.added.last() == Some(&true) {
            encoded.ids.pop();
            encoded.added.pop();
        }
        Ok(encoded.ids)
    }

    /// Appends the end-of-text token, unless the text wrote it.
    fn end(&self, tokens: &mut Vec<u32>) -> Result<(), DataError> {
        let end = self.tokenizer.eos_token_id();
        let end = end.ok_or_else(|| DataError::NoEndOfText {
            file: self.rows.file.clone(),
        })?;
        if tokens.last() != Some(&end) {
            tokens.push(end);
        }
        Ok(())
    }

    /// The prompt must be tokenised as it will be when generating. Where tokenising both texts together agrees with
    /// that, it is used (no space is invented between them); else each is tokenised alone.
    fn completion(&self, row: &Row, prompt: &str, completion: &str) -> Result<Example, DataError> {
        let prompt_tokens = self.encode(row, prompt)?;
        let mut tokens = self.encode(row, &format!("{prompt}{completion}"))?;
        if !tokens.starts_with(&prompt_tokens) {
            let completion = self.tokenizer.encode(completion, false).map_err(self.text_error(row))?;
            tokens = [prompt_tokens.clone(), completion].concat();
        }
        self.end(&mut tokens)?;
        let supervised = (0..tokens.len()).map(|index| index >= prompt_tokens.len()).collect();
        Ok(Example { tokens, supervised })
    }

    fn chat(
        &self,
        row: &Row,
        messages: &[ChatMessage],
        learn_from: usize,
        tools: Option<&Value>,
    ) -> Result<Example, DataError> {
        let template = self.tokenizer.chat_template();
        let template = template.ok_or_else(|| DataError::NoChatTemplate {
            file: self.rows.file.clone(),
        })?;
        let chat = Chat {
            template,
            messages,
            tools,
        };
        let text = chat.render(messages.len(), false).map_err(self.text_error(row))?;
        let encoded = self
            .tokenizer
            .encode_with_offsets(&text, false)
            .map_err(self.text_error(row))?;
        let mut supervised = vec![false; encoded.ids.len()];
        for turn in (learn_from..messages.len()).filter(|turn| messages[*turn].role() == "assistant") {
            if self.everything {
                break;
            }
            let span = chat.span(&text, turn).map_err(self.text_error(row))?;
            let span = span.map_err(|what| DataError::NoPrefix {
                file: self.rows.file.clone(),
                line: row.line,
                message: turn + 1,
                what,
            })?;
            self.supervise(&mut supervised, &encoded, &text, span);
        }
        Ok(Example {
            tokens: encoded.ids,
            supervised,
        })
    }

    /// Marks the tokens of a span of the text. White space that the template writes after its end-of-turn token is not
    /// marked: generation has stopped before it.
    fn supervise(&self, supervised: &mut [bool], encoded: &Encoded, text: &str, span: Range<usize>) {
        let inside = tokens_of(&encoded.offsets, &span);
        let last_special = inside
            .iter()
            .rposition(|index| self.tokenizer.is_special(encoded.ids[*index]));
        let blank = |index: &usize| {
            let (start, end) = encoded.offsets[*index];
            text.get(start..end).is_some_and(|text| text.trim().is_empty())
        };
        let kept = match last_special {
            Some(last) if inside[last + 1..].iter().all(blank) => last + 1,
            _ => inside.len(),
        };
        for index in &inside[..kept] {
            supervised[*index] = true;
        }
    }

    /// What to do about a data set without a token to learn.
    fn advice(&self, cut_at: Option<usize>) -> String {
        match (cut_at, self.rows.format) {
            (Some(length), _) => {
                format!(
                    "everything to learn comes after the first {length} tokens; raise max_length or shorten the prompts"
                )
            }
            (None, RowFormat::Text) => "every text is empty".to_owned(),
            (None, _) => "no message has the role \"assistant\"; add the answers, or train on everything \
                (`train_on_inputs`, `--train-on-inputs`)"
                .to_owned(),
        }
    }
}

/// Indices of the tokens that stand for a part of the span.
fn tokens_of(offsets: &[(usize, usize)], span: &Range<usize>) -> Vec<usize> {
    let mut inside = Vec::new();
    let mut before = 0; // where the tokens so far end
    for (index, (start, end)) in offsets.iter().copied().enumerate() {
        // Some tokenizers trim white space from offsets; a token of nothing else is left empty, at its end.
        let start = if start == end { before.min(start) } else { start };
        if end > span.start && start < span.end {
            inside.push(index);
        }
        before = before.max(end);
    }
    inside
}

/// A conversation and what renders it.
struct Chat<'a> {
    template: &'a ChatTemplate,
    messages: &'a [ChatMessage],
    tools: Option<&'a Value>,
}

impl Chat<'_> {
    fn render(&self, count: usize, add_generation_prompt: bool) -> Result<String, TextError> {
        self.template
            .render_with_tools(&self.messages[..count], self.tools, add_generation_prompt)
    }

    /// The bytes of the whole text that one assistant turn wrote: from where generation would have begun to where the
    /// text ends with that turn. The inner error says which end is not found.
    fn span(&self, text: &str, turn: usize) -> Result<Result<Range<usize>, &'static str>, TextError> {
        let (before, with) = (self.render(turn, true)?, self.render(turn + 1, false)?);
        Ok(if !text.starts_with(&before) {
            Err("beginning")
        } else if !text.starts_with(&with) || with.len() < before.len() {
            Err("end")
        } else {
            Ok(before.len()..with.len())
        })
    }
}

#[cfg(test)]
#[path = "example_tests.rs"]
mod tests;
