//! Lowers matrix products. A single row times a B with contiguous columns, as in decoding, is a call in pieces.

use smallvec::SmallVec;

use super::build::Builder;
use super::kernels::matmul::{Factors, MatView, MatmulShape, matmul, run_of_dots, sum_of_products};
use super::kernels::tuning::matmul::PIECE_MACS;
use super::kernels::{Float, Mat, Real};
use super::operand::{Read, Write};
use super::view::{View, row_major};
use super::{Memory, with_float};
use crate::error::Result;

/// `out = alpha (.., m, k) x (.., k, n)` with any strides: transposes and broadcasts are not copied. The result has the
/// operands' dtype, or their accumulation type.
pub(super) fn product(builder: &mut Builder<'_>, alpha: f64, inputs: [&View; 2], out: &View) -> Result<()> {
    let rank = out.dims.len();
    let (m, n) = (out.dims[rank - 2], out.dims[rank - 1]);
    let k = inputs[0].dims[inputs[0].dims.len() - 1];
    // A contiguous batch times one matrix is a single product of all rows.
    let flat = inputs[1].dims.len() == 2 && inputs[0].is_contiguous();
    let batch: usize = out.dims[..rank - 2].iter().product();
    let cast = inputs[0].dtype != out.dtype;
    if flat && m * batch == 1 && RowProduct::suits(inputs[1]) && !cast {
        return row(builder, alpha, inputs, &[], out);
    }
    let (shape, left, right) = if flat {
        (MatmulShape { m: m * batch, n, k }, vec![0], vec![0])
    } else {
        let offsets = |view: &View| batch_offsets(view, &out.dims[..rank - 2]);
        (MatmulShape { m, n, k }, offsets(inputs[0]), offsets(inputs[1]))
    };
    let (mut a, b) = (inputs[0].clone(), inputs[1]);
    if flat {
        // A contiguous view may have any stride in a dimension of size 1, so the row stride is recomputed.
        a.strides = row_major(&a.dims);
    }
    with_float!(inputs[0].dtype, T => {
        let alpha = <T as Float>::Acc::of(alpha);
        builder.step(|operands| {
            let (a, b, to) = (operands.read(&a), operands.read(b), operands.write(out));
            move |memory| {
                // SAFETY: the inputs are only read; the output is written by this step only, and has one of these
                // types.
                unsafe {
                    let (x, y) = (a.span::<T>(memory), b.span::<T>(memory));
                    let (x, y) = (matrix(&a, x, &left), matrix(&b, y, &right));
                    if cast {
                        matmul(shape, alpha, x, y, false, to.slice_mut::<<T as Float>::Acc>(memory));
                    } else {
                        matmul(shape, alpha, x, y, false, to.slice_mut::<T>(memory));
                    }
                }
            }
        });
        Ok(())
    })
}

/// The last two dimensions of a view as a kernel's operand.
fn matrix<'a, T>(view: &View, data: &'a [T], offsets: &'a [usize]) -> MatView<'a, T> {
    let rank = view.dims.len();
    MatView {
        data,
        offsets,
        row_stride: view.strides[rank - 2],
        col_stride: view.strides[rank - 1],
    }
}

/// Offset of each matrix of a broadcast batch.
fn batch_offsets(view: &View, batch: &[usize]) -> Vec<usize> {
    let own = view.dims.len() - 2;
    let leading = View {
        dims: view.dims[..own].to_vec(),
        strides: view.strides[..own].to_vec(),
        ..view.clone()
    };
    let strides = leading.broadcast(batch).strides;
    let mut offsets = vec![0];
    for (&size, &stride) in batch.iter().zip(&strides) {
        offsets = offsets
            .iter()
            .flat_map(|&at| (0..size).map(move |i| at + i * stride))
            .collect();
    }
    offsets
}

/// A product with a single row, and addends; see [`row`].
struct RowProduct {
    a: Read,
    b: Read,
    addends: Vec<Read>,
    alpha: f64,
    out: Write,
    /// Columns per piece.
    piece: usize,
}

impl RowProduct {
    /// Whether a single row times `b` can be split into pieces.
    fn suits(b: &View) -> bool {
        let (k, n) = (b.dims[0], b.dims[1]);
        k > 1 && n > 0 && b.strides[0] == 1
    }

    /// # Safety
    /// The operands must not be written meanwhile, nor these columns of the result accessed.
    unsafe fn run<T: Float>(&self, memory: &Memory, i: usize) {
        let start = i * self.piece;
        let n = self.piece.min(self.b.dims[1] - start);
        let mat = |view: &Read, cols: usize| Mat {
            ptr: view.pointer::<T>(memory),
            rows: 1,
            cols: cols as isize,
        };
        let factors = Factors {
            a: mat(&self.a, 1),
            b: mat(&self.b, self.b.strides[1]).at(0, start),
            k: self.b.dims[0],
        };
        let addends: SmallVec<[_; 2]> = self.addends.iter().map(|view| mat(view, 1).at(0, start)).collect();
        let c = Mat {
            ptr: self.out.pointer::<T>(memory).wrapping_add(start),
            rows: n as isize,
            cols: 1,
        };
        let alpha = T::Acc::of(self.alpha);
        // SAFETY: inference gave the operands these sizes; the rest is guaranteed by the caller.
        unsafe { sum_of_products((1, n), &[factors], alpha, &addends, c, false) };
    }
}

/// `out = alpha a b + addends`: `a` is one row, the columns of `b` are contiguous, and the addends are contiguous rows,
/// one of which the result may alias.
fn row(builder: &mut Builder<'_>, alpha: f64, [a, b]: [&View; 2], addends: &[View], out: &View) -> Result<()> {
    let (k, n) = (b.dims[0], b.dims[1]);
    let work = k.saturating_mul(n);
    let piece = if work < PIECE_MACS {
        n
    } else {
        run_of_dots(n, k * b.dtype.size_in_bytes())
    };
    with_float!(out.dtype, T => {
        builder.step_in_pieces((n.div_ceil(piece), work), |operands| {
            let row = RowProduct {
                a: operands.read(a),
                b: operands.read(b),
                addends: operands.read_all(addends),
                alpha,
                out: operands.write(out),
                piece,
            };
            move |memory: &Memory, i| {
                // SAFETY: the operands are only read unless the result aliases them, and each piece writes its own
                // columns after it has read them.
                unsafe { row.run::<T>(memory, i) };
            }
        });
        Ok(())
    })
}

/// A single row of a sum with one product, in pieces; returns `false` if it cannot be split.
pub(super) fn row_of_sum(
    builder: &mut Builder<'_>,
    alpha: f64,
    products: &[(View, View)],
    addends: &[View],
    out: &View,
) -> Result<bool> {
    let [(a, b)] = products else { return Ok(false) };
    let is_row = a.dims[0] == 1 && a.is_contiguous() && RowProduct::suits(b);
    if is_row {
        row(builder, alpha, [a, b], addends, out)?;
    }
    Ok(is_row)
}
