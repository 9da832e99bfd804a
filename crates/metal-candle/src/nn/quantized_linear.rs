//! The linear layer `y = x W^T + b` with an 8-bit or 4-bit weight. It is frozen; adapters wrap it like any other layer.

use std::num::NonZero;
use std::thread;

use candle_core::{DType, Tensor};
use metal_candle_graph::fused::dequant_matmul::{BLOCK, dequantize};
use metal_candle_graph::{Error, LazyTensor, QuantFormat, Quantized, Result};

use super::{Linear, Pass, Projection};

/// A linear layer with a quantised weight.
#[derive(Debug, Clone)]
pub struct QuantizedLinear {
    quants: LazyTensor,
    scales: LazyTensor,
    format: QuantFormat,
    bias: Option<LazyTensor>,
}

/// Number of values widened to f32 at a time.
const PIECE: usize = 1 << 22;

impl QuantizedLinear {
    /// Whether a weight with this input size can be quantised: it must be a multiple of the block size.
    #[must_use]
    pub fn fits(in_features: usize) -> bool {
        in_features > 0 && in_features.is_multiple_of(BLOCK)
    }

    /// Quantises `weight` `(out, in)`, which is evaluated; `bias` `(out)` is kept as it is.
    ///
    /// # Errors
    /// When the shapes are incompatible, `in` is not a multiple of the block size 32, or a value is not finite.
    pub fn new(weight: &LazyTensor, bias: Option<LazyTensor>, format: QuantFormat) -> Result<Self> {
        // The same checks as for the other linear layer.
        let linear = Linear::new(weight.clone(), bias.clone())?;
        let (inputs, outputs) = (linear.in_features(), linear.out_features());
        if !Self::fits(inputs) {
            let message = format!(
                "weight {:?}: the row length is not a multiple of the block size {BLOCK}",
                weight.dims()
            );
            return Err(Error::Shape {
                operation: "quantized linear",
                message,
            });
        }
        let mut all = Quantized {
            quants: Vec::with_capacity(outputs * inputs / BLOCK * format.block_bytes()),
            scales: Vec::with_capacity(outputs * inputs / BLOCK),
        };
        let piece = (PIECE / inputs).max(1);
        for first in (0..outputs).step_by(piece) {
            let rows = weight.slice(0, first, outputs.min(first + piece))?;
            let part = on_threads(format, &rows.cast(DType::F32)?.to_vec::<f32>()?)?;
            all.quants.extend(part.quants);
            all.scales.extend(part.scales);
        }
        let width = inputs / BLOCK * format.block_bytes();
        let device = weight.device();
        Ok(Self {
            quants: recorded(Tensor::from_vec(all.quants, (outputs, width), device))?,
            scales: recorded(Tensor::from_vec(all.scales, (outputs, inputs / BLOCK), device))?,
            format,
            bias,
        })
    }

    /// The dequantised weight `(out, in)` in `dtype`: recorded, not evaluated.
    ///
    /// # Errors
    /// When `dtype` is not a float.
    pub fn weight(&self, dtype: DType) -> Result<LazyTensor> {
        dequantize(&self.quants, &self.scales, self.format, dtype)
    }

    /// `(.., in)` to `(.., out)`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `in`.
    pub fn product(&self, x: &LazyTensor) -> Result<LazyTensor> {
        let y = x.dequant_matmul(&self.quants, &self.scales, self.format)?;
        match &self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }

    /// The storage format of the weight.
    #[must_use]
    pub fn format(&self) -> QuantFormat {
        self.format
    }
}

impl Projection for QuantizedLinear {
    fn forward(&self, x: &LazyTensor, _: &Pass<'_>) -> Result<LazyTensor> {
        self.product(x)
    }

    fn in_features(&self) -> usize {
        self.scales.dims()[1] * BLOCK
    }

    fn out_features(&self) -> usize {
        self.scales.dims()[0]
    }
}

/// Blocks are independent, so the work can be split over threads in any way.
fn on_threads(format: QuantFormat, values: &[f32]) -> Result<Quantized> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = values.len().div_ceil(threads).next_multiple_of(BLOCK).max(BLOCK);
    let parts: Vec<Result<Quantized>> = thread::scope(|scope| {
        let workers: Vec<_> = values
            .chunks(share)
            .map(|values| scope.spawn(move || format.quantize(values)))
            .collect();
        let joined = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect()
    });
    let mut all = Quantized {
        quants: Vec::new(),
        scales: Vec::new(),
    };
    for part in parts {
        let part = part?;
        all.quants.extend(part.quants);
        all.scales.extend(part.scales);
    }
    Ok(all)
}

fn recorded(tensor: candle_core::Result<Tensor>) -> Result<LazyTensor> {
    let tensor = tensor.map_err(|source| Error::Candle {
        context: "quantized linear".to_owned(),
        source,
    })?;
    LazyTensor::from_tensor(tensor)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use metal_candle_graph::random;

    use super::*;

    fn normal(seed: u32, shape: &[usize]) -> LazyTensor {
        let values: Vec<f32> = random::normal32([seed, 1], [0, 0])
            .take(shape.iter().product())
            .collect();
        LazyTensor::from_slice(&values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn it_is_the_layer_of_the_dequantised_weight() {
        let (weight, bias) = (normal(1, &[50, 96]), normal(2, &[50]));
        for format in [QuantFormat::Q8_0, QuantFormat::Q4_0] {
            let quantized = QuantizedLinear::new(&weight, Some(bias.clone()), format).unwrap();
            assert_eq!((quantized.in_features(), quantized.out_features()), (96, 50));
            let plain = Linear::new(quantized.weight(DType::F32).unwrap(), Some(bias.clone())).unwrap();
            let pass = Pass::from_start(12, &Device::Cpu).unwrap();
            let x = normal(3, &[1, 12, 96]);
            let values = |layer: &dyn Projection| layer.forward(&x, &pass).unwrap().to_vec::<f32>().unwrap();
            for (found, wanted) in values(&quantized).iter().zip(values(&plain)) {
                assert!((found - wanted).abs() < 1e-4, "{found} instead of {wanted}");
            }
        }
    }

    #[test]
    fn large_weights_are_quantised_in_pieces_and_on_threads_alike() {
        let weight = normal(1, &[1100, 4096]);
        let values = weight.to_vec::<f32>().unwrap();
        let whole = QuantFormat::Q4_0.quantize(&values).unwrap();
        let quantized = QuantizedLinear::new(&weight, None, QuantFormat::Q4_0).unwrap();
        assert_eq!(quantized.quants.to_vec::<u8>().unwrap(), whole.quants);
        let scales = quantized.scales.cast(DType::F32).unwrap().to_vec::<f32>().unwrap();
        assert!(
            scales
                .iter()
                .zip(&whole.scales)
                .all(|(found, wanted)| *found == wanted.to_f32())
        );
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        let fault = |weight: LazyTensor, bias| {
            QuantizedLinear::new(&weight, bias, QuantFormat::Q8_0)
                .unwrap_err()
                .to_string()
        };
        assert!(fault(normal(1, &[3, 40]), None).contains("not a multiple of the block size 32"));
        assert!(fault(normal(1, &[3, 32]), Some(normal(2, &[2]))).starts_with("linear: "));
        let wrong = normal(1, &[3, 32]).div(&LazyTensor::zeros(&[3, 32], DType::F32, &Device::Cpu).unwrap());
        assert!(fault(wrong.unwrap(), None).contains("not finite"));
        assert!(!QuantizedLinear::fits(0) && !QuantizedLinear::fits(48) && QuantizedLinear::fits(64));
    }
}
