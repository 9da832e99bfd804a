//! Lowers the loss and the optimizer: cross-entropy in blocks of logits, `AdamW` in one pass over the donated state.

use smallvec::smallvec;

use super::super::build::{Builder, is_zero};
use super::super::kernels::InOut;
use super::super::kernels::adamw::{AdamW, adamw};
use super::super::kernels::cross_entropy::{
    CrossEntropy, check_targets, cross_entropy, cross_entropy_and_vjp, cross_entropy_vjp,
};
use super::super::kernels::{Float, Real};
use super::super::operand::{Operands, Read, Write};
use super::super::primitives::{checked, index_error};
use super::super::steps::Check;
use super::super::view::View;
use super::super::{Memory, with_float};
use super::{Views, collect, wanted_outputs, write_some};
use crate::error::Result;
use crate::graph::{AdamWOptions, CrossEntropyOptions, GraphNode};

/// # Safety
/// The inputs must not be written while the result is alive.
unsafe fn loss_inputs<'a, T>(views: &[Read], memory: &'a Memory, options: CrossEntropyOptions) -> CrossEntropy<'a, T> {
    // SAFETY: guaranteed by the caller.
    let (hidden, weight, targets) = unsafe { (views[0].slice(memory), views[1].slice(memory), views[2].slice(memory)) };
    CrossEntropy {
        hidden,
        weight,
        targets,
        d: views[0].dims[1],
        vocab: views[1].dims[0],
        ignore_index: options.ignore_index,
        smoothing: f64::from(options.label_smoothing),
    }
}

/// Checks that every target is a class of the vocabulary or the ignored index.
fn check(inputs: &[View], options: CrossEntropyOptions) -> impl FnOnce(&mut Operands) -> Check + '_ {
    move |operands| {
        let (targets, vocab) = (operands.read(&inputs[2]), inputs[1].dims[0]);
        Box::new(move |memory| {
            // SAFETY: the targets are read only.
            let targets = unsafe { targets.slice::<i64>(memory) };
            check_targets(targets, vocab, options.ignore_index).map_err(|error| index_error("CrossEntropy", error))
        })
    }
}

pub(super) fn loss(builder: &mut Builder<'_>, node: &GraphNode, options: CrossEntropyOptions) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let (loss, lse) = (builder.output(node, 0), builder.output(node, 1));
    with_float!(inputs[0].dtype, T => {
        builder.checked_step(check(&inputs, options), |operands| {
            let views = operands.read_all(&inputs);
            let (loss, lse) = (operands.write(&loss), operands.write(&lse));
            move |memory| {
                // SAFETY: inputs are only read; both outputs are written by this step only.
                checked(unsafe {
                    let (loss, lse) = (loss.slice_mut::<<T as Float>::Acc>(memory), lse.slice_mut(memory));
                    cross_entropy(&loss_inputs::<T>(&views, memory, options), loss, lse)
                });
            }
        });
        Ok(())
    })?;
    Ok(smallvec![loss, lse])
}

pub(super) fn loss_vjp(
    builder: &mut Builder<'_>,
    node: &GraphNode,
    options: CrossEntropyOptions,
    wanted: u32,
) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let with_g_lse = !is_zero(builder.graph, node.inputs[6]);
    let [d_hidden, d_weight] = wanted_outputs::<2>(builder, node, wanted);
    let outputs = collect(&[d_hidden.clone(), d_weight.clone()]);
    with_float!(inputs[0].dtype, T => {
        builder.checked_step(check(&inputs, options), |operands| {
            let views = operands.read_all(&inputs[..3]);
            let [lse, g] = [4, 5].map(|i| operands.read(&inputs[i]));
            let g_lse = with_g_lse.then(|| operands.read(&inputs[6]));
            let [d_hidden, d_weight] = [&d_hidden, &d_weight].map(|view| write_some(operands, view.as_ref()));
            move |memory| {
                // SAFETY: inputs are only read; the gradients are written by this step only.
                checked(unsafe {
                    let acc = |view: &Read| view.slice::<<T as Float>::Acc>(memory);
                    let d_hidden = d_hidden.as_ref().map(|view| view.slice_mut::<T>(memory));
                    let d_weight = d_weight.as_ref().map(|view| view.slice_mut::<T>(memory));
                    let input = loss_inputs::<T>(&views, memory, options);
                    cross_entropy_vjp(&input, acc(&lse), acc(&g), g_lse.as_ref().map(acc), d_hidden, d_weight)
                });
            }
        });
        Ok(())
    })?;
    Ok(outputs)
}

pub(super) fn loss_and_vjp(
    builder: &mut Builder<'_>,
    node: &GraphNode,
    options: CrossEntropyOptions,
    wanted: u32,
) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let with_g_lse = !is_zero(builder.graph, node.inputs[4]);
    let outputs: Views = (0..node.outputs.len())
        .map(|output| builder.output(node, output))
        .collect();
    let mut gradients = outputs[2..].iter().cloned();
    let [d_hidden, d_weight] = [0, 1].map(|i| if wanted >> i & 1 == 1 { gradients.next() } else { None });
    // The kernel always computes the gradient of the hidden states; if it is not requested, it goes to scratch.
    let d_hidden = d_hidden.unwrap_or_else(|| builder.fresh(&inputs[0].dims, inputs[0].dtype));
    with_float!(inputs[0].dtype, T => {
        builder.checked_step(check(&inputs, options), |operands| {
            let (views, g) = (operands.read_all(&inputs[..3]), operands.read(&inputs[3]));
            let g_lse = with_g_lse.then(|| operands.read(&inputs[4]));
            let [loss, lse, d_hidden] = [&outputs[0], &outputs[1], &d_hidden].map(|view| operands.write(view));
            let d_weight = write_some(operands, d_weight.as_ref());
            move |memory| {
                // SAFETY: inputs are only read; the results are written by this step only.
                checked(unsafe {
                    let acc = |view: &Read| view.slice::<<T as Float>::Acc>(memory);
                    let values = (loss.slice_mut(memory), lse.slice_mut(memory));
                    let d_weight = d_weight.as_ref().map(|view| view.slice_mut::<T>(memory));
                    let (input, g_lse) = (loss_inputs::<T>(&views, memory, options), g_lse.as_ref().map(acc));
                    cross_entropy_and_vjp(&input, acc(&g), g_lse, values, d_hidden.slice_mut::<T>(memory), d_weight)
                });
            }
        });
        Ok(())
    })?;
    Ok(outputs)
}

/// Overwrites parameter and moments in place if they are not shared.
pub(super) fn optimizer(builder: &mut Builder<'_>, node: &GraphNode, options: AdamWOptions) -> Result<Views> {
    let (gradient, rates) = (builder.contiguous(node.inputs[1])?, builder.contiguous(node.inputs[4])?);
    let state = [
        builder.writable(node.inputs[0])?,
        builder.writable(node.inputs[2])?,
        builder.writable(node.inputs[3])?,
    ];
    with_float!(gradient.dtype, T => {
        builder.step(|operands| {
            let (gradient, rates) = (operands.read(&gradient), operands.read(&rates));
            let state = state.each_ref().map(|view| operands.update(view));
            move |memory| {
                // SAFETY: `writable` returned three buffers that no other input aliases.
                unsafe {
                    let rates = rates.slice::<T>(memory);
                    let rate = |i: usize| rates[i].to_acc().widen();
                    let AdamWOptions { beta1, beta2, eps, weight_decay } = options;
                    let step = AdamW {
                        lr: rate(0),
                        beta1,
                        beta2,
                        eps,
                        weight_decay,
                        correction1: rate(1),
                        correction2: rate(2),
                        factor: rate(3),
                    };
                    let [p, m, v] = state.each_ref().map(|view| in_place::<T>(memory, view));
                    adamw::<T, T>(&step, &p, &m, &v, gradient.slice::<T>(memory));
                }
            }
        });
        Ok(())
    })?;
    Ok(state.into_iter().collect())
}

/// The memory of a kernel that works in place.
///
/// # Safety
/// `T` is the dtype of the view, and the memory is not accessed elsewhere meanwhile.
unsafe fn in_place<'a, T>(memory: &'a Memory, view: &Write) -> InOut<'a, T> {
    let memory = view.pointer::<T>(memory);
    // SAFETY: guaranteed by the caller; the view is contiguous.
    unsafe { InOut::from_raw(memory.cast_const(), memory, view.len()) }
}
