//! The rows of an A as the kernels read them: where they lie, or packed.

use super::super::float::{Float, Mat, transposed};
use super::super::par::{Shared, for_pieces};
use super::drive::{Factors, TASK_BYTES};
use super::kernel::Kernel;
use super::pack::{Block, Entry};

/// An operand in panels or as it lies: entry `p` of line `i` is `step * p` entries after `line * i` bytes. Packed lines
/// lie in groups.
#[derive(Clone, Copy)]
pub(super) struct Lines<P> {
    pub ptr: *const P,
    pub line: isize,
    pub step: usize,
    /// Lines of a group, and its entries; none where lines are evenly apart.
    group: Option<(usize, usize)>,
}

// SAFETY: only read.
unsafe impl<P> Sync for Lines<P> {}

impl<P> Lines<P> {
    /// The address of a line; the first of its group where there are groups.
    pub fn at(&self, i: usize) -> *const P {
        match self.group {
            None => self.ptr.wrapping_byte_offset(i as isize * self.line),
            Some((lines, entries)) => self.ptr.wrapping_add(i / lines * entries),
        }
    }
}

/// Lines of `mat` along its columns as they lie, if the kernel can read them so.
pub(super) fn as_they_lie<S: Float, P: Entry<S>>(mat: Mat<*const S>, terms: usize) -> Option<Lines<P>> {
    (P::LIES && mat.cols == 1 && terms.is_multiple_of(P::TERMS)).then(|| Lines {
        ptr: mat.ptr.cast(),
        line: mat.rows * size_of::<S>() as isize,
        step: 1,
        group: None,
    })
}

/// Packs rows of an A: one after the other where they lie so and only their elements change, else in groups of a tile's
/// rows.
///
/// # Safety
/// The rows are inside A; there is room for whole groups.
pub(super) unsafe fn pack_rows<S: Float, P: Entry<S>>(
    kernel: &Kernel<P, S::Acc>,
    factors: &Factors<S>,
    (first, rows): (usize, usize),
    to: *mut P,
    parallel: bool,
) -> Lines<P> {
    let (terms, steps) = (factors.k, factors.k.div_ceil(P::TERMS));
    let alone = factors.a.cols == 1 && P::TERMS == 1;
    let (height, width) = if alone { (1, terms) } else { (kernel.rows, kernel.rows) };
    let block = |i: usize| {
        let from = factors.a.at(first + i, 0);
        if alone {
            // A row's terms as columns of one step.
            let from = Mat { rows: 0, ..from };
            let (terms, cols) = (1, terms);
            return Block { from, terms, cols };
        }
        let (from, cols) = (transposed(from), height.min(rows - i));
        Block { from, terms, cols }
    };
    let room = Shared::raw(to);
    let piece = (TASK_BYTES / (height * steps * size_of::<P>())).max(1);
    for_pieces(rows.div_ceil(height), piece, parallel, |_, range| {
        for i in range.map(|group| group * height) {
            // SAFETY: the rows are inside A, the group inside the room and this task's.
            unsafe { block(i).pack(kernel, width, room.at(i * steps)) };
        }
    });
    let entry = size_of::<P>() as isize;
    Lines {
        ptr: to.cast_const(),
        line: if alone { steps as isize * entry } else { entry },
        step: if alone { 1 } else { height },
        group: (!alone).then_some((height, height * steps)),
    }
}
