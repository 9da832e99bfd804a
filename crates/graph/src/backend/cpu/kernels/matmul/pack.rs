//! Packing: copies blocks of a matrix into panels of a fixed number of columns, with the entries of all columns for one
//! step contiguous.

use half::{bf16, f16};

use super::super::float::{Float, Mat};
use super::super::par::{each, prefetch, simd};
use super::super::tuning::matmul::AHEAD;
use super::drive::is;
use super::kernel::Kernel;
use super::table::Pair;

/// Elements of a row that are copied together.
const VECTOR: usize = 8;

/// An entry of a panel of elements `S`.
pub(super) trait Entry<S: Copy>: Copy + Default + Send + Sync + 'static {
    /// Terms per entry.
    const TERMS: usize;
    /// Whether an entry has the layout of its elements, so that a kernel can read them unpacked.
    const IN_PLACE: bool = true;
    /// Gathers an entry from `terms` elements with stride `step`; missing ones are zero.
    ///
    /// # Safety
    /// The elements are readable.
    unsafe fn gather(first: *const S, step: isize, terms: usize) -> Self;
}

macro_rules! single {
    ($($t:ty),*) => { $(
        impl Entry<$t> for $t {
            const TERMS: usize = 1;
            #[inline(always)]
            unsafe fn gather(first: *const $t, _: isize, _: usize) -> $t {
                // SAFETY: guaranteed by the caller.
                unsafe { *first }
            }
        }
    )* };
}
single!(f32, f64, bf16, f16);

/// Elements that are widened during packing, so that the micro-kernels need not widen them at every use.
macro_rules! widened {
    ($($t:ty),*) => { $(
        impl Entry<$t> for f32 {
            const TERMS: usize = 1;
            const IN_PLACE: bool = false;
            #[inline(always)]
            unsafe fn gather(first: *const $t, _: isize, _: usize) -> f32 {
                // SAFETY: guaranteed by the caller.
                unsafe { *first }.to_acc()
            }
        }
    )* };
}
widened!(bf16, f16);

impl Entry<bf16> for Pair {
    const TERMS: usize = 2;
    #[inline(always)]
    unsafe fn gather(first: *const bf16, step: isize, terms: usize) -> Pair {
        // SAFETY: guaranteed by the caller.
        unsafe { [*first, if terms > 1 { *first.offset(step) } else { bf16::ZERO }] }
    }
}

/// A block of `terms` rows and `cols` columns.
#[derive(Clone, Copy)]
pub(super) struct Block<S> {
    pub from: Mat<*const S>,
    pub terms: usize,
    pub cols: usize,
}

impl<S: Float> Block<S> {
    /// Packs one panel: `width` entries for each step, the first `cols` of which are set.
    ///
    /// # Safety
    /// The block is readable; `to` has capacity for `terms.div_ceil(P::TERMS) * width` entries; `cols <= width`.
    pub unsafe fn pack<P: Entry<S>, A>(&self, kernel: &Kernel<P, A>, width: usize, to: *mut P) {
        let whole = self.terms / P::TERMS;
        // SAFETY: guaranteed by the caller.
        unsafe {
            if self.from.rows == 1 && self.from.cols != 1 {
                self.transpose(kernel, width, to, whole);
            } else if let Some(interleave) = kernel.interleave.filter(|_| self.from.cols == 1 && is::<S, bf16>()) {
                for p in 0..whole {
                    self.ask_for(p * P::TERMS + AHEAD, P::TERMS);
                    let even = self.from.at(p * P::TERMS, 0).ptr.cast();
                    let odd = self.from.at(p * P::TERMS + 1, 0).ptr.cast();
                    interleave([even, odd], to.add(p * width).cast(), self.cols);
                }
            } else {
                simd(
                    #[inline(always)]
                    || self.interleave(0..whole, 0..self.cols, width, to),
                );
            }
            if whole * P::TERMS < self.terms {
                self.interleave(whole..whole + 1, 0..self.cols, width, to);
            }
        }
    }

    /// Prefetches both ends of rows that will be read: the hardware does not prefetch short rows that are far apart.
    #[inline(always)]
    fn ask_for(&self, row: usize, count: usize) {
        for row in row..row + count {
            let row = self.from.at(row, 0).ptr;
            prefetch(row);
            prefetch(row.wrapping_add(self.cols - 1));
        }
    }

    /// Packs entry by entry.
    ///
    /// # Safety
    /// As [`pack`](Self::pack).
    #[inline(always)]
    unsafe fn interleave<P: Entry<S>>(
        &self,
        steps: std::ops::Range<usize>,
        cols: std::ops::Range<usize>,
        width: usize,
        to: *mut P,
    ) {
        let Mat { rows, cols: across, .. } = self.from;
        for p in steps {
            let terms = P::TERMS.min(self.terms - p * P::TERMS);
            // SAFETY: guaranteed by the caller.
            unsafe {
                let (from, to) = (self.from.ptr.offset((p * P::TERMS) as isize * rows), to.add(p * width));
                if across == 1 {
                    self.ask_for(p * P::TERMS + AHEAD, P::TERMS);
                    // In blocks: a panel is narrower than the compiler's own unrolling.
                    let blocks = if P::TERMS == 1 { cols.len() / VECTOR } else { 0 };
                    let whole = cols.start + blocks * VECTOR;
                    for j in (cols.start..whole).step_by(VECTOR) {
                        let block: [S; VECTOR] = *from.add(j).cast();
                        *to.add(j).cast::<[P; VECTOR]>() = each(
                            #[inline(always)]
                            |i| P::gather(&raw const block[i], rows, 1),
                        );
                    }
                    (whole..cols.end).for_each(|j| *to.add(j) = P::gather(from.add(j), rows, terms));
                } else {
                    cols.clone()
                        .for_each(|j| *to.add(j) = P::gather(from.offset(j as isize * across), rows, terms));
                }
            }
        }
    }

    /// Packs contiguous columns: transposes blocks of them in registers, and the remainder entry by entry.
    ///
    /// # Safety
    /// As [`pack`](Self::pack); a column is contiguous.
    unsafe fn transpose<P: Entry<S>, A>(&self, kernel: &Kernel<P, A>, width: usize, to: *mut P, whole: usize) {
        let done = match &kernel.transpose {
            Some(transpose) if self.from.cols > 0 => {
                let edge = transpose.edge;
                let (steps, cols) = match transpose.part {
                    Some(_) => (whole, self.cols),
                    None => (whole - whole % edge, self.cols - self.cols % edge),
                };
                let bytes = self.from.cols as usize * size_of::<S>();
                for j in (0..cols).step_by(edge) {
                    for p in (0..steps).step_by(edge) {
                        let size = (edge.min(cols - j), edge.min(steps - p));
                        // SAFETY: the block is inside this one; the kernel is for these elements and this machine.
                        unsafe {
                            let from = self.from.at(p * P::TERMS, j).ptr.cast();
                            transpose.block((from, bytes), (to.add(p * width + j).cast(), width), size);
                        }
                    }
                }
                (steps, cols)
            }
            _ => (0, 0),
        };
        // SAFETY: guaranteed by the caller.
        unsafe {
            self.interleave(done.0..whole, 0..done.1, width, to);
            self.interleave(0..whole, done.1..self.cols, width, to);
        }
    }
}
