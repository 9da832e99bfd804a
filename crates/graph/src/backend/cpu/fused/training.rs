//! The loss and the optimizer: cross-entropy in blocks of logits, `AdamW` in one pass over the donated state.

use smallvec::smallvec;

use super::super::build::{Builder, is_zero};
use super::super::kernels::adamw::{AdamW, adamw};
use super::super::kernels::cross_entropy::{CrossEntropy, cross_entropy, cross_entropy_and_vjp, cross_entropy_vjp};
use super::super::kernels::{Float, Real};
use super::super::primitives::index_error;
use super::super::view::View;
use super::super::{Memory, with_float};
use super::{Views, collect, in_out, wanted_outputs};
use crate::error::Result;
use crate::graph::{AdamWOptions, CrossEntropyOptions, GraphNode};

/// # Safety
/// Nobody writes the inputs while the result lives.
unsafe fn loss_inputs<'a, T>(views: &[View], memory: &'a Memory, options: CrossEntropyOptions) -> CrossEntropy<'a, T> {
    // SAFETY: the caller's promise.
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

pub(super) fn loss(builder: &mut Builder<'_>, node: &GraphNode, options: CrossEntropyOptions) -> Result<Views> {
    let inputs = builder.contiguous_inputs(node)?;
    let (loss, lse) = (builder.output(node, 0), builder.output(node, 1));
    let (views, to) = (inputs.clone(), (loss.clone(), lse.clone()));
    with_float!(inputs[0].dtype, T => {
        builder.step(&inputs.iter().collect::<Vec<_>>(), &[&loss, &lse], move |memory| {
            // SAFETY: inputs are read only; both outputs are this step's to write.
            unsafe {
                let (loss, lse) = (to.0.slice_mut::<<T as Float>::Acc>(memory), to.1.slice_mut(memory));
                cross_entropy(&loss_inputs::<T>(&views, memory, options), loss, lse)
            }
            .map_err(|error| index_error("CrossEntropy", error))
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
    let (views, writes) = (inputs.clone(), outputs.clone());
    with_float!(inputs[0].dtype, T => {
        builder.step(&inputs.iter().collect::<Vec<_>>(), &writes.iter().collect::<Vec<_>>(), move |memory| {
            // SAFETY: inputs are read only; the gradients are this step's to write.
            unsafe {
                let acc = |i: usize| views[i].slice::<<T as Float>::Acc>(memory);
                let d_hidden = d_hidden.as_ref().map(|view| view.slice_mut::<T>(memory));
                let d_weight = d_weight.as_ref().map(|view| view.slice_mut::<T>(memory));
                let input = loss_inputs::<T>(&views, memory, options);
                cross_entropy_vjp(&input, acc(4), acc(5), with_g_lse.then(|| acc(6)), d_hidden, d_weight)
            }
            .map_err(|error| index_error("CrossEntropy", error))
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
    // The kernel always makes the gradient of the hidden states; where nobody wants it, it goes to scratch.
    let d_hidden = d_hidden.unwrap_or_else(|| builder.fresh(&inputs[0].dims, inputs[0].dtype));
    let writes: Vec<View> = outputs.iter().cloned().chain([d_hidden.clone()]).collect();
    let (views, results) = (inputs.clone(), outputs.clone());
    with_float!(inputs[0].dtype, T => {
        builder.step(&inputs.iter().collect::<Vec<_>>(), &writes.iter().collect::<Vec<_>>(), move |memory| {
            // SAFETY: inputs are read only; the results are this step's to write.
            unsafe {
                let acc = |i: usize| views[i].slice::<<T as Float>::Acc>(memory);
                let values = (results[0].slice_mut(memory), results[1].slice_mut(memory));
                let d_weight = d_weight.as_ref().map(|view| view.slice_mut::<T>(memory));
                let input = loss_inputs::<T>(&views, memory, options);
                let g_lse = with_g_lse.then(|| acc(4));
                cross_entropy_and_vjp(&input, acc(3), g_lse, values, d_hidden.slice_mut::<T>(memory), d_weight)
            }
            .map_err(|error| index_error("CrossEntropy", error))
        });
        Ok(())
    })?;
    Ok(outputs)
}

/// Parameter and moments are overwritten where nobody else holds them.
pub(super) fn optimizer(builder: &mut Builder<'_>, node: &GraphNode, options: AdamWOptions) -> Result<Views> {
    let (gradient, rates) = (builder.contiguous(node.inputs[1])?, builder.contiguous(node.inputs[4])?);
    let (p, m, v) = (
        builder.writable(node.inputs[0])?,
        builder.writable(node.inputs[2])?,
        builder.writable(node.inputs[3])?,
    );
    let (reads, writes) = ([gradient.clone(), rates.clone()], [p.clone(), m.clone(), v.clone()]);
    let outputs = writes.clone();
    with_float!(p.dtype, T => {
        builder.step(&[&reads[0], &reads[1]], &[&writes[0], &writes[1], &writes[2]], move |memory| {
            // SAFETY: `writable` gives three buffers that no other input lies in.
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
                let [p, m, v] = [&p, &m, &v].map(|view| in_out::<T>(memory, view, view));
                adamw::<T, T>(&step, &p, &m, &v, gradient.slice::<T>(memory));
            }
            Ok(())
        });
        Ok(())
    })?;
    Ok(outputs.into_iter().collect())
}
