//! What changes from one call of a model to the next: positions, segments, cache, adapter weights, dropout.
//!
//! Everything here is a tensor handle, so a compiled function can pass its arguments: a training step or a decoding
//! step then has one plan however often it runs.

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device};
use metal_candle_graph::{Error, LazyTensor, Result};

/// One call of a model.
#[derive(Debug)]
pub struct Pass<'a> {
    positions: LazyTensor,
    segments: Option<LazyTensor>,
    cache: Option<Cache>,
    adapters: &'a [LazyTensor],
    /// How many modules took their weights so far.
    taken: AtomicUsize,
    dropout: Option<LazyTensor>,
}

/// Keys and values of earlier tokens, layer by layer.
#[derive(Debug, Clone)]
pub struct Cache {
    /// Per layer keys and values, each `(batch, capacity, kv_heads, head_dim)`.
    pub layers: Vec<(LazyTensor, LazyTensor)>,
    /// How many tokens were there before this call: u32 `(1)`.
    pub offset: LazyTensor,
}

impl<'a> Pass<'a> {
    /// A call whose tokens stand at `positions` `(batch or 1, seq)`, u32 or f32.
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

    /// A call whose every row holds the positions `0..seq`.
    ///
    /// # Errors
    /// Never on a device that the engine computes on.
    pub fn from_start(seq: usize, device: &Device) -> Result<Self> {
        Ok(Self::new(LazyTensor::iota(1, &[1, seq], DType::F32, device)?))
    }

    /// A call whose `seq` tokens follow those in `cache`.
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

    /// Rows that hold several texts: tokens see only tokens with the same number in `segments` `(batch, seq)`, u32.
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

    /// Drops inputs of adapters at their rate, with random numbers of `key`: u32 `(4)`, whose last word is replaced by
    /// the number of the module. Without it nothing is dropped.
    #[must_use]
    pub fn with_dropout(self, key: LazyTensor) -> Self {
        Self {
            dropout: Some(key),
            ..self
        }
    }

    /// The cache after the call.
    #[must_use]
    pub fn into_cache(self) -> Option<Cache> {
        self.cache
    }

    /// Positions of the tokens, `(batch or 1, seq)`.
    #[must_use]
    pub fn positions(&self) -> &LazyTensor {
        &self.positions
    }

    /// Segment numbers `(batch, seq)`, where rows hold several texts.
    #[must_use]
    pub fn segments(&self) -> Option<&LazyTensor> {
        self.segments.as_ref()
    }

    /// A and B of adapted module number `index`.
    ///
    /// # Errors
    /// When the pass was not given so many.
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

    /// Whether the model took all adapter weights there are: weights that have no effect are a mistake.
    ///
    /// # Errors
    /// When it did not.
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

    /// The key of the random numbers of adapted module number `index`, if inputs are dropped at all.
    ///
    /// # Errors
    /// When the key is not u32 `(4)`.
    pub fn dropout_key(&self, index: usize) -> Result<Option<LazyTensor>> {
        let Some(key) = &self.dropout else { return Ok(None) };
        let number = LazyTensor::full(index as f64, &[1], DType::U32, key.device())?;
        LazyTensor::concat(&[&key.slice(0, 0, 3)?, &number], 0).map(Some)
    }

    /// Writes new keys and values of a layer into the cache and returns all it holds, with the position of the first
    /// query. Without a cache the new ones are all there are.
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
