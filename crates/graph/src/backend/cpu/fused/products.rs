//! Lowers the low-rank term of `LoRA` and sums of products, so that each result is written once.

use smallvec::{SmallVec, smallvec};

use super::super::build::Builder;
use super::super::elementwise::copy_strided;
use super::super::kernels::matmul::{Factors, sum_of_products};
use super::super::kernels::tuning::matmul::PARALLEL_MACS;
use super::super::kernels::{Float, Mat, Real};
use super::super::operand::{Operands, Read, Write};
use super::super::products::{product, row_of_sum};
use super::super::view::{View, row_major};
use super::super::{Memory, with_float};
use super::Views;
use crate::error::Result;
use crate::fused::matmul_sum::SumTerm;
use crate::graph::{Graph, GraphNode, Operation};

/// Whether the low-rank term stays a separate operation instead of becoming a term of the sum it is added to.
pub(super) fn keeps_lora(graph: &Graph, node: &GraphNode) -> bool {
    let index = graph.nodes.iter().position(|other| std::ptr::eq(other, node));
    let adds = |user: &GraphNode| {
        let uses = user.inputs.iter().any(|input| Some(input.node as usize) == index);
        matches!(user.operation, Operation::Add) && uses
    };
    !graph.nodes.iter().any(adds)
}

/// Two products; the scale is applied to the narrow one.
pub(super) fn lora_steps(builder: &mut Builder<'_>, node: &GraphNode, scale: f64) -> Result<Views> {
    let inputs = builder.input_views(node);
    let out = builder.output(node, 0);
    let mut dims = out.dims.clone();
    if let Some(last) = dims.last_mut() {
        *last = inputs[1].dims[1];
    }
    let narrow = builder.fresh(&dims, out.dtype);
    product(builder, scale, [&inputs[0], &inputs[1]], &narrow)?;
    product(builder, 1.0, [&narrow, &inputs[2]], &out)?;
    Ok(smallvec![out])
}

/// Packs the narrow factors side by side and computes one product; each output is a range of its columns.
pub(super) fn shared_matmul_steps(builder: &mut Builder<'_>, node: &GraphNode, scale: f64) -> Result<Views> {
    let x = rows(builder.view(node.inputs[0]).clone(), || {
        builder.contiguous(node.inputs[0])
    })?;
    let factors: Vec<View> = node.inputs[1..].iter().map(|&b| builder.view(b).clone()).collect();
    let columns: usize = factors.iter().map(|factor| factor.dims[1]).sum();
    let joined = builder.fresh(&[x.dims[1], columns], x.dtype);
    let out = builder.fresh(&[x.dims[0], columns], node.outputs[0].dtype);
    let places = columns_of(&joined, factors.iter().map(|factor| factor.dims.as_slice()));
    let pairs: Vec<(&View, View)> = factors.iter().zip(places).collect();
    with_float!(x.dtype, T => {
        builder.step(|operands| {
            let pair = |(from, to): &(&View, View)| (operands.read(from), operands.write(to));
            let pairs: Vec<(Read, Write)> = pairs.iter().map(pair).collect();
            move |memory| {
                for (from, to) in &pairs {
                    copy_strided::<T>(memory, from, to);
                }
            }
        });
        Ok(())
    })?;
    product(builder, scale, [&x, &joined], &out)?;
    Ok(columns_of(&out, node.outputs.iter().map(|meta| meta.shape.dims())).collect())
}

/// Views of the column ranges of a matrix, with these dimensions.
fn columns_of<'a>(matrix: &View, dims: impl Iterator<Item = &'a [usize]>) -> impl Iterator<Item = View> {
    let mut first = 0;
    dims.map(move |dims| {
        let last = dims.len() - 1;
        let mut whole = dims.to_vec();
        whole[last] = matrix.dims[1];
        let mut view = View::contiguous(matrix.buffer, &whole, matrix.dtype);
        (view.offset, view.dims[last]) = (first, dims[last]);
        first += dims[last];
        view
    })
}

/// The operands of a sum: pairs of matrices, and addends with their row stride.
struct Terms<V> {
    products: Vec<(V, V)>,
    addends: Vec<(V, usize)>,
}

impl Terms<View> {
    fn new(builder: &mut Builder<'_>, node: &GraphNode, terms: &[SumTerm]) -> Result<Self> {
        let dims = node.outputs[0].shape.dims();
        let columns = dims[dims.len() - 1];
        let (mut products, mut addends) = (Vec::new(), Vec::new());
        let mut at = 0;
        for term in terms {
            let inputs = &node.inputs[at..at + term.inputs()];
            at += term.inputs();
            if let [a, b] = *inputs {
                let left = rows(builder.view(a).clone(), || builder.contiguous(a))?;
                products.push((left, builder.view(b).clone()));
            } else {
                let view = addend(builder, builder.view(inputs[0]).clone(), dims)?;
                let step = if view.len() == columns { 0 } else { columns };
                addends.push((view, step));
            }
        }
        Ok(Self { products, addends })
    }

    /// As operands of a step.
    fn read(&self, operands: &mut Operands) -> Terms<Read> {
        let products = self.products.iter().map(|(a, b)| (operands.read(a), operands.read(b)));
        let products = products.collect();
        let addends = self.addends.iter().map(|(view, step)| (operands.read(view), *step));
        Terms {
            products,
            addends: addends.collect(),
        }
    }

    /// The addends that the result may overwrite: each element is read by the task that writes it.
    fn overwritable(&self) -> Vec<&View> {
        let apart = |view: &View| {
            self.products
                .iter()
                .all(|(a, b)| a.buffer != view.buffer && b.buffer != view.buffer)
        };
        let addends = self.addends.iter().map(|(view, _)| view);
        if addends.clone().all(apart) {
            addends.collect()
        } else {
            Vec::new()
        }
    }
}

impl Terms<Read> {
    /// The scaled sum, (m, n).
    ///
    /// # Safety
    /// Operands and result have these sizes, the products are of type `T`, addends and result of type `C`; the result
    /// is not accessed elsewhere, and may alias an addend.
    unsafe fn add_up<T: Float, C: Float<Acc = T::Acc>>(
        &self,
        memory: &Memory,
        (m, n): (usize, usize),
        scale: f64,
        to: &Write,
    ) {
        let matrix = |view: &Read| Mat {
            ptr: view.pointer::<T>(memory),
            rows: view.strides[0] as isize,
            cols: view.strides[1] as isize,
        };
        let factors = self.products.iter().map(|(a, b)| Factors {
            a: matrix(a),
            b: matrix(b),
            k: a.dims[1],
        });
        let factors: SmallVec<[Factors<T>; 8]> = factors.collect();
        let addends = self.addends.iter().map(|(view, step)| Mat {
            ptr: view.pointer::<C>(memory),
            rows: *step as isize,
            cols: 1,
        });
        let addends: SmallVec<[Mat<*const C>; 2]> = addends.collect();
        let c = Mat {
            ptr: to.pointer::<C>(memory),
            rows: n as isize,
            cols: 1,
        };
        let terms: usize = factors.iter().map(|factors| factors.k).sum();
        let parallel = m.saturating_mul(n).saturating_mul(terms) >= PARALLEL_MACS;
        // SAFETY: guaranteed by the caller.
        unsafe { sum_of_products((m, n), &factors, T::Acc::of(scale), &addends, c, parallel) };
    }
}

/// `(.., k)` as a matrix `(rows, k)`. A matrix may have any strides; a tensor of higher rank must be contiguous.
fn rows(view: View, contiguous: impl FnOnce() -> Result<View>) -> Result<View> {
    if view.dims.len() == 2 && !view.is_contiguous() {
        return Ok(view);
    }
    let dims = [
        view.dims[..view.dims.len() - 1].iter().product(),
        view.dims[view.dims.len() - 1],
    ];
    if let Some(matrix) = view.reshaped(&dims).filter(|_| !view.is_contiguous()) {
        return Ok(matrix);
    }
    let mut view = if view.is_contiguous() { view } else { contiguous()? };
    let k = view.dims[view.dims.len() - 1];
    view.dims = vec![view.dims[..view.dims.len() - 1].iter().product(), k];
    // A contiguous view may have any stride in a dimension of size 1, so the strides are recomputed.
    view.strides = row_major(&view.dims);
    Ok(view)
}

/// An addend as a contiguous view with the shape of the sum or of one of its rows.
fn addend(builder: &mut Builder<'_>, view: View, dims: &[usize]) -> Result<View> {
    let columns = dims[dims.len() - 1];
    let whole = view.dims.last() == Some(&columns) && [columns, dims.iter().product()].contains(&view.len());
    let view = if whole { view } else { view.broadcast(dims) };
    if view.is_contiguous() {
        Ok(view)
    } else {
        builder.copy_of(&view)
    }
}

pub(super) fn matmul_sum_step(
    builder: &mut Builder<'_>,
    node: &GraphNode,
    terms: &[SumTerm],
    scale: f64,
) -> Result<Views> {
    let terms = Terms::new(builder, node, terms)?;
    let out = builder.output_over(node, &terms.overwritable());
    let n = out.dims[out.dims.len() - 1];
    let m = out.len().checked_div(n).unwrap_or(0);
    let addends: Vec<View> = terms.addends.iter().map(|(view, _)| view.clone()).collect();
    let dtype = terms.products[0].0.dtype;
    if dtype == out.dtype && row_of_sum(builder, scale, &terms.products, &addends, &out)? {
        return Ok(smallvec![out]);
    }
    let cast = dtype != out.dtype;
    with_float!(dtype, T => {
        builder.step(|operands| {
            let (terms, to) = (terms.read(operands), operands.write(&out));
            move |memory| {
                // SAFETY: inference gave operands and result these sizes and dtypes; the result is written by this step
                // only, and aliases at most an addend.
                unsafe {
                    if cast {
                        terms.add_up::<T, <T as Float>::Acc>(memory, (m, n), scale, &to);
                    } else {
                        terms.add_up::<T, T>(memory, (m, n), scale, &to);
                    }
                }
            }
        });
        Ok(())
    })?;
    Ok(smallvec![out])
}
