//! Products with many rows: panels of the weights are dequantised to the dtype of `x` (or to f32 where that product is
//! faster) and multiplied with the dense kernels. A panel spans the whole inner dimension, so that no partial sums are
//! rounded between panels.

use super::super::float::{Float, Mat, Real, dense, transposed as turned};
use super::super::matmul::{dense_product, multiplies_unwidened};
use super::super::par::{Shared, for_pieces, for_rows, simd, with_scratch, with_space};
use super::QuantizedWeights;
use crate::fused::dequant_matmul::{BLOCK, QuantFormat};

/// Weight rows per panel: the columns of a tile of the product.
const PANEL_ROWS: usize = 48;
/// Blocks per row in a panel of the transposed product: two tiles.
const PANEL_BLOCKS: usize = 3;

/// Elements of x that are widened per task.
const PIECE: usize = 1 << 10;

/// See [`dequant_matmul`](super::dequant_matmul); no size is 0.
pub(super) fn product<T: Float>(x: &[T], weights: &QuantizedWeights<'_>, transposed: bool, m: usize, y: &mut [T]) {
    if multiplies_unwidened::<T>() {
        return panels(x, weights, transposed, m, y);
    }
    // Widens once, not for each panel.
    with_scratch(x.len(), |wide: &mut [T::Acc]| {
        let to = Shared::new(wide);
        for_rows(x.len().div_ceil(PIECE), PIECE, |pieces| {
            let range = pieces.start * PIECE..x.len().min(pieces.end * PIECE);
            // SAFETY: these elements belong to this task.
            let to = unsafe { to.slice(range.start, range.len()) };
            simd(
                #[inline(always)]
                || to.iter_mut().zip(&x[range]).for_each(|(to, x)| *to = x.to_acc()),
            );
        });
        panels(wide, weights, transposed, m, y);
    });
}

/// Computes the product panel by panel, with elements of type `S`.
fn panels<S: Float<Acc = T::Acc>, T: Float>(
    x: &[S],
    weights: &QuantizedWeights<'_>,
    transposed: bool,
    m: usize,
    y: &mut [T],
) {
    let QuantizedWeights { rows, cols, .. } = *weights;
    let (read, made) = if transposed { (rows, cols) } else { (cols, rows) };
    let to = Shared::new(y);
    let piece = if transposed { PANEL_BLOCKS * BLOCK } else { PANEL_ROWS };
    for_pieces(made, piece, weights.is_parallel(m), |_, range| {
        let width = range.len();
        with_space(read * width, |panel: *mut S| {
            let from = (range.start, range.start / BLOCK);
            let (b, wide) = if transposed {
                (panel_of((0, rows), (from.1, width / BLOCK)), width)
            } else {
                (panel_of((from.0, width), (0, cols / BLOCK)), cols)
            };
            // SAFETY: the scratch space has capacity for the panel, whose every element is written.
            let panel = unsafe {
                dequantize(weights, b, panel);
                std::slice::from_raw_parts(panel.cast_const(), read * width)
            };
            let b = dense(panel, wide);
            let c = Mat {
                ptr: to.at(range.start),
                rows: made as isize,
                cols: 1,
            };
            let b = if transposed { b } else { turned(b) };
            // SAFETY: x and the panel have the given sizes; these columns of y belong to this task.
            unsafe { dense_product((m, width, read), T::Acc::ONE, dense(x, read), b, c, false, false) };
        });
    });
}

/// Rows `first..first + rows` and, of each, blocks `block..block + blocks`.
#[derive(Clone, Copy)]
struct WeightPanel {
    first: usize,
    rows: usize,
    block: usize,
    blocks: usize,
}

fn panel_of((first, rows): (usize, usize), (block, blocks): (usize, usize)) -> WeightPanel {
    WeightPanel {
        first,
        rows,
        block,
        blocks,
    }
}

/// Dequantises a panel, row by row.
///
/// # Safety
/// `to` has capacity for the panel, which is inside the weights.
unsafe fn dequantize<T: Float>(weights: &QuantizedWeights<'_>, panel: WeightPanel, to: *mut T) {
    let (bytes, format) = (weights.format.block_bytes(), weights.format);
    simd(
        #[inline(always)]
        || {
            for row in 0..panel.rows {
                let first = (panel.first + row) * weights.blocks() + panel.block;
                let quants = weights.quants[first * bytes..][..panel.blocks * bytes].chunks_exact(bytes);
                let scales = &weights.scales[first..][..panel.blocks];
                for (b, (quants, scale)) in quants.zip(scales).enumerate() {
                    // SAFETY: guaranteed by the caller.
                    let to = unsafe {
                        let to = to.add((row * panel.blocks + b) * BLOCK);
                        std::slice::from_raw_parts_mut(to, BLOCK)
                    };
                    let scale = scale.to_acc();
                    match format {
                        QuantFormat::Q8_0 => block_8(quants, scale, to),
                        QuantFormat::Q4_0 => block_4(quants, scale, to),
                    }
                }
            }
        },
    );
}

/// The product has 19 significant bits, so it is exact in f32, and is rounded once.
#[inline(always)]
fn rounded<T: Float>(value: f32) -> T {
    T::from_acc(T::Acc::of(f64::from(value)))
}

#[inline(always)]
fn block_8<T: Float>(quants: &[u8], scale: f32, to: &mut [T]) {
    for (to, &quant) in to.iter_mut().zip(quants) {
        *to = rounded((i32::from(quant) - 128) as f32 * scale);
    }
}

#[inline(always)]
fn block_4<T: Float>(quants: &[u8], scale: f32, to: &mut [T]) {
    let (first, last) = to.split_at_mut(BLOCK / 2);
    for (low, &quant) in first.iter_mut().zip(quants) {
        *low = rounded((i32::from(quant & 15) - 8) as f32 * scale);
    }
    for (high, &quant) in last.iter_mut().zip(quants) {
        *high = rounded((i32::from(quant >> 4) - 8) as f32 * scale);
    }
}
