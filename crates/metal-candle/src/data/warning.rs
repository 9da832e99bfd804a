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
        }
    }
}
