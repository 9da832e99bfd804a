//! Random tensors. The numbers are a pure function of the key tensor and the element's index (Philox 4x32-10, Salmon et
//! al. 2011), so a run that repeats its keys repeats its numbers, on any backend and number of threads.

use candle_core::{DType, Shape};

use crate::error::{Error, Result};
use crate::graph::{Distribution, Operation};
use crate::lazy_tensor::LazyTensor;

impl LazyTensor {
    /// A tensor of random numbers; `self` is the key: four u32 words (two of key, two of stream).
    ///
    /// # Errors
    /// When the key is not `u32 (4)`, or the dtype does not fit the distribution.
    pub fn random(&self, distribution: Distribution, shape: &[usize], dtype: DType) -> Result<Self> {
        Self::record_one(
            Operation::Random {
                distribution,
                shape: Shape::from(shape),
                dtype,
            },
            &[self],
        )
    }

    /// Inverted dropout: each element is zeroed with probability `rate`, the others are divided by `1 - rate`. At a
    /// rate of 1 everything is zeroed. `key` is as in [`Self::random`].
    ///
    /// # Errors
    /// When the rate is not from 0 to 1, the key does not fit or the dtype is not a float.
    pub fn dropout(&self, rate: f32, key: &Self) -> Result<Self> {
        if !(0.0..=1.0).contains(&rate) {
            return Err(Error::Parameter {
                operation: "dropout",
                name: "rate",
                value: rate.into(),
                expected: "a number from 0 to 1",
            });
        }
        if rate == 0.0 {
            return Ok(self.clone());
        }
        if rate == 1.0 {
            return self.mul_scalar(0.0);
        }
        let draws = key.random(Distribution::Uniform, self.dims(), DType::F32)?;
        let dropped = draws.less(&draws.scalar_like(f64::from(rate))?)?;
        dropped.where_cond(&self.scalar_like(0.0)?, &self.mul_scalar(1.0 / (1.0 - rate))?)
    }
}
