//! The rows of A as the micro-kernels read them: in place, or packed.

use super::super::float::{Float, Mat, transposed};
use super::super::par::{Shared, for_pieces};
use super::super::tuning::matmul::TASK_BYTES;
use super::drive::{Factors, LINE};
use super::kernel::{Kernel, Transpose};
use super::pack::{Block, Entry};

/// An operand in place or packed: entry `p` of line `i` is at `line * i` bytes plus `step * p` entries. Packed lines
/// form groups.
#[derive(Clone, Copy)]
pub(super) struct Lines<P> {
    pub ptr: *const P,
    pub line: isize,
    pub step: usize,
    /// Lines per group, and its entries; `None` for evenly spaced lines.
    group: Option<(usize, usize)>,
}

// SAFETY: only read.
unsafe impl<P> Sync for Lines<P> {}

impl<P> Lines<P> {
    /// The address of a line.
    pub fn at(&self, i: usize) -> *const P {
        match self.group {
            None => self.ptr.wrapping_byte_offset(i as isize * self.line),
            Some((lines, entries)) => self.ptr.wrapping_add(i / lines * entries + i % lines),
        }
    }
}

/// The lines of `mat` along its columns in place, if the kernel can read them directly.
pub(super) fn in_place<S: Float, P: Entry<S>>(mat: Mat<*const S>, terms: usize) -> Option<Lines<P>> {
    (P::IN_PLACE && mat.cols == 1 && terms.is_multiple_of(P::TERMS)).then(|| Lines {
        ptr: mat.ptr.cast(),
        line: mat.rows * size_of::<S>() as isize,
        step: 1,
        group: None,
    })
}

/// Rows of A that are packed together: those that share cache lines if A is column-major.
pub(super) fn group_height<S, P, A>(kernel: &Kernel<P, A>, factors: &Factors<S>) -> usize {
    let shared = if factors.a.rows == 1 { LINE / size_of::<S>() } else { 1 };
    shared.next_multiple_of(kernel.rows)
}

/// Entries per block of [`pack_transposed`].
const EDGE: usize = 16;

/// Packs rows of a column-major A as contiguous entries: blocks are interleaved like those of B, then transposed.
///
/// # Safety
/// The rows are inside A; the buffer has capacity for them; the kernel interleaves and transposes entries of `P`.
unsafe fn pack_transposed<S: Float, P: Entry<S>>(
    (kernel, transpose): (&Kernel<P, S::Acc>, &Transpose),
    factors: &Factors<S>,
    (first, rows): (usize, usize),
    to: *mut P,
    parallel: bool,
) -> Lines<P> {
    let steps = factors.k.div_ceil(P::TERMS);
    let room = Shared::raw(to);
    let piece = TASK_BYTES.div_ceil(EDGE * steps * size_of::<P>());
    for_pieces(rows.div_ceil(EDGE), piece, parallel, |_, range| {
        let mut interleaved = [[P::default(); EDGE]; EDGE];
        let blocks = range.flat_map(|block| (0..steps).step_by(EDGE).map(move |p| (block * EDGE, p)));
        for (i, p) in blocks {
            let terms = (EDGE * P::TERMS).min(factors.k - p * P::TERMS);
            let (count, cols) = (terms.div_ceil(P::TERMS), EDGE.min(rows - i));
            let block = Block {
                from: transposed(factors.a.at(first + i, p * P::TERMS)),
                terms,
                cols,
            };
            // SAFETY: the block is inside A; its destination is inside the buffer and belongs to this task.
            unsafe {
                block.pack(kernel, EDGE, interleaved.as_mut_ptr().cast::<P>());
                let to = (room.at(i * steps + p).cast(), steps);
                transpose.block(
                    (interleaved.as_ptr().cast(), size_of_val(&interleaved[0])),
                    to,
                    (count, cols),
                );
            }
        }
    });
    Lines {
        ptr: to.cast_const(),
        line: (steps * size_of::<P>()) as isize,
        step: 1,
        group: None,
    }
}

/// Packs rows of A: contiguously if a step is one term and rows can be written directly, else in groups of a tile's
/// rows.
///
/// # Safety
/// The rows are inside A; `room` has capacity for whole groups.
pub(super) unsafe fn pack_rows<S: Float, P: Entry<S>>(
    kernel: &Kernel<P, S::Acc>,
    factors: &Factors<S>,
    (first, rows): (usize, usize),
    to: *mut P,
    parallel: bool,
) -> Lines<P> {
    let (a, terms, steps) = (&factors.a, factors.k, factors.k.div_ceil(P::TERMS));
    if let Some(transpose) = kernel.transpose.as_ref().filter(|_| kernel.reads_lines) {
        if let Some(lines) = in_place(a.at(first, 0), terms) {
            return lines;
        }
        // SAFETY: forwarded from the caller.
        return unsafe { pack_transposed((kernel, transpose), factors, (first, rows), to, parallel) };
    }
    let transpose = kernel
        .transpose
        .as_ref()
        .filter(|_| P::TERMS == 1 && a.rows == 1 && a.cols != 1);
    let alone = transpose.is_some() || P::TERMS == 1 && a.cols == 1;
    let height = match transpose {
        Some(transpose) => transpose.edge,
        None if alone => 1,
        None => group_height(kernel, factors),
    };
    let width = if alone { steps } else { height };
    let room = Shared::raw(to);
    let piece = TASK_BYTES.div_ceil(height * steps * size_of::<P>());
    for_pieces(rows.div_ceil(height), piece, parallel, |_, range| {
        let pack = |i: usize, count: usize| {
            let from = factors.a.at(first + i, 0);
            let (from, terms, cols) = match (transpose, alone) {
                (Some(_), _) => (from, count, terms),
                // The terms of a row as the columns of a single step.
                (None, true) => (Mat { rows: 0, ..from }, 1, terms),
                (None, false) => (transposed(from), terms, count),
            };
            // SAFETY: the rows are inside A; their destination is inside the buffer and belongs to this task.
            unsafe { Block { from, terms, cols }.pack(kernel, width, room.at(i * steps)) };
        };
        let (start, end) = (range.start * height, rows.min(range.end * height));
        if transpose.is_some() {
            return pack(start, end - start);
        }
        (start..end).step_by(height).for_each(|i| pack(i, height.min(end - i)));
    });
    let entry = size_of::<P>() as isize;
    Lines {
        ptr: to.cast_const(),
        line: if alone { steps as isize * entry } else { entry },
        step: if alone { 1 } else { height },
        group: (!alone).then_some((height, height * steps)),
    }
}
