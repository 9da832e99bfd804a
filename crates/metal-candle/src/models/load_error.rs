//! Why a model folder cannot be loaded.

use std::fmt;
use std::path::PathBuf;

use metal_candle_graph::io::FileError;

use super::ConfigError;
use crate::text::TextError;

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The folder is not there.
    #[error("{}: no such folder; give the folder of a model in Hugging Face's layout", path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is no model in Hugging Face's layout.
    #[error("{}: {reason}", path.display())]
    NotAModel {
        /// The folder, or the file that was given instead.
        path: PathBuf,
        /// What is there, and what to do.
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
    /// The weights are not those that the settings describe.
    #[error("{}: the weights do not fit config.json: {faults}", source_name.display())]
    Tensors {
        /// The folder of the weights.
        source_name: PathBuf,
        /// Every tensor that does not fit.
        faults: TensorFaults,
    },
    /// The tokenizer has tokens that the model does not.
    #[error("the tokenizer has {tokenizer} tokens but the model's vocab_size is {model}; are they of the same model?")]
    Vocabulary {
        /// One more than the largest token id.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
    /// Weights in a dtype that models are not computed in.
    #[error("weights cannot be computed with as {found:?}; choose f32, f16, bf16 or f64")]
    Dtype {
        /// The dtype asked for.
        found: candle_core::DType,
    },
    /// The device refused a tensor.
    #[error("tensor `{name}`: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// Candle's reason.
        source: Box<candle_core::Error>,
    },
    /// A weight cannot be quantised.
    #[error("tensor `{name}.weight` cannot be quantised: {source}")]
    Quantize {
        /// The layer.
        name: String,
        /// The engine's reason.
        source: Box<metal_candle_graph::Error>,
    },
    /// The engine refused a tensor.
    #[error(transparent)]
    Graph(#[from] metal_candle_graph::Error),
}

/// How the tensors of a checkpoint differ from those that the settings ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorFaults {
    /// Names that are not there.
    pub missing: Vec<String>,
    /// Name, shape found, shape expected.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Names that this architecture does not have.
    pub unexpected: Vec<String>,
}

impl TensorFaults {
    /// Whether everything fits.
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

/// `missing: a, b, c and 4 more`, if there is anything.
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
