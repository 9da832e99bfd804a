//! Lowers fused operations to kernels, and tells which have one. Operations not listed here run as their fallbacks.

mod attention;
mod layers;
mod products;
mod training;

use smallvec::{SmallVec, smallvec};

use super::build::Builder;
use super::kernels::InOut;
use super::kernels::rms_norm::{rms_norm, rms_norm_vjp};
use super::kernels::rope::{RopeShape, rope};
use super::kernels::swiglu::{swiglu, swiglu_vjp};
use super::operand::{Operands, Read, Write};
use super::view::View;
use super::{Memory, with_float};
use crate::error::{Error, Result};
use crate::fused::matmul_sum::SumTerm;
use crate::graph::{Graph, GraphNode, Meta, Operation};

type Views = SmallVec<[View; 1]>;

/// Whether there is a kernel for this node.
pub(crate) fn has_kernel(graph: &Graph, node: &GraphNode) -> bool {
    use Operation as O;
    // Kernels expect non-empty inputs; the fallback defines the result for empty ones.
    let is_empty = |meta: &Meta| meta.shape.elem_count() == 0;
    if node.inputs.iter().any(|&input| is_empty(graph.meta(input))) && !node.outputs.iter().all(is_empty) {
        return false;
    }
    match &node.operation {
        O::Softmax { .. }
        | O::RMSNorm { .. }
        | O::LayerNorm { .. }
        | O::Rope { .. }
        | O::SwiGLU
        | O::GELU { .. }
        | O::DequantMatmul { .. }
        | O::Attention(_)
        | O::CrossEntropy(_)
        | O::AdamW(_)
        | O::Elementwise(_)
        | O::SharedMatmul { .. } => true,
        // The kernel scales the products, not the addends.
        O::MatmulSum { terms, scale, .. } => scale.to_bits() == 1f32.to_bits() || !terms.contains(&SumTerm::Addend),
        O::LoRA { .. } => products::keeps_lora(graph, node),
        O::ValueAndVjp { of, .. } => matches!(**of, O::CrossEntropy(_)),
        O::Vjp { of, .. } => crate::fused::has_vjp_kernel(of),
        O::Input
        | O::Constant { .. }
        | O::Iota { .. }
        | O::Random { .. }
        | O::Neg
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
        | O::Where
        | O::Sum { .. }
        | O::Max { .. }
        | O::ArgMax { .. }
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
        | O::StopGradient
        | O::Matmul => false,
    }
}

pub(super) fn lower(builder: &mut Builder<'_>, node: &GraphNode) -> Result<Views> {
    use Operation as O;
    match &node.operation {
        O::RMSNorm { eps } => rms_norm_step(builder, node, f64::from(*eps)),
        O::Rope { interleaved } => rope_step(builder, node, *interleaved),
        O::Softmax { dim } => layers::softmax_step(builder, node, *dim),
        O::LayerNorm { eps } => layers::layer_norm_step(builder, node, f64::from(*eps)),
        O::GELU { approximate } => layers::gelu_step(builder, node, *approximate),
        O::LoRA { scale } => products::lora_steps(builder, node, f64::from(*scale)),
        O::DequantMatmul { format, transposed } => layers::dequant_matmul_step(builder, node, *format, *transposed),
        O::SwiGLU => swiglu_step(builder, node),
        O::Attention(options) => attention::forward(builder, node, *options),
        O::CrossEntropy(options) => training::loss(builder, node, *options),
        O::AdamW(options) => training::optimizer(builder, node, *options),
        O::MatmulSum { terms, scale, .. } => products::matmul_sum_step(builder, node, terms, f64::from(*scale)),
        O::SharedMatmul { scale, .. } => products::shared_matmul_steps(builder, node, f64::from(*scale)),
        O::ValueAndVjp { of, wanted } => match &**of {
            O::CrossEntropy(options) => training::loss_and_vjp(builder, node, *options, *wanted),
            other => Err(Error::no_kernel(other.name(), "it together with its gradient")),
        },
        O::Elementwise(expression) => super::pointwise::expression(builder, node, expression),
        O::Vjp { of, wanted } => match &**of {
            O::RMSNorm { eps } => rms_norm_vjp_step(builder, node, *wanted, f64::from(*eps)),
            O::Softmax { dim } => layers::softmax_vjp_step(builder, node, *dim),
            O::LayerNorm { eps } => layers::layer_norm_vjp_step(builder, node, *wanted, f64::from(*eps)),
            O::GELU { approximate } => layers::gelu_vjp_step(builder, node, *approximate),
            O::SwiGLU => swiglu_vjp_step(builder, node, *wanted),
            O::Attention(options) => attention::backward(builder, node, *options, *wanted),
            O::CrossEntropy(options) => training::loss_vjp(builder, node, *options, *wanted),
            other => Err(Error::no_kernel(other.name(), "its gradient")),
        },
        other => Err(Error::no_kernel(other.name(), "it")),
    }
}

/// Input and output memory of a kernel that may work in place.
///
/// # Safety
/// `T` is the dtype of both views, and the output aliases the input only if the input is dead after this step.
unsafe fn in_out<'a, T>(memory: &'a Memory, x: &Read, y: &Write) -> InOut<'a, T> {
    // SAFETY: guaranteed by the caller; both views are contiguous and of one length.
    unsafe { InOut::from_raw(x.pointer::<T>(memory), y.pointer::<T>(memory), x.len()) }
}

fn rms_norm_step(builder: &mut Builder<'_>, node: &GraphNode, eps: f64) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let all: Vec<&View> = inputs.iter().collect();
    let out = builder.output_over(node, &all);
    let n = out.dims[out.dims.len() - 1];
    with_float!(out.dtype, T => {
        builder.step(|operands| {
            let (views, to) = (operands.read_all(&inputs), operands.write(&out));
            move |memory| {
                // SAFETY: the plan gave each view its memory; see `in_out`.
                unsafe {
                    let weight = views.get(1).map(|w| w.slice::<T>(memory));
                    rms_norm(&in_out::<T>(memory, &views[0], &to), n, weight, eps);
                }
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

/// Output views of the requested gradients; `None` for the others.
fn wanted_outputs<const N: usize>(builder: &mut Builder<'_>, node: &GraphNode, wanted: u32) -> [Option<View>; N] {
    let mut next = 0;
    std::array::from_fn(|i| {
        (wanted >> i & 1 == 1).then(|| {
            next += 1;
            builder.output(node, next - 1)
        })
    })
}

/// A write operand for an optional view.
fn write_some(operands: &mut Operands, view: Option<&View>) -> Option<Write> {
    view.map(|view| operands.write(view))
}

/// The views that are present, in order.
fn collect<const N: usize>(views: &[Option<View>; N]) -> Views {
    views.iter().flatten().cloned().collect()
}

fn rms_norm_vjp_step(builder: &mut Builder<'_>, node: &GraphNode, wanted: u32, eps: f64) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let weighted = inputs.len() == 4;
    let [dx, dweight] = wanted_outputs::<2>(builder, node, wanted);
    let outputs = collect(&[dx.clone(), dweight.clone()]);
    // The kernel always computes dx; if only the weight's gradient is requested, it goes to scratch.
    let dx = dx.unwrap_or_else(|| builder.fresh(&inputs[0].dims, inputs[0].dtype));
    let n = dx.dims[dx.dims.len() - 1];
    with_float!(dx.dtype, T => {
        builder.step(|operands| {
            let views = operands.read_all(&inputs);
            let (dx, dweight) = (operands.write(&dx), write_some(operands, dweight.as_ref()));
            move |memory| {
                // SAFETY: distinct buffers; the outputs are written by this step only.
                unsafe {
                    let weight = weighted.then(|| views[1].slice::<T>(memory));
                    let g = views[views.len() - 1].slice::<T>(memory);
                    let dweight = dweight.as_ref().map(|w| w.slice_mut::<T>(memory));
                    rms_norm_vjp(views[0].slice::<T>(memory), n, weight, eps, g, dx.slice_mut::<T>(memory), dweight);
                }
            }
        });
        Ok(())
    })?;
    Ok(outputs)
}

fn rope_step(builder: &mut Builder<'_>, node: &GraphNode, interleaved: bool) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let all: Vec<&View> = inputs.iter().collect();
    let out = builder.output_over(node, &all);
    let [batch, seq, heads, head_dim] = [0, 1, 2, 3].map(|i| out.dims[i]);
    let shape = RopeShape {
        batch,
        seq,
        heads,
        head_dim,
        pairs: inputs[1].dims[2],
        interleaved,
        inverse: false,
    };
    with_float!(out.dtype, T => {
        builder.step(|operands| {
            let (views, to) = (operands.read_all(&inputs), operands.write(&out));
            move |memory| {
                // SAFETY: the plan gave each view its memory; see `in_out`.
                unsafe {
                    let (cos, sin) = (views[1].slice::<T>(memory), views[2].slice::<T>(memory));
                    rope::<T, T>(shape, &in_out::<T>(memory, &views[0], &to), cos, sin);
                }
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

fn swiglu_step(builder: &mut Builder<'_>, node: &GraphNode) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let all: Vec<&View> = inputs.iter().collect();
    let out = builder.output_over(node, &all);
    with_float!(out.dtype, T => {
        builder.step(|operands| {
            let (views, to) = (operands.read_all(&inputs), operands.write(&out));
            move |memory| {
                let (gate, up) = (views[0].pointer::<T>(memory), views[1].pointer::<T>(memory));
                // SAFETY: all three have this length, and the output is distinct from the inputs or exactly one of
                // them.
                unsafe { swiglu::<T>(gate, up, to.pointer::<T>(memory), to.len()) };
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

fn swiglu_vjp_step(builder: &mut Builder<'_>, node: &GraphNode, wanted: u32) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let [dgate, dup] = wanted_outputs::<2>(builder, node, wanted);
    let outputs = collect(&[dgate.clone(), dup.clone()]);
    let mut scratch = |view: Option<View>| view.unwrap_or_else(|| builder.fresh(&inputs[0].dims, inputs[0].dtype));
    let (dgate, dup) = (scratch(dgate), scratch(dup));
    with_float!(dgate.dtype, T => {
        builder.step(|operands| {
            let [gate, up, g] = [0, 1, 3].map(|i| operands.read(&inputs[i]));
            let (dgate, dup) = (operands.write(&dgate), operands.write(&dup));
            move |memory| {
                // SAFETY: distinct buffers; the outputs are written by this step only.
                unsafe {
                    let [gate, up, g] = [&gate, &up, &g].map(|view| view.slice::<T>(memory));
                    swiglu_vjp(gate, up, g, dgate.slice_mut::<T>(memory), dup.slice_mut::<T>(memory));
                }
            }
        });
        Ok(())
    })?;
    Ok(outputs)
}
