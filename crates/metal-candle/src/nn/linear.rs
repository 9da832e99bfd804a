//! `y = x W^T + b`.

use metal_candle_graph::{Error, LazyTensor, Result};

use super::{Pass, Projection};

/// A linear layer with its weight as checkpoints store it.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: LazyTensor,
    bias: Option<LazyTensor>,
}

impl Linear {
    /// From `weight` `(out, in)` and, if there is one, `bias` `(out)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn new(weight: LazyTensor, bias: Option<LazyTensor>) -> Result<Self> {
        let fits = weight.rank() == 2 && bias.as_ref().is_none_or(|b| b.dims() == &weight.dims()[..1]);
        if fits {
            return Ok(Self { weight, bias });
        }
        let bias = bias.map_or_else(|| "none".to_owned(), |b| format!("{:?}", b.dims()));
        let message = format!(
            "weight {:?} is not (out, in), or the bias is not (out): {bias}",
            weight.dims()
        );
        Err(Error::Shape {
            operation: "linear",
            message,
        })
    }
}

impl Projection for Linear {
    fn forward(&self, x: &LazyTensor, _: &Pass<'_>) -> Result<LazyTensor> {
        let y = x.matmul_t(&self.weight)?;
        match &self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }

    fn in_features(&self) -> usize {
        self.weight.dims()[1]
    }

    fn out_features(&self) -> usize {
        self.weight.dims()[0]
    }
}
