//! Copies of blocks of a matrix as the kernels read them: panels of a fixed number of columns, entries of all columns
//! for one step next to each other.

use half::{bf16, f16};

use super::super::float::{Float, Mat};
use super::super::par::{each, prefetch, simd};
use super::super::tuning::matmul::AHEAD;
use super::drive::is;
use super::kernel::Kernel;
use super::table::Pair;

/// Elements of a row that are copied together.
const VECTOR: usize = 8;

/// What a panel of elements `S` is made of.
pub(super) trait Entry<S: Copy>: Copy + Default + Send + Sync + 'static {
    /// Terms of a sum in one entry.
    const TERMS: usize;
    /// Whether an entry is its elements as they lie, so that a kernel can read them unpacked.
    const LIES: bool = true;
    /// An entry of `terms` elements, `step` apart; zeros for those that are not there.
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
                // SAFETY: the caller's promise.
                unsafe { *first }
            }
        }
    )* };
}
single!(f32, f64, bf16, f16);

/// Elements that are widened when they are packed, so that the loops need not do it at every use.
macro_rules! widened {
    ($($t:ty),*) => { $(
        impl Entry<$t> for f32 {
            const TERMS: usize = 1;
            const LIES: bool = false;
            #[inline(always)]
            unsafe fn gather(first: *const $t, _: isize, _: usize) -> f32 {
                // SAFETY: the caller's promise.
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
        // SAFETY: the caller's promise.
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
    /// Writes one panel: for each step `width` entries, of which the first `cols` are set.
    ///
    /// # Safety
    /// The block is readable; `to` has room for `terms.div_ceil(P::TERMS) * width` entries; `cols <= width`.
    pub unsafe fn pack<P: Entry<S>, A>(&self, kernel: &Kernel<P, A>, width: usize, to: *mut P) {
        let whole = self.terms / P::TERMS;
        // SAFETY: the caller's promise.
        unsafe {
            if self.from.rows == 1 && self.from.cols != 1 {
                self.turn(kernel, width, to, whole);
            } else if let Some(weave) = kernel.weave.filter(|_| self.from.cols == 1 && is::<S, bf16>()) {
                for p in 0..whole {
                    self.ask_for(p * P::TERMS + AHEAD, P::TERMS);
                    let even = self.from.at(p * P::TERMS, 0).ptr.cast();
                    let odd = self.from.at(p * P::TERMS + 1, 0).ptr.cast();
                    weave([even, odd], to.add(p * width).cast(), self.cols);
                }
            } else {
                simd(
                    #[inline(always)]
                    || self.weave(0..whole, 0..self.cols, width, to),
                );
            }
            if whole * P::TERMS < self.terms {
                self.weave(whole..whole + 1, 0..self.cols, width, to);
            }
        }
    }

    /// Asks memory for both ends of rows that will be read: short and far apart, they are not foreseen by the machine.
    #[inline(always)]
    fn ask_for(&self, row: usize, count: usize) {
        for row in row..row + count {
            let row = self.from.at(row, 0).ptr;
            prefetch(row);
            prefetch(row.wrapping_add(self.cols - 1));
        }
    }

    /// Entry by entry.
    ///
    /// # Safety
    /// As [`pack`](Self::pack).
    #[inline(always)]
    unsafe fn weave<P: Entry<S>>(
        &self,
        steps: std::ops::Range<usize>,
        cols: std::ops::Range<usize>,
        width: usize,
        to: *mut P,
    ) {
        let Mat { rows, cols: across, .. } = self.from;
        for p in steps {
            let terms = P::TERMS.min(self.terms - p * P::TERMS);
            // SAFETY: the caller's promise.
            unsafe {
                let (from, to) = (self.from.ptr.offset((p * P::TERMS) as isize * rows), to.add(p * width));
                if across == 1 {
                    self.ask_for(p * P::TERMS + AHEAD, P::TERMS);
                    // In blocks: a panel is narrower than what the compiler unrolls by itself.
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

    /// Columns that lie contiguous: blocks of them turned in registers, the rest entry by entry.
    ///
    /// # Safety
    /// As [`pack`](Self::pack); a column is contiguous.
    unsafe fn turn<P: Entry<S>, A>(&self, kernel: &Kernel<P, A>, width: usize, to: *mut P, whole: usize) {
        let turned = match &kernel.turn {
            Some(turn) if self.from.cols > 0 => {
                let edge = turn.edge;
                let (steps, cols) = match turn.part {
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
                            turn.block((from, bytes), (to.add(p * width + j).cast(), width), size);
                        }
                    }
                }
                (steps, cols)
            }
            _ => (0, 0),
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.weave(turned.0..whole, 0..turned.1, width, to);
            self.weave(0..whole, turned.1..self.cols, width, to);
        }
    }
}
