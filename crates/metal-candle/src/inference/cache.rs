//! The KV cache: keys and values of the tokens read so far, for one sequence or several of equal length.
//!
//! The capacity is a power of two and doubles when it is exceeded, so a growing sequence has few distinct shapes.
//! Entries beyond the length are never visible: attention is causal from the position of the query.

use candle_core::{DType, Device};
use metal_candle_graph::{LazyTensor, Result};

use crate::models::ModelConfig;

/// Minimum capacity, in tokens.
const LEAST: usize = 64;

/// The cache of one sequence, or of several of equal length.
#[derive(Debug, Clone)]
pub struct KvCache {
    /// Keys and values, alternating, for each layer: `(rows, capacity, kv_heads, head_dim)`.
    tensors: Vec<LazyTensor>,
    len: usize,
}

impl KvCache {
    /// An empty cache for one row.
    ///
    /// # Errors
    /// When the engine does not support `dtype`.
    pub fn new(config: &ModelConfig, dtype: DType, device: &Device) -> Result<Self> {
        Self::for_rows(1, config, dtype, device)
    }

    /// An empty cache for `rows` rows.
    ///
    /// # Errors
    /// When the engine does not support `dtype`.
    pub fn for_rows(rows: usize, config: &ModelConfig, dtype: DType, device: &Device) -> Result<Self> {
        let shape = [rows, LEAST, config.num_key_value_heads, config.head_dim];
        let empty = |_| LazyTensor::zeros(&shape, dtype, device);
        Ok(Self {
            tensors: (0..2 * config.num_hidden_layers).map(empty).collect::<Result<_>>()?,
            len: 0,
        })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tensors.first().map_or(0, |t| t.dims()[0])
    }

    /// Number of cached tokens per row.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Capacity in tokens per row.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.tensors.first().map_or(0, |t| t.dims()[1])
    }

    /// Whether `more` tokens per row exceed the capacity.
    pub(super) fn grows_for(&self, more: usize) -> bool {
        self.len + more > self.capacity()
    }

    /// Grows the capacity, if needed, for `more` tokens per row.
    ///
    /// # Errors
    /// Never for a cache made by [`new`](Self::new).
    pub fn reserve(&mut self, more: usize) -> Result<()> {
        if !self.grows_for(more) {
            return Ok(());
        }
        let extra = (self.len + more).next_power_of_two() - self.capacity();
        for tensor in &mut self.tensors {
            *tensor = tensor.pad(&[0; 4], &[0, extra, 0, 0])?;
        }
        Ok(())
    }

    /// Takes the tensors out, so that a compiled step may overwrite their buffers.
    pub(super) fn take(&mut self) -> Vec<LazyTensor> {
        std::mem::take(&mut self.tensors)
    }

    /// Truncates each row to `len` tokens.
    pub(super) fn rewind(&mut self, len: usize) {
        self.len = len;
    }

    /// Puts the tensors back after `read` more tokens.
    pub(super) fn put(&mut self, tensors: Vec<LazyTensor>, read: usize) {
        self.tensors = tensors;
        self.len += read;
    }
}
