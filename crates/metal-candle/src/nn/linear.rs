//! The linear layer, `y = x W^T + b`.

use metal_candle_graph::{Error, LazyTensor, Result};

use super::{Pass, Projection};

/// A linear layer with its weight as checkpoints store it.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: LazyTensor,
    bias: Option<LazyTensor>,
}

impl Linear {
    /// Creates a layer from `weight` `(out, in)` and an optional `bias` `(out)`.
    ///
    /// # Errors
    /// When the shapes are incompatible.
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn zeros(shape: &[usize]) -> LazyTensor {
        LazyTensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        let linear = Linear::new(zeros(&[3, 2]), Some(zeros(&[3]))).unwrap();
        assert_eq!((linear.in_features(), linear.out_features()), (2, 3));
        for (weight, bias) in [(zeros(&[3]), None), (zeros(&[3, 2]), Some(zeros(&[2])))] {
            assert!(
                Linear::new(weight, bias)
                    .unwrap_err()
                    .to_string()
                    .starts_with("linear: ")
            );
        }
        let pass = Pass::from_start(1, &Device::Cpu).unwrap();
        let fault = linear.forward(&zeros(&[1, 1, 3]), &pass).unwrap_err().to_string();
        assert!(fault.contains("inner dimensions differ"), "{fault}");
    }

    #[test]
    fn bias_is_added_to_every_row() {
        let data = |v: &[f32], s: &[usize]| LazyTensor::from_slice(v, s, &Device::Cpu).unwrap();
        let linear = Linear::new(data(&[1.0, 2.0, 3.0, 4.0], &[2, 2]), Some(data(&[10.0, 20.0], &[2]))).unwrap();
        let pass = Pass::from_start(2, &Device::Cpu).unwrap();
        let y = linear.forward(&data(&[1.0, 0.0, 1.0, 1.0], &[1, 2, 2]), &pass).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [11.0, 23.0, 13.0, 27.0]);
    }
}
