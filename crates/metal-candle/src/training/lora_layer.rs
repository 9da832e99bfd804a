//! `LoRA` for one linear layer: a trainable low-rank update of a frozen weight.
//!
//! The layer computes the update alone; the caller adds it to the frozen layer's output. Gradients reach `A`, `B` and
//! the input through Candle's `backward`. It never touches the frozen weight and never updates itself.

use std::borrow::Borrow;

use candle_core::{DType, Device, Tensor, Var};

use super::LoRAConfig;
use crate::error::{During, Error, Result, TrainingError, shape_text};

/// The low-rank update of one linear layer:
///
/// ```text
/// y = (dropout(x A) B) * alpha / rank        A: (in, rank)   B: (rank, out)
/// ```
///
/// `A` is initialised with independent Gaussians of mean 0 and standard deviation `1 / sqrt(rank)`, `B` with zeros, so
/// that a new layer adds nothing. Both are f32. A new layer is in training mode; dropout is active in that mode only,
/// and scales the kept elements by `1 / (1 - p)` to preserve the mean.
///
/// # Example
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use metal_candle::training::{LoRAConfig, LoRALayer};
///
/// # fn main() -> metal_candle::Result<()> {
/// let config = LoRAConfig { rank: 4, alpha: 8.0, dropout: 0.0 };
/// let lora = LoRALayer::new(16, 32, &config, &Device::Cpu)?;
///
/// let x = Tensor::ones((2, 5, 16), DType::F32, &Device::Cpu)?;
/// let y = lora.forward(&x)?;
/// assert_eq!(y.dims(), &[2, 5, 32]);
///
/// let gradients = y.sum_all()?.backward()?;
/// assert_eq!(gradients.get(lora.lora_b()).unwrap().dims(), &[4, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LoRALayer {
    lora_a: Var,
    lora_b: Var,
    config: LoRAConfig,
    in_features: usize,
    out_features: usize,
    training: bool,
    #[cfg(feature = "graph")]
    pub(super) lazy: super::lora_lazy::LazyWeights,
}

impl LoRALayer {
    /// Creates a layer for a linear layer from `in_features` to `out_features`, on `device`.
    ///
    /// `device` is a [`candle_core::Device`] or a [`metal_candle::Device`](crate::Device).
    ///
    /// # Errors
    ///
    /// If `config` is invalid, its rank exceeds `in_features` or `out_features`, or allocation on the device fails.
    pub fn new<D>(in_features: usize, out_features: usize, config: &LoRAConfig, device: &D) -> Result<Self>
    where
        D: Borrow<Device> + ?Sized,
    {
        config.validate()?;
        let (rank, device) = (config.rank, device.borrow());
        if rank > in_features.min(out_features) {
            return Err(TrainingError::config(format!(
                "LoRA rank is {rank}, it must be at most {} for a layer ({in_features}, {out_features})",
                in_features.min(out_features)
            )));
        }
        let std = 1.0 / (rank as f32).sqrt();
        let lora_a = Tensor::randn(0f32, std, (in_features, rank), device)
            .and_then(|a| Var::from_tensor(&a))
            .during(format_args!("LoRA: making lora_a ({in_features}, {rank})"))?;
        let lora_b = Var::zeros((rank, out_features), DType::F32, device)
            .during(format_args!("LoRA: making lora_b ({rank}, {out_features})"))?;
        Ok(Self {
            #[cfg(feature = "graph")]
            lazy: super::lora_lazy::LazyWeights::new(&lora_a, &lora_b)?,
            lora_a,
            lora_b,
            config: *config,
            in_features,
            out_features,
            training: true,
        })
    }

    /// The scaled update of `input`, `(.., in)` to `(.., out)`, f32, with any number of leading dimensions.
    ///
    /// # Errors
    ///
    /// If `input` is a scalar, its last dimension is not `in_features`, it is not f32, or it is on another device.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let Some((&width, leading)) = input.dims().split_last() else {
            return Err(Error::invalid_input("LoRA forward", self.scalar_message()));
        };
        // A single matrix product whatever the rank of the input. The last dimension is kept, so that a wrong one is an
        // error of the product instead of being reshaped away.
        let rows: usize = leading.iter().product();
        let x = input.reshape((rows, width)).during(format_args!(
            "LoRA forward: flattening input {}",
            shape_text(input.dims())
        ))?;
        let hidden = product(&x, &self.lora_a, "lora_a")?;
        let update = product(&self.drop(hidden)?, &self.lora_b, "lora_b")?;
        let scaled = update
            .affine(f64::from(self.config.scaling()), 0.0)
            .during("LoRA forward: scaling")?;
        let shape: Vec<usize> = leading.iter().copied().chain([self.out_features]).collect();
        scaled
            .reshape(shape)
            .during("LoRA forward: restoring the input's leading dimensions")
    }

    /// The error message for a scalar input.
    pub(super) fn scalar_message(&self) -> String {
        format!("input is a scalar, it must have shape (.., {})", self.in_features)
    }

    /// Dropout on `x A`, in training mode only.
    fn drop(&self, hidden: Tensor) -> Result<Tensor> {
        if self.training && self.config.dropout > 0.0 {
            candle_nn::ops::dropout(&hidden, self.config.dropout).during("LoRA forward: dropout")
        } else {
            Ok(hidden)
        }
    }

    /// The matrix A, `(in, rank)`, f32.
    #[must_use]
    pub const fn lora_a(&self) -> &Var {
        &self.lora_a
    }

    /// The matrix B, `(rank, out)`, f32.
    #[must_use]
    pub const fn lora_b(&self) -> &Var {
        &self.lora_b
    }

    /// [`lora_a`](Self::lora_a) as a tensor; operations on it are tracked for gradients.
    #[must_use]
    pub fn lora_a_tensor(&self) -> &Tensor {
        self.lora_a.as_tensor()
    }

    /// [`lora_b`](Self::lora_b) as a tensor; operations on it are tracked for gradients.
    #[must_use]
    pub fn lora_b_tensor(&self) -> &Tensor {
        self.lora_b.as_tensor()
    }

    /// The trainable variables: A, then B.
    #[must_use]
    pub fn trainable_variables(&self) -> Vec<&Var> {
        vec![&self.lora_a, &self.lora_b]
    }

    /// The number of trainable parameters: `rank * (in + out)`.
    #[must_use]
    pub const fn num_parameters(&self) -> usize {
        self.config.rank * (self.in_features + self.out_features)
    }

    /// The settings of this layer.
    #[must_use]
    pub const fn config(&self) -> &LoRAConfig {
        &self.config
    }

    /// Input size.
    #[must_use]
    pub const fn in_features(&self) -> usize {
        self.in_features
    }

    /// Output size.
    #[must_use]
    pub const fn out_features(&self) -> usize {
        self.out_features
    }

    /// Switches training mode, and with it dropout, on or off.
    pub fn set_training(&mut self, training: bool) {
        self.training = training;
    }

    /// Leaves training mode: disables dropout.
    pub fn eval(&mut self) {
        self.set_training(false);
    }

    /// Whether the layer is in training mode, the initial mode.
    #[must_use]
    pub const fn is_training(&self) -> bool {
        self.training
    }
}

/// The product of `x` with a matrix of the layer; errors name the matrix and its shape.
fn product(x: &Tensor, matrix: &Var, name: &str) -> Result<Tensor> {
    x.matmul(matrix).during(format_args!(
        "LoRA forward: matmul with {name} {}",
        shape_text(matrix.dims())
    ))
}
