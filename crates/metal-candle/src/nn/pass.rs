//! The inputs of a forward pass that change from call to call: positions, segments, cache, adapter weights, dropout.
//!
//! All of them are tensor handles, so a compiled function can pass its arguments: a training step or a decoding step
//! then needs only one plan.

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device};
use metal_candle_graph::{Error, LazyTensor, Result};

/// One forward pass of a model.
#[derive(Debug)]
pub struct Pass<'a> {
    positions: LazyTensor,
    segments: Option<LazyTensor>,
    cache: Option<Cache>,
    adapters: &'a [LazyTensor],
    /// Number of modules that have fetched their adapter weights.
    taken: AtomicUsize,
    dropout: Option<LazyTensor>,
}

/// Keys and values of earlier tokens, per layer.
#[derive(Debug, Clone)]
pub struct Cache {
    /// Keys and values per layer, each `(batch, capacity, kv_heads, head_dim)`.
    pub layers: Vec<(LazyTensor, LazyTensor)>,
    /// Number of cached tokens before this pass: u32 `(1)`.
    pub offset: LazyTensor,
}

impl<'a> Pass<'a> {
    /// A pass with token positions `(batch or 1, seq)`, u32 or f32.
    #[must_use]
    pub fn new(positions: LazyTensor) -> Self {
        Self {
            positions,
            segments: None,
            cache: None,
            adapters: &[],
            taken: AtomicUsize::new(0),
            dropout: None,
        }
    }

    /// A pass with the positions `0..seq` in every row.
    ///
    /// # Errors
    /// Never on a device that the engine supports.
    pub fn from_start(seq: usize, device: &Device) -> Result<Self> {
        Ok(Self::new(LazyTensor::iota(1, &[1, seq], DType::F32, device)?))
    }

    /// A pass whose `seq` tokens follow those in `cache`.
    ///
    /// # Errors
    /// When the cache's offset is not u32 `(1)`.
    pub fn after(cache: Cache, seq: usize) -> Result<Self> {
        // Positions stay below 2^24, where f32 counts exactly.
        let steps = LazyTensor::iota(1, &[1, seq], DType::F32, cache.offset.device())?;
        let positions = steps.add(&cache.offset.cast(DType::F32)?)?;
        Ok(Self {
            cache: Some(cache),
            ..Self::new(positions)
        })
    }

    /// For rows with several texts: tokens see only tokens with the same id in `segments` `(batch, seq)`, u32.
    #[must_use]
    pub fn with_segments(self, segments: LazyTensor) -> Self {
        Self {
            segments: Some(segments),
            ..self
        }
    }

    /// The weights of the model's adapters, A `(in, rank)` and B `(rank, out)` of each adapted module in order.
    #[must_use]
    pub fn with_adapters(self, adapters: &'a [LazyTensor]) -> Self {
        Self { adapters, ..self }
    }

    /// Enables dropout on the adapters' inputs, with random numbers from `key`: u32 `(4)`, whose last word is replaced
    /// by the index of the module.
    #[must_use]
    pub fn with_dropout(self, key: LazyTensor) -> Self {
        Self {
            dropout: Some(key),
            ..self
        }
    }

    /// The cache after the pass.
    #[must_use]
    pub fn into_cache(self) -> Option<Cache> {
        self.cache
    }

    /// Positions of the tokens, `(batch or 1, seq)`.
    #[must_use]
    pub fn positions(&self) -> &LazyTensor {
        &self.positions
    }

    /// Segment ids `(batch, seq)`, if rows hold several texts.
    #[must_use]
    pub fn segments(&self) -> Option<&LazyTensor> {
        self.segments.as_ref()
    }

    /// A and B of the adapted module with this index.
    ///
    /// # Errors
    /// When the pass has no factors for it.
    pub fn adapter(&self, index: usize) -> Result<(&LazyTensor, &LazyTensor)> {
        if let Some([a, b]) = self.adapters.get(2 * index..2 * index + 2) {
            self.taken.fetch_add(1, Ordering::Relaxed);
            return Ok((a, b));
        }
        let message = format!(
            "module {index} has no weights: the pass holds {} adapter tensors",
            self.adapters.len()
        );
        Err(Error::Shape {
            operation: "adapter",
            message,
        })
    }

    /// Checks that the model used all adapter weights: unused weights are a mistake.
    ///
    /// # Errors
    /// When some were not used.
    pub(crate) fn check_adapters_taken(&self) -> Result<()> {
        let (taken, given) = (2 * self.taken.load(Ordering::Relaxed), self.adapters.len());
        if taken == given {
            return Ok(());
        }
        let message = format!(
            "the pass holds {given} adapter tensors, but the model took {taken}; is the adapter on this model?"
        );
        Err(Error::Shape {
            operation: "adapter",
            message,
        })
    }

    /// The random key of the adapted module with this index, if dropout is enabled.
    ///
    /// # Errors
    /// When the key is not u32 `(4)`.
    pub fn dropout_key(&self, index: usize) -> Result<Option<LazyTensor>> {
        let Some(key) = &self.dropout else { return Ok(None) };
        let number = LazyTensor::full(index as f64, &[1], DType::U32, key.device())?;
        LazyTensor::concat(&[&key.slice(0, 0, 3)?, &number], 0).map(Some)
    }

    /// Writes the new keys and values of a layer into the cache and returns its whole contents, with the position of
    /// the first query. Without a cache, returns the new ones.
    pub(super) fn extend(
        &mut self,
        layer: usize,
        k: LazyTensor,
        v: LazyTensor,
    ) -> Result<(LazyTensor, LazyTensor, Option<LazyTensor>)> {
        let Some(cache) = &mut self.cache else {
            return Ok((k, v, None));
        };
        let Some((keys, values)) = cache.layers.get_mut(layer) else {
            let message = format!("layer {layer} of a cache of {} layers", cache.layers.len());
            return Err(Error::Shape {
                operation: "cache",
                message,
            });
        };
        *keys = keys.slice_update(1, &k, &cache.offset)?;
        *values = values.slice_update(1, &v, &cache.offset)?;
        Ok((keys.clone(), values.clone(), Some(cache.offset.clone())))
    }
}
