//! Shape and dtype inference for every operation. One exhaustive match; inputs that an operation does not accept are
//! reported here, at the recording call, with the shapes.

mod fused;

use candle_core::{DType, Shape};
use smallvec::smallvec;

use self::fused::{attention, check_rope, matmul_sum, sum_dtype, vjp};
use super::node::{Meta, Outputs};
use super::operation::{AdamWOptions, Distribution, Operation};
use super::verify::{check_inputs, is_float, is_supported};
use crate::error::{Error, Result};
use crate::fused::dequant_matmul::product_shape;

/// Infers the outputs of `operation` on inputs of these shapes and dtypes.
///
/// # Errors
/// [`Error::Arity`], [`Error::DType`] or [`Error::Shape`], each naming the operation.
#[allow(clippy::too_many_lines)] // one table
pub fn infer(operation: &Operation, inputs: &[&Meta]) -> Result<Outputs> {
    use Operation as O;
    check_inputs(operation, inputs)?;
    let name = operation.name();
    let like = |i: usize| -> Result<Outputs> { Ok(smallvec![inputs[i].clone()]) };
    let dims = |i: usize| inputs[i].shape.dims();
    match operation {
        O::Input => Err(Error::ExecuteInput),
        O::Constant { shape, dtype, .. } => source(name, shape, *dtype),
        O::Iota { dim, shape, dtype } => {
            check_dim(name, *dim, shape.dims())?;
            source(name, shape, *dtype)
        }
        O::Random {
            distribution,
            shape,
            dtype,
        } => {
            if dims(0) != [4] {
                return Err(Error::shape(
                    name,
                    format!("the key must have shape (4), got {:?}", dims(0)),
                ));
            }
            let fits = if *distribution == Distribution::Bits {
                *dtype == DType::U32
            } else {
                is_float(*dtype)
            };
            if !fits {
                return Err(Error::shape(
                    name,
                    format!("the distribution {distribution:?} does not support {dtype:?}"),
                ));
            }
            source(name, shape, *dtype)
        }
        O::Neg
        | O::Abs
        | O::Sign
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
        | O::Floor
        | O::MulScalar { .. }
        | O::AddScalar { .. }
        | O::StopGradient
        | O::GELU { .. } => like(0),
        O::Cast { dtype } => source(name, &inputs[0].shape, *dtype),
        O::Add | O::Sub | O::Mul | O::Div | O::Pow | O::Maximum | O::Minimum => {
            one(broadcast(name, &[dims(0), dims(1)])?, inputs[0].dtype)
        }
        O::Equal | O::Less | O::LessEqual => one(broadcast(name, &[dims(0), dims(1)])?, DType::U8),
        O::Where => one(broadcast(name, &[dims(0), dims(1), dims(2)])?, inputs[1].dtype),
        O::Sum { dims: over } => one(reduced(name, dims(0), over)?, inputs[0].dtype),
        O::Max { dims: over } => {
            let shape = reduced(name, dims(0), over)?;
            if over.iter().any(|&dim| dims(0)[dim] == 0) {
                return Err(Error::shape(
                    name,
                    format!("no maximum over an empty dimension of {:?}", dims(0)),
                ));
            }
            one(shape, inputs[0].dtype)
        }
        O::ArgMax { dim } => {
            let shape = reduced(name, dims(0), &[*dim])?;
            if dims(0)[*dim] == 0 {
                return Err(Error::shape(
                    name,
                    format!("no maximum over an empty dimension of {:?}", dims(0)),
                ));
            }
            one(shape, DType::U32)
        }
        O::Reshape { shape } => reshape(name, inputs[0], shape),
        O::Permute { dims: order } => permute(name, inputs[0], order),
        O::Broadcast { shape } => {
            if broadcast(name, &[dims(0), shape.dims()])? != shape.dims() {
                return Err(Error::shape(
                    name,
                    format!("{:?} does not broadcast to {:?}", dims(0), shape.dims()),
                ));
            }
            one(shape.dims().to_vec(), inputs[0].dtype)
        }
        O::Slice { start, end } => slice(name, inputs[0], start, end),
        O::Concat { dim } => concat(name, inputs, *dim),
        O::Pad { before, after } => {
            check_rank(name, before.len(), dims(0))?;
            check_rank(name, after.len(), dims(0))?;
            let sizes = dims(0).iter().zip(before).zip(after);
            let shape = sizes.map(|((&d, &b), &a)| d.saturating_add(b).saturating_add(a));
            one(shape.collect(), inputs[0].dtype)
        }
        O::IndexSelect { dim } => {
            check_dim(name, *dim, dims(0))?;
            check_rank(name, 1, dims(1))?;
            let mut shape = dims(0).to_vec();
            shape[*dim] = dims(1)[0];
            one(shape, inputs[0].dtype)
        }
        O::Gather { dim } => {
            check_gather(name, *dim, dims(0), dims(1))?;
            one(dims(1).to_vec(), inputs[0].dtype)
        }
        O::IndexAdd { dim } => {
            check_dim(name, *dim, dims(0))?;
            check_rank(name, 1, dims(1))?;
            let mut expected = dims(0).to_vec();
            expected[*dim] = dims(1)[0];
            same(name, "updates", dims(2), &expected)?;
            like(0)
        }
        O::ScatterAdd { dim } => {
            check_gather(name, *dim, dims(0), dims(1))?;
            same(name, "updates", dims(2), dims(1))?;
            like(0)
        }
        O::DynamicSlice { dim, length } => {
            check_dim(name, *dim, dims(0))?;
            same(name, "position", dims(1), &[1])?;
            if *length > dims(0)[*dim] {
                return Err(Error::shape(
                    name,
                    format!("length {length} exceeds dimension {dim} of {:?}", dims(0)),
                ));
            }
            let mut shape = dims(0).to_vec();
            shape[*dim] = *length;
            one(shape, inputs[0].dtype)
        }
        O::SliceUpdate { dim } => {
            check_dim(name, *dim, dims(0))?;
            check_rank(name, dims(0).len(), dims(1))?;
            same(name, "position", dims(2), &[1])?;
            let mut expected = dims(0).to_vec();
            expected[*dim] = dims(1)[*dim].min(dims(0)[*dim]);
            same(name, "update", dims(1), &expected)?;
            like(0)
        }
        O::Matmul => one(matmul(name, dims(0), dims(1))?, inputs[0].dtype),
        O::Softmax { dim } => {
            check_dim(name, *dim, dims(0))?;
            like(0)
        }
        O::RMSNorm { eps } | O::LayerNorm { eps } => {
            check_number(name, "eps", f64::from(*eps), *eps >= 0.0, "a number of at least 0")?;
            let Some(&last) = dims(0).last() else {
                return Err(Error::shape(name, "a scalar has no last dimension to normalise"));
            };
            for input in &inputs[1..] {
                same(name, "weight", input.shape.dims(), &[last])?;
            }
            like(0)
        }
        O::Rope { .. } => {
            check_rope(name, dims(0), dims(1), dims(2))?;
            like(0)
        }
        O::SwiGLU => {
            same(name, "up", dims(1), dims(0))?;
            like(0)
        }
        O::Elementwise(expression) => {
            let (result, shape) = (expression.result()?, expression.shape()?.dims());
            for (index, input) in inputs.iter().enumerate() {
                let fits = broadcast(name, &[dims(index), shape])? == shape;
                if !fits || **input != expression.inputs[index] {
                    let expected = &expression.inputs[index];
                    return Err(Error::shape(name, format!("input {index} is {input}, not {expected}")));
                }
            }
            one(result.shape.dims().to_vec(), result.dtype)
        }
        O::MatmulSum { terms, dtype, .. } => matmul_sum(name, terms, *dtype, inputs),
        O::SharedMatmul { dtype, .. } => (1..inputs.len())
            .map(|index| {
                check_rank(name, 2, dims(index))?;
                let dtype = sum_dtype(name, inputs, *dtype)?;
                Ok(Meta::new(matmul(name, dims(0), dims(index))?, dtype))
            })
            .collect(),
        O::LoRA { .. } => {
            check_rank(name, 2, dims(1))?;
            check_rank(name, 2, dims(2))?;
            let mut shape = matmul(name, dims(0), dims(1))?;
            if shape[shape.len() - 1] != dims(2)[0] {
                return Err(Error::shape(
                    name,
                    format!("{shape:?} x {:?}: inner dimensions differ", dims(2)),
                ));
            }
            let last = shape.len() - 1;
            shape[last] = dims(2)[1];
            one(shape, inputs[0].dtype)
        }
        O::DequantMatmul { format, transposed } => {
            one(product_shape(name, inputs, *format, *transposed)?, inputs[0].dtype)
        }
        O::Attention(options) => attention(name, inputs, options),
        O::CrossEntropy(options) => {
            let smoothing = options.label_smoothing;
            let fits = (0.0..=1.0).contains(&smoothing);
            check_number(name, "label smoothing", smoothing.into(), fits, "a number from 0 to 1")?;
            check_rank(name, 2, dims(0))?;
            check_rank(name, 2, dims(1))?;
            same(name, "targets", dims(2), &dims(0)[..1])?;
            if dims(0)[1] != dims(1)[1] {
                return Err(Error::shape(
                    name,
                    format!(
                        "hidden {:?} and weight {:?} differ in their last dimension",
                        dims(0),
                        dims(1)
                    ),
                ));
            }
            if dims(1)[0] == 0 {
                return Err(Error::shape(name, format!("weight {:?} has no classes", dims(1))));
            }
            let dtype = accumulator(inputs[0].dtype);
            let row = Meta::new(dims(0)[0], dtype);
            Ok(smallvec![row.clone(), row])
        }
        O::AdamW(options) => {
            check_adamw(name, *options)?;
            for (i, what) in [(1, "gradient"), (2, "first moment"), (3, "second moment")] {
                same(name, what, dims(i), dims(0))?;
            }
            same(name, "rates (learning rate, corrections, factor)", dims(4), &[4])?;
            Ok(smallvec![inputs[0].clone(), inputs[0].clone(), inputs[0].clone()])
        }
        O::Vjp { of, wanted } => vjp(name, of, *wanted, inputs),
        O::ValueAndVjp { of, wanted } => {
            let split = inputs.len().saturating_sub(of.output_count());
            let mut outputs = infer(of, &inputs[..split])?;
            let with_outputs: Vec<&Meta> = inputs[..split].iter().copied().chain(&outputs).collect();
            let all: Vec<&Meta> = with_outputs
                .into_iter()
                .chain(inputs[split..].iter().copied())
                .collect();
            let gradients = vjp(name, of, *wanted, &all)?;
            outputs.extend(gradients);
            Ok(outputs)
        }
    }
}

/// The number of elements of a shape; `None` if their size exceeds the address space.
pub(crate) fn elements(dims: &[usize]) -> Option<usize> {
    let count = dims.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim))?;
    (count <= isize::MAX as usize / size_of::<f64>()).then_some(count)
}

fn check_number(
    operation: &'static str,
    name: &'static str,
    value: f64,
    fits: bool,
    expected: &'static str,
) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(Error::Parameter {
        operation,
        name,
        value,
        expected,
    })
}

fn check_adamw(operation: &'static str, options: AdamWOptions) -> Result<()> {
    let AdamWOptions {
        beta1,
        beta2,
        eps,
        weight_decay,
    } = options;
    for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
        let fits = (0.0..1.0).contains(&beta);
        check_number(operation, name, beta, fits, "a number from 0 to less than 1")?;
    }
    for (name, value) in [("eps", eps), ("weight decay", weight_decay)] {
        check_number(operation, name, value, value >= 0.0, "a number of at least 0")?;
    }
    Ok(())
}

/// The dtype sums of `dtype` are kept in: f64 for f64, else f32.
#[must_use]
pub fn accumulator(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

#[allow(clippy::unnecessary_wraps)] // every arm of the table is a result
fn one(dims: Vec<usize>, dtype: DType) -> Result<Outputs> {
    Ok(smallvec![Meta::new(dims, dtype)])
}

fn source(name: &'static str, shape: &Shape, dtype: DType) -> Result<Outputs> {
    if !is_supported(dtype) {
        return Err(Error::UnsupportedDType {
            operation: name,
            found: dtype,
        });
    }
    Ok(smallvec![Meta::new(shape.clone(), dtype)])
}

fn check_dim(name: &'static str, dim: usize, dims: &[usize]) -> Result<()> {
    if dim < dims.len() {
        return Ok(());
    }
    Err(Error::shape(
        name,
        format!("dimension {dim} is out of range for shape {dims:?}"),
    ))
}

fn check_rank(name: &'static str, rank: usize, dims: &[usize]) -> Result<()> {
    if dims.len() == rank {
        return Ok(());
    }
    Err(Error::shape(name, format!("expected {rank} dimensions, got {dims:?}")))
}

fn same(name: &'static str, what: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::shape(
        name,
        format!("{what} has shape {found:?}, expected {expected:?}"),
    ))
}

/// The common shape of tensors broadcast against each other from the trailing dimension.
pub(crate) fn broadcast(name: &'static str, shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut result = vec![1; rank];
    for shape in shapes {
        for (out, &dim) in result[rank - shape.len()..].iter_mut().zip(*shape) {
            if *out == 1 {
                *out = dim;
            } else if dim != 1 && dim != *out {
                let listed: Vec<String> = shapes.iter().map(|s| format!("{s:?}")).collect();
                return Err(Error::shape(
                    name,
                    format!("shapes {} do not broadcast", listed.join(" and ")),
                ));
            }
        }
    }
    Ok(result)
}

fn reduced(name: &'static str, dims: &[usize], over: &[usize]) -> Result<Vec<usize>> {
    if let Some(&[twice, _]) = over.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::shape(
            name,
            format!("dimension {twice} appears twice in {over:?}"),
        ));
    }
    let ascending = over.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || over.last().is_some_and(|&last| last >= dims.len()) {
        return Err(Error::shape(
            name,
            format!("dimensions {over:?} are out of range for shape {dims:?}"),
        ));
    }
    let mut shape = dims.to_vec();
    for &dim in over {
        shape[dim] = 1;
    }
    Ok(shape)
}

fn reshape(name: &'static str, input: &Meta, shape: &Shape) -> Result<Outputs> {
    if elements(shape.dims()) != Some(input.shape.elem_count()) {
        return Err(Error::shape(
            name,
            format!(
                "{:?} does not have as many elements as {:?}",
                input.shape.dims(),
                shape.dims()
            ),
        ));
    }
    Ok(smallvec![Meta::new(shape.clone(), input.dtype)])
}

fn permute(name: &'static str, input: &Meta, order: &[usize]) -> Result<Outputs> {
    let dims = input.shape.dims();
    let mut seen = vec![false; dims.len()];
    let valid = order.len() == dims.len()
        && order
            .iter()
            .all(|&d| d < dims.len() && !std::mem::replace(&mut seen[d], true));
    if !valid {
        return Err(Error::shape(
            name,
            format!("{order:?} is not a permutation of the dimensions of {dims:?}"),
        ));
    }
    one(order.iter().map(|&d| dims[d]).collect(), input.dtype)
}

fn slice(name: &'static str, input: &Meta, start: &[usize], end: &[usize]) -> Result<Outputs> {
    let dims = input.shape.dims();
    check_rank(name, start.len(), dims)?;
    check_rank(name, end.len(), dims)?;
    let inside = start.iter().zip(end).zip(dims).all(|((s, e), d)| s <= e && e <= d);
    if !inside {
        return Err(Error::shape(name, format!("{start:?}..{end:?} is not inside {dims:?}")));
    }
    one(start.iter().zip(end).map(|(s, e)| e - s).collect(), input.dtype)
}

fn concat(name: &'static str, inputs: &[&Meta], dim: usize) -> Result<Outputs> {
    let mut shape = inputs[0].shape.dims().to_vec();
    check_dim(name, dim, &shape)?;
    shape[dim] = 0;
    for input in inputs {
        let dims = input.shape.dims();
        let fits = dims.len() == shape.len() && dims.iter().enumerate().all(|(i, &d)| i == dim || d == shape[i]);
        if !fits {
            let listed: Vec<String> = inputs.iter().map(|m| format!("{:?}", m.shape.dims())).collect();
            return Err(Error::shape(
                name,
                format!("shapes {} differ outside dimension {dim}", listed.join(", ")),
            ));
        }
        shape[dim] += dims[dim];
    }
    one(shape, inputs[0].dtype)
}

fn check_gather(name: &'static str, dim: usize, dims: &[usize], indices: &[usize]) -> Result<()> {
    check_dim(name, dim, dims)?;
    let fits = dims.len() == indices.len() && (0..dims.len()).all(|i| i == dim || dims[i] == indices[i]);
    if fits {
        return Ok(());
    }
    Err(Error::shape(
        name,
        format!("indices {indices:?} must equal {dims:?} outside dimension {dim}"),
    ))
}

fn matmul(name: &'static str, lhs: &[usize], rhs: &[usize]) -> Result<Vec<usize>> {
    let ([left @ .., m, k], [right @ .., inner, n]) = (lhs, rhs) else {
        return Err(Error::shape(
            name,
            format!("{lhs:?} x {rhs:?}: both sides need at least 2 dimensions"),
        ));
    };
    if k != inner {
        return Err(Error::shape(
            name,
            format!("{lhs:?} x {rhs:?}: inner dimensions differ"),
        ));
    }
    let mut shape = Vec::with_capacity(left.len().max(right.len()) + 2);
    if right.is_empty() {
        shape.extend_from_slice(left);
    } else {
        shape.extend(broadcast(name, &[left, right])?);
    }
    shape.extend([*m, *n]);
    Ok(shape)
}
