//! The gradient of every operation: one exhaustive match, most rules a line. Rules need not undo broadcasting.

use smallvec::{SmallVec, smallvec};

use crate::error::Result;
use crate::fused;
use crate::graph::Operation;
use crate::graph::verify::is_float;
use crate::lazy_tensor::LazyTensor;

/// The gradients of a node's inputs. Few nodes have more than three inputs, and recording is the place where inline
/// storage pays.
pub(crate) type Gradients = SmallVec<[Option<LazyTensor>; 3]>;

/// Whether the operation is differentiable in some input.
pub(super) fn is_differentiable(operation: &Operation) -> bool {
    use Operation as O;
    match operation {
        O::Input
        | O::Constant { .. }
        | O::Iota { .. }
        | O::Random { .. }
        | O::Sign
        | O::Floor
        | O::Equal
        | O::Less
        | O::LessEqual
        | O::ArgMax { .. }
        | O::StopGradient => false,
        O::Cast { dtype } => is_float(*dtype),
        O::Neg
        | O::Abs
        | O::Exp
        | O::Log
        | O::Sqrt
        | O::Rsqrt
        | O::Recip
        | O::Sin
        | O::Cos
        | O::Tanh
        | O::Erf
        | O::Sigmoid
        | O::MulScalar { .. }
        | O::AddScalar { .. }
        | O::Add
        | O::Sub
        | O::Mul
        | O::Div
        | O::Pow
        | O::Maximum
        | O::Minimum
        | O::Where
        | O::Sum { .. }
        | O::Max { .. }
        | O::Reshape { .. }
        | O::Permute { .. }
        | O::Broadcast { .. }
        | O::Slice { .. }
        | O::Concat { .. }
        | O::Pad { .. }
        | O::IndexSelect { .. }
        | O::Gather { .. }
        | O::IndexAdd { .. }
        | O::ScatterAdd { .. }
        | O::DynamicSlice { .. }
        | O::SliceUpdate { .. }
        | O::Matmul
        | O::Softmax { .. }
        | O::RMSNorm { .. }
        | O::LayerNorm { .. }
        | O::Rope { .. }
        | O::SwiGLU
        | O::GELU { .. }
        | O::LoRA { .. }
        | O::DequantMatmul { .. }
        | O::Attention(_)
        | O::CrossEntropy(_)
        | O::AdamW(_)
        | O::Elementwise(_)
        | O::MatmulSum { .. }
        | O::SharedMatmul { .. }
        | O::ValueAndVjp { .. }
        | O::Vjp { .. } => true,
    }
}

/// The gradients of the requested inputs, from the cotangents of the outputs (at least one is present).
#[allow(clippy::too_many_lines)] // one table
pub(super) fn vjp(
    operation: &Operation,
    inputs: &[LazyTensor],
    outputs: &[LazyTensor],
    cotangents: &[Option<LazyTensor>],
    wanted: &[bool],
) -> Result<Gradients> {
    use Operation as O;
    let Some(Some(g)) = cotangents.first() else {
        return fused_vjp(operation, inputs, outputs, cotangents, wanted);
    };
    let (x, y) = (inputs.first(), &outputs[0]);
    // Every operation below that uses `x` has an input; sources are not differentiable and never arrive here.
    let Some(x) = x else { return Ok(Gradients::new()) };
    let one = |gradient: Result<LazyTensor>| gradient.map(|g| smallvec![Some(g)]);
    let pick = |i: usize, f: &dyn Fn() -> Result<LazyTensor>| if wanted[i] { f().map(Some) } else { Ok(None) };
    match operation {
        O::Input
        | O::Constant { .. }
        | O::Iota { .. }
        | O::Random { .. }
        | O::Sign
        | O::Floor
        | O::Equal
        | O::Less
        | O::LessEqual
        | O::ArgMax { .. }
        | O::StopGradient => Ok(smallvec![None; inputs.len()]),
        O::Neg => one(g.neg()),
        O::Abs => one(g.mul(&x.sign()?)),
        O::Exp => one(g.mul(y)),
        O::Log => one(g.div(x)),
        O::Sqrt => one(g.mul_scalar(0.5)?.div(y)),
        O::Rsqrt => one(g.mul_scalar(-0.5)?.mul(&y.mul(y)?.mul(y)?)),
        O::Recip => one(g.neg()?.mul(&y.mul(y)?)),
        O::Sin => one(g.mul(&x.cos()?)),
        O::Cos => one(g.neg()?.mul(&x.sin()?)),
        O::Tanh => one(g.sub(&g.mul(&y.mul(y)?)?)),
        O::Erf => one(g
            .mul(&x.mul(x)?.neg()?.exp()?)?
            .mul(&g.scalar_like(std::f64::consts::FRAC_2_SQRT_PI)?)),
        O::Sigmoid => one(g.mul(&y.sub(&y.mul(y)?)?)),
        O::MulScalar { value } => one(g.mul_scalar(*value)),
        O::AddScalar { .. } | O::Broadcast { .. } => one(Ok(g.clone())),
        O::Cast { .. } => one(g.cast(x.dtype())),
        O::Add => Ok(smallvec![Some(g.clone()), Some(g.clone())]),
        O::Sub => Ok(smallvec![Some(g.clone()), pick(1, &|| g.neg())?]),
        O::Mul => Ok(smallvec![pick(0, &|| g.mul(&inputs[1]))?, pick(1, &|| g.mul(x))?]),
        O::Div => Ok(smallvec![
            pick(0, &|| g.div(&inputs[1]))?,
            pick(1, &|| g.neg()?.mul(y)?.div(&inputs[1]))?,
        ]),
        O::Pow => Ok(smallvec![
            pick(0, &|| pow_base(g, x, &inputs[1]))?,
            pick(1, &|| pow_exponent(g, x, &inputs[1], y))?,
        ]),
        O::Maximum => {
            let share = |loser: &LazyTensor, other: &LazyTensor| share_of_choice(g, &loser.less(other)?, loser, other);
            let other = &inputs[1];
            Ok(smallvec![pick(0, &|| share(x, other))?, pick(1, &|| share(other, x))?])
        }
        O::Minimum => {
            let share = |loser: &LazyTensor, other: &LazyTensor| share_of_choice(g, &other.less(loser)?, loser, other);
            let other = &inputs[1];
            Ok(smallvec![pick(0, &|| share(x, other))?, pick(1, &|| share(other, x))?])
        }
        O::Where => {
            let zero = g.scalar_like(0.0)?;
            Ok(smallvec![
                None,
                pick(1, &|| x.where_cond(g, &zero))?,
                pick(2, &|| x.where_cond(&zero, g))?,
            ])
        }
        O::Sum { .. } => one(g.broadcast_to(x.dims())),
        O::Max { dims } => {
            let hits = x.equal(y)?.cast(g.dtype())?;
            one(hits.mul(&g.div(&hits.sum_keepdim(dims)?)?))
        }
        O::Reshape { .. } => one(g.reshape(x.dims())),
        O::Permute { dims } => {
            let mut inverse = vec![0; dims.len()];
            dims.iter().enumerate().for_each(|(i, &d)| inverse[d] = i);
            one(g.permute(&inverse))
        }
        O::Slice { start, end } => {
            let after: Vec<usize> = x.dims().iter().zip(end).map(|(d, e)| d - e).collect();
            one(g.pad(start, &after))
        }
        O::Concat { dim } => concat_vjp(g, inputs, *dim),
        O::Pad { before, .. } => {
            let end = before.iter().zip(x.dims()).map(|(b, d)| b + d).collect();
            one(LazyTensor::record_one(
                O::Slice {
                    start: before.clone(),
                    end,
                },
                &[g],
            ))
        }
        O::IndexSelect { dim } => Ok(smallvec![Some(x.zeros_like()?.index_add(*dim, &inputs[1], g)?), None]),
        O::Gather { dim } => Ok(smallvec![Some(x.zeros_like()?.scatter_add(*dim, &inputs[1], g)?), None]),
        O::IndexAdd { dim } => Ok(smallvec![
            Some(g.clone()),
            None,
            pick(2, &|| g.index_select(*dim, &inputs[1]))?,
        ]),
        O::ScatterAdd { dim } => Ok(smallvec![
            Some(g.clone()),
            None,
            pick(2, &|| g.gather(*dim, &inputs[1]))?
        ]),
        O::DynamicSlice { dim, .. } => Ok(smallvec![
            Some(x.zeros_like()?.slice_update(*dim, g, &inputs[1])?),
            None
        ]),
        O::SliceUpdate { dim } => {
            let length = inputs[1].dims()[*dim];
            let base = || g.slice_update(*dim, &inputs[1].zeros_like()?, &inputs[2]);
            Ok(smallvec![
                pick(0, &base)?,
                pick(1, &|| g.dynamic_slice(*dim, &inputs[2], length))?,
                None,
            ])
        }
        O::Matmul => matmul_vjp(g, x, &inputs[1], wanted),
        O::Rope { interleaved } if !wanted[1] && !wanted[2] => Ok(smallvec![
            Some(g.rope(&inputs[1], &inputs[2].neg()?, *interleaved)?),
            None,
            None,
        ]),
        O::LoRA { scale } => lora_vjp(g, inputs, *scale, wanted),
        // The transposed product with the same weights, which are frozen.
        O::DequantMatmul { format, transposed } => {
            let (format, transposed) = (*format, !transposed);
            let other = O::DequantMatmul { format, transposed };
            let dx = pick(0, &|| {
                LazyTensor::record_one(other.clone(), &[g, &inputs[1], &inputs[2]])
            })?;
            Ok(smallvec![dx, None, None])
        }
        O::Softmax { .. }
        | O::RMSNorm { .. }
        | O::LayerNorm { .. }
        | O::Rope { .. }
        | O::SwiGLU
        | O::GELU { .. }
        | O::Attention(_)
        | O::CrossEntropy(_)
        | O::AdamW(_)
        | O::Elementwise(_)
        | O::MatmulSum { .. }
        | O::SharedMatmul { .. }
        | O::ValueAndVjp { .. }
        | O::Vjp { .. } => fused_vjp(operation, inputs, outputs, cotangents, wanted),
    }
}

/// `g b x^(b - 1)`, and 0 if the exponent is 0, whatever the base.
fn pow_base(g: &LazyTensor, x: &LazyTensor, exponent: &LazyTensor) -> Result<LazyTensor> {
    let zero = exponent.scalar_like(0.0)?;
    let slope = g.mul(exponent)?.mul(&x.pow(&exponent.add_scalar(-1.0)?)?)?;
    exponent.equal(&zero)?.where_cond(&zero, &slope)
}

/// `g x^b ln x`, and 0 if the base is 0 and the exponent is not negative: there the power is constant.
fn pow_exponent(g: &LazyTensor, x: &LazyTensor, exponent: &LazyTensor, y: &LazyTensor) -> Result<LazyTensor> {
    let zero = x.scalar_like(0.0)?;
    let constant = x.equal(&zero)?.mul(&zero.less_equal(exponent)?)?;
    constant.where_cond(&zero, &g.mul(y)?.mul(&x.log()?)?)
}

/// The share of `g` for one side of a maximum or minimum: nothing where the other side was chosen, half where both are
/// equal, all elsewhere. If either is NaN, both sides get all of it.
fn share_of_choice(g: &LazyTensor, lost: &LazyTensor, side: &LazyTensor, other: &LazyTensor) -> Result<LazyTensor> {
    let halved = side.equal(other)?.where_cond(&g.mul_scalar(0.5)?, g)?;
    lost.where_cond(&g.scalar_like(0.0)?, &halved)
}

fn concat_vjp(g: &LazyTensor, inputs: &[LazyTensor], dim: usize) -> Result<Gradients> {
    let mut start = 0;
    let mut part = |input: &LazyTensor| {
        let end = start + input.dims()[dim];
        let part = g.slice(dim, start, end);
        start = end;
        part.map(Some)
    };
    inputs.iter().map(&mut part).collect()
}

/// `da = g b^T`, `db = a^T g`. A matrix on the right of a batch gets its gradient as one flat product instead of a
/// batch of products that are summed afterwards.
fn matmul_vjp(g: &LazyTensor, a: &LazyTensor, b: &LazyTensor, wanted: &[bool]) -> Result<Gradients> {
    let left = if wanted[0] { Some(g.matmul_t(b)?) } else { None };
    let right = match (wanted[1], b.rank() == 2 && a.rank() > 2) {
        (false, _) => None,
        (true, true) => Some(rows(a)?.t()?.matmul(&rows(g)?)?),
        (true, false) => Some(a.t()?.matmul(g)?),
    };
    Ok(smallvec![left, right])
}

/// `(.., n) -> (rows, n)`
fn rows(x: &LazyTensor) -> Result<LazyTensor> {
    let width = x.dims()[x.rank() - 1];
    let rows = x.dims()[..x.rank() - 1].iter().product();
    x.reshape(&[rows, width])
}

/// Narrow products only: with `gb = scale g b^T (n, rank)`, `dx = gb a^T`, `da = x^T gb`, `db = (x a)^T g scale`.
fn lora_vjp(g: &LazyTensor, inputs: &[LazyTensor], scale: f32, wanted: &[bool]) -> Result<Gradients> {
    let (x, g2) = (rows(&inputs[0])?, rows(g)?);
    let (a, b) = (&inputs[1], &inputs[2]);
    let narrow = if wanted[0] || wanted[1] {
        Some(g2.matmul_t(b)?.mul_scalar(scale)?)
    } else {
        None
    };
    let mut gradients: Gradients = smallvec![None; 3];
    if let (true, Some(narrow)) = (wanted[0], &narrow) {
        // Reshaped like x before the wide product, so that the product can be fused with the additions that follow it.
        let mut dims = inputs[0].dims().to_vec();
        let last = dims.len() - 1;
        dims[last] = a.dims()[1];
        gradients[0] = Some(narrow.reshape(&dims)?.matmul_t(a)?);
    }
    if let (true, Some(narrow)) = (wanted[1], &narrow) {
        gradients[1] = Some(x.t()?.matmul(narrow)?);
    }
    if wanted[2] {
        // Recorded like the fallback, so that it is merged with the forward pass's product.
        let forward = inputs[0].matmul(a)?.mul_scalar(scale)?;
        gradients[2] = Some(rows(&forward)?.t()?.matmul(&g2)?);
    }
    Ok(gradients)
}

/// A single `Vjp` operation if a backend has a kernel for it, else the differentiated fallback.
fn fused_vjp(
    operation: &Operation,
    inputs: &[LazyTensor],
    outputs: &[LazyTensor],
    cotangents: &[Option<LazyTensor>],
    wanted: &[bool],
) -> Result<Gradients> {
    let float_inputs = inputs
        .iter()
        .zip(wanted)
        .all(|(x, wanted)| !wanted || is_float(x.dtype()));
    if !(fused::has_vjp_kernel(operation) && float_inputs) {
        return crate::grad::differentiate_fallback(operation, inputs, cotangents, wanted);
    }
    let mask = wanted
        .iter()
        .enumerate()
        .fold(0, |mask, (i, &wanted)| mask | u32::from(wanted) << i);
    let given = cotangents.iter().zip(outputs);
    let given = given.map(|(given, output)| given.clone().map_or_else(|| output.zeros_like(), Ok));
    let given: SmallVec<[LazyTensor; 1]> = given.collect::<Result<_>>()?;
    let all: SmallVec<[&LazyTensor; 8]> = inputs.iter().chain(outputs).chain(&given).collect();
    let mut gradients = LazyTensor::record(
        Operation::Vjp {
            of: Box::new(operation.clone()),
            wanted: mask,
        },
        &all,
    )?
    .into_iter();
    Ok(wanted
        .iter()
        .map(|&wanted| if wanted { gradients.next() } else { None })
        .collect())
}
