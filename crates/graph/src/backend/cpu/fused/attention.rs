//! Lowers attention and its vjp. Strides are passed to the kernel unchanged, so heads and cached keys are never copied.

use smallvec::smallvec;

use super::super::build::{Builder, is_zero};
use super::super::dynamic_slice::check_range;
use super::super::kernels::attention::{AttentionShape, HeadsView, Mask, attention, attention_vjp};
use super::super::kernels::{Float, Real};
use super::super::operand::{Operands, Read};
use super::super::steps::Check;
use super::super::view::View;
use super::super::{Memory, with_float};
use super::{Views, collect, wanted_outputs};
use crate::error::Result;
use crate::graph::{AttentionOptions, GraphNode, ValueRef};

/// The inputs shared by forward and backward.
struct AttentionOperands<V> {
    shape: AttentionShape,
    q: V,
    k: V,
    v: V,
    offset: Option<V>,
    segments: Option<(V, V)>,
    options: AttentionOptions,
}

impl AttentionOperands<View> {
    fn new(builder: &mut Builder<'_>, inputs: &[ValueRef], options: AttentionOptions) -> Result<Self> {
        let mut heads = |i: usize| {
            let view = builder.view(inputs[i]).clone();
            // Channels must be contiguous; all other dimensions may be strided.
            if view.strides[3] == 1 || view.dims[3] == 1 {
                Ok(view)
            } else {
                builder.contiguous(inputs[i])
            }
        };
        let (q, k, v) = (heads(0)?, heads(1)?, heads(2)?);
        let mut rest = inputs[3..].iter();
        let mut next = |wanted: bool| match rest.next() {
            Some(&input) if wanted => builder.contiguous(input).map(Some),
            _ => Ok(None),
        };
        let offset = if options.offset { next(true)? } else { None };
        let segments = if options.segments {
            next(true)?.zip(next(true)?)
        } else {
            None
        };
        let shape = AttentionShape {
            batch: q.dims[0],
            queries: q.dims[1],
            keys: k.dims[1],
            heads: q.dims[2],
            kv_heads: k.dims[2],
            dim: q.dims[3],
        };
        Ok(Self {
            shape,
            q,
            k,
            v,
            offset,
            segments,
            options,
        })
    }

    /// As operands of a step.
    fn read(&self, operands: &mut Operands) -> AttentionOperands<Read> {
        AttentionOperands {
            shape: self.shape,
            q: operands.read(&self.q),
            k: operands.read(&self.k),
            v: operands.read(&self.v),
            offset: self.offset.as_ref().map(|view| operands.read(view)),
            segments: self
                .segments
                .as_ref()
                .map(|(q, k)| (operands.read(q), operands.read(k))),
            options: self.options,
        }
    }

    /// Checks that the positions of the queries are within the keys.
    fn check(&self) -> impl FnOnce(&mut Operands) -> Check + '_ {
        move |operands| {
            let (queries, keys) = (self.shape.queries, self.shape.keys);
            // Only a causal mask uses the offset.
            let offset = self.offset.as_ref().filter(|_| self.options.causal && keys > 0);
            let Some(offset) = offset.map(|view| operands.read(view)) else {
                return Box::new(|_| Ok(()));
            };
            Box::new(move |memory| {
                // SAFETY: one element, read only.
                let offset = unsafe { offset.slice::<u32>(memory) }[0];
                check_range("Attention", offset, queries, keys)
            })
        }
    }
}

impl AttentionOperands<Read> {
    /// # Safety
    /// The segments must not be written while the mask is alive.
    unsafe fn mask<'a>(&self, memory: &'a Memory) -> Mask<'a> {
        // SAFETY: one element, read only.
        let offset = self
            .offset
            .as_ref()
            .map_or(0, |view| unsafe { view.slice::<u32>(memory) }[0] as usize);
        // SAFETY: guaranteed by the caller.
        let segments = self
            .segments
            .as_ref()
            .map(|(q, k)| unsafe { (q.slice(memory), k.slice(memory)) });
        let AttentionOptions { causal, window, .. } = self.options;
        Mask {
            causal,
            window,
            offset,
            kv_len: self.shape.keys,
            segments,
        }
    }

    fn scale<T: Float>(&self) -> T::Acc {
        T::Acc::of(f64::from(self.options.scale))
    }
}

/// # Safety
/// As [`Read::span`].
unsafe fn heads_view<'a, T>(view: &Read, memory: &'a Memory) -> HeadsView<'a, T> {
    // SAFETY: guaranteed by the caller.
    let data = unsafe { view.span::<T>(memory) };
    HeadsView {
        data,
        batch_stride: view.strides[0],
        seq_stride: view.strides[1],
        head_stride: view.strides[2],
    }
}

pub(super) fn forward(builder: &mut Builder<'_>, node: &GraphNode, options: AttentionOptions) -> Result<Views> {
    let inputs = AttentionOperands::new(builder, &node.inputs, options)?;
    let (o, lse) = (builder.output(node, 0), builder.output(node, 1));
    with_float!(o.dtype, T => {
        builder.checked_step(inputs.check(), |operands| {
            let inputs = inputs.read(operands);
            let (o, lse) = (operands.write(&o), operands.write(&lse));
            move |memory| {
                // SAFETY: inputs are only read; both outputs are written by this step only.
                unsafe {
                    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|view| heads_view::<T>(view, memory));
                    let (o, lse) = (o.slice_mut::<T>(memory), lse.slice_mut::<<T as Float>::Acc>(memory));
                    attention(inputs.shape, q, k, v, inputs.scale::<T>(), inputs.mask(memory), o, lse);
                }
            }
        });
        Ok(())
    })?;
    Ok(smallvec![o, lse])
}

pub(super) fn backward(
    builder: &mut Builder<'_>,
    node: &GraphNode,
    options: AttentionOptions,
    wanted: u32,
) -> Result<Views> {
    let count = node.inputs.len() - 4;
    let inputs = AttentionOperands::new(builder, &node.inputs[..count], options)?;
    let rest = node.inputs[count..]
        .iter()
        .map(|&input| builder.contiguous(input))
        .collect::<Result<Vec<_>>>()?;
    let with_g_lse = !is_zero(builder.graph, node.inputs[count + 3]);
    let gradients = wanted_outputs::<3>(builder, node, wanted);
    let outputs = collect(&gradients);
    // The kernel always computes all three; gradients that are not requested go to scratch.
    let like = [&inputs.q, &inputs.k, &inputs.v].map(|view| view.dims.clone());
    let dtype = inputs.q.dtype;
    let mut like = like.into_iter();
    let all = gradients.map(|view| {
        let dims = like.next().unwrap_or_default();
        view.unwrap_or_else(|| builder.fresh(&dims, dtype))
    });
    with_float!(dtype, T => {
        builder.checked_step(inputs.check(), |operands| {
            let inputs = inputs.read(operands);
            let [o, lse, g] = [0, 1, 2].map(|i| operands.read(&rest[i]));
            let g_lse = with_g_lse.then(|| operands.read(&rest[3]));
            let all = all.each_ref().map(|view| operands.write(view));
            move |memory| {
                // SAFETY: inputs are only read; the three gradients are written by this step only.
                unsafe {
                    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|view| heads_view::<T>(view, memory));
                    let [dq, dk, dv] = all.each_ref().map(|view| view.slice_mut::<T>(memory));
                    let (o, lse) = (o.slice::<T>(memory), lse.slice::<<T as Float>::Acc>(memory));
                    let g_lse = g_lse.as_ref().map(|view| view.slice::<<T as Float>::Acc>(memory));
                    let (scale, mask) = (inputs.scale::<T>(), inputs.mask(memory));
                    attention_vjp(inputs.shape, q, k, v, scale, mask, o, lse, g.slice::<T>(memory), g_lse, dq, dk, dv);
                }
            }
        });
        Ok(())
    })?;
    Ok(outputs)
}
