//! Softmax, layer norm, GELU and products with quantised weights.

use candle_core::DType;
use smallvec::smallvec;

use super::super::build::Builder;
use super::super::kernels::Float;
use super::super::kernels::dequant_matmul::{
    Activations, Weights, activation_bytes, dequant_matmul, is_in_bytes, piece_of_few_rows, quantize,
};
use super::super::kernels::gelu::{Gelu, gelu, gelu_vjp};
use super::super::kernels::layer_norm::{ScaleGradients, layer_norm, layer_norm_vjp};
use super::super::kernels::par::Shared;
use super::super::kernels::reduce::ReduceShape;
use super::super::kernels::softmax::{softmax, softmax_vjp};
use super::super::view::View;
use super::super::{Memory, with_float};
use super::{Views, collect, in_out, wanted_outputs};
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
    let (shape, from, to) = (shape_around(&x.dims, dim), x.clone(), out.clone());
    with_float!(out.dtype, T => {
        builder.step(&[&x], &[&out], move |memory| {
            // SAFETY: the plan gave each view its memory; see `in_out`.
            softmax(shape, &unsafe { in_out::<T>(memory, &from, &to) });
            Ok(())
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

pub(super) fn softmax_vjp_step(builder: &mut Builder<'_>, node: &GraphNode, dim: usize) -> Result<Views> {
    let (y, g) = (builder.contiguous(node.inputs[1])?, builder.contiguous(node.inputs[2])?);
    let dx = builder.output(node, 0);
    let (shape, reads, to) = (shape_around(&y.dims, dim), [y.clone(), g.clone()], dx.clone());
    with_float!(dx.dtype, T => {
        builder.step(&[&y, &g], &[&dx], move |memory| {
            // SAFETY: distinct buffers; the output is this step's to write.
            unsafe { softmax_vjp(shape, reads[0].slice::<T>(memory), reads[1].slice(memory), to.slice_mut(memory)) };
            Ok(())
        });
        Ok(())
    })?;
    Ok(smallvec![dx])
}

pub(super) fn layer_norm_step(builder: &mut Builder<'_>, node: &GraphNode, eps: f64) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let all: Vec<&View> = inputs.iter().collect();
    let out = builder.output_over(node, &all);
    let (views, to, n) = (inputs.clone(), out.clone(), out.dims[out.dims.len() - 1]);
    with_float!(out.dtype, T => {
        builder.step(&all, &[&out], move |memory| {
            // SAFETY: the plan gave each view its memory; see `in_out`.
            unsafe {
                let [weight, bias] = [1, 2].map(|i| views.get(i).map(|view| view.slice::<T>(memory)));
                layer_norm(&in_out::<T>(memory, &views[0], &to), n, weight, bias, eps);
            }
            Ok(())
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
    // The kernel always makes dx; where nobody wants it, it goes to scratch.
    let dx = dx.unwrap_or_else(|| builder.fresh(&inputs[0].dims, inputs[0].dtype));
    let n = dx.dims[dx.dims.len() - 1];
    let writes: Vec<View> = outputs.iter().cloned().chain([dx.clone()]).collect();
    let views = inputs.clone();
    with_float!(dx.dtype, T => {
        builder.step(&inputs.iter().collect::<Vec<_>>(), &writes.iter().collect::<Vec<_>>(), move |memory| {
            // SAFETY: distinct buffers; the outputs are this step's to write.
            unsafe {
                let weight = weighted.then(|| views[1].slice::<T>(memory));
                let g = views[views.len() - 1].slice::<T>(memory);
                let scale = ScaleGradients {
                    weight: dweight.as_ref().map(|view| view.slice_mut::<T>(memory)),
                    bias: dbias.as_ref().map(|view| view.slice_mut::<T>(memory)),
                };
                layer_norm_vjp(views[0].slice::<T>(memory), n, weight, eps, g, dx.slice_mut::<T>(memory), scale);
            }
            Ok(())
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
    let (from, to) = (x.clone(), out.clone());
    with_float!(out.dtype, T => {
        builder.step(&[&x], &[&out], move |memory| {
            // SAFETY: the plan gave each view its memory; see `in_out`.
            gelu(form(approximate), &unsafe { in_out::<T>(memory, &from, &to) });
            Ok(())
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

pub(super) fn gelu_vjp_step(builder: &mut Builder<'_>, node: &GraphNode, approximate: Approximate) -> Result<Views> {
    let (x, g) = (builder.contiguous(node.inputs[0])?, builder.contiguous(node.inputs[2])?);
    let dx = builder.output(node, 0);
    let (reads, to) = ([x.clone(), g.clone()], dx.clone());
    with_float!(dx.dtype, T => {
        builder.step(&[&x, &g], &[&dx], move |memory| {
            // SAFETY: distinct buffers; the output is this step's to write.
            unsafe {
                let (x, g) = (reads[0].slice::<T>(memory), reads[1].slice::<T>(memory));
                gelu_vjp(form(approximate), x, g, to.slice_mut::<T>(memory));
            }
            Ok(())
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
    let quantized = Quantized {
        format,
        quants: inputs[1].clone(),
        scales: inputs[2].clone(),
    };
    with_float!(out.dtype, T => {
        if m > 0 && has_terms && is_in_bytes::<T>(m, transposed) {
            quantized.few_rows::<T>(builder, node.inputs[0], (&inputs[0], m), &out);
            return Ok(smallvec![out]);
        }
        let (x, to) = (inputs[0].clone(), out.clone());
        builder.step(&inputs.iter().collect::<Vec<_>>(), &[&out], move |memory| {
            // SAFETY: inputs are read only; the output is this step's to write.
            unsafe {
                let weights = quantized.weights(memory);
                dequant_matmul(x.slice::<T>(memory), &weights, transposed, to.slice_mut::<T>(memory));
            }
            Ok(())
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}

/// Quantised weights in a program.
struct Quantized {
    format: QuantFormat,
    quants: View,
    scales: View,
}

impl Quantized {
    /// # Safety
    /// Nobody writes them while they live.
    unsafe fn weights<'a>(&self, memory: &'a Memory) -> Weights<'a> {
        let [rows, blocks] = [0, 1].map(|i| self.scales.dims[i]);
        // SAFETY: the caller's promise.
        let (quants, scales) = unsafe { (self.quants.slice(memory), self.scales.slice(memory)) };
        Weights {
            format: self.format,
            rows,
            cols: blocks * BLOCK,
            quants,
            scales,
        }
    }

    /// The product of `m` rows, quantised once for all products with them, in pieces.
    fn few_rows<T: Float>(self, builder: &mut Builder<'_>, input: ValueRef, (x, m): (&View, usize), out: &View) {
        let [rows, blocks] = [0, 1].map(|i| self.scales.dims[i]);
        let (cols, format) = (blocks * BLOCK, self.format);
        let activations = builder.quantized.get(&(input, format)).cloned().unwrap_or_else(|| {
            let made = builder.fresh(&[activation_bytes(m, cols)], DType::U8);
            let (from, to) = (x.clone(), made.clone());
            builder.step(&[x], &[&made], move |memory| {
                // SAFETY: the input is read only; the bytes are this step's to write.
                unsafe { quantize(from.slice::<T>(memory), cols, format, to.pointer::<u8>(memory)) };
                Ok(())
            });
            builder.quantized.insert((input, format), made.clone());
            made
        });
        let work = m.saturating_mul(rows).saturating_mul(cols);
        let piece = Weights::piece(rows, format.block_bytes() * blocks);
        let reads = [activations.clone(), self.quants.clone(), self.scales.clone()];
        let to = out.clone();
        builder.step_in_pieces(
            &reads.each_ref(),
            &[out],
            (rows.div_ceil(piece), work),
            move |memory, i| {
                let range = i * piece..rows.min((i + 1) * piece);
                let x = Activations::of(activations.pointer::<u8>(memory), m, cols);
                // SAFETY: the operands are read only, and these columns of the output are this piece's to write.
                unsafe {
                    piece_of_few_rows(
                        &x,
                        m,
                        &self.weights(memory),
                        range,
                        Shared::raw(to.pointer::<T>(memory)),
                    );
                };
            },
        );
    }
}
