//! Warnings about a data set: conditions that are valid but rarely intended.

use std::fmt;

/// A warning about a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataWarning {
    /// No supervised turn ends in a token that ends generation.
    NoStopToken {
        /// Number of supervised turns.
        turns: usize,
    },
    /// Some supervised turns follow a text other than the generation prompt.
    OtherPrompt {
        /// Number of such turns.
        turns: usize,
    },
    /// Some completions begin inside a token that contains the end of the prompt.
    SharedToken {
        /// Number of such rows.
        rows: usize,
    },
    /// The chat template writes nothing of these parts of some rows.
    Unwritten {
        /// `tools`, `tool calls` or `reasoning`.
        part: &'static str,
        /// Number of such rows.
        rows: usize,
    },
    /// Some texts to train on are empty.
    EmptyAnswer {
        /// Number of such texts.
        answers: usize,
        /// Line of the first.
        line: usize,
    },
    /// Messages whose role is neither the assistant's nor another known one.
    UnknownRole {
        /// The role.
        role: String,
        /// Number of such messages.
        messages: usize,
        /// Line of the first.
        line: usize,
    },
}

impl fmt::Display for DataWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStopToken { turns } => write!(
                f,
                "none of the {turns} trained turns ends in a token that ends generation, so the model does not learn to stop; use a \
                 chat template that writes one after the assistant's words (`{{{{ eos_token }}}}`), or give --stop when generating"
            ),
            Self::OtherPrompt { turns } => write!(
                f,
                "{turns} trained turns do not follow the text that the chat template puts before an answer when \
                 generating (reasoning templates open `<think>` there), so answers may differ from what is learnt; put the \
                 reasoning into the last turn, or use a template that writes the same in both cases"
            ),
            Self::SharedToken { rows } => write!(
                f,
                "{rows} prompts share a token with their completion, which is trained on with it, but when generating the \
                 prompt is tokenised alone; let prompts end before a space or line break, and completions begin with it"
            ),
            Self::Unwritten { part, rows } => write!(
                f,
                "the chat template does not write the {part} of {rows} {}, so the model neither sees nor learns them; use a \
                 chat template that does",
                if *rows == 1 { "row" } else { "rows" }
            ),
            Self::EmptyAnswer { answers: 1, line } => write!(
                f,
                "an answer is empty (line {line}), and the model is trained to say nothing there; remove the row if that is \
                 not intended"
            ),
            Self::EmptyAnswer { answers, line } => write!(
                f,
                "{answers} answers are empty (the first at line {line}), and the model is trained to say nothing there; \
                 remove the rows if that is not intended"
            ),
            Self::UnknownRole { role, messages, line } => write!(
                f,
                "{messages} {} the role {role:?} (the first at line {line}), which is not trained on; call the role of \
                 answers \"assistant\"",
                if *messages == 1 { "message has" } else { "messages have" }
            ),
        }
    }
}

#[cfg(test)]
#[path = "warning_tests.rs"]
mod tests;
