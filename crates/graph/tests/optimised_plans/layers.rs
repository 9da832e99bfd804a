//! Random programs of layers in one float dtype and of any size: linear layers with their low-rank term, bias and residual,
//! norms, activations, casts and chains, and the mean cross-entropy of the last value with all gradients.

use candle_core::{DType, Device, Tensor};
use metal_candle_graph::{Approximate, CrossEntropyOptions, LazyTensor, Result, random, value_and_grad};

/// The kind of a layer, and the indices of its inputs.
pub type Layer = (u8, u8, u8);

const KINDS: u8 = 15;
/// The layer that casts to the other dtype and back.
const CAST: u8 = 10;
/// The layer that casts a bf16 product to f32.
const WIDENED: u8 = 11;

pub fn casts(layer: Layer) -> bool {
    [CAST, WIDENED].contains(&(layer.0 % KINDS))
}

/// Dimensions of a program's values.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub rows: usize,
    pub columns: usize,
    pub dtype: DType,
}

struct Weights {
    w: LazyTensor,
    a: LazyTensor,
    b: LazyTensor,
    row: LazyTensor,
    head: LazyTensor,
}

/// Normal numbers times `scale`, rounded to the dtype.
fn normal(seed: u32, shape: &[usize], scale: f64, dtype: DType) -> LazyTensor {
    let count = shape.iter().product();
    let numbers: Vec<f64> = random::normal64([seed, 5], [0, 0])
        .take(count)
        .map(|x| x * scale)
        .collect();
    let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype));
    LazyTensor::from_tensor(tensor.unwrap()).unwrap()
}

impl Weights {
    fn new(seed: u32, Size { columns, dtype, .. }: Size) -> Self {
        let leaf = |number: u32, shape: &[usize]| {
            let scale = 1.0 / (shape[0] as f64).sqrt();
            normal(seed ^ number << 16, shape, scale, dtype)
        };
        Self {
            w: leaf(1, &[columns, columns]),
            a: leaf(2, &[columns, 4]),
            b: leaf(3, &[4, columns]),
            row: normal(seed ^ 4 << 16, &[columns], 1.0, dtype),
            head: leaf(5, &[11, columns]),
        }
    }

    /// `x W` and its low-rank term.
    fn linear(&self, x: &LazyTensor) -> Result<(LazyTensor, LazyTensor)> {
        Ok((x.matmul(&self.w)?, x.lora_fused(&self.a, &self.b, 0.5)?))
    }

    fn layer(&self, x: &LazyTensor, y: &LazyTensor, kind: u8, dtype: DType) -> Result<LazyTensor> {
        let Self { w, a, b, row, .. } = self;
        match kind % KINDS {
            0 => {
                let (plain, low_rank) = self.linear(x)?;
                plain.add(&low_rank)?.add(row)?.add(x)?.tanh()
            }
            1 => {
                let (plain, low_rank) = self.linear(x)?;
                y.add(&low_rank.add(&plain)?)?.tanh()
            }
            // Two products of one narrow one.
            2 => {
                let narrow = x.matmul(a)?;
                let other = narrow.mul_scalar(0.25)?.matmul_t(&b.t()?)?;
                narrow.matmul(b)?.add(&other)?.add(&y.matmul(w)?)?.tanh()
            }
            3 => x.matmul(w)?.mul_scalar(0.5)?.add(row)?.tanh(),
            4 => {
                let shared = x.matmul_t(w)?;
                shared.add(row)?.tanh()?.mul(&shared.tanh()?)
            }
            5 => x.rms_norm_weighted(row, 0.125),
            6 => x.layer_norm(row, row, 0.125)?.tanh(),
            7 => x.swiglu(y)?.tanh(),
            8 => x.gelu(Approximate::Tanh)?.sub(y)?.tanh(),
            9 => x.softmax(1),
            CAST => {
                let other = if dtype == DType::F32 { DType::BF16 } else { DType::F32 };
                x.cast(other)?.tanh()?.mul_scalar(1.5)?.cast(dtype)?.add(y)?.tanh()
            }
            WIDENED => {
                let [x, a] = [x, a].map(|value| value.cast(DType::BF16));
                let wide = x?.matmul(&a?)?.mul_scalar(0.5)?.cast(DType::F32)?.tanh()?;
                wide.cast(dtype)?.matmul(b)?.add(y)?.tanh()
            }
            12 => x
                .mul(&x.mul(x)?.sum_keepdim(&[1])?.add_scalar(1.0)?.rsqrt()?)?
                .add(y)?
                .tanh(),
            // The gradient of a maximum is discontinuous where rounding makes elements equal.
            13 => {
                let most = x.sub(row)?.abs()?.max_keepdim(&[0, 1])?.stop_gradient()?;
                x.div(&most.add_scalar(0.5)?)
            }
            _ => x.mul(y)?.sin()?.add(row)?.sigmoid()?.mul_scalar(2.0)?.sub(x)?.tanh(),
        }
    }
}

/// The last value, the mean loss of a head on it, and the gradients of all inputs.
pub fn outputs(seed: u32, size: Size, layers: &[Layer]) -> Result<Vec<LazyTensor>> {
    let Size { rows, columns, dtype } = size;
    let weights = Weights::new(seed, size);
    let mut values = vec![normal(seed, &[rows, columns], 1.0, dtype)];
    for &(kind, x, y) in layers {
        let pick = |choice: u8| &values[values.len() - 1 - usize::from(choice) % values.len()];
        let made = weights.layer(pick(x), pick(y), kind, dtype)?;
        values.push(made);
    }
    // The first and the last layer are used, so that every parameter has a gradient.
    let last = values[values.len() - 1]
        .add(&weights.linear(&values[0])?.1)?
        .add(&weights.row)?;
    let last = last.add(&values[0].matmul(&weights.w)?)?;
    let targets: Vec<i64> = (0..rows as i64)
        .map(|row| if row % 5 == 2 { -100 } else { row * 7 % 11 })
        .collect();
    let targets = LazyTensor::from_data(&targets, &[rows], &Device::Cpu)?;
    let options = CrossEntropyOptions {
        ignore_index: -100,
        label_smoothing: if seed.is_multiple_of(2) { 0.0 } else { 0.125 },
    };
    let squares = last.mul(&last)?.sum_all()?.mul_scalar(0.001)?;
    let loss = last.cross_entropy(&weights.head, &targets, options)?.mean_all()?;
    let loss = loss.add(&squares.cast(loss.dtype())?)?;
    let Weights { w, a, b, row, head } = weights;
    let (loss, gradients) = value_and_grad(&loss, &[values[0].clone(), w, a, b, row, head])?;
    Ok([last, loss].into_iter().chain(gradients).collect())
}
