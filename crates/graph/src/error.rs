//! The engine's errors. Each message starts with the operation's name and carries the shapes or dtypes at fault,
//! because a shape error surfaces where the operation is recorded and that line is what the caller must change.

use candle_core::DType;

/// What can go wrong while recording, planning, differentiating or running a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes or parameters that the operation cannot work with.
    #[error("{operation}: {message}")]
    Shape {
        /// The operation's name.
        operation: &'static str,
        /// What was found and what would fit.
        message: String,
    },
    /// A dtype that the operation does not take.
    #[error("{operation}: input {input} has dtype {found:?}, expected {expected}")]
    DType {
        /// The operation's name.
        operation: &'static str,
        /// Which input, counted from zero.
        input: usize,
        /// Its dtype.
        found: DType,
        /// What fits there.
        expected: String,
    },
    /// The wrong number of inputs.
    #[error("{operation} requires {expected}, got {found}")]
    Arity {
        /// The operation's name.
        operation: &'static str,
        /// For example `2 inputs`.
        expected: String,
        /// How many were given.
        found: usize,
    },
    /// Tensors on different devices met in one operation.
    #[error("{operation}: inputs are on different devices ({first} and {second}); move one with `to_device`")]
    DeviceMismatch {
        /// The operation's name.
        operation: &'static str,
        /// Device of the first input.
        first: String,
        /// Device of the input that differs.
        second: String,
    },
    /// `Input` holds data; there is nothing to execute.
    #[error("Cannot execute Input operation")]
    ExecuteInput,
    /// An argument of a traced function was evaluated while tracing.
    #[error("a placeholder has no value: do not evaluate inside a compiled function")]
    Placeholder,
    /// A gradient was asked for something the loss does not depend on.
    #[error("gradient: parameter {index} is not reachable from the loss{reason}")]
    Unreachable {
        /// Position in the list of parameters.
        index: usize,
        /// What cut the path, where known: starts with `: `.
        reason: String,
    },
    /// An index outside the dimension it selects from.
    #[error("{operation}: index {index} is out of range for a dimension of {size}")]
    Index {
        /// The operation's name.
        operation: &'static str,
        /// The offending index.
        index: i64,
        /// Size of the dimension.
        size: usize,
    },
    /// The verifier found a malformed graph: a bug in a pass.
    #[error("verifier, after {pass}: {message}")]
    Verify {
        /// The pass after which the graph was malformed.
        pass: &'static str,
        /// The node and the rule it breaks.
        message: String,
    },
    /// Candle reported an error.
    #[error("{context}: {source}")]
    Candle {
        /// What was being done.
        context: String,
        /// Candle's own error.
        source: candle_core::Error,
    },
}

/// The engine's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn shape(operation: &'static str, message: impl Into<String>) -> Self {
        Self::Shape {
            operation,
            message: message.into(),
        }
    }
}

/// Lets `?` turn the engine's error into Candle's, in functions that return [`candle_core::Result`]; the text stays.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::wrap(error)
    }
}

/// Adds what was being done to an error of Candle's.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for candle_core::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Candle {
            context: what(),
            source,
        })
    }
}
