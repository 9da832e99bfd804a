//! Token embedding.

use metal_candle_graph::{LazyTensor, Result};

/// A table with one row per token id.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: LazyTensor,
}

impl Embedding {
    /// Creates an embedding from `weight` `(vocab, hidden)`.
    #[must_use]
    pub fn new(weight: LazyTensor) -> Self {
        Self { weight }
    }

    /// `tokens` `(batch, seq)` of dtype u32 or i64 to `(batch, seq, hidden)`.
    ///
    /// # Errors
    /// When `tokens` has another dtype; an id out of range is reported at run time.
    pub fn forward(&self, tokens: &LazyTensor) -> Result<LazyTensor> {
        let count = tokens.shape().elem_count();
        let rows = self.weight.index_select(0, &tokens.reshape(&[count])?)?;
        rows.reshape(&[tokens.dims(), &self.weight.dims()[1..]].concat())
    }

    /// The table `(vocab, hidden)`; with tied embeddings also the output head.
    #[must_use]
    pub fn weight(&self) -> &LazyTensor {
        &self.weight
    }
}
