//! What is no error in a data set, but seldom meant.

use std::fmt;

/// Something a user should know before training on a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataWarning {
    /// No learnt turn ends in a token that ends generation.
    NoStopToken {
        /// How many turns are learnt.
        turns: usize,
    },
    /// Some learnt turns stand after another text than the generation prompt.
    OtherPrompt {
        /// How many.
        turns: usize,
    },
    /// Some completions begin inside a token that holds the end of the prompt.
    SharedToken {
        /// How many.
        rows: usize,
    },
}

impl fmt::Display for DataWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStopToken { turns } => write!(
                f,
                "none of the {turns} learnt turns ends in a token that ends generation, so the model does not learn to stop; use a \
                 chat template that writes one after the assistant's words (`{{{{ eos_token }}}}`), or give --stop when generating"
            ),
            Self::OtherPrompt { turns } => write!(
                f,
                "{turns} learnt turns do not stand after the text that the chat template puts before an answer when \
                 generating (reasoning templates open `<think>` there), so answers may differ from what is learnt; put the \
                 reasoning into the last turn, or use a template that writes the same in both cases"
            ),
            Self::SharedToken { rows } => write!(
                f,
                "{rows} prompts share a token with their completion, which is learnt with it, but when generating the \
                 prompt is tokenised alone; let prompts end before a space or line break, and completions begin with it"
            ),
        }
    }
}
