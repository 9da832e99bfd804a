//! Converts a row to an example: rendered, tokenised once as a whole, and masked.

use std::ops::Range;

use serde_json::Value;

use super::turns::{Conversation, LocateFault, Span};
use super::{DataError, DataWarning, Example, Row, RowContent, RowFormat, Rows};
use crate::text::{ChatMessage, Encoded, TextError, Tokenizer, end_of_turn_tokens};

const LEFT_OUT: &str = "the chat template leaves the assistant's text out: nothing of this message is in the rendered \
    conversation, so there is nothing to train on; use a chat template that writes the assistant's content";
const UNCLEAR: &str = "the chat template writes the text around this message differently depending on what it says, so \
    what the assistant says cannot be told apart; put {% generation %} and {% endgeneration %} around it in the chat \
    template, or train on everything (`train_on_inputs`, `--train-on-inputs`)";

/// Converts the rows of one file to examples.
pub(super) struct Maker<'a> {
    rows: &'a Rows,
    tokenizer: &'a Tokenizer,
    everything: bool,
    /// Tokens that end generation; computed on first use.
    stop: Option<Vec<u32>>,
    seen: Seen,
}

/// Counts for warnings and advice.
#[derive(Default)]
struct Seen {
    /// Assistant messages, and those of them that are trained on.
    assistant: usize,
    learnable: usize,
    /// Supervised turns, those that end in a stop token, and those without a generation prompt before them.
    turns: usize,
    ending: usize,
    unprompted: usize,
    /// Completions that share a token with their prompt.
    shared: usize,
}

impl<'a> Maker<'a> {
    pub fn new(rows: &'a Rows, tokenizer: &'a Tokenizer, everything: bool) -> Self {
        Self {
            rows,
            tokenizer,
            everything,
            stop: None,
            seen: Seen::default(),
        }
    }

    pub fn example(&mut self, row: &Row) -> Result<Example, DataError> {
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

    /// Warnings about the rows so far.
    pub fn warnings(&self) -> Vec<DataWarning> {
        let Seen {
            turns,
            ending,
            unprompted,
            shared,
            ..
        } = self.seen;
        [
            (turns > 0 && ending == 0).then_some(DataWarning::NoStopToken { turns }),
            (unprompted > 0).then_some(DataWarning::OtherPrompt { turns: unprompted }),
            (shared > 0).then_some(DataWarning::SharedToken { rows: shared }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn text_error(&self, row: &Row) -> impl Fn(TextError) -> DataError + use<> {
        let (file, line) = (self.rows.file.clone(), row.line);
        move |source| DataError::Text {
            file: file.clone(),
            line,
            source,
        }
    }

    /// Tokenises a text with the special tokens before it and without those after it.
    fn encode(&self, row: &Row, text: &str) -> Result<Vec<u32>, DataError> {
        let mut encoded = self
            .tokenizer
            .encode_with_offsets(text, true)
            .map_err(self.text_error(row))?;
        // For an empty text, only the tokens in front are kept: they cannot be told apart.
        while encoded.ids.len() > 1 && encoded.added.last() == Some(&true) {
            encoded.ids.pop();
            encoded.added.pop();
        }
        Ok(encoded.ids)
    }

    /// Appends the end-of-text token, unless the text contains it.
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

    /// Both texts are tokenised as one, so that nothing is inserted between them. The completion begins with the first
    /// token that the prompt alone does not have, as in TRL.
    fn completion(&mut self, row: &Row, prompt: &str, completion: &str) -> Result<Example, DataError> {
        let prompt_tokens = self.encode(row, prompt)?;
        let mut tokens = self.encode(row, &format!("{prompt}{completion}"))?;
        let same = tokens.iter().zip(&prompt_tokens).take_while(|(a, b)| a == b).count();
        self.seen.shared += usize::from(same < prompt_tokens.len() && !self.everything);
        self.end(&mut tokens)?;
        let supervised = (0..tokens.len()).map(|index| index >= same).collect();
        Ok(Example { tokens, supervised })
    }

    fn chat(
        &mut self,
        row: &Row,
        messages: &[ChatMessage],
        learn_from: usize,
        tools: Option<&Value>,
    ) -> Result<Example, DataError> {
        let template = self.tokenizer.chat_template();
        let template = template.ok_or_else(|| DataError::NoChatTemplate {
            file: self.rows.file.clone(),
        })?;
        let chat = Conversation {
            tokenizer: self.tokenizer,
            template,
            messages,
            learn_from,
            tools,
        };
        self.seen.assistant += messages.iter().filter(|message| message.role() == "assistant").count();
        self.seen.learnable += chat.learnt().len();
        let text = chat.text().map_err(self.text_error(row))?;
        let encoded = self
            .tokenizer
            .encode_with_offsets(&text, false)
            .map_err(self.text_error(row))?;
        let mut supervised = vec![false; encoded.ids.len()];
        if !self.everything {
            for span in chat.spans(&text).map_err(|fault| self.fault(row, fault))? {
                self.supervise(&mut supervised, &encoded, &text, &span);
            }
        }
        Ok(Example {
            tokens: encoded.ids,
            supervised,
        })
    }

    fn fault(&self, row: &Row, fault: LocateFault) -> DataError {
        let turn = |message: usize, reason| DataError::Turn {
            file: self.rows.file.clone(),
            line: row.line,
            message: message + 1,
            reason,
        };
        match fault {
            LocateFault::Text(error) => self.text_error(row)(error),
            LocateFault::LeftOut(message) => turn(message, LEFT_OUT),
            LocateFault::Unclear(message) => turn(message, UNCLEAR),
        }
    }

    /// Marks the tokens of a span of the text as supervised. White space that the template writes after its end-of-turn
    /// token is excluded, unless the template itself marks it: generation stops before it.
    fn supervise(&mut self, supervised: &mut [bool], encoded: &Encoded, text: &str, span: &Span) {
        let inside = tokens_of(&encoded.offsets, &span.bytes);
        let tokenizer = self.tokenizer;
        let stop = self.stop.get_or_insert_with(|| {
            let mut stop = end_of_turn_tokens(tokenizer);
            stop.extend(tokenizer.stop_token_ids());
            stop
        });
        let ends = |index: &usize| tokenizer.is_special(encoded.ids[*index]) || stop.contains(&encoded.ids[*index]);
        let blank = |index: &usize| {
            let (start, end) = encoded.offsets[*index];
            text.get(start..end).is_some_and(|text| text.trim().is_empty())
        };
        let last = inside
            .iter()
            .rposition(ends)
            .filter(|last| inside[last + 1..].iter().all(blank));
        let kept = last.filter(|_| !span.marked).map_or(inside.len(), |last| last + 1);
        for index in &inside[..kept] {
            supervised[*index] = true;
        }
        if kept > 0 {
            self.seen.turns += 1;
            self.seen.ending += usize::from(last.is_some_and(|last| stop.contains(&encoded.ids[inside[last]])));
            self.seen.unprompted += usize::from(!span.prompted);
        }
    }

    /// What to do about a data set without targets.
    pub fn advice(&self, cut_at: Option<usize>) -> String {
        match (cut_at, self.rows.format) {
            (Some(length), _) => {
                format!(
                    "everything to train on comes after the first {length} tokens; raise max_length or shorten the prompts"
                )
            }
            (None, RowFormat::Text) => "every text is empty".to_owned(),
            (None, _) if self.seen.learnable > 0 => {
                "the chat template writes nothing for what the assistant says, which \
                is empty"
                    .to_owned()
            }
            (None, _) if self.seen.assistant > 0 => "every message of the assistant is context only (`weight` 0 or \
                `train` false, or before the completion); let some be learnt, or train on everything \
                (`train_on_inputs`, `--train-on-inputs`)"
                .to_owned(),
            (None, _) => "no message has the role \"assistant\"; add the answers, or train on everything \
                (`train_on_inputs`, `--train-on-inputs`)"
                .to_owned(),
        }
    }
}

/// Indices of the tokens that overlap the span.
fn tokens_of(offsets: &[(usize, usize)], span: &Range<usize>) -> Vec<usize> {
    let mut inside = Vec::new();
    let mut before = 0; // end offset of the tokens so far
    for (index, (start, end)) in offsets.iter().copied().enumerate() {
        // Some tokenizers trim white space from offsets; a token of white space only gets an empty range, at its end.
        let start = if start == end { before.min(start) } else { start };
        if end > span.start && start < span.end {
            inside.push(index);
        }
        before = before.max(end);
    }
    inside
}
