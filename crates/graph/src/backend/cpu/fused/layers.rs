//! Lowers softmax, layer norm, GELU and products with quantised weights.

use candle_core::DType;
use smallvec::smallvec;

use super::super::build::Builder;
use super::super::kernels::Float;
use super::super::kernels::dequant_matmul::{
    Activations, QuantizedWeights, activation_bytes, dequant_matmul, is_in_bytes, piece_of_few_rows, quantize,
};
use super::super::kernels::gelu::{Gelu, gelu, gelu_vjp};
use super::super::kernels::layer_norm::{ScaleGradients, layer_norm, layer_norm_vjp};
use super::super::kernels::par::Shared;
use super::super::kernels::reduce::ReduceShape;
use super::super::kernels::softmax::{softmax, softmax_vjp};
use super::super::operand::{Operands, Read};
use super::super::view::View;
use super::super::{Memory, with_float};
use super::{Views, collect, in_out, wanted_outputs, write_some};
use crate::error::Result;
use crate::fused::dequant_matmul::{BLOCK, QuantFormat};
use crate::graph::{Approximate, GraphNode, ValueRef};

fn shape_around(dims: &[usize], dim: usize) -> ReduceShape {
    ReduceShape {
        outer: dims[..dim].iter().product(),
        n: dims[dim],
        inner: dims[dim + 1..].iter().product(),
    }
}

pub(super) fn softmax_step(builder: &mut Builder<'_>, node: &GraphNode, dim: usize) -> Result<Views> {
    let x = builder.contiguous(node.inputs[0])?;
    let out = builder.output_over(node, &[&x]);
    let shape = shape_around(&x.dims, dim);
    with_float!(out.dtype, T => {
        builder.step(|operands| {
            let (from, to) = (operands.read(&x), operands.write(&out));
            move |memory| {
                // SAFETY: the plan gave each view its memory; see `in_out`.
                softmax(shape, &unsafe { in_out::<T>(memory, &from, &to) });
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

pub(super) fn softmax_vjp_step(builder: &mut Builder<'_>, node: &GraphNode, dim: usize) -> Result<Views> {
    let (y, g) = (builder.contiguous(node.inputs[1])?, builder.contiguous(node.inputs[2])?);
    let dx = builder.output(node, 0);
    let shape = shape_around(&y.dims, dim);
    with_float!(dx.dtype, T => {
        builder.step(|operands| {
            let (y, g, to) = (operands.read(&y), operands.read(&g), operands.write(&dx));
            move |memory| {
                // SAFETY: distinct buffers; the output is written by this step only.
                unsafe { softmax_vjp(shape, y.slice::<T>(memory), g.slice(memory), to.slice_mut(memory)) };
            }
        });
        Ok(())
    })?;
    Ok(smallvec![dx])
}

pub(super) fn layer_norm_step(builder: &mut Builder<'_>, node: &GraphNode, eps: f64) -> Result<Views> {
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
                    let [weight, bias] = [1, 2].map(|i| views.get(i).map(|view| view.slice::<T>(memory)));
                    layer_norm(&in_out::<T>(memory, &views[0], &to), n, weight, bias, eps);
                }
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

pub(super) fn layer_norm_vjp_step(builder: &mut Builder<'_>, node: &GraphNode, wanted: u32, eps: f64) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let weighted = inputs.len() == 5;
    let gradients = wanted_outputs::<3>(builder, node, wanted);
    let outputs = collect(&gradients);
    let [dx, dweight, dbias] = gradients;
    // The kernel always computes dx; if it is not requested, it goes to scratch.
    let dx = dx.unwrap_or_else(|| builder.fresh(&inputs[0].dims, inputs[0].dtype));
    let n = dx.dims[dx.dims.len() - 1];
    with_float!(dx.dtype, T => {
        builder.step(|operands| {
            let (views, dx) = (operands.read_all(&inputs), operands.write(&dx));
            let [dweight, dbias] = [&dweight, &dbias].map(|view| write_some(operands, view.as_ref()));
            move |memory| {
                // SAFETY: distinct buffers; the outputs are written by this step only.
                unsafe {
                    let weight = weighted.then(|| views[1].slice::<T>(memory));
                    let g = views[views.len() - 1].slice::<T>(memory);
                    let scale = ScaleGradients {
                        weight: dweight.as_ref().map(|view| view.slice_mut::<T>(memory)),
                        bias: dbias.as_ref().map(|view| view.slice_mut::<T>(memory)),
                    };
                    layer_norm_vjp(views[0].slice::<T>(memory), n, weight, eps, g, dx.slice_mut::<T>(memory), scale);
                }
            }
        });
        Ok(())
    })?;
    Ok(outputs)
}

fn form(approximate: Approximate) -> Gelu {
    match approximate {
        Approximate::None => Gelu::Erf,
        Approximate::Tanh => Gelu::Tanh,
    }
}

pub(super) fn gelu_step(builder: &mut Builder<'_>, node: &GraphNode, approximate: Approximate) -> Result<Views> {
    let x = builder.contiguous(node.inputs[0])?;
    let out = builder.output_over(node, &[&x]);
    with_float!(out.dtype, T => {
        builder.step(|operands| {
            let (from, to) = (operands.read(&x), operands.write(&out));
            move |memory| {
                // SAFETY: the plan gave each view its memory; see `in_out`.
                gelu(form(approximate), &unsafe { in_out::<T>(memory, &from, &to) });
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

pub(super) fn gelu_vjp_step(builder: &mut Builder<'_>, node: &GraphNode, approximate: Approximate) -> Result<Views> {
    let (x, g) = (builder.contiguous(node.inputs[0])?, builder.contiguous(node.inputs[2])?);
    let dx = builder.output(node, 0);
    with_float!(dx.dtype, T => {
        builder.step(|operands| {
            let (x, g, to) = (operands.read(&x), operands.read(&g), operands.write(&dx));
            move |memory| {
                // SAFETY: distinct buffers; the output is written by this step only.
                unsafe {
                    let (x, g) = (x.slice::<T>(memory), g.slice::<T>(memory));
                    gelu_vjp(form(approximate), x, g, to.slice_mut::<T>(memory));
                }
            }
        });
        Ok(())
    })?;
    Ok(smallvec![dx])
}

pub(super) fn dequant_matmul_step(
    builder: &mut Builder<'_>,
    node: &GraphNode,
    format: QuantFormat,
    transposed: bool,
) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let out = builder.output(node, 0);
    let made = out.dims[out.dims.len() - 1];
    let (m, has_terms) = (out.len().checked_div(made).unwrap_or(0), !inputs[0].dims.contains(&0));
    with_float!(out.dtype, T => {
        if m > 0 && has_terms && is_in_bytes::<T>(m, transposed) {
            few_rows::<T>(builder, node.inputs[0], (&inputs, m), format, &out);
            return Ok(smallvec![out]);
        }
        builder.step(|operands| {
            let (x, to) = (operands.read(&inputs[0]), operands.write(&out));
            let quantized = QuantizedOperands::of(operands, format, &inputs);
            move |memory| {
                // SAFETY: inputs are only read; the output is written by this step only.
                unsafe {
                    let weights = quantized.weights(memory);
                    dequant_matmul(x.slice::<T>(memory), &weights, transposed, to.slice_mut::<T>(memory));
                }
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

/// Quantised weights in a program.
struct QuantizedOperands {
    format: QuantFormat,
    quants: Read,
    scales: Read,
}

impl QuantizedOperands {
    /// From the inputs of the product.
    fn of(operands: &mut Operands, format: QuantFormat, inputs: &[View]) -> Self {
        Self {
            format,
            quants: operands.read(&inputs[1]),
            scales: operands.read(&inputs[2]),
        }
    }

    /// # Safety
    /// The weights must not be written while they are borrowed.
    unsafe fn weights<'a>(&self, memory: &'a Memory) -> QuantizedWeights<'a> {
        let [rows, blocks] = [0, 1].map(|i| self.scales.dims[i]);
        // SAFETY: guaranteed by the caller.
        let (quants, scales) = unsafe { (self.quants.slice(memory), self.scales.slice(memory)) };
        QuantizedWeights {
            format: self.format,
            rows,
            cols: blocks * BLOCK,
            quants,
            scales,
        }
    }
}

/// A product of `m` rows in pieces; the rows are quantised once for all products that read them.
fn few_rows<T: Float>(
    builder: &mut Builder<'_>,
    input: ValueRef,
    (inputs, m): (&[View], usize),
    format: QuantFormat,
    out: &View,
) {
    let [rows, blocks] = [0, 1].map(|i| inputs[2].dims[i]);
    let cols = blocks * BLOCK;
    let activations = builder.quantized.get(&(input, format)).cloned().unwrap_or_else(|| {
        let made = builder.fresh(&[activation_bytes(m, cols)], DType::U8);
        builder.step(|operands| {
            // Rows are padded, and the padding is never read.
            let (from, to) = (operands.read(&inputs[0]), operands.update(&made));
            // SAFETY: the input is only read; the quantised rows are written by this step only.
            move |memory| unsafe { quantize(from.slice::<T>(memory), cols, format, to.pointer::<u8>(memory)) }
        });
        builder.quantized.insert((input, format), made.clone());
        made
    });
    let work = m.saturating_mul(rows).saturating_mul(cols);
    let piece = QuantizedWeights::piece(rows, format.block_bytes() * blocks);
    builder.step_in_pieces((rows.div_ceil(piece), work), |operands| {
        let (activations, to) = (operands.read(&activations), operands.write(out));
        let quantized = QuantizedOperands::of(operands, format, inputs);
        move |memory, i| {
            let range = i * piece..rows.min((i + 1) * piece);
            let x = Activations::of(activations.pointer::<u8>(memory), m, cols);
            // SAFETY: the operands are only read, and these columns of the output are written by this piece only.
            unsafe {
                let (weights, out) = (quantized.weights(memory), Shared::raw(to.pointer::<T>(memory)));
                piece_of_few_rows(&x, m, &weights, range, out);
            };
        }
    });
}
