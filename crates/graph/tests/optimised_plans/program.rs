//! Random programs over all primitives and fused operations: instructions on a pool of earlier values.

use candle_core::{DType, Device};
use metal_candle_graph::{
    AdamWOptions, Approximate, AttentionInputs, AttentionOptions, CrossEntropyOptions, Distribution, LazyTensor,
    Operation, Result, random, value_and_grad,
};

/// An instruction of a random program: operation, indices of earlier values, parameter.
pub type Instruction = (u8, u8, u8, u8);

/// A tensor of the pool. Discontinuous operations are applied only to exact values (for which both backends compute the
/// same bits), so that a rounding error cannot become a jump.
#[derive(Clone)]
pub struct Entry {
    tensor: LazyTensor,
    exact: bool,
}

pub struct Program {
    leaves: Vec<LazyTensor>,
    pool: Vec<Entry>,
    seed: u32,
}

const LIMIT: usize = 300;

/// Kinds of instructions.
pub const OPERATIONS: u8 = 11;

pub fn leaf(seed: u32, shape: &[usize]) -> LazyTensor {
    let values: Vec<f64> = random::normal64([seed, 3], [0, 0])
        .take(shape.iter().product())
        .collect();
    LazyTensor::from_data(&values, shape, &Device::Cpu).unwrap()
}

pub fn u32s(values: &[u32], shape: &[usize]) -> LazyTensor {
    LazyTensor::from_data(values, shape, &Device::Cpu).unwrap()
}

impl Program {
    pub fn new(seed: u32) -> Self {
        let shapes: [&[usize]; 6] = [&[3, 4], &[4], &[2, 3, 4], &[4, 4], &[], &[2, 1, 4]];
        let leaves: Vec<LazyTensor> = shapes
            .iter()
            .zip(0..)
            .map(|(shape, i)| leaf(seed ^ i << 8, shape))
            .collect();
        let pool = leaves
            .iter()
            .map(|tensor| Entry {
                tensor: tensor.clone(),
                exact: true,
            })
            .collect();
        Self { leaves, pool, seed }
    }

    fn pick(&self, choice: u8) -> Entry {
        self.pool[choice as usize % self.pool.len()].clone()
    }

    /// An exact value: the chosen one, or else a leaf.
    fn pick_exact(&self, choice: u8) -> LazyTensor {
        let entry = self.pick(choice);
        if entry.exact {
            entry.tensor
        } else {
            self.leaves[choice as usize % self.leaves.len()].clone()
        }
    }

    /// Indices below `size`, u32 or i64.
    fn indices(&self, salt: u8, size: usize, shape: &[usize]) -> Result<LazyTensor> {
        let count = shape.iter().product();
        let numbers = random::bits([self.seed, u32::from(salt)], [1, 1])
            .take(count)
            .map(|n| n % size as u32);
        let indices = u32s(&numbers.collect::<Vec<_>>(), shape);
        if salt.is_multiple_of(2) {
            Ok(indices)
        } else {
            indices.cast(DType::I64)
        }
    }

    pub fn step(&mut self, (operation, a, b, c): Instruction) -> Result<()> {
        let (x, y) = (self.pick(a), self.pick(b));
        let twins = if c % 5 == 0 { 2 } else { 1 };
        for _ in 0..twins {
            let made = match operation % OPERATIONS {
                0 => self.elementwise(&x, c)?,
                1 => Self::pair(&x, &y, c)?,
                2 => self.jump(a, b, c)?,
                3 | 4 => movement(&x, &y, c)?,
                5 => self.reduction_or_index(a, &x, &y, c)?,
                6 => self.source_or_nothing(&x, c)?,
                8 => self.sum_of_products(&x.tensor, &y.tensor, c)?,
                9 => joined_loss(&x.tensor, &y.tensor, c)?,
                10 => chain_with_gradient(&x.tensor, &y.tensor, c)?,
                _ => fused(&x.tensor, &y.tensor, c)?,
            };
            if made.tensor.shape().elem_count() <= LIMIT {
                self.pool.push(made);
            }
        }
        Ok(())
    }

    fn elementwise(&self, x: &Entry, c: u8) -> Result<Entry> {
        let (x, exact) = (&x.tensor, x.exact);
        let positive = || x.mul(x)?.add_scalar(0.5);
        Ok(match c % 16 {
            0 => Entry {
                tensor: x.neg()?,
                exact,
            },
            1 => Entry {
                tensor: x.abs()?,
                exact,
            },
            2 => rough(x.tanh()?.exp()?),
            3 => rough(positive()?.log()?),
            4 => rough(positive()?.sqrt()?),
            5 => rough(positive()?.rsqrt()?),
            6 => rough(positive()?.recip()?),
            7 => rough(x.sin()?),
            8 => rough(x.cos()?),
            9 => rough(x.tanh()?),
            10 => rough(x.erf()?),
            11 => rough(x.sigmoid()?),
            12 => Entry {
                tensor: x.mul_scalar([1.0, -1.0, 0.0, -0.0, 0.5][usize::from(c) % 5])?,
                exact,
            },
            13 => Entry {
                tensor: x.add_scalar([0.0, -0.0, 1.5][usize::from(c) % 3])?,
                exact,
            },
            14 => rough(x.cast(DType::F32)?.cast(DType::F64)?),
            _ => rough(x.dropout(0.25, &u32s(&[self.seed, 2, 3, 4], &[4]))?),
        })
    }

    fn pair(x: &Entry, y: &Entry, c: u8) -> Result<Entry> {
        let exact = x.exact && y.exact;
        let (x, y) = matching(&x.tensor, &y.tensor)?;
        Ok(match c % 7 {
            0 => Entry {
                tensor: x.add(&y)?,
                exact,
            },
            1 => Entry {
                tensor: x.sub(&y)?,
                exact,
            },
            // Kept small, so that a long program does not overflow.
            2 => rough(x.mul(&y)?.tanh()?),
            3 => rough(x.div(&y.mul(&y)?.add_scalar(0.5)?)?.tanh()?),
            4 => rough(x.abs()?.add_scalar(0.5)?.pow(&y.tanh()?)?),
            5 => rough(product(&x, &y)?.tanh()?),
            _ => rough(fit(&x, &[2, 3, 4])?.matmul_t(&fit(&y, &[5, 4])?)?.tanh()?),
        })
    }

    /// Operations that are discontinuous or have a discontinuous gradient.
    fn jump(&self, a: u8, b: u8, c: u8) -> Result<Entry> {
        let (x, y) = matching(&self.pick_exact(a), &self.pick_exact(b))?;
        let tensor = match c % 9 {
            0 => x.sign()?,
            1 => x.floor()?,
            2 => x.maximum(&y)?,
            3 => x.minimum(&y)?,
            4 => x.equal(&y)?.cast(DType::F64)?,
            5 => x.less(&y)?.where_cond(&x, &y)?,
            6 => x.less_equal(&y)?.where_cond(&y, &x.scalar_like(-0.0)?)?,
            7 if x.rank() > 0 => x.argmax(usize::from(c) % x.rank())?.cast(DType::F64)?,
            _ => x.max_keepdim(&(0..x.rank()).filter(|d| (c >> d) & 4 != 0).collect::<Vec<_>>())?,
        };
        Ok(Entry { tensor, exact: true })
    }

    fn reduction_or_index(&self, a: u8, x: &Entry, y: &Entry, c: u8) -> Result<Entry> {
        let (exact, x, y) = (x.exact, &x.tensor, &y.tensor);
        if x.rank() == 0 {
            return Ok(rough(x.sum_all()?));
        }
        let dim = usize::from(c / 8) % x.rank();
        let (size, last) = (x.dims()[dim], x.dims()[x.rank() - 1]);
        let position = || u32s(&[u32::from(a) % size as u32], &[1]);
        let mut picked = x.dims().to_vec();
        picked[dim] = 2;
        Ok(match c % 8 {
            0 => rough(x.sum_keepdim(&[dim])?.tanh()?),
            1 => rough(
                x.mean_keepdim(
                    &(0..x.rank())
                        .filter(|d| d % 2 == usize::from(a) % 2)
                        .collect::<Vec<_>>(),
                )?,
            ),
            2 => Entry {
                tensor: x.index_select(dim, &self.indices(a, size, &[3])?)?,
                exact,
            },
            3 => Entry {
                tensor: x.gather(dim, &self.indices(a, size, &picked)?)?,
                exact,
            },
            4 => rough(
                x.index_add(dim, &self.indices(a, size, &[2])?, &fit(y, &picked)?)?
                    .tanh()?,
            ),
            5 => rough(
                x.scatter_add(dim, &self.indices(a, size, &picked)?, &fit(y, &picked)?)?
                    .tanh()?,
            ),
            6 => Entry {
                tensor: x.dynamic_slice(dim, &position(), 1)?,
                exact,
            },
            _ => {
                let mut one = x.dims().to_vec();
                one[dim] = 1;
                let update = if last == 4 { fit(y, &one)? } else { fit(x, &one)? };
                rough(x.slice_update(dim, &update, &position())?)
            }
        })
    }

    /// Constants, indices and random numbers, and identities: the patterns that passes look for.
    fn source_or_nothing(&self, x: &Entry, c: u8) -> Result<Entry> {
        let (x, exact) = (&x.tensor, x.exact);
        let device = &Device::Cpu;
        let key = u32s(&[self.seed, u32::from(c % 3), 0, 0], &[4]);
        let reversed: Vec<usize> = (0..x.rank()).rev().collect();
        let tensor = match c % 12 {
            0 => LazyTensor::full(
                [0.0, -0.0, 1.0, -2.5][usize::from(c) / 12 % 4],
                &[3, 4],
                DType::F64,
                device,
            )?,
            1 => LazyTensor::full(-0.0, &[4], DType::F64, device)?
                .broadcast_to(&[2, 4])?
                .reshape(&[8])?
                .reshape(&[2, 4])?,
            2 => LazyTensor::iota(1, &[2, 4], DType::F64, device)?,
            3 => key.random(Distribution::Uniform, &[2, 3], DType::F64)?,
            4 => x.neg()?.neg()?,
            5 => x.reshape(x.dims())?,
            6 => x.permute(&reversed)?.permute(&reversed)?,
            7 => x.stop_gradient()?,
            8 => x.reshape(&[x.shape().elem_count()])?.reshape(x.dims())?,
            9 => x.pad(&vec![0; x.rank()], &vec![0; x.rank()])?,
            10 => x.mul_scalar(1.0)?.broadcast_to(x.dims())?,
            _ => x.mul(&x.scalar_like(-0.0)?)?,
        };
        Ok(Entry { tensor, exact })
    }

    /// Products and additions: a linear layer with a low-rank term, bias and residual, in every order, with terms that
    /// have other users too. Some have enough rows for the kernel that accumulates products in registers.
    fn sum_of_products(&self, x: &LazyTensor, y: &LazyTensor, c: u8) -> Result<Entry> {
        let rows = if c.is_multiple_of(2) { 60 } else { 3 };
        let (x, w) = (fit(x, &[rows, 4])?, fit(y, &[4, 4])?);
        let (a, b, bias) = (fit(y, &[4, 2])?, leaf(self.seed ^ 0x4d, &[2, 4]), &self.leaves[1]);
        let (linear, narrow) = (x.matmul(&w)?, x.matmul(&a)?);
        let low_rank = narrow.mul_scalar(0.5)?.matmul(&b)?;
        let sum = match c / 2 % 9 {
            0 => linear.add(&x.lora_fused(&a, &b, 0.5)?)?.add(bias)?.add(&x)?,
            1 => x.add(&bias.add(&low_rank.add(&linear)?)?)?,
            // The narrow product is read twice.
            2 => linear.add(&low_rank)?.add(&narrow.matmul(&b)?)?,
            3 => linear.add(&low_rank)?.mul_scalar(0.5)?,
            4 => linear.add(bias)?.mul(&linear)?,
            5 => linear.add(&x.slice(1, 0, 1)?)?,
            6 => linear.add(bias)?.add(&low_rank.add(&x)?)?,
            7 => linear.mul_scalar(-0.0)?.add(&low_rank)?,
            _ => linear
                .add(&linear)?
                .add(&x.matmul_t(&w)?)?
                .add(&low_rank)?
                .add(&low_rank)?,
        };
        Ok(rough(sum.tanh()?))
    }

    /// The last values, and the gradients of the leaves for a loss that depends on all of them.
    pub fn outputs(&self) -> Result<Vec<LazyTensor>> {
        let ends: Vec<LazyTensor> = self
            .pool
            .iter()
            .rev()
            .take(4)
            .map(|entry| entry.tensor.clone())
            .collect();
        let mut loss = LazyTensor::zeros(&[], DType::F64, &Device::Cpu)?;
        for (i, tensor) in ends.iter().chain(&self.leaves).enumerate() {
            let weights = leaf(1000 + i as u32, tensor.dims());
            loss = loss.add(&tensor.tanh()?.mul(&weights)?.sum_all()?)?;
        }
        let (loss, gradients) = value_and_grad(&loss, &self.leaves)?;
        Ok(ends.into_iter().chain([loss]).chain(gradients).collect())
    }
}

/// A loss and its gradients, which may be joined unless the cotangent depends on the loss.
fn joined_loss(x: &LazyTensor, y: &LazyTensor, c: u8) -> Result<Entry> {
    let (hidden, weight) = (fit(x, &[3, 4])?, fit(y, &[5, 4])?);
    let targets = LazyTensor::from_data(&[1i64, -100, 4], &[3], &Device::Cpu)?;
    let options = CrossEntropyOptions {
        ignore_index: -100,
        label_smoothing: if c.is_multiple_of(2) { 0.0 } else { 0.25 },
    };
    let rows = hidden.cross_entropy(&weight, &targets, options)?;
    let loss = match c / 2 % 4 {
        0 => rows.mean_all()?,
        1 => rows.mul(&rows)?.sum_all()?,
        2 => rows.mul(&fit(y, &[3])?)?.sum_all()?,
        // Two losses; the second gradient comes after the first.
        _ => {
            let other = hidden.tanh()?.cross_entropy(&weight, &targets, options)?;
            rows.sum_all()?.add(&other.sum_all()?)?
        }
    };
    let (loss, gradients) = value_and_grad(&loss, &[hidden, weight])?;
    let both = gradients[0].add(&gradients[1].slice(0, 0, 3)?)?.add(&loss)?.tanh()?;
    Ok(rough(if (c / 8).is_multiple_of(2) {
        both.stop_gradient()?
    } else {
        both
    }))
}

/// A chain of elementwise operations that ends in the gradient of its square.
fn chain_with_gradient(x: &LazyTensor, y: &LazyTensor, c: u8) -> Result<Entry> {
    let (x, y) = matching(x, y)?;
    let mut chain = x.mul(&y)?.tanh()?;
    for bit in 0..6 {
        chain = match c >> bit & 3 {
            0 => chain.mul_scalar(0.5)?.sin()?,
            1 => chain.add(&y.tanh()?)?.sigmoid()?,
            // Exact in f32, so that the backends round alike.
            2 => chain.cast(DType::F32)?.mul_scalar(0.5)?.cast(DType::F64)?.tanh()?,
            _ => chain.neg()?.add_scalar(0.5)?.mul(&chain)?,
        };
    }
    let loss = chain.mul(&chain)?.sum_all()?;
    let (_, gradients) = value_and_grad(&loss, &[x, y])?;
    Ok(rough(gradients[c as usize % 2].tanh()?))
}

fn rough(tensor: LazyTensor) -> Entry {
    Entry { tensor, exact: false }
}

/// The pair itself if it broadcasts to something small, else with the second reduced to a scalar.
fn matching(x: &LazyTensor, y: &LazyTensor) -> Result<(LazyTensor, LazyTensor)> {
    let fits = x.add(y).is_ok_and(|z| z.shape().elem_count() <= LIMIT);
    let y = if fits { y.clone() } else { fit(y, &[])? };
    Ok((x.clone(), y))
}

/// The first elements of `x` with another shape, zero-padded if there are too few.
fn fit(x: &LazyTensor, shape: &[usize]) -> Result<LazyTensor> {
    let (have, need) = (x.shape().elem_count(), shape.iter().product::<usize>());
    let flat = x.reshape(&[have])?;
    let flat = if have < need {
        flat.pad(&[0], &[need - have])?
    } else {
        flat.slice(0, 0, need)?
    };
    flat.reshape(shape)
}

/// A matrix product of any two tensors, as views of views.
fn product(x: &LazyTensor, y: &LazyTensor) -> Result<LazyTensor> {
    match (x.dims(), y.dims()) {
        ([.., k], [.., inner, _]) if x.rank() > 1 && k == inner => x.matmul(y),
        ([.., k], [.., last]) if x.rank() > 1 && y.rank() > 1 && k == last => x.matmul_t(y),
        // Rows are contiguous in a permutation whose middle dimension is 1.
        _ => fit(x, &[1, 3, 4])?.permute(&[1, 0, 2])?.matmul(&fit(y, &[4, 2])?),
    }
}

fn movement(x: &Entry, y: &Entry, c: u8) -> Result<Entry> {
    let exact = x.exact && y.exact;
    let (x, y) = (&x.tensor, &y.tensor);
    let rank = x.rank();
    let parameter = usize::from(c / 8);
    let tensor = match c % 8 {
        0 => x.reshape(&[1, x.shape().elem_count()])?,
        1 => {
            let mut order: Vec<usize> = (0..rank).collect();
            order.rotate_left(parameter % rank.max(1));
            x.permute(&order)?
        }
        2 => x.broadcast_to(&[&[1 + parameter % 2], x.dims()].concat())?,
        3 if rank > 0 && x.dims()[parameter % rank] > 1 => {
            let dim = parameter % rank;
            x.slice(dim, parameter % 2, x.dims()[dim])?
        }
        4 if rank > 0 => LazyTensor::concat(&[x, &fit(y, x.dims())?, x], parameter % rank)?,
        5 => x.pad(&vec![parameter % 2; rank], &vec![parameter / 2 % 2; rank])?,
        6 if rank >= 2 => x.t()?,
        _ => fit(x, &[2, 3])?,
    };
    Ok(Entry { tensor, exact })
}

fn fused(x: &LazyTensor, y: &LazyTensor, c: u8) -> Result<Entry> {
    let options = AttentionOptions {
        scale: 0.5,
        causal: true,
        window: None,
        offset: false,
        segments: false,
    };
    let eps = 0.125;
    let rows = fit(x, &[3, 4])?;
    let tensor = match c % 11 {
        0 => x.unsqueeze(0)?.softmax(usize::from(c / 11) % (x.rank() + 1))?,
        1 => rows.rms_norm_weighted(&fit(y, &[4])?, eps)?,
        2 => rows.layer_norm(&fit(y, &[4])?, &fit(x, &[4])?, eps)?,
        3 => fit(x, &[1, 3, 2, 4])?.rope(&fit(y, &[1, 3, 2])?, &fit(x, &[1, 3, 2])?, c.is_multiple_of(2))?,
        4 => x.swiglu(&fit(y, x.dims())?)?.tanh()?,
        5 => x.gelu(if c.is_multiple_of(2) {
            Approximate::None
        } else {
            Approximate::Tanh
        })?,
        6 => rows.lora_fused(&fit(y, &[4, 2])?, &fit(x, &[2, 5])?, 0.5)?.tanh()?,
        7 | 8 => {
            let (q, k, v) = (fit(x, &[1, 3, 2, 4])?, fit(y, &[1, 4, 1, 4])?, fit(x, &[1, 4, 1, 4])?);
            let ids = u32s(&[0, 0, 1, 1], &[1, 4]);
            let of_queries = ids.slice(1, 1, 4)?;
            let at = u32s(&[1], &[1]);
            let segments = (c % 11 == 8).then_some((&of_queries, &ids));
            let window = (c.is_multiple_of(2)).then_some(2);
            let inputs = AttentionInputs {
                q: &q,
                k: &k,
                v: &v,
                offset: Some(&at),
                segments,
            };
            LazyTensor::attention(&inputs, AttentionOptions { window, ..options })?
        }
        9 => {
            let targets = LazyTensor::from_data(&[1i64, -100, 4], &[3], &Device::Cpu)?;
            let smoothing = if c.is_multiple_of(2) { 0.0 } else { 0.25 };
            let options = CrossEntropyOptions {
                ignore_index: -100,
                label_smoothing: smoothing,
            };
            let parts = LazyTensor::record(Operation::CrossEntropy(options), &[&rows, &fit(y, &[5, 4])?, &targets])?;
            parts[0].add(&parts[1].mul_scalar(0.5)?)?.tanh()?
        }
        _ => {
            let options = AdamWOptions {
                beta1: 0.5,
                beta2: 0.75,
                eps: 0.125,
                weight_decay: 0.25,
            };
            let rates = LazyTensor::from_data(&[0.1, 0.5, 0.25, 0.75], &[4], &Device::Cpu)?;
            let second = rows.mul(&rows)?.add_scalar(0.5)?;
            let state = rows.adamw(&fit(y, &[3, 4])?, &rows, &second, &rates, options)?;
            state.parameter.add(&state.first)?.add(&state.second)?.tanh()?
        }
    };
    Ok(rough(tensor))
}
