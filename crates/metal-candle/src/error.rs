//! The errors of this crate: one variant of [`Error`] per area, each with its own enum if the area has several errors.
//!
//! A message starts with the operation, gives the shapes or names involved and says what to do about it. Candle's
//! errors are always wrapped with the operation in which they occurred.

use std::fmt::Display;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Any error of this crate.
///
/// # Example
///
/// ```
/// use metal_candle::Error;
/// use metal_candle::training::LoRAConfig;
///
/// let error = LoRAConfig { rank: 0, ..LoRAConfig::default() }.validate().unwrap_err();
/// assert!(matches!(error, Error::Training(_)));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device could not be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),

    /// An invalid setting, or an invalid state of training.
    #[error(transparent)]
    Training(#[from] TrainingError),

    /// An error of the lazy engine, in recording or running an operation.
    #[cfg(feature = "graph")]
    #[error(transparent)]
    Graph(Box<metal_candle_graph::Error>),

    /// A file could not be read or written, or is malformed.
    #[cfg(feature = "graph")]
    #[error(transparent)]
    File(Box<metal_candle_graph::io::FileError>),

    /// A model folder cannot be loaded.
    #[cfg(feature = "graph")]
    #[error(transparent)]
    Model(Box<crate::models::LoadError>),

    /// An adapter's settings, names or weights are invalid or do not match the model.
    #[cfg(feature = "graph")]
    #[error(transparent)]
    Adapter(Box<crate::adapters::AdapterError>),

    /// A tokenizer or chat template cannot be used.
    #[cfg(feature = "graph")]
    #[error(transparent)]
    Text(Box<crate::text::TextError>),

    /// A data set cannot be used.
    #[cfg(feature = "graph")]
    #[error(transparent)]
    Data(Box<crate::data::DataError>),

    /// Text cannot be generated.
    #[cfg(feature = "graph")]
    #[error(transparent)]
    Generate(Box<crate::inference::GenerateError>),

    /// A failed file operation of the calling program; the crate itself reports [`Error::File`] with the file's name.
    #[error("i/o error: {0}")]
    Io(#[from] std::io::Error),

    /// A JSON error of the calling program; the crate itself names the file.
    #[error("JSON error: {0}")]
    Json(#[from] serde_json::Error),

    /// An invalid tensor or value given to an operation.
    #[error("{operation}: {reason}")]
    InvalidInput {
        /// The operation, for example `cross_entropy_loss`.
        operation: String,
        /// What is wrong, with shapes or values, and what is expected.
        reason: String,
    },

    /// An error of Candle.
    #[error("{context}: {source}")]
    Candle {
        /// The operation in which it occurred, for example `LoRA forward: matmul with lora_a (16, 4)`.
        context: String,
        /// Candle's own error.
        source: Box<candle_core::Error>,
    },
}

// Boxed because they are large, and would make every result large.
#[cfg(feature = "graph")]
macro_rules! boxed {
    ($($variant:ident($source:ty),)*) => {
        $(impl From<$source> for Error {
            fn from(source: $source) -> Self {
                Self::$variant(Box::new(source))
            }
        })*
    };
}

#[cfg(feature = "graph")]
boxed! {
    Graph(metal_candle_graph::Error),
    File(metal_candle_graph::io::FileError),
    Model(crate::models::LoadError),
    Adapter(crate::adapters::AdapterError),
    Text(crate::text::TextError),
    Data(crate::data::DataError),
    Generate(crate::inference::GenerateError),
}

/// Drops the arguments of the failed call.
#[cfg(feature = "graph")]
impl From<metal_candle_graph::CallError> for Error {
    fn from(failed: metal_candle_graph::CallError) -> Self {
        metal_candle_graph::Error::from(failed).into()
    }
}

/// Lets `?` convert an error of the caller's own Candle operation into an [`Error`]; the crate itself adds context.
impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::Candle {
            context: "candle error".into(),
            source: Box::new(source),
        }
    }
}

/// The reason why a device could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// There is no such Metal device, or the program was built without Metal.
    #[error("Metal device not available: {reason}")]
    MetalUnavailable {
        /// The device, the reason, and what to do.
        reason: String,
    },

    /// There is no such CUDA device, or the program was built without Candle's CUDA support.
    #[error("CUDA device not available: {reason}")]
    CudaUnavailable {
        /// The device, the reason, and what to do.
        reason: String,
    },
}

/// An error in training.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// A trainable parameter that the loss does not depend on.
    #[error("training: {parameter} is not reachable from the loss{reason}")]
    Unreachable {
        /// The parameter's name.
        parameter: String,
        /// What breaks the path: starts with `: `.
        reason: String,
    },

    /// Non-finite loss or gradients in too many consecutive steps.
    #[error(
        "training: loss {loss} and gradient norm {grad_norm} after {steps} steps in a row that were not finite; \
         lower the learning rate, or look for broken examples in the data"
    )]
    NotFinite {
        /// Number of steps.
        steps: usize,
        /// Loss of the last of them.
        loss: f64,
        /// Gradient norm of the last of them.
        grad_norm: f64,
    },

    /// A token id outside the model's vocabulary.
    #[error(
        "training: token {token} is outside the model's vocabulary of {vocabulary}; is this the model's own tokenizer?"
    )]
    Token {
        /// The token id.
        token: u32,
        /// Vocabulary size.
        vocabulary: usize,
    },

    /// An example longer than the model's context.
    #[error(
        "training: an example has {tokens} tokens, but the context of the model is {context} (max_position_embeddings in \
         config.json); cut examples with max_length"
    )]
    TooLong {
        /// Length of the example in tokens.
        tokens: usize,
        /// Length of the context in tokens.
        context: usize,
    },

    /// A setting is outside its range.
    #[error("invalid training configuration: {reason}")]
    InvalidConfig {
        /// The setting, its value and its valid range.
        reason: String,
    },

    /// Optimizer state that does not exist.
    #[error("training state: {reason}")]
    StateError {
        /// What is missing and how to add it.
        reason: String,
    },
}

impl TrainingError {
    /// Creates a [`TrainingError::InvalidConfig`].
    pub(crate) fn config(reason: impl Into<String>) -> Error {
        Self::InvalidConfig { reason: reason.into() }.into()
    }
}

impl Error {
    /// Creates an [`Error::InvalidInput`] of `operation`.
    pub(crate) fn invalid_input(operation: &str, reason: impl Into<String>) -> Self {
        Self::InvalidInput {
            operation: operation.into(),
            reason: reason.into(),
        }
    }
}

/// Adds context to Candle's errors.
pub(crate) trait During<T> {
    /// Wraps a Candle error with `what`; `format_args!` costs nothing if there is none.
    fn during(self, what: impl Display) -> Result<T>;
}

impl<T> During<T> for candle_core::Result<T> {
    fn during(self, what: impl Display) -> Result<T> {
        self.map_err(|source| Error::Candle {
            context: what.to_string(),
            source: Box::new(source),
        })
    }
}

/// A setting as it appears in messages: also as an f32, if that is 0, 1 or infinite and the setting is not.
#[cfg(feature = "graph")]
pub(crate) fn setting_text(value: f64) -> String {
    let narrow = f64::from(value as f32);
    let lost = narrow != value && (narrow == 0.0 || narrow == 1.0 || narrow.is_infinite());
    let note = if lost {
        format!(" ({narrow} as a 32-bit float)")
    } else {
        String::new()
    };
    format!("{value}{note}")
}

/// A shape as it appears in messages: `(2, 3)`.
pub(crate) fn shape_text(dims: &[usize]) -> String {
    let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
    format!("({})", dims.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn candle_failure() -> candle_core::Result<Tensor> {
        let a = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
        a.matmul(&a)
    }

    #[test]
    fn candle_errors_say_what_was_being_done_and_keep_their_cause() {
        let error = candle_failure()
            .during(format_args!("scores: q {}", shape_text(&[1, 2])))
            .unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("scores: q (1, 2): "), "{text}");
        assert!(text.contains("matmul"), "{text}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn question_mark_takes_candle_errors() {
        fn program() -> Result<Tensor> {
            Ok(candle_failure()?)
        }
        assert!(matches!(program(), Err(Error::Candle { .. })));
    }

    #[test]
    fn question_mark_takes_errors_of_files_and_of_json() {
        fn file() -> Result<String> {
            Ok(std::fs::read_to_string("no/such/file")?)
        }
        fn json() -> Result<serde_json::Value> {
            Ok(serde_json::from_str("{")?)
        }
        let (file, json) = (file().unwrap_err(), json().unwrap_err());
        assert!(matches!(&file, Error::Io(e) if e.kind() == std::io::ErrorKind::NotFound));
        assert!(file.to_string().starts_with("i/o error: "), "{file}");
        assert!(matches!(&json, Error::Json(e) if e.is_eof()));
        assert!(json.to_string().starts_with("JSON error: "), "{json}");
    }

    #[test]
    fn errors_cross_threads() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Error>();
    }

    #[cfg(feature = "graph")]
    #[test]
    fn settings_say_what_is_lost_as_f32() {
        assert_eq!([0.0, 1.0, 0.1, -3.0].map(setting_text), ["0", "1", "0.1", "-3"]);
        assert_eq!(setting_text(0.999_999_999), "0.999999999 (1 as a 32-bit float)");
        assert!(setting_text(1e-60).ends_with(" (0 as a 32-bit float)"));
        assert!(setting_text(1e60).ends_with(" (inf as a 32-bit float)"));
        assert_eq!(setting_text(f64::INFINITY), "inf");
    }

    #[test]
    fn shapes_read_as_in_the_documentation() {
        assert_eq!(shape_text(&[]), "()");
        assert_eq!(shape_text(&[3]), "(3)");
        assert_eq!(shape_text(&[16, 4]), "(16, 4)");
    }
}
