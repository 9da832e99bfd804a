//! Loops over strided operands: each output element depends on the input elements at the same position. Dimensions that
//! are contiguous in every operand are merged, so that most calls are one flat loop; broadcasts are strides of zero.

use std::ops::Range;

use smallvec::SmallVec;

use super::Memory;
use super::kernels::pool;
use super::kernels::tuning::loops::PIECE;
use super::operand::{Read, Write};
use super::tape::INPUTS;
use super::view::{View, row_major};

/// Elements of a row that are reduced sequentially: partial sums of such chunks are added pairwise, so long sums stay
/// accurate.
const CHUNK: usize = 4096;

/// One number per input, without heap allocation.
pub(super) type PerInput = SmallVec<[usize; INPUTS]>;

/// The loop nest of an elementwise operation.
pub(super) struct Nest {
    /// Outer dimensions, merged, with the strides of the inputs in each.
    outer: Vec<(usize, PerInput)>,
    /// Trip count of the innermost loop.
    inner: usize,
    /// Strides of the inputs in the innermost loop.
    pub steps: PerInput,
}

impl Nest {
    /// The loop nest over `dims`, to which the inputs broadcast. The output is contiguous.
    pub fn new(dims: &[usize], inputs: &[&View]) -> Self {
        let inputs: Vec<View> = inputs.iter().map(|view| view.broadcast(dims)).collect();
        let out = row_major(dims);
        let mut merged: Vec<(usize, PerInput, usize)> = Vec::new();
        for (i, &dim) in dims.iter().enumerate().filter(|(_, dim)| **dim != 1) {
            let strides: PerInput = inputs.iter().map(|view| view.strides[i]).collect();
            match merged.last_mut() {
                Some((size, above, step))
                    if *step == out[i] * dim && above.iter().zip(&strides).all(|(a, s)| *a == s * dim) =>
                {
                    (*size, *above, *step) = (*size * dim, strides, out[i]);
                }
                _ => merged.push((dim, strides, out[i])),
            }
        }
        let zeros = || PerInput::from_elem(0, inputs.len());
        let (inner, steps, _) = merged.pop().unwrap_or_else(|| (1, zeros(), 1));
        let empty = dims.contains(&0);
        Self {
            outer: merged.into_iter().map(|(size, strides, _)| (size, strides)).collect(),
            inner: if empty { 0 } else { inner },
            steps,
        }
    }

    /// Calls `f(input offsets, output offset, length)` for every piece, in parallel if the work is large.
    pub fn for_pieces(&self, f: impl Fn(&[usize], usize, usize) + Sync) {
        let rows = self.rows();
        let pieces = self.inner.div_ceil(PIECE);
        let run = |items: Range<usize>| {
            let mut row = self.row(items.start / pieces.max(1));
            for item in items {
                let start = item % pieces * PIECE;
                let len = PIECE.min(self.inner - start);
                let out = item / pieces * self.inner + start;
                if start == 0 {
                    f(&row.offsets, out, len);
                } else {
                    let along = row.offsets.iter().zip(&self.steps);
                    f(
                        &along.map(|(offset, step)| offset + start * step).collect::<PerInput>(),
                        out,
                        len,
                    );
                }
                if start + len == self.inner {
                    self.next(&mut row);
                }
            }
        };
        let items = rows * pieces;
        if rows * self.inner < 4 * PIECE {
            run(0..items);
        } else {
            let each = (PIECE / self.inner.clamp(1, PIECE)).max(1);
            pool::run(items.div_ceil(each), &|piece| {
                run(piece * each..items.min(piece * each + each));
            });
        }
    }

    /// Calls `f(input offsets, chunk index, length)` for a range of chunks, each of at most [`CHUNK`] consecutive
    /// elements, starting from `start` (offsets of the inputs).
    pub fn for_chunks(&self, start: &[usize], pieces: Range<usize>, mut f: impl FnMut(&[usize], usize, usize)) {
        let along = self.chunks_of_row();
        let mut row = self.row(pieces.start / along.max(1));
        for piece in pieces {
            let first = piece % along * CHUNK;
            let len = CHUNK.min(self.inner - first);
            let offsets = start.iter().zip(&row.offsets).zip(&self.steps);
            let offsets: PerInput = offsets.map(|((start, row), step)| start + row + first * step).collect();
            f(&offsets, piece, len);
            if first + len == self.inner {
                self.next(&mut row);
            }
        }
    }

    /// The number of chunks that [`for_chunks`](Self::for_chunks) iterates over.
    pub fn chunks(&self) -> usize {
        self.rows() * self.chunks_of_row()
    }

    fn chunks_of_row(&self) -> usize {
        self.inner.div_ceil(CHUNK)
    }

    /// The number of elements of the nest.
    pub fn elements(&self) -> usize {
        self.rows() * self.inner
    }

    fn rows(&self) -> usize {
        self.outer.iter().map(|(size, _)| size).product()
    }

    /// The offset of element `number` in each input.
    pub fn offsets(&self, number: usize) -> PerInput {
        let mut offsets = self.row(number / self.inner.max(1)).offsets;
        let along = number % self.inner.max(1);
        let steps = offsets.iter_mut().zip(&self.steps);
        steps.for_each(|(offset, step)| *offset += along * step);
        offsets
    }

    /// The position of row `number`.
    fn row(&self, number: usize) -> RowPosition {
        let mut row = RowPosition {
            index: SmallVec::from_elem(0, self.outer.len()),
            offsets: PerInput::from_elem(0, self.steps.len()),
        };
        let mut rest = number;
        for ((size, strides), index) in self.outer.iter().zip(&mut row.index).rev() {
            *index = rest % size;
            rest /= size;
            let offsets = row.offsets.iter_mut().zip(strides);
            offsets.for_each(|(offset, stride)| *offset += *index * stride);
        }
        row
    }

    /// Advances to the next row; division would cost more than a short row.
    fn next(&self, row: &mut RowPosition) {
        for ((size, strides), index) in self.outer.iter().zip(&mut row.index).rev() {
            *index += 1;
            let offsets = row.offsets.iter_mut().zip(strides);
            if *index < *size {
                offsets.for_each(|(offset, stride)| *offset += stride);
                return;
            }
            *index = 0;
            offsets.for_each(|(offset, stride)| *offset -= (size - 1) * stride);
        }
    }
}

/// A row of the innermost loop: its index in the outer dimensions, and the offsets of its first elements in the inputs.
struct RowPosition {
    index: SmallVec<[usize; 4]>,
    offsets: PerInput,
}

/// Base addresses shared by tasks: each task writes a disjoint part of the output.
pub(super) struct Addresses<T, U> {
    inputs: SmallVec<[*const T; INPUTS]>,
    out: *mut U,
}

// SAFETY: see above; inputs are only read, or are exactly the written element.
unsafe impl<T, U> Sync for Addresses<T, U> {}

impl Addresses<u8, u8> {
    /// For operands of any dtype, in bytes.
    pub fn bytes(memory: &Memory, inputs: &[Read], out: &Write) -> Self {
        Self {
            inputs: inputs.iter().map(|view| view.address(memory)).collect(),
            out: out.address(memory),
        }
    }
}

impl<T, U> Addresses<T, U> {
    /// For operands of one dtype.
    pub fn new(memory: &Memory, inputs: &[&Read], out: &Write) -> Self {
        Self {
            inputs: inputs.iter().map(|view| view.pointer::<T>(memory)).collect(),
            out: out.pointer(memory),
        }
    }

    /// Access through methods, so that closures capture the struct and not its raw pointers.
    pub fn input(&self, i: usize, offset: usize) -> *const T {
        self.inputs[i].wrapping_add(offset)
    }

    pub fn out(&self, offset: usize) -> *mut U {
        self.out.wrapping_add(offset)
    }
}

/// `y[i] = f(x[i])`. `y` may alias `x` exactly.
pub(super) fn map1<T: Copy, U: Copy>(
    memory: &Memory,
    nest: &Nest,
    x: &Read,
    y: &Write,
    f: impl Fn(T) -> U + Copy + Sync,
) {
    let addresses = Addresses::<T, U>::new(memory, &[x], y);
    let step = nest.steps[0];
    nest.for_pieces(|offsets, out, len| {
        let (x, y) = (addresses.input(0, offsets[0]), addresses.out(out));
        // SAFETY: the nest stays inside the views, and the plan allocated their buffers.
        unsafe {
            match step {
                1 => (0..len).for_each(|i| *y.add(i) = f(*x.add(i))),
                _ => (0..len).for_each(|i| *y.add(i) = f(*x.add(i * step))),
            }
        }
    });
}

/// `z[i] = f(x[i], y[i])`. `z` may alias `x` or `y` exactly.
pub(super) fn map2<T: Copy, U: Copy>(
    memory: &Memory,
    nest: &Nest,
    inputs: [&Read; 2],
    out: &Write,
    f: impl Fn(T, T) -> U + Copy + Sync,
) {
    let addresses = Addresses::<T, U>::new(memory, &inputs, out);
    let (sx, sy) = (nest.steps[0], nest.steps[1]);
    nest.for_pieces(|offsets, out, len| {
        let (x, y) = (addresses.input(0, offsets[0]), addresses.input(1, offsets[1]));
        let z = addresses.out(out);
        // SAFETY: as in map1.
        unsafe { (0..len).for_each(|i| *z.add(i) = f(*x.add(i * sx), *y.add(i * sy))) }
    });
}

/// `z[i] = if mask[i] != 0 { x[i] } else { y[i] }`. `z` may alias `x` or `y` exactly.
pub(super) fn select<T: Copy>(memory: &Memory, nest: &Nest, [mask, x, y]: [&Read; 3], out: &Write) {
    let addresses = Addresses::<T, T>::new(memory, &[x, y], out);
    let masks = Masks(mask.pointer::<u8>(memory));
    let (sm, sx, sy) = (nest.steps[0], nest.steps[1], nest.steps[2]);
    nest.for_pieces(|offsets, out, len| {
        let m = masks.at(offsets[0]);
        let (x, y) = (addresses.input(0, offsets[1]), addresses.input(1, offsets[2]));
        let z = addresses.out(out);
        // SAFETY: as in map1.
        unsafe {
            for i in 0..len {
                let (a, b) = (*x.add(i * sx), *y.add(i * sy));
                *z.add(i) = if *m.add(i * sm) == 0 { b } else { a };
            }
        }
    });
}

/// The masks of a select, which tasks only read.
struct Masks(*const u8);

// SAFETY: only read.
unsafe impl Sync for Masks {}

impl Masks {
    fn at(&self, offset: usize) -> *const u8 {
        self.0.wrapping_add(offset)
    }
}

/// Copies the elements of `from` to those of `to`: both strided, with the same dimensions.
pub(super) fn copy_strided<T: Copy>(memory: &Memory, from: &Read, to: &Write) {
    if to.len() == 0 {
        return;
    }
    let (x, y) = (from.pointer::<T>(memory), to.pointer::<T>(memory));
    let rank = to.dims.len();
    let (inner, sx, sy) = match rank {
        0 => (1, 1, 1),
        _ => (to.dims[rank - 1], from.strides[rank - 1], to.strides[rank - 1]),
    };
    let outer = &to.dims[..rank.saturating_sub(1)];
    for row in 0..outer.iter().product() {
        let (mut rest, mut at, mut place): (usize, usize, usize) = (row, 0, 0);
        for (dim, &size) in outer.iter().enumerate().rev() {
            at += rest % size * from.strides[dim];
            place += rest % size * to.strides[dim];
            rest /= size;
        }
        // SAFETY: both views are inside their buffers, which do not overlap.
        unsafe {
            let (x, y) = (x.add(at), y.add(place));
            if (sx, sy) == (1, 1) {
                std::ptr::copy_nonoverlapping(x, y, inner);
            } else {
                (0..inner).for_each(|i| *y.add(i * sy) = *x.add(i * sx));
            }
        }
    }
}
