//! The errors of loading a model folder.

use std::fmt;
use std::path::PathBuf;

use metal_candle_graph::io::FileError;

use super::ConfigError;
use crate::text::TextError;

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The folder does not exist.
    #[error("{}: no such folder; give the folder of a model in Hugging Face's layout", path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is not a model in Hugging Face's layout.
    #[error("{}: {reason}", path.display())]
    NotAModel {
        /// The folder, or the file that was given instead.
        path: PathBuf,
        /// What it contains, and what to do.
        reason: String,
    },
    /// `config.json` or `generation_config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The tokenizer or the chat template cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The weights do not match the settings.
    #[error("{}: the weights do not match config.json: {faults}", source_name.display())]
    Tensors {
        /// The folder of the weights.
        source_name: PathBuf,
        /// Every tensor that does not match.
        faults: TensorFaults,
    },
    /// The tokenizer has tokens outside the model's vocabulary.
    #[error("the tokenizer has {tokenizer} tokens but the model's vocab_size is {model}; are they of the same model?")]
    Vocabulary {
        /// One more than the largest token id.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
    /// A dtype in which models cannot be computed.
    #[error("weights cannot be computed with as {found:?}; choose f32, f16, bf16 or f64")]
    Dtype {
        /// The requested dtype.
        found: candle_core::DType,
    },
    /// Candle could not create a tensor.
    #[error("tensor `{name}`: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// Candle's error.
        source: Box<candle_core::Error>,
    },
    /// A weight cannot be quantised.
    #[error("tensor `{name}.weight` cannot be quantised: {source}")]
    Quantize {
        /// The layer.
        name: String,
        /// The engine's error.
        source: Box<metal_candle_graph::Error>,
    },
    /// An error of the engine.
    #[error(transparent)]
    Graph(#[from] metal_candle_graph::Error),
}

/// The differences between the tensors of a checkpoint and those that the settings imply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorFaults {
    /// Names of missing tensors.
    pub missing: Vec<String>,
    /// Name, shape found, shape expected.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Names of tensors that this architecture does not have.
    pub unexpected: Vec<String>,
}

impl TensorFaults {
    /// Whether there are no differences.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.misshapen.is_empty() && self.unexpected.is_empty()
    }
}

impl fmt::Display for TensorFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |name: &String| format!("`{}`", name.escape_debug());
        let shape = |(of, found, expected): &(String, Vec<usize>, Vec<usize>)| {
            format!("{} is {found:?} instead of {expected:?}", name(of))
        };
        let parts = [
            listed("missing", self.missing.iter().map(name).collect()),
            listed("of another shape", self.misshapen.iter().map(shape).collect()),
            listed("unexpected", self.unexpected.iter().map(name).collect()),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
    }
}

/// `missing: a, b, c and 4 more`, if there are any.
fn listed(what: &str, mut items: Vec<String>) -> Option<String> {
    const SHOWN: usize = 4;
    let more = items.len().saturating_sub(SHOWN);
    items.truncate(SHOWN);
    let tail = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    (!items.is_empty()).then(|| format!("{what}: {}{tail}", items.join(", ")))
}
