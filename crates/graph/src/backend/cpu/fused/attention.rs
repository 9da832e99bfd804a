//! Attention and its vjp: strides go to the kernel as they are, so heads and cached keys are never copied.

use smallvec::smallvec;

use super::super::build::{Builder, is_zero};
use super::super::kernels::attention::{AttentionShape, HeadsView, Mask, attention, attention_vjp};
use super::super::kernels::{Float, Real};
use super::super::view::View;
use super::super::{Memory, with_float};
use super::{Views, collect, wanted_outputs};
use crate::error::{Error, Result};
use crate::graph::{AttentionOptions, GraphNode, ValueRef};

/// The operands that forward and backward share.
struct Operands {
    shape: AttentionShape,
    q: View,
    k: View,
    v: View,
    offset: Option<View>,
    segments: Option<(View, View)>,
    options: AttentionOptions,
}

impl Operands {
    fn new(builder: &mut Builder<'_>, inputs: &[ValueRef], options: AttentionOptions) -> Result<Self> {
        let mut heads = |i: usize| {
            let view = builder.view(inputs[i]).clone();
            // Channels must lie one after the other; anything else may be strided.
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

    fn views(&self) -> Vec<View> {
        let mut views = vec![self.q.clone(), self.k.clone(), self.v.clone()];
        views.extend(self.offset.clone());
        views.extend(self.segments.clone().into_iter().flat_map(|(q, k)| [q, k]));
        views
    }

    /// # Safety
    /// Nobody writes the segments while the mask lives.
    unsafe fn mask<'a>(&self, memory: &'a Memory) -> Result<Mask<'a>> {
        // SAFETY: one element, read only.
        let offset = self
            .offset
            .as_ref()
            .map_or(0, |view| unsafe { view.slice::<u32>(memory) }[0] as usize);
        let keys = self.shape.keys;
        let end = offset + self.shape.queries;
        if self.options.offset && end > keys {
            return Err(Error::Range {
                operation: "Attention",
                start: offset,
                end,
                size: keys,
            });
        }
        // SAFETY: the caller's promise.
        let segments = self
            .segments
            .as_ref()
            .map(|(q, k)| unsafe { (q.slice(memory), k.slice(memory)) });
        let AttentionOptions { causal, window, .. } = self.options;
        Ok(Mask {
            causal,
            window,
            offset,
            kv_len: keys,
            segments,
        })
    }

    fn scale<T: Float>(&self) -> T::Acc {
        T::Acc::of(f64::from(self.options.scale))
    }
}

/// # Safety
/// As [`View::span`].
unsafe fn heads_view<'a, T>(view: &View, memory: &'a Memory) -> HeadsView<'a, T> {
    // SAFETY: the caller's promise.
    let data = unsafe { view.span::<T>(memory) };
    HeadsView {
        data,
        batch_stride: view.strides[0],
        seq_stride: view.strides[1],
        head_stride: view.strides[2],
    }
}

pub(super) fn forward(builder: &mut Builder<'_>, node: &GraphNode, options: AttentionOptions) -> Result<Views> {
    let operands = Operands::new(builder, &node.inputs, options)?;
    let (o, lse) = (builder.output(node, 0), builder.output(node, 1));
    let (reads, to) = (operands.views(), (o.clone(), lse.clone()));
    with_float!(o.dtype, T => {
        builder.step(&reads.iter().collect::<Vec<_>>(), &[&o, &lse], move |memory| {
            // SAFETY: inputs are read only; both outputs are this step's to write.
            unsafe {
                let [q, k, v] = [&operands.q, &operands.k, &operands.v].map(|view| heads_view::<T>(view, memory));
                let (o, lse) = (to.0.slice_mut::<T>(memory), to.1.slice_mut::<<T as Float>::Acc>(memory));
                attention(operands.shape, q, k, v, operands.scale::<T>(), operands.mask(memory)?, o, lse);
            }
            Ok(())
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
    let operands = Operands::new(builder, &node.inputs[..count], options)?;
    let rest = node.inputs[count..]
        .iter()
        .map(|&input| builder.contiguous(input))
        .collect::<Result<Vec<_>>>()?;
    let with_g_lse = !is_zero(builder.graph, node.inputs[count + 3]);
    let gradients = wanted_outputs::<3>(builder, node, wanted);
    let outputs = collect(&gradients);
    // The kernel makes all three together; those that nobody wants go to scratch.
    let like = [&operands.q, &operands.k, &operands.v].map(|view| view.dims.clone());
    let dtype = operands.q.dtype;
    let mut like = like.into_iter();
    let all = gradients.map(|view| {
        let dims = like.next().unwrap_or_default();
        view.unwrap_or_else(|| builder.fresh(&dims, dtype))
    });
    let reads: Vec<View> = operands.views().into_iter().chain(rest.iter().cloned()).collect();
    let writes = all.clone();
    with_float!(dtype, T => {
        builder.step(&reads.iter().collect::<Vec<_>>(), &writes.iter().collect::<Vec<_>>(), move |memory| {
            // SAFETY: inputs are read only; the three gradients are this step's to write.
            unsafe {
                let [q, k, v] = [&operands.q, &operands.k, &operands.v].map(|view| heads_view::<T>(view, memory));
                let [dq, dk, dv] = [0, 1, 2].map(|i| all[i].slice_mut::<T>(memory));
                let (o, lse) = (rest[0].slice::<T>(memory), rest[1].slice::<<T as Float>::Acc>(memory));
                let g_lse = with_g_lse.then(|| rest[3].slice::<<T as Float>::Acc>(memory));
                let (scale, mask) = (operands.scale::<T>(), operands.mask(memory)?);
                let g = rest[2].slice::<T>(memory);
                attention_vjp(operands.shape, q, k, v, scale, mask, o, lse, g, g_lse, dq, dk, dv);
            }
            Ok(())
        });
        Ok(())
    })?;
    Ok(outputs)
}
