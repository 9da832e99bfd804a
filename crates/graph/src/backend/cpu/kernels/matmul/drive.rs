//! How a product is cut: which operands are read as they lie and which are packed first, and the tiles that tasks take.
//! The cut follows from the sizes alone.

use std::any::TypeId;

use half::bf16;

use super::super::float::{Float, Mat, Real, transposed};
use super::super::par::{Shared, for_pieces, simd, with_space};
use super::kernel::{DOTS, Dots, Kernel, Round, TILE, Tile};
use super::pack::{Block, Entry};

/// Up to so many rows of A, a B that lies row by row is read as it lies.
const FEW_ROWS: usize = 48;
/// And so where the sums have at most so many terms.
const FEW_TERMS: usize = 32;
/// Up to so many rows (or columns), contiguous operands are multiplied as dot products.
const DOT_ROWS: usize = 12;
/// Rows of A that are packed at a time.
const CHUNK: usize = 1024;
/// A product has at least about so many tasks, if its rows give them.
const TASKS: usize = 24;
/// Rows of a task, about, at least: each packs its panel of B.
const TASK_ROWS: usize = 128;
/// Bytes of B that a task of dot products reads, about.
const TASK_BYTES: usize = 1 << 15;

/// `C = alpha * A @ B (+ C if accumulate)` with A (m, k), B (k, n), C (m, n), rows of C `c_row` elements apart.
pub(crate) struct Product<S, C: Float> {
    pub dims: (usize, usize, usize),
    pub alpha: C::Acc,
    pub a: Mat<*const S>,
    pub b: Mat<*const S>,
    pub c: *mut C,
    pub c_row: usize,
    pub accumulate: bool,
}

// SAFETY: A and B are only read, C is written in disjoint pieces.
unsafe impl<S: Sync, C: Float> Sync for Product<S, C> {}

/// An operand in panels or as it lies: entry `p` of line `i` is `step * p` entries after `line * i` bytes. Packed lines
/// lie in groups.
#[derive(Clone, Copy)]
struct Lines<P> {
    ptr: *const P,
    line: isize,
    step: usize,
    /// Lines of a group, and its entries; none where lines are evenly apart.
    group: Option<(usize, usize)>,
}

// SAFETY: only read.
unsafe impl<P> Sync for Lines<P> {}

impl<P> Lines<P> {
    /// The address of a line; the first of its group where there are groups.
    fn at(&self, i: usize) -> *const P {
        match self.group {
            None => self.ptr.wrapping_byte_offset(i as isize * self.line),
            Some((lines, entries)) => self.ptr.wrapping_add(i / lines * entries),
        }
    }
}

/// Lines of `mat` along its columns as they lie, if the kernel can read them so.
fn as_they_lie<S: Float, P: Entry<S>>(mat: Mat<*const S>, terms: usize) -> Option<Lines<P>> {
    (mat.cols == 1 && terms.is_multiple_of(P::TERMS)).then(|| Lines {
        ptr: mat.ptr.cast(),
        line: mat.rows * size_of::<S>() as isize,
        step: 1,
        group: None,
    })
}

impl<S: Float, C: Float<Acc = S::Acc>> Product<S, C> {
    /// True where both operands are contiguous along the terms and one is so small that packing the other costs more
    /// than it saves.
    fn suits_dots(&self) -> bool {
        let (m, n, k) = self.dims;
        self.a.cols == 1 && self.b.rows == 1 && m.min(n) <= DOT_ROWS && k > 1
    }

    /// True where B lies row by row and is read so.
    fn suits_rows(&self) -> bool {
        let (m, _, k) = self.dims;
        self.b.cols == 1 && (m <= FEW_ROWS || k <= FEW_TERMS)
    }

    /// True where entries of two terms are the better ones: but for few rows of A, and for dot products of an odd length,
    /// whose last term would need a copy.
    pub fn suits_pairs(&self) -> bool {
        let (m, _, k) = self.dims;
        !(self.b.cols == 1 && m <= FEW_ROWS || self.suits_dots() && !k.is_multiple_of(2))
    }

    /// Runs the product; no size is 0.
    ///
    /// # Safety
    /// Every element that the sizes and strides reach is inside its allocation; C overlaps neither A nor B; the
    /// machine has the kernel's instructions.
    pub(super) unsafe fn run<P: Entry<S>>(&self, kernel: &Kernel<P, S::Acc>, parallel: bool) {
        let terms = self.dims.2;
        // SAFETY: handed on.
        unsafe {
            match (
                as_they_lie::<S, P>(self.a, terms),
                as_they_lie::<S, P>(transposed(self.b), terms),
            ) {
                (Some(a), Some(b)) if self.suits_dots() => self.dots(kernel, a, b, parallel),
                (Some(a), _) => self.tiles(kernel, a, (0, self.dims.0), parallel),
                (None, _) => self.packed(kernel, parallel),
            }
        }
    }

    /// Packs A a chunk of rows at a time.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn packed<P: Entry<S>>(&self, kernel: &Kernel<P, S::Acc>, parallel: bool) {
        let (m, _, terms) = self.dims;
        let steps = terms.div_ceil(P::TERMS);
        for first in (0..m).step_by(CHUNK) {
            let rows = CHUNK.min(m - first);
            let groups = rows.div_ceil(kernel.rows);
            with_space(groups * kernel.rows * steps, |panels: *mut P| {
                let to = Shared::raw(panels);
                let piece = (TASK_BYTES / (kernel.rows * steps * size_of::<P>())).max(1);
                for_pieces(groups, piece, parallel, |_, range| {
                    for group in range {
                        let i = first + group * kernel.rows;
                        let block = Block {
                            from: transposed(self.a.at(i, 0)),
                            terms,
                            cols: kernel.rows.min(m - i),
                        };
                        // SAFETY: the rows are inside A, the group inside the panels and this task's.
                        unsafe { block.pack(kernel, kernel.rows, to.at(group * kernel.rows * steps)) };
                    }
                });
                let lines = Lines {
                    ptr: panels.cast_const(),
                    line: size_of::<P>() as isize,
                    step: kernel.rows,
                    group: Some((kernel.rows, kernel.rows * steps)),
                };
                // SAFETY: handed on; the panels hold these rows.
                unsafe { self.tiles(kernel, lines, (first, rows), parallel) };
            });
        }
    }

    /// Tile by tile; `a` holds the rows from `first` on.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn tiles<P: Entry<S>>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        a: Lines<P>,
        (first, rows): (usize, usize),
        parallel: bool,
    ) {
        let n = self.dims.1;
        let width = kernel.vectors * kernel.lanes;
        let across = n.div_ceil(width);
        // Few columns: the rows are cut too.
        let down = TASKS.div_ceil(across).clamp(1, rows.div_ceil(TASK_ROWS));
        let task_rows = rows.div_ceil(down).next_multiple_of(kernel.rows);
        let down = rows.div_ceil(task_rows);
        for_pieces(across * down, 1, parallel, |task, _| {
            let (j, i) = (task / down * width, task % down * task_rows);
            let range = (first, i, task_rows.min(rows - i));
            // SAFETY: the tile belongs to this task.
            unsafe { self.column(kernel, a, range, (j, width.min(n - j))) };
        });
    }

    /// The tiles of one panel of B.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn column<P: Entry<S>>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        a: Lines<P>,
        (first, start, rows): (usize, usize, usize),
        (j, cols): (usize, usize),
    ) {
        let terms = self.dims.2;
        let steps = terms.div_ceil(P::TERMS);
        let vectors = cols.div_ceil(kernel.lanes);
        let stride = vectors * kernel.lanes;
        let all = |b: *const P, b_step: usize, cols: usize| {
            let mut sums = [S::Acc::ZERO; TILE];
            for i in (start..start + rows).step_by(kernel.rows) {
                let count = kernel.rows.min(start + rows - i);
                let tile = Tile {
                    steps,
                    a: a.at(i),
                    a_row: a.line,
                    a_step: a.step,
                    rows: count,
                    b,
                    b_step,
                    cols,
                    out: sums.as_mut_ptr(),
                };
                // SAFETY: the operands are inside what they lie in; a tile has at most TILE sums.
                unsafe {
                    (kernel.tile)(&tile);
                    self.write(
                        kernel,
                        &sums,
                        stride,
                        (first + i, j),
                        (count, cols.min(self.dims.1 - j)),
                    );
                }
            }
        };
        // SAFETY: column j is inside B; the panel holds the block.
        unsafe {
            if P::TERMS == 1 && self.suits_rows() {
                return all(self.b.at(0, j).ptr.cast(), self.b.rows as usize, cols);
            }
            with_space(steps * stride, |panel: *mut P| {
                let block = Block {
                    from: self.b.at(0, j),
                    terms,
                    cols,
                };
                if cols < stride {
                    std::ptr::write_bytes(panel, 0, steps * stride);
                }
                block.pack(kernel, stride, panel);
                all(panel, stride, stride);
            });
        }
    }

    /// Scales, adds and rounds sums into C from (i, j) on.
    ///
    /// # Safety
    /// The place is inside C and the caller's; the sums are `stride` apart and whole vectors, or `rows` and `cols` are at
    /// most [`DOTS`].
    unsafe fn write<P>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        sums: &[S::Acc],
        stride: usize,
        (i, j): (usize, usize),
        (rows, cols): (usize, usize),
    ) {
        // SAFETY: the caller's promise.
        let to = unsafe { self.c.add(i * self.c_row + j) };
        if let Some(round) = kernel
            .round
            .filter(|_| stride > DOTS && is::<C, bf16>() && is::<S::Acc, f32>())
        {
            let all = Round {
                sums: sums.as_ptr().cast(),
                stride,
                alpha: self.alpha.widen() as f32,
                accumulate: self.accumulate,
                to: to.cast(),
                to_row: self.c_row,
                rows,
                cols,
            };
            // SAFETY: the types are these; the caller's promise.
            return unsafe { round(&all) };
        }
        simd(
            #[inline(always)]
            || {
                for (r, sums) in sums.chunks_exact(stride).take(rows).enumerate() {
                    // SAFETY: the caller's promise.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.add(r * self.c_row), cols) };
                    if self.accumulate {
                        for (to, &sum) in to.iter_mut().zip(sums) {
                            *to = C::from_acc(to.to_acc() + sum * self.alpha);
                        }
                    } else {
                        for (to, &sum) in to.iter_mut().zip(sums) {
                            *to = C::from_acc(sum * self.alpha);
                        }
                    }
                }
            },
        );
    }

    /// Block by block of dot products: B is read once, in the order it lies in.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn dots<P: Entry<S>>(&self, kernel: &Kernel<P, S::Acc>, a: Lines<P>, b: Lines<P>, parallel: bool) {
        let (m, n, terms) = self.dims;
        let steps = terms / P::TERMS;
        let blocks = (TASK_BYTES / (steps * size_of::<P>())).div_ceil(DOTS);
        let rows_of_c = m > n;
        let (long, piece) = (m.max(n), blocks.max(1) * DOTS);
        for_pieces(long, piece, parallel, |_, range| {
            let (is, js) = if rows_of_c { (range, 0..n) } else { (0..m, range) };
            for j in js.clone().step_by(DOTS) {
                for i in is.clone().step_by(DOTS) {
                    let (rows, cols) = (DOTS.min(is.end - i), DOTS.min(js.end - j));
                    let mut sums = [S::Acc::ZERO; DOTS * DOTS];
                    let block = Dots {
                        steps,
                        a: a.at(i),
                        a_row: a.line,
                        rows,
                        b: b.at(j),
                        b_col: b.line,
                        cols,
                        out: sums.as_mut_ptr(),
                    };
                    // SAFETY: rows and columns are inside A and B; this part of C belongs to this task.
                    unsafe {
                        (kernel.dots)(&block);
                        self.write(kernel, &sums, DOTS, (i, j), (rows, cols));
                    }
                }
            }
        });
    }
}

/// Whether two types are one.
fn is<A: 'static, B: 'static>() -> bool {
    TypeId::of::<A>() == TypeId::of::<B>()
}
