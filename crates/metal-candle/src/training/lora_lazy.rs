//! The `LoRA` layer on the lazy graph: records what [`forward`](LoRALayer::forward) runs at once.
//!
//! A and B are inputs of the graph that share the memory of the layer's `Var`s, the same two nodes in every call, so
//! that gradients of the graph reach them. Nothing here runs anything.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Var;
use metal_candle_graph::LazyTensor;

use super::LoRALayer;
use crate::error::{Error, Result};

/// A and B as inputs of lazy graphs.
#[derive(Debug)]
pub(super) struct LazyWeights {
    a: LazyTensor,
    b: LazyTensor,
}

impl LazyWeights {
    pub(super) fn new(a: &Var, b: &Var) -> Result<Self> {
        let input = |var: &Var| LazyTensor::from_tensor(var.as_detached_tensor());
        Ok(Self {
            a: input(a)?,
            b: input(b)?,
        })
    }
}

/// Words 0 and 1 of the keys of dropout; words 2 and 3 count the calls.
const DROPOUT_KEY: [u32; 2] = [0x4c6f_5241, 0x6472_6f70];

/// A key that no earlier call has used.
fn next_key(input: &LazyTensor) -> Result<LazyTensor> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let words = [DROPOUT_KEY[0], DROPOUT_KEY[1], call as u32, (call >> 32) as u32];
    Ok(LazyTensor::from_data(&words, &[4], input.device())?)
}

impl LoRALayer {
    /// Records the scaled update of `input`, `(.., in)` to `(.., out)`, f32: the values of [`forward`](Self::forward),
    /// computed when the result is evaluated, with the values of A and B at that time.
    ///
    /// In training mode there is dropout on `x A` as in `forward`. Each call records its own key from a process-wide
    /// counter, so two calls drop different elements, and evaluating one recording twice drops the same ones. Gradients
    /// are computed with respect to [`lora_a_lazy`](Self::lora_a_lazy) and [`lora_b_lazy`](Self::lora_b_lazy).
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use metal_candle::graph::{LazyTensor, value_and_grad};
    /// use metal_candle::training::{LoRAConfig, LoRALayer};
    ///
    /// # fn main() -> metal_candle::Result<()> {
    /// let lora = LoRALayer::new(16, 32, &LoRAConfig::default(), &Device::Cpu)?;
    /// let x = LazyTensor::from_tensor(Tensor::ones((2, 16), DType::F32, &Device::Cpu)?)?;
    ///
    /// let y = lora.forward_lazy(&x)?;
    /// assert_eq!((y.dims(), y.is_evaluated()), (&[2, 32][..], false));
    ///
    /// let (_, gradients) = value_and_grad(&y.sum_all()?, &[lora.lora_b_lazy().clone()])?;
    /// assert_eq!(gradients[0].dims(), &[8, 32]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If `input` is a scalar, its last dimension is not `in_features`, it is not f32, or it is on another device.
    pub fn forward_lazy(&self, input: &LazyTensor) -> Result<LazyTensor> {
        match input.rank() {
            0 => Err(Error::invalid_input("LoRA forward", self.scalar_message())),
            1 => {
                let row = input.reshape(&[1, input.dims()[0]])?;
                Ok(self.update(&row)?.reshape(&[self.out_features()])?)
            }
            _ => self.update(input),
        }
    }

    /// The update of `(.., rows, in)`.
    fn update(&self, x: &LazyTensor) -> Result<LazyTensor> {
        let (LazyWeights { a, b }, scale) = (&self.lazy, self.config().scaling());
        let dropout = self.config().dropout;
        if !(self.is_training() && dropout > 0.0) {
            return Ok(x.lora_fused(a, b, scale)?);
        }
        let kept = x.matmul(a)?.dropout(dropout, &next_key(x)?)?;
        Ok(kept.mul_scalar(scale)?.matmul(b)?)
    }

    /// The matrix A, `(in, rank)`, as the input node that [`forward_lazy`](Self::forward_lazy) records; it shares the
    /// memory of [`lora_a`](Self::lora_a).
    #[must_use]
    pub const fn lora_a_lazy(&self) -> &LazyTensor {
        &self.lazy.a
    }

    /// The matrix B, `(rank, out)`, as the input node that [`forward_lazy`](Self::forward_lazy) records; it shares the
    /// memory of [`lora_b`](Self::lora_b).
    #[must_use]
    pub const fn lora_b_lazy(&self) -> &LazyTensor {
        &self.lazy.b
    }
}
