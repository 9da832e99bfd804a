//! Softmax and norms as methods of Candle's tensors, made of operations that Candle differentiates.
//!
//! Candle's own fused versions silently stop gradients; these do not. f16 and bf16 are computed in f32 and rounded
//! once, at the end. Nothing here records: the lazy methods are those of `LazyTensor`.

use candle_core::{D, DType, Result, Tensor};

/// Numerically stable functions of the last dimension, as methods of [`Tensor`].
///
/// Each keeps shape, dtype and device, and gradients flow through it. It fails if the tensor is a scalar, or not of a
/// floating-point dtype.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use metal_candle::TensorExt;
///
/// # fn main() -> candle_core::Result<()> {
/// let x = Var::new(&[[1f32, 2.0, 3.0], [1000.0, 1000.0, 1000.0]], &Device::Cpu)?;
/// let p = x.softmax_stable()?;
/// assert_eq!(p.to_vec2::<f32>()?[1], [1.0 / 3.0; 3]);
///
/// let gradients = p.narrow(1, 0, 1)?.sum_all()?.backward()?;
/// assert_eq!(gradients.get(&x).unwrap().dims(), &[2, 3]);
/// # Ok(())
/// # }
/// ```
pub trait TensorExt {
    /// `exp(x) / sum(exp(x))`; large values do not overflow.
    ///
    /// # Errors
    /// If the tensor is a scalar or not of a floating-point dtype.
    fn softmax_stable(&self) -> Result<Tensor>;

    /// `(x - mean) / sqrt(variance + eps)`, with the biased variance; `eps` is usually 1e-5.
    ///
    /// # Errors
    /// If the tensor is a scalar or not of a floating-point dtype.
    fn layer_norm(&self, eps: f64) -> Result<Tensor>;

    /// `x / sqrt(mean(x * x) + eps)`; `eps` is usually 1e-6.
    ///
    /// # Errors
    /// If the tensor is a scalar or not of a floating-point dtype.
    fn rms_norm(&self, eps: f64) -> Result<Tensor>;
}

impl TensorExt for Tensor {
    fn softmax_stable(&self) -> Result<Tensor> {
        with_precision(self, "softmax_stable", |x| {
            // The result does not depend on the subtracted maximum, so it is detached.
            let e = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
            e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
        })
    }

    fn layer_norm(&self, eps: f64) -> Result<Tensor> {
        with_precision(self, "layer_norm", |x| {
            let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            over_root_mean_square(&centred, eps)
        })
    }

    fn rms_norm(&self, eps: f64) -> Result<Tensor> {
        with_precision(self, "rms_norm", |x| over_root_mean_square(x, eps))
    }
}

fn over_root_mean_square(x: &Tensor, eps: f64) -> Result<Tensor> {
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&root)
}

/// Applies `f` in f32, or f64, and rounds to the dtype of `x`.
fn with_precision(x: &Tensor, name: &str, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let dtype = x.dtype();
    if !dtype.is_float() || x.rank() == 0 {
        let found = format!("{dtype:?} of shape {:?}", x.dims());
        candle_core::bail!("{name} takes floating-point numbers of at least one dimension, got {found}");
    }
    if dtype == DType::F64 {
        return f(x);
    }
    f(&x.to_dtype(DType::F32)?)?.to_dtype(dtype)
}
