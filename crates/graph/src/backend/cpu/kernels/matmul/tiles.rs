//! A product of a narrow type (bf16, f16): panels are widened into f32 scratch, tiles of C are summed there and rounded
//! once.

use super::super::float::{Float, Mat};
use super::super::par::{Shared, for_pieces, load, simd, store, with_scratch};
use super::dense::dense_product;

/// Tile of C and depth of the panels.
const TILE_M: usize = 128;
const TILE_N: usize = 256;
const TILE_K: usize = 512;

/// A product of a narrow type, tile by tile through f32 scratch.
pub(super) struct Tiles<T: Float> {
    pub(super) dims: (usize, usize, usize),
    pub(super) alpha: T::Acc,
    pub(super) a: Mat<*const T>,
    pub(super) b: Mat<*const T>,
    pub(super) out: Shared<T>,
    pub(super) accumulate: bool,
}

// SAFETY: the inputs are only read, the output is written in disjoint tiles.
unsafe impl<T: Float> Sync for Tiles<T> {}

impl<T: Float> Tiles<T> {
    /// # Safety
    /// Sizes and strides stay inside the allocations.
    pub(super) unsafe fn run(&self, parallel: bool) {
        let (m, n, _) = self.dims;
        let across = n.div_ceil(TILE_N);
        for_pieces(m.div_ceil(TILE_M) * across, 1, parallel, |tile, _| {
            let (i, j) = (tile / across * TILE_M, tile % across * TILE_N);
            // SAFETY: the tile is inside C and belongs to this task.
            unsafe { self.tile((i, TILE_M.min(m - i)), (j, TILE_N.min(n - j))) };
        });
    }

    unsafe fn tile(&self, (i, rows): (usize, usize), (j, cols): (usize, usize)) {
        let (_, n, k) = self.dims;
        let deep = TILE_K.min(k);
        with_scratch((rows + cols) * deep + rows * cols, |scratch: &mut [T::Acc]| {
            let (panel_a, rest) = scratch.split_at_mut(rows * deep);
            let (panel_b, tile) = rest.split_at_mut(cols * deep);
            for depth in (0..k).step_by(deep) {
                let step = deep.min(k - depth);
                // SAFETY: the panels are inside A and B, the scratch holds them.
                unsafe {
                    let a = widen(self.a.at(i, depth), (rows, step), panel_a);
                    let b = widen(self.b.at(depth, j), (step, cols), panel_b);
                    let c = Mat {
                        ptr: tile.as_mut_ptr(),
                        rows: cols as isize,
                        cols: 1,
                    };
                    dense_product((rows, cols, step), self.alpha, a, b, c, depth > 0, false);
                }
            }
            simd(
                #[inline(always)]
                || {
                    for (r, row) in tile.chunks_exact_mut(cols).enumerate() {
                        let out = self.out.at((i + r) * n + j);
                        // SAFETY: row r of the tile lies there.
                        unsafe {
                            if self.accumulate {
                                for (c, x) in row.iter_mut().enumerate() {
                                    *x += (*out.add(c)).to_acc();
                                }
                            }
                            store(row, out);
                        }
                    }
                },
            );
        });
    }
}

/// Widens a (rows, cols) matrix into `scratch`, keeping the direction that is contiguous in the source.
///
/// # Safety
/// The source is readable; `scratch` holds rows * cols elements.
pub(crate) unsafe fn widen<T: Float>(
    src: Mat<*const T>,
    (rows, cols): (usize, usize),
    scratch: &mut [T::Acc],
) -> Mat<*const T::Acc> {
    let by_columns = src.rows == 1 && src.cols != 1;
    let (lines, len) = if by_columns { (cols, rows) } else { (rows, cols) };
    let (across, along) = if by_columns {
        (src.cols, src.rows)
    } else {
        (src.rows, src.cols)
    };
    let scratch = &mut scratch[..lines * len];
    simd(
        #[inline(always)]
        || {
            for (line, into) in scratch.chunks_exact_mut(len.max(1)).enumerate() {
                let from = src.ptr.wrapping_offset(line as isize * across);
                // SAFETY: the line has `len` elements `along` apart.
                unsafe {
                    if along == 1 {
                        load(from, into);
                    } else {
                        for (i, x) in into.iter_mut().enumerate() {
                            *x = (*from.offset(i as isize * along)).to_acc();
                        }
                    }
                }
            }
        },
    );
    let step = len as isize;
    let (row_step, col_step) = if by_columns { (1, step) } else { (step, 1) };
    Mat {
        ptr: scratch.as_ptr(),
        rows: row_step,
        cols: col_step,
    }
}
