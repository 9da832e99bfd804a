//! The choice of the micro-kernel for a product: tiles, or dot products of contiguous operands. It depends on the sizes
//! and the strides alone.

use std::any::TypeId;

use half::bf16;
use smallvec::SmallVec;

use super::super::float::{Float, Mat, Real, transposed};
use super::super::par::{for_pieces, rows_of_task, simd, store, with_scratch};
use super::super::tuning::matmul::{DOT_ROWS, FEW_ROWS, FEW_TERMS, TASK_BYTES, VERY_FEW_ROWS};
use super::kernel::{DOTS, Dots, Kernel, Round};
use super::lines::{Lines, in_place};
use super::pack::Entry;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;
/// Maximum number of products that are accumulated in registers.
pub(super) const FACTORS: usize = 8;
/// Usual maximum number of addends.
const ADDENDS: usize = 2;
/// Dot products of a row of A that are written together: a whole number of vectors.
const RUN: usize = 64;

/// One product of a sum: A (m, k) @ B (k, n).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors<S> {
    pub a: Mat<*const S>,
    pub b: Mat<*const S>,
    pub k: usize,
}

// SAFETY: only read.
unsafe impl<S: Sync> Sync for Factors<S> {}

/// `C = alpha * (A0 @ B0 + ..) + addends` with C (m, n) of row stride `c_row`.
#[derive(Clone, Copy)]
pub(crate) struct Product<'p, S, C: Float> {
    pub dims: (usize, usize),
    pub factors: &'p [Factors<S>],
    pub alpha: C::Acc,
    /// Columns are contiguous; the row stride of the first one may be 0.
    pub addends: &'p [Mat<*const C>],
    pub c: *mut C,
    pub c_row: usize,
}

// SAFETY: operands are only read, C is written in disjoint pieces, by the task that reads the same piece of an addend.
unsafe impl<S: Sync, C: Float> Sync for Product<'_, S, C> {}

impl<S: Float, C: Float<Acc = S::Acc>> Product<'_, S, C> {
    /// How many of the factors, from the first on, are accumulated in registers: those with a row-major A, if C has
    /// enough rows to pack each B.
    pub fn together(&self, factors: &[Factors<S>]) -> usize {
        let suits = |factors: &&Factors<S>| factors.a.cols == 1 && factors.k > 0 && factors.k.is_multiple_of(2);
        if self.dims.0 <= FEW_ROWS {
            return 1;
        }
        factors.iter().take(FACTORS).take_while(suits).count().max(1)
    }

    /// Whether both operands are contiguous along the inner dimension and one is so small that packing the other costs
    /// more than it saves.
    fn suits_dots(&self) -> bool {
        let (m, n) = self.dims;
        let dots = |f: &Factors<S>| f.a.cols == 1 && f.b.rows == 1 && f.k > 1;
        m.min(n) <= DOT_ROWS && self.factors.len() == 1 && self.factors.iter().all(dots)
    }

    /// Whether B is row-major and is read in place.
    fn suits_rows(&self, factors: &Factors<S>) -> bool {
        factors.b.cols == 1 && (self.dims.0 <= FEW_ROWS || factors.k <= FEW_TERMS)
    }

    /// Whether the kernel reads B in place.
    pub(super) fn is_read_in_place<P: Entry<S>>(&self, factors: &Factors<S>) -> bool {
        P::IN_PLACE && P::TERMS == 1 && self.suits_rows(factors)
    }

    /// Whether entries of two terms are better: except for few rows of A, and for dot products of an odd length, whose
    /// last term would need a copy.
    pub fn suits_pairs(&self) -> bool {
        let odd = |f: &Factors<S>| self.suits_dots() && !f.k.is_multiple_of(2);
        !self.reads_rows(VERY_FEW_ROWS) && !self.factors.iter().any(odd)
    }

    /// Whether a matrix unit is better: except for few rows, for dot products, and for an A that is neither row-major,
    /// in whole pairs, nor column-major.
    pub fn suits_tiles(&self) -> bool {
        let lies = |f: &Factors<S>| f.a.rows == 1 || f.a.cols == 1 && f.k.is_multiple_of(2);
        self.dims.0 > VERY_FEW_ROWS && !self.suits_dots() && self.factors.iter().all(lies)
    }

    /// Whether both operands should be packed, and widened in the same pass.
    pub fn suits_widening(&self) -> bool {
        !self.reads_rows(VERY_FEW_ROWS) && !self.suits_dots()
    }

    /// Whether B is read in place, because A has at most `few` rows.
    fn reads_rows(&self, few: usize) -> bool {
        self.dims.0 <= few && self.factors.iter().any(|f| f.b.cols == 1)
    }

    /// Runs the product; no size is 0.
    ///
    /// # Safety
    /// Every element that the sizes and strides reach is inside its allocation; C overlaps no A or B, and an addend
    /// only if it is the same matrix; the machine has the kernel's instructions.
    pub(super) unsafe fn run<P: Entry<S>>(&self, kernel: &Kernel<P, S::Acc>, parallel: bool) {
        let lines = self.factors.iter().map(|f| in_place::<S, P>(f.a, f.k));
        let lines: Option<SmallVec<[Lines<P>; FACTORS]>> = lines.collect();
        // SAFETY: forwarded from the caller.
        unsafe {
            match (&lines, self.factors) {
                (Some(a), [one]) if self.suits_dots() => {
                    if let Some(b) = in_place::<S, P>(transposed(one.b), one.k) {
                        return self.dots(kernel, one.k, (a[0], b), parallel);
                    }
                    self.tiles(kernel, a, (0, self.dims.0), parallel);
                }
                (Some(a), _) => self.tiles(kernel, a, (0, self.dims.0), parallel),
                (None, _) => self.packed(kernel, parallel),
            }
        }
    }

    /// Whether C itself can hold the accumulators: it has their type, and nothing but C is added.
    pub(super) fn sums_in_place(&self) -> bool {
        let itself = |addend: &Mat<*const C>| addend.ptr == self.c.cast_const() && addend.rows == self.c_row as isize;
        is::<C, S::Acc>() && self.alpha == S::Acc::ONE && self.addends.len() <= 1 && self.addends.iter().all(itself)
    }

    /// Writes the sum of the addends, without products.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    pub unsafe fn add_up(&self) {
        let (m, n) = self.dims;
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            // SAFETY: guaranteed by the caller.
            unsafe {
                let sum = self
                    .addends
                    .iter()
                    .fold(S::Acc::ZERO, |sum, from| sum + (*from.at(i, j).ptr).to_acc());
                *self.c.add(i * self.c_row + j) = C::from_acc(sum);
            }
        }
    }

    /// Scales the accumulators, adds the addends and rounds into C from (i, j) on.
    ///
    /// # Safety
    /// The block is inside C and belongs to the caller; the row stride of the sums, `stride`, is a whole number of
    /// vectors.
    pub(super) unsafe fn write<P>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        sums: &mut [S::Acc],
        stride: usize,
        (i, j): (usize, usize),
        (rows, cols): (usize, usize),
    ) {
        // SAFETY: guaranteed by the caller.
        let to = unsafe { self.c.add(i * self.c_row + j) };
        if self.addends.is_empty() && self.sums_in_place() {
            for (r, sums) in sums.chunks_exact(stride).take(rows).enumerate() {
                for (c, sum) in sums.iter().enumerate().take(cols) {
                    // SAFETY: guaranteed by the caller; C has the type of the accumulators.
                    unsafe { *to.add(r * self.c_row + c).cast::<S::Acc>() = *sum };
                }
            }
            return;
        }
        let addends: SmallVec<[Mat<*const C>; ADDENDS]> = self.addends.iter().map(|from| from.at(i, j)).collect();
        if let Some(round) = kernel.round.filter(|_| is::<C, bf16>() && is::<S::Acc, f32>()) {
            let addends: SmallVec<[Mat<*const bf16>; ADDENDS]> = addends.iter().map(|from| from.cast()).collect();
            let all = Round {
                sums: sums.as_ptr().cast(),
                stride,
                alpha: self.alpha.widen() as f32,
                addends: &addends,
                to: to.cast(),
                to_row: self.c_row,
                rows,
                cols,
            };
            // SAFETY: the types are equal; the rest is guaranteed by the caller.
            return unsafe { round(&all) };
        }
        simd(
            #[inline(always)]
            || {
                for (r, sums) in sums.chunks_exact_mut(stride).take(rows).enumerate() {
                    let sums = &mut sums[..cols];
                    for sum in &mut *sums {
                        *sum = *sum * self.alpha;
                    }
                    for from in &addends {
                        // SAFETY: guaranteed by the caller; nothing is written yet.
                        let from = unsafe { std::slice::from_raw_parts(from.at(r, 0).ptr, cols) };
                        sums.iter_mut().zip(from).for_each(|(sum, x)| *sum += x.to_acc());
                    }
                    // SAFETY: guaranteed by the caller.
                    unsafe { store(sums, to.add(r * self.c_row)) };
                }
            },
        );
    }

    /// Dot products block by block: B is read once, sequentially.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn dots<P: Entry<S>>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        terms: usize,
        (a, b): (Lines<P>, Lines<P>),
        parallel: bool,
    ) {
        let (m, n) = self.dims;
        let steps = terms / P::TERMS;
        let rows_of_c = m > n;
        let direct = self.addends.is_empty() && self.sums_in_place();
        let piece = run_of_dots(m.max(n), steps * size_of::<P>());
        for_pieces(m.max(n), piece, parallel, |_, range| {
            let (is, js) = if rows_of_c { (range, 0..n) } else { (0..m, range) };
            // A single row reads all its columns in one go; several rows take a few at a time while these are in the
            // cache.
            let across = if m == 1 { js.len().next_multiple_of(RUN) } else { RUN };
            with_scratch(
                if direct { 0 } else { DOTS.min(m) * across },
                |sums: &mut [S::Acc]| {
                    for j in js.clone().step_by(across) {
                        for i in is.clone().step_by(DOTS) {
                            let (rows, cols) = (DOTS.min(is.end - i), across.min(js.end - j));
                            let (out, out_row) = if direct {
                                (self.c.wrapping_add(i * self.c_row + j).cast(), self.c_row)
                            } else {
                                (sums.as_mut_ptr(), across)
                            };
                            let block = Dots {
                                steps,
                                a: a.at(i),
                                a_row: a.line,
                                rows,
                                b: b.at(j),
                                b_col: b.line,
                                cols,
                                out,
                                out_row,
                            };
                            // SAFETY: rows and columns are in bounds of A and B; this part of C belongs to this task.
                            unsafe {
                                (kernel.dots)(&block);
                                if !direct {
                                    self.write(kernel, sums, across, (i, j), (rows, cols));
                                }
                            }
                        }
                    }
                },
            );
        });
    }
}

/// Columns (or rows) per task of dot products over columns of `bytes` bytes.
pub(crate) fn run_of_dots(long: usize, bytes: usize) -> usize {
    rows_of_task(long, bytes, TASK_BYTES).next_multiple_of(DOTS)
}

/// Whether two types are the same.
pub(super) fn is<A: 'static, B: 'static>() -> bool {
    TypeId::of::<A>() == TypeId::of::<B>()
}
