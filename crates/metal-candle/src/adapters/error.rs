//! The errors of adapters.

use std::path::PathBuf;

use metal_candle_graph::io::FileError;

use crate::models::ConfigError;

/// An adapter that cannot be read, written or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// `adapter_config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An I/O error of the operating system.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted action.
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// A setting out of range.
    #[error("adapter: `{field}` {reason}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// The rest of a sentence that begins with the setting.
        reason: String,
    },
    /// A pattern that is not a supported regular expression.
    #[error(
        "adapter: `{field}`: cannot use the pattern `{pattern}`: {reason} (look-around and back-references are not supported)"
    )]
    Pattern {
        /// The setting.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// The reason.
        reason: String,
    },
    /// A target that matches no linear layer.
    #[error("target_modules: {target} matches no linear layer; this model has: {}", available.join(", "))]
    NothingMatched {
        /// The entry or pattern.
        target: String,
        /// The last parts of the names of the model's linear layers.
        available: Vec<String>,
    },
    /// A model that already has an adapter.
    #[error(
        "adapter: `{module}` has an adapter already, and a model takes one at a time: take it off with \
         `adapters::detach` first"
    )]
    AlreadyAdapted {
        /// The first adapted layer.
        module: String,
    },
    /// An adapter on the output head or the embedding.
    #[error("{place}: adapters on the output head or the embedding (`{module}`) are not supported{advice}")]
    HeadOrEmbedding {
        /// The file and tensor, or the setting, that names it.
        place: String,
        /// The module.
        module: String,
        /// What to do, if there is anything: begins with `; `.
        advice: &'static str,
    },
    /// A tensor that is not a `LoRA` factor.
    #[error("{}: tensor `{}` is not a LoRA weight (base_model.model.<module>.lora_A.weight or lora_B.weight)", path.display(), name.escape_debug())]
    NotALoraWeight {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A missing factor.
    #[error("{}: tensor `{}` is missing", path.display(), name.escape_debug())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The missing tensor.
        name: String,
    },
    /// A pair for a module that the model or the settings do not have.
    #[error("{}: tensor `{}` belongs to no module that is adapted; is this adapter for another model?", path.display(), name.escape_debug())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The extra tensor.
        name: String,
    },
    /// A tensor of the wrong shape.
    #[error("{}: tensor `{}` is {found:?}, expected {expected}", path.display(), name.escape_debug())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape according to settings and model.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A file without tensors.
    #[error("{}: the adapter holds no tensors", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A weight that is NaN or infinite; such an adapter is never written.
    #[error("tensor `{name}` holds a value that is not finite; the adapter is not written")]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// A file with a weight that is NaN or infinite.
    #[error("{}: tensor `{name}` holds a value that is not finite: the run that wrote it diverged", path.display())]
    NotFiniteWeight {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// Candle could not read a tensor.
    #[error("tensor `{name}`: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// Candle's error.
        source: Box<candle_core::Error>,
    },
    /// An error of the engine.
    #[error(transparent)]
    Graph(#[from] metal_candle_graph::Error),
}

/// `Result` with [`AdapterError`].
pub(super) type Result<T> = std::result::Result<T, AdapterError>;
