//! Errors of commands: the message, what to do about it, and the exit code.
//!
//! Library errors already say what and where; here they are classified as bad input (exit code 2) or other failures
//! (1).

use std::fmt;

use metal_candle::Error;
use metal_candle::error::TrainingError;
use metal_candle::graph::io::FileError;
use metal_candle::inference::GenerateError;

use crate::report::counted;

/// The error of a command.
#[derive(Debug)]
pub enum Failure {
    /// Invalid input; nothing was written.
    Input {
        /// What is wrong and where.
        message: String,
        /// What to do, if the message does not say so.
        tip: Option<String>,
    },
    /// A failure during the run.
    Run(String),
}

/// The result of every fallible function of this program.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// Bad input, with a message that says what to do.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input {
            message: message.into(),
            tip: None,
        }
    }

    /// Invalid input, with advice on a separate line.
    pub fn with_tip(message: impl Into<String>, tip: impl Into<String>) -> Self {
        Self::Input {
            message: message.into(),
            tip: Some(tip.into()),
        }
    }

    /// An error of the library while inputs are checked: invalid input, unless the engine itself failed.
    pub fn checking(error: impl Into<Error>) -> Self {
        let error = error.into();
        match error {
            Error::Graph(_) | Error::Candle { .. } | Error::Training(TrainingError::NotFinite { .. }) => {
                Self::Run(error.to_string())
            }
            _ => Self::input(error.to_string()),
        }
    }

    /// An error of the library after the inputs were checked.
    pub fn running(error: impl Into<Error>) -> Self {
        Self::Run(error.into().to_string())
    }

    /// The message alone.
    pub fn message(&self) -> &str {
        match self {
            Self::Input { message, .. } | Self::Run(message) => message,
        }
    }

    /// 2 for bad input, as for a wrong flag; 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } => 2,
            Self::Run(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input {
                message,
                tip: Some(tip),
            } => write!(f, "error: {message}\n\n  tip: {tip}"),
            Self::Input { message, tip: None } | Self::Run(message) => write!(f, "error: {message}"),
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::running(error)
    }
}

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::ContextTooLong {
                prompt,
                max_new_tokens,
                limit,
            } => too_long(prompt, max_new_tokens, limit),
            GenerateError::EmptyPrompt
            | GenerateError::TokenOutOfVocabulary { .. }
            | GenerateError::NoChatTemplate
            | GenerateError::EmptyStopString
            | GenerateError::StopTokenOutOfVocabulary { .. }
            | GenerateError::Text(_)
            | GenerateError::Sampling(metal_candle::inference::SamplingError::Setting { .. }) => {
                Self::input(error.to_string())
            }
            other => Self::Run(other.to_string()),
        }
    }
}

/// A prompt that does not fit the context of `limit` tokens, alone or with up to `new` tokens of answer.
fn too_long(prompt: usize, new: usize, limit: usize) -> Failure {
    let (said, context) = (counted(prompt, "token"), counted(limit, "token"));
    if prompt >= limit {
        let message = format!("the prompt of {said} leaves no room in the model's context of {context}");
        return Failure::with_tip(message, "shorten the prompt");
    }
    let new = counted(new, "new token");
    let message = format!("the prompt of {said} and up to {new} exceed the model's context of {context}");
    let room = limit - prompt;
    Failure::with_tip(
        message,
        format!("shorten the prompt, or give --max-new-tokens {room} or less"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use metal_candle::adapters::AdapterError;

    #[test]
    fn bad_input_and_failures_have_distinct_exit_codes() {
        let adapter = || AdapterError::Setting {
            field: "r",
            reason: "is 0".to_owned(),
        };
        assert_eq!(Failure::checking(adapter()).exit_code(), 2);
        assert_eq!(Failure::running(adapter()).exit_code(), 1);
        assert_eq!(Failure::from(GenerateError::EmptyPrompt).exit_code(), 2);
    }

    #[test]
    fn the_advice_about_a_long_prompt_is_possible() {
        let said = |prompt, max_new_tokens| {
            let limit = 64;
            Failure::from(GenerateError::ContextTooLong {
                prompt,
                max_new_tokens,
                limit,
            })
            .to_string()
        };
        let (alone, with_answer) = (said(64, 1), said(60, 5));
        assert!(alone.contains("the prompt of 64 tokens leaves no room") && alone.ends_with("tip: shorten the prompt"));
        assert!(with_answer.contains("exceed the model's context of 64 tokens\n"));
        assert!(
            with_answer.ends_with("or give --max-new-tokens 4 or less"),
            "{with_answer}"
        );
    }

    #[test]
    fn the_advice_has_its_own_line() {
        let text = Failure::with_tip("no model", "give one").to_string();
        assert_eq!(text, "error: no model\n\n  tip: give one");
    }
}
