//! Lowers primitive operations to steps. Views become strides; all others become one kernel call.

use candle_core::DType;
use half::{bf16, f16};
use smallvec::{SmallVec, smallvec};

use super::build::Builder;
use super::dynamic_slice::{check_range, read_slice, slice_shape, write_slice};
use super::elementwise;
use super::kernels::index::{IndexShape, check_indices, gather, index_add, index_select, scatter_add};
use super::kernels::reduce::{self, ReduceShape};
use super::kernels::{KernelError, random};
use super::operand::Operands;
use super::products::product;
use super::steps::Check;
use super::view::View;
use super::{with_float, with_type};
use crate::error::{Error, Result};
use crate::graph::{Distribution, GraphNode, Meta, Operation};

type Views = SmallVec<[View; 1]>;

pub(super) fn lower(builder: &mut Builder<'_>, node: &GraphNode) -> Result<Views> {
    use Operation as O;
    let meta = &node.outputs[0];
    let one = |view: View| Ok(smallvec![view]);
    let input = |i: usize| node.inputs[i];
    match &node.operation {
        O::Input => one(builder.input(meta)),
        O::Constant { value, dtype, .. } => one(builder.constant(meta, element_bytes(*value, *dtype)?)),
        O::Iota { dim, .. } => iota(builder, node, *dim),
        O::Random { distribution, .. } => random_numbers(builder, node, *distribution),
        O::Reshape { shape } => {
            let reshaped = builder.view(input(0)).reshaped(shape.dims());
            if let Some(view) = reshaped {
                one(view)
            } else {
                let whole = builder.contiguous(input(0))?;
                whole
                    .reshaped(shape.dims())
                    .map_or(Err(Error::internal("a contiguous view cannot be reshaped")), one)
            }
        }
        O::Permute { dims } => one(builder.view(input(0)).permuted(dims)),
        O::Broadcast { shape } => one(builder.view(input(0)).broadcast(shape.dims())),
        O::Slice { start, end } => one(builder.view(input(0)).sliced(start, end)),
        O::StopGradient => one(builder.view(input(0)).clone()),
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
        | O::Cast { .. }
        | O::Add
        | O::Sub
        | O::Mul
        | O::Div
        | O::Pow
        | O::Maximum
        | O::Minimum
        | O::Equal
        | O::Less
        | O::LessEqual
        | O::Where => super::pointwise::lower(builder, node),
        O::Sum { dims } => reduction(builder, node, dims, ReduceOp::Sum),
        O::Max { dims } => reduction(builder, node, dims, ReduceOp::Max),
        O::ArgMax { dim } => reduction(builder, node, &[*dim], ReduceOp::ArgMax),
        O::Concat { dim } => concat(builder, node, *dim),
        O::Pad { before, .. } => pad(builder, node, before),
        O::IndexSelect { dim } | O::Gather { dim } => pick(builder, node, *dim),
        O::IndexAdd { dim } | O::ScatterAdd { dim } => pick_add(builder, node, *dim),
        O::DynamicSlice { dim, length } => dynamic_slice(builder, node, *dim, *length),
        O::SliceUpdate { dim } => slice_update(builder, node, *dim),
        O::Matmul => matmul_step(builder, node),
        O::Softmax { .. }
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
        | O::Vjp { .. } => Err(Error::no_kernel(node.operation.name(), "it as a primitive")),
    }
}

/// A constant's element, in the first bytes of eight.
fn element_bytes(value: f64, dtype: DType) -> Result<[u8; 8]> {
    fn padded(bytes: &[u8]) -> [u8; 8] {
        std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))
    }
    Ok(match dtype {
        DType::F32 => padded(&(value as f32).to_ne_bytes()),
        DType::F64 => padded(&value.to_ne_bytes()),
        DType::F16 => padded(&f16::from_f64(value).to_ne_bytes()),
        DType::BF16 => padded(&bf16::from_f64(value).to_ne_bytes()),
        DType::U8 => padded(&(value as u8).to_ne_bytes()),
        DType::U32 => padded(&(value as u32).to_ne_bytes()),
        DType::I64 => padded(&(value as i64).to_ne_bytes()),
        found => {
            return Err(Error::UnsupportedDType {
                operation: "Constant",
                found,
            });
        }
    })
}

/// Converts a kernel's error to the engine's.
pub(super) fn index_error(operation: &'static str, error: KernelError) -> Error {
    match error {
        KernelError::Target { target, vocab, .. } => Error::Index {
            operation,
            index: target,
            size: vocab,
        },
        KernelError::Index { index, size, .. } => Error::Index { operation, index, size },
    }
}

/// Conversion of an index to an element.
trait FromCount: Copy + Send + Sync + 'static {
    fn from_count(count: usize) -> Self;
}

macro_rules! from_count {
    ($($t:ty => $convert:expr),*) => { $(
        impl FromCount for $t {
            fn from_count(count: usize) -> Self { $convert(count) }
        }
    )* };
}
from_count!(
    f32 => |n| n as f32, f64 => |n| n as f64, u8 => |n| n as u8, u32 => |n| n as u32, i64 => |n| n as i64,
    f16 => |n| f16::from_f64(n as f64), bf16 => |n| bf16::from_f64(n as f64)
);

/// Writes the indices of one dimension once; the other dimensions are strides of zero.
fn iota(builder: &mut Builder<'_>, node: &GraphNode, dim: usize) -> Result<Views> {
    let meta = &node.outputs[0];
    let counted = builder.fresh(&[meta.shape.dims()[dim]], meta.dtype);
    with_type!(meta.dtype, T => {
        builder.step(|operands| {
            let out = operands.write(&counted);
            move |memory| {
                // SAFETY: the buffer is written by this step only.
                let out = unsafe { out.slice_mut::<T>(memory) };
                out.iter_mut().enumerate().for_each(|(i, x)| *x = T::from_count(i));
            }
        });
        Ok(())
    })?;
    let strides = (0..meta.shape.dims().len()).map(|d| usize::from(d == dim)).collect();
    Ok(smallvec![View {
        dims: meta.shape.dims().to_vec(),
        strides,
        ..counted
    }])
}

fn random_numbers(builder: &mut Builder<'_>, node: &GraphNode, distribution: Distribution) -> Result<Views> {
    let key = builder.contiguous(node.inputs[0])?;
    let out = builder.output(node, 0);
    match distribution {
        Distribution::Bits => draw(builder, &key, &out, random::fill_bits),
        Distribution::Uniform => with_float!(out.dtype, T => {
            draw(builder, &key, &out, random::fill_uniform::<T>);
            Ok(())
        })?,
        Distribution::Normal => with_float!(out.dtype, T => {
            draw(builder, &key, &out, random::fill_normal::<T>);
            Ok(())
        })?,
    }
    Ok(smallvec![out])
}

/// Fills `out` from the four words of the key.
fn draw<T: 'static>(builder: &mut Builder<'_>, key: &View, out: &View, fill: fn([u32; 4], &mut [T])) {
    builder.step(|operands| {
        let (key, to) = (operands.read(key), operands.write(out));
        move |memory| {
            // SAFETY: the key is read only; the buffer is written by this step only.
            let (words, out) = unsafe { (key.slice::<u32>(memory), to.slice_mut::<T>(memory)) };
            fill([words[0], words[1], words[2], words[3]], out);
        }
    });
}

#[derive(Clone, Copy, PartialEq)]
enum ReduceOp {
    Sum,
    Max,
    ArgMax,
}

/// Reduces adjacent dimensions as one block; otherwise moves the reduced dimensions to the end first.
fn reduction(builder: &mut Builder<'_>, node: &GraphNode, over: &[usize], kind: ReduceOp) -> Result<Views> {
    let dims = builder.view(node.inputs[0]).dims.clone();
    if over.is_empty() {
        return Ok(smallvec![builder.view(node.inputs[0]).clone()]);
    }
    let adjacent = over.windows(2).all(|pair| pair[1] == pair[0] + 1);
    let (x, block) = if adjacent {
        let (first, last) = (over[0], over[over.len() - 1]);
        let block = ReduceShape {
            outer: dims[..first].iter().product(),
            n: dims[first..=last].iter().product(),
            inner: dims[last + 1..].iter().product(),
        };
        (builder.contiguous(node.inputs[0])?, block)
    } else {
        let kept = (0..dims.len()).filter(|d| !over.contains(d));
        let order: Vec<usize> = kept.chain(over.iter().copied()).collect();
        let moved = builder.view(node.inputs[0]).permuted(&order);
        let reduced: usize = over.iter().map(|&d| dims[d]).product();
        let outer = (0..dims.len()).filter(|d| !over.contains(d)).map(|d| dims[d]).product();
        (
            builder.copy_of(&moved)?,
            ReduceShape {
                outer,
                n: reduced,
                inner: 1,
            },
        )
    };
    let out = builder.output(node, 0);
    with_type!(x.dtype, T => {
        builder.step(|operands| {
            let (from, to) = (operands.read(&x), operands.write(&out));
            move |memory| {
                // SAFETY: disjoint buffers, the output is written by this step only.
                let x = unsafe { from.slice::<T>(memory) };
                match kind {
                    // SAFETY: as above.
                    ReduceOp::Sum => reduce::sum(block, x, unsafe { to.slice_mut::<T>(memory) }),
                    // SAFETY: as above.
                    ReduceOp::Max => reduce::max(block, x, unsafe { to.slice_mut::<T>(memory) }),
                    // SAFETY: as above.
                    ReduceOp::ArgMax => reduce::argmax(block, x, unsafe { to.slice_mut::<u32>(memory) }),
                }
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

/// Copies every input to its part of the output.
fn concat(builder: &mut Builder<'_>, node: &GraphNode, dim: usize) -> Result<Views> {
    let out = builder.output(node, 0);
    let mut start = 0;
    for &input in &node.inputs {
        let x = builder.view(input).clone();
        let mut place = out.clone();
        place.dims.clone_from(&x.dims);
        place.offset += start * out.strides[dim];
        start += x.dims[dim];
        copy_into(builder, &x, &place)?;
    }
    Ok(smallvec![out])
}

fn pad(builder: &mut Builder<'_>, node: &GraphNode, before: &[usize]) -> Result<Views> {
    let out = builder.output(node, 0);
    let zero = builder.constant(&Meta::new(out.dims.clone(), out.dtype), [0; 8]);
    copy_into(builder, &zero, &out)?;
    let x = builder.view(node.inputs[0]).clone();
    let mut place = out.clone();
    place.dims.clone_from(&x.dims);
    place.offset += before.iter().zip(&out.strides).map(|(b, s)| b * s).sum::<usize>();
    copy_into(builder, &x, &place)?;
    Ok(smallvec![out])
}

/// Copies between strided views, a row of the last dimension at a time. Elements outside `place` are left unchanged.
fn copy_into(builder: &mut Builder<'_>, x: &View, place: &View) -> Result<()> {
    with_type!(x.dtype, T => {
        builder.step(|operands| {
            let (from, to) = (operands.read(x), operands.write(place));
            move |memory| elementwise::copy_strided::<T>(memory, &from, &to)
        });
        Ok(())
    })
}

macro_rules! with_index {
    ($dtype:expr, $i:ident => $body:expr) => {
        if $dtype == DType::U32 {
            type $i = u32;
            $body
        } else {
            type $i = i64;
            $body
        }
    };
}

/// A check that indices are in range for a dimension of `size`.
fn check_step<'a>(name: &'static str, indices: &'a View, size: usize) -> impl FnOnce(&mut Operands) -> Check + 'a {
    move |operands| {
        let indices = operands.read(indices);
        Box::new(move |memory| {
            with_index!(indices.dtype, I => {
                // SAFETY: the indices are read only.
                check_indices(unsafe { indices.slice::<I>(memory) }, size, name)
            })
            .map_err(|error| index_error(name, error))
        })
    }
}

/// A kernel's result after its indices were checked.
pub(super) fn checked(outcome: std::result::Result<(), KernelError>) {
    if let Err(error) = outcome {
        unreachable!("checked before: {error}");
    }
}

fn pick(builder: &mut Builder<'_>, node: &GraphNode, dim: usize) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let (x, indices) = (&inputs[0], &inputs[1]);
    let out = builder.output(node, 0);
    let block = slice_shape(&x.dims, dim);
    let shape = IndexShape {
        outer: block.outer,
        n: block.size,
        m: out.dims[dim],
        inner: block.inner,
    };
    let whole = matches!(node.operation, Operation::IndexSelect { .. });
    let check = check_step(node.operation.name(), indices, block.size);
    with_type!(x.dtype, T => with_index!(indices.dtype, I => {
        builder.checked_step(check, |operands| {
            let (x, indices, to) = (operands.read(x), operands.read(indices), operands.write(&out));
            move |memory| {
                // SAFETY: disjoint buffers, the output is written by this step only.
                let (x, indices, out) =
                    unsafe { (x.slice::<T>(memory), indices.slice::<I>(memory), to.slice_mut::<T>(memory)) };
                checked(if whole { index_select(shape, x, indices, out) } else { gather(shape, x, indices, out) });
            }
        });
        Ok(())
    }))?;
    Ok(smallvec![out])
}

fn pick_add(builder: &mut Builder<'_>, node: &GraphNode, dim: usize) -> Result<Views> {
    let out = builder.writable(node.inputs[0])?;
    let (indices, updates) = (builder.contiguous(node.inputs[1])?, builder.contiguous(node.inputs[2])?);
    let block = slice_shape(&out.dims, dim);
    let shape = IndexShape {
        outer: block.outer,
        n: block.size,
        m: updates.dims[dim],
        inner: block.inner,
    };
    let whole = matches!(node.operation, Operation::IndexAdd { .. });
    let check = check_step(node.operation.name(), &indices, block.size);
    with_type!(out.dtype, T => with_index!(indices.dtype, I => {
        builder.checked_step(check, |operands| {
            let (indices, updates) = (operands.read(&indices), operands.read(&updates));
            let to = operands.update(&out);
            move |memory| {
                // SAFETY: `writable` returned a buffer that no other input of this operation aliases.
                let (indices, updates, out) =
                    unsafe { (indices.slice::<I>(memory), updates.slice::<T>(memory), to.slice_mut::<T>(memory)) };
                checked(if whole {
                    index_add(shape, updates, indices, out)
                } else {
                    scatter_add(shape, updates, indices, out)
                });
            }
        });
        Ok(())
    }))?;
    Ok(smallvec![out])
}

/// A check that `length` slices from a position on lie in a dimension of `size`.
fn check_position<'a>(
    name: &'static str,
    position: &'a View,
    (length, size): (usize, usize),
) -> impl FnOnce(&mut Operands) -> Check + 'a {
    move |operands| {
        let position = operands.read(position);
        // SAFETY: one element, read only.
        Box::new(move |memory| check_range(name, unsafe { position.slice::<u32>(memory) }[0], length, size))
    }
}

fn dynamic_slice(builder: &mut Builder<'_>, node: &GraphNode, dim: usize, length: usize) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let out = builder.output(node, 0);
    let block = slice_shape(&inputs[0].dims, dim);
    let check = check_position("DynamicSlice", &inputs[1], (length, block.size));
    with_type!(out.dtype, T => {
        builder.checked_step(check, |operands| {
            let (x, position, to) = (operands.read(&inputs[0]), operands.read(&inputs[1]), operands.write(&out));
            move |memory| {
                // SAFETY: disjoint buffers, the output is written by this step only.
                let (x, position, out) =
                    unsafe { (x.slice::<T>(memory), position.slice::<u32>(memory), to.slice_mut::<T>(memory)) };
                read_slice(block, length, position[0] as usize, x, out);
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

fn slice_update(builder: &mut Builder<'_>, node: &GraphNode, dim: usize) -> Result<Views> {
    let out = builder.writable(node.inputs[0])?;
    let (update, position) = (builder.contiguous(node.inputs[1])?, builder.contiguous(node.inputs[2])?);
    let (block, length) = (slice_shape(&out.dims, dim), update.dims[dim]);
    let check = check_position("SliceUpdate", &position, (length, block.size));
    with_type!(out.dtype, T => {
        builder.checked_step(check, |operands| {
            let (update, position) = (operands.read(&update), operands.read(&position));
            let to = operands.update(&out);
            move |memory| {
                // SAFETY: `writable` returned a buffer that no other input of this operation aliases.
                let (update, position, out) =
                    unsafe { (update.slice::<T>(memory), position.slice::<u32>(memory), to.slice_mut::<T>(memory)) };
                write_slice(block, length, position[0] as usize, update, out);
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

/// The matrix product of a node's two inputs.
fn matmul_step(builder: &mut Builder<'_>, node: &GraphNode) -> Result<Views> {
    let inputs = builder.input_views(node);
    let out = builder.output(node, 0);
    product(builder, 1.0, [&inputs[0], &inputs[1]], &out)?;
    Ok(smallvec![out])
}
