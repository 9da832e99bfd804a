//! The errors of settings files: the file, the field, the value found and the values supported.

use std::path::PathBuf;

use metal_candle_graph::io::FileError;

/// A settings file (`config.json`, `generation_config.json`, `adapter_config.json`) that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read or is not a JSON object.
    #[error(transparent)]
    File(#[from] FileError),
    /// A required field is absent or null.
    #[error("{}: `{field}` is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
    },
    /// A field of the wrong type.
    #[error("{}: `{field}` should be {expected}, found {found}", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// The expected type.
        expected: &'static str,
        /// The value found, shortened.
        found: String,
    },
    /// A `model_type` that is not implemented.
    #[error("{}: model_type `{}` is not supported; supported are: {supported}", path.display(), found.escape_debug())]
    UnknownArchitecture {
        /// The file.
        path: PathBuf,
        /// The `model_type` found.
        found: String,
        /// The supported ones.
        supported: String,
    },
    /// A setting that is valid in transformers but not implemented here.
    #[error("{}: `{field}` = {found} is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// The value found, shortened.
        found: String,
        /// The supported values.
        supported: &'static str,
    },
    /// A value that is out of bounds or contradicts another.
    #[error("{}: `{field}` {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// The rest of a sentence that begins with the field.
        reason: String,
    },
}
