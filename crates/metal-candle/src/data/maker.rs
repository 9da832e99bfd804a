//! Converts a row to an example: rendered, tokenised once as a whole, and masked.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use super::turns::{Conversation, LocateFault, Span};
use super::{DataError, DataWarning, Example, Row, RowContent, RowFormat, Rows};
use crate::text::{ChatMessage, Encoded, REASONING, TextError, Tokenizer, end_of_turn_tokens};

const LEFT_OUT: &str = "the chat template leaves the assistant's text out: nothing of this message is in the rendered \
    conversation, so there is nothing to train on; use a chat template that writes the assistant's content";
const UNCLEAR: &str = "the chat template writes the text around this message differently depending on what it says, so \
    what the assistant says cannot be told apart; put {% generation %} and {% endgeneration %} around it in the chat \
    template, or train on everything (`train_on_inputs`, `--train-on-inputs`)";

const NO_TOOL_CALLS: &str = "the chat template does not write `tool_calls`, and this message has nothing else, so there \
    is nothing to train on; use a chat template for tools, or remove the row";
const EMPTY: &str = "the assistant's message is empty, and the chat template writes an empty message differently; remove \
    the row, or train on everything (`train_on_inputs`, `--train-on-inputs`)";

/// Roles besides the assistant's that are not trained on.
const CONTEXT_ROLES: [&str; 8] = [
    "system",
    "developer",
    "user",
    "tool",
    "function",
    "observation",
    "ipython",
    "documents",
];
const TOOL_CALLS: &str = "tool calls";
/// Parts of a row that a chat template may not write: their names and their fields in a message.
const PARTS: [(&str, &[&str]); 2] = [(TOOL_CALLS, &["tool_calls"]), ("reasoning", &REASONING)];

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
    /// Rows with parts that the template does not write.
    unwritten: BTreeMap<&'static str, usize>,
    /// Empty texts to train on, and the line of the first.
    empty: Option<(usize, usize)>,
    /// Unknown roles, with the number of messages and the line of the first.
    roles: BTreeMap<String, (usize, usize)>,
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
                self.note_empty(row, text);
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
            empty,
            ..
        } = self.seen;
        let parts = self.seen.unwritten.iter();
        let parts = parts.map(|(&part, &rows)| DataWarning::Unwritten { part, rows });
        let roles = self
            .seen
            .roles
            .iter()
            .map(|(role, &(messages, line))| DataWarning::UnknownRole {
                role: role.clone(),
                messages,
                line,
            });
        [
            (turns > 0 && ending == 0).then_some(DataWarning::NoStopToken { turns }),
            (unprompted > 0).then_some(DataWarning::OtherPrompt { turns: unprompted }),
            (shared > 0).then_some(DataWarning::SharedToken { rows: shared }),
            empty.map(|(answers, line)| DataWarning::EmptyAnswer { answers, line }),
        ]
        .into_iter()
        .flatten()
        .chain(parts)
        .chain(roles)
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
        self.note_empty(row, completion);
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
        self.note_parts(&chat, &text);
        for index in chat.learnt() {
            let message = &messages[index];
            if !message.has("tool_calls") {
                self.note_empty(row, message.content().unwrap_or("a list"));
            }
        }
        self.note_roles(row, messages);
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

    fn note_empty(&mut self, row: &Row, text: &str) {
        if text.trim().is_empty() {
            self.seen.empty.get_or_insert((0, row.line)).0 += 1;
        }
    }

    fn note_roles(&mut self, row: &Row, messages: &[ChatMessage]) {
        for role in messages.iter().map(ChatMessage::role) {
            let known = role == "assistant" || CONTEXT_ROLES.contains(&role);
            // A file may have any number of roles; a few say what is wrong.
            if !known && (self.seen.roles.len() < 4 || self.seen.roles.contains_key(role)) {
                self.seen.roles.entry(role.to_owned()).or_insert((0, row.line)).0 += 1;
            }
        }
    }

    /// Counts the row's parts without which the text is the same.
    fn note_parts(&mut self, chat: &Conversation<'_>, text: &str) {
        if chat.tools.is_some() && chat.is_also(text, chat.messages, None) {
            *self.seen.unwritten.entry("tools").or_default() += 1;
        }
        for (part, fields) in PARTS {
            let without = |message: &ChatMessage| message.without(fields);
            let bare: Vec<Option<ChatMessage>> = chat.messages.iter().map(without).collect();
            if bare.iter().all(Option::is_none) {
                continue;
            }
            let bare = bare.into_iter().zip(chat.messages);
            let bare: Vec<ChatMessage> = bare
                .map(|(bare, whole)| bare.unwrap_or_else(|| whole.clone()))
                .collect();
            if chat.is_also(text, &bare, chat.tools) {
                *self.seen.unwritten.entry(part).or_default() += 1;
            }
        }
    }

    fn fault(&self, row: &Row, fault: LocateFault) -> DataError {
        let message = |index: usize| match &row.content {
            RowContent::Messages { messages, .. } => messages.get(index),
            _ => None,
        };
        let is_empty =
            |index| message(index).is_some_and(|message| message.content().is_none_or(|text| text.trim().is_empty()));
        let calls = |index| message(index).is_some_and(|message| message.has("tool_calls"));
        let lost = |index| is_empty(index) && calls(index) && self.seen.unwritten.contains_key(TOOL_CALLS);
        let turn = |message: usize, reason| DataError::Turn {
            file: self.rows.file.clone(),
            line: row.line,
            message: message + 1,
            reason,
        };
        match fault {
            LocateFault::Text(error) => self.text_error(row)(error),
            LocateFault::LeftOut(index) | LocateFault::Unclear(index) if lost(index) => turn(index, NO_TOOL_CALLS),
            LocateFault::Unclear(index) if is_empty(index) && !calls(index) => turn(index, EMPTY),
            LocateFault::LeftOut(index) => turn(index, LEFT_OUT),
            LocateFault::Unclear(index) => turn(index, UNCLEAR),
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
            (None, _) => {
                let roles: Vec<&str> = self.seen.roles.keys().map(String::as_str).collect();
                let found = match roles[..] {
                    [] => String::new(),
                    _ => format!(" (it has {roles:?})"),
                };
                format!(
                    "no message has the role \"assistant\"{found}; add the answers, or train on everything \
                    (`train_on_inputs`, `--train-on-inputs`)"
                )
            }
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
