//! The engine's errors. Each message starts with the operation's name and gives the shapes or dtypes involved, because
//! shape errors surface at the line that records the operation, which is the line to change.

use candle_core::DType;

/// An error in recording, planning, differentiating or running a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes or parameters that the operation does not accept.
    #[error("{operation}: {message}")]
    Shape {
        /// The operation's name.
        operation: &'static str,
        /// What was found and what is expected.
        message: String,
    },
    /// A dtype that the operation does not accept.
    #[error("{operation}: input {input} has dtype {found:?}, expected {expected}")]
    DType {
        /// The operation's name.
        operation: &'static str,
        /// Index of the input.
        input: usize,
        /// Its dtype.
        found: DType,
        /// What is accepted there.
        expected: String,
    },
    /// A dtype that the engine does not support.
    #[error("{operation}: dtype {found:?} is not one of f32, f64, f16, bf16, u8, u32, i64")]
    UnsupportedDType {
        /// The operation's name.
        operation: &'static str,
        /// The dtype.
        found: DType,
    },
    /// A number outside the range that the operation accepts, or NaN.
    #[error("{operation}: {name} is {value}, expected {expected}")]
    Parameter {
        /// The operation's name.
        operation: &'static str,
        /// The parameter's name.
        name: &'static str,
        /// The given value.
        value: f64,
        /// What is accepted: `a number from 0 to 1`.
        expected: &'static str,
    },
    /// Values that the operation does not accept.
    #[error("{operation}: {message}")]
    Value {
        /// The operation's name.
        operation: &'static str,
        /// What was found and what is expected.
        message: String,
    },
    /// The wrong number of inputs.
    #[error("{operation} requires {expected}, got {found}")]
    Arity {
        /// The operation's name.
        operation: &'static str,
        /// For example `2 inputs`.
        expected: String,
        /// Number of inputs given.
        found: usize,
    },
    /// Inputs of one operation on different devices.
    #[error("{operation}: inputs are on different devices ({first} and {second}); move one with `to_device`")]
    DeviceMismatch {
        /// The operation's name.
        operation: &'static str,
        /// Device of the first input.
        first: String,
        /// Device of the first input that differs.
        second: String,
    },
    /// `Input` holds data and is not executable.
    #[error("Cannot execute Input operation")]
    ExecuteInput,
    /// An argument of a traced function was evaluated while tracing.
    #[error("a placeholder has no value: do not evaluate inside a compiled function")]
    Placeholder,
    /// A compiled function called itself with arguments of the signature it was being traced for, an infinite
    /// recursion.
    #[error("a compiled function calls itself with arguments of the same shapes while it is traced for them")]
    Recursion,
    /// A gradient with respect to a tensor that the loss does not depend on.
    #[error("gradient: parameter {index} is not reachable from the loss{reason}")]
    Unreachable {
        /// Position in the list of parameters.
        index: usize,
        /// What breaks the path, if known: starts with `: `.
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
    /// A range, known only at run time, that exceeds its dimension.
    #[error("{operation}: {start}..{end} is not inside a dimension of {size}")]
    Range {
        /// The operation's name.
        operation: &'static str,
        /// First index of the range.
        start: usize,
        /// One past its last index.
        end: usize,
        /// Size of the dimension.
        size: usize,
    },
    /// The backend has no kernel for an operation of a plan: a gap in the backend, not a mistake of the caller.
    #[error("{operation}: the backend has no kernel for {what}")]
    NoKernel {
        /// The operation's name.
        operation: &'static str,
        /// The case without a kernel: `three inputs of i64`.
        what: String,
    },
    /// A violated invariant of the engine: a bug, whatever the caller did.
    #[error("internal error of the engine: {message}; please report it")]
    Internal {
        /// The invariant and what was found instead.
        message: String,
    },
    /// The verifier found a malformed graph: a bug in a pass.
    #[error("verifier, after {pass}: {message}")]
    Verify {
        /// The pass after which the graph was malformed.
        pass: &'static str,
        /// The node and the rule that it violates.
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

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::Internal {
            message: message.into(),
        }
    }

    pub(crate) fn no_kernel(operation: &'static str, what: impl Into<String>) -> Self {
        Self::NoKernel {
            operation,
            what: what.into(),
        }
    }
}

/// Lets `?` convert the engine's error into Candle's, in functions that return [`candle_core::Result`]; the text is
/// kept.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::wrap(error)
    }
}

/// Adds context to an error of Candle's.
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
