//! Loops over strided operands: one output element from the elements at the same place of up to three inputs. Dimensions
//! that are adjacent in every operand are merged, so that most calls are one flat loop; broadcasts are strides of zero.

use super::Memory;
use super::kernels::par::simd;
use super::kernels::pool;
use super::view::{View, row_major};

/// Elements of one piece of an inner loop: large enough to be worth a task, small enough to balance.
const PIECE: usize = 1 << 14;

/// The loop nest of an operation of `N` inputs.
pub(super) struct Nest<const N: usize> {
    /// Outer dimensions, merged.
    outer: Vec<usize>,
    /// Strides of the inputs in the outer dimensions.
    strides: [Vec<usize>; N],
    /// Elements of the innermost loop.
    inner: usize,
    /// Strides of the inputs in it.
    steps: [usize; N],
}

impl<const N: usize> Nest<N> {
    /// The nest over `dims`, which the inputs broadcast to. The output is contiguous.
    pub fn new(dims: &[usize], inputs: [&View; N]) -> Self {
        let inputs = inputs.map(|view| view.broadcast(dims));
        let out = row_major(dims);
        let mut merged: Vec<(usize, [usize; N], usize)> = Vec::new();
        for (i, &dim) in dims.iter().enumerate().filter(|(_, dim)| **dim != 1) {
            let strides = std::array::from_fn(|n| inputs[n].strides[i]);
            match merged.last_mut() {
                Some((size, above, step)) if *step == out[i] * dim && (0..N).all(|n| above[n] == strides[n] * dim) => {
                    (*size, *above, *step) = (*size * dim, strides, out[i]);
                }
                _ => merged.push((dim, strides, out[i])),
            }
        }
        let (inner, steps, _) = merged.pop().unwrap_or((1, [0; N], 1));
        let empty = dims.contains(&0);
        Self {
            outer: merged.iter().map(|m| m.0).collect(),
            strides: std::array::from_fn(|n| merged.iter().map(|m| m.1[n]).collect()),
            inner: if empty { 0 } else { inner },
            steps,
        }
    }

    /// Calls `f(offsets of the inputs, offset of the output, length)` for every piece, in parallel where it is much.
    fn for_pieces(&self, f: impl Fn([usize; N], usize, usize) + Sync) {
        let rows: usize = self.outer.iter().product();
        let pieces = self.inner.div_ceil(PIECE);
        let run = |item: usize| {
            let (row, start) = (item / pieces, item % pieces * PIECE);
            let mut offsets = [0; N];
            let mut rest = row;
            for (dim, &size) in self.outer.iter().enumerate().rev() {
                let index = rest % size;
                rest /= size;
                (0..N).for_each(|n| offsets[n] += index * self.strides[n][dim]);
            }
            (0..N).for_each(|n| offsets[n] += start * self.steps[n]);
            f(offsets, row * self.inner + start, PIECE.min(self.inner - start));
        };
        let items = rows * pieces;
        if rows * self.inner < 4 * PIECE {
            (0..items).for_each(run);
        } else {
            let each = (PIECE / self.inner.clamp(1, PIECE)).max(1);
            pool::run(items.div_ceil(each), true, &|piece| {
                (piece * each..items.min(piece * each + each)).for_each(run);
            });
        }
    }
}

/// Addresses that tasks share: each writes a part of the output that no other touches.
struct Addresses<T, U, const N: usize>([*const T; N], *mut U);
// SAFETY: see above; inputs are only read, or are exactly the written element.
unsafe impl<T, U, const N: usize> Sync for Addresses<T, U, N> {}

impl<T, U, const N: usize> Addresses<T, U, N> {
    /// Through a method, so that closures capture the whole and not the bare pointers.
    fn at(&self, offsets: [usize; N], out: usize) -> ([*const T; N], *mut U) {
        (
            std::array::from_fn(|n| self.0[n].wrapping_add(offsets[n])),
            self.1.wrapping_add(out),
        )
    }
}

/// `y[i] = f(x[i])`. `y` may be exactly `x`.
pub(super) fn map1<T: Copy, U: Copy>(
    memory: &Memory,
    nest: &Nest<1>,
    x: &View,
    y: &View,
    f: impl Fn(T) -> U + Copy + Sync,
) {
    let addresses = Addresses([x.pointer::<T>(memory).cast_const()], y.pointer::<U>(memory));
    let step = nest.steps[0];
    nest.for_pieces(|offsets, out, len| {
        let ([x], y) = addresses.at(offsets, out);
        simd(
            #[inline(always)]
            || {
                // SAFETY: the nest stays inside the views, and the plan gave their buffers room.
                unsafe {
                    match step {
                        1 => (0..len).for_each(|i| *y.add(i) = f(*x.add(i))),
                        0 => {
                            let value = f(*x);
                            (0..len).for_each(|i| *y.add(i) = value);
                        }
                        _ => (0..len).for_each(|i| *y.add(i) = f(*x.add(i * step))),
                    }
                }
            },
        );
    });
}

/// `z[i] = f(x[i], y[i])`. `z` may be exactly `x` or `y`.
pub(super) fn map2<T: Copy, U: Copy>(
    memory: &Memory,
    nest: &Nest<2>,
    inputs: [&View; 2],
    out: &View,
    f: impl Fn(T, T) -> U + Copy + Sync,
) {
    let addresses = Addresses(
        inputs.map(|v| v.pointer::<T>(memory).cast_const()),
        out.pointer::<U>(memory),
    );
    let [sx, sy] = nest.steps;
    nest.for_pieces(|offsets, out, len| {
        let ([x, y], z) = addresses.at(offsets, out);
        simd(
            #[inline(always)]
            || {
                // SAFETY: as in map1.
                unsafe {
                    match (sx, sy) {
                        (1, 1) => (0..len).for_each(|i| *z.add(i) = f(*x.add(i), *y.add(i))),
                        (1, 0) => {
                            let value = *y;
                            (0..len).for_each(|i| *z.add(i) = f(*x.add(i), value));
                        }
                        (0, 1) => {
                            let value = *x;
                            (0..len).for_each(|i| *z.add(i) = f(value, *y.add(i)));
                        }
                        _ => (0..len).for_each(|i| *z.add(i) = f(*x.add(i * sx), *y.add(i * sy))),
                    }
                }
            },
        );
    });
}

/// `z[i] = if mask[i] != 0 { x[i] } else { y[i] }`. `z` may be exactly `x` or `y`.
pub(super) fn select<T: Copy>(memory: &Memory, nest: &Nest<3>, mask: &View, inputs: [&View; 2], out: &View) {
    let addresses = Addresses(
        inputs.map(|v| v.pointer::<T>(memory).cast_const()),
        out.pointer::<T>(memory),
    );
    let masks = Addresses([mask.pointer::<u8>(memory).cast_const()], std::ptr::null_mut::<u8>());
    let [sm, sx, sy] = nest.steps;
    nest.for_pieces(|[at, first, second], out, len| {
        let ([x, y], z) = addresses.at([first, second], out);
        let ([m], _) = masks.at([at], 0);
        simd(
            #[inline(always)]
            || {
                // SAFETY: as in map1.
                unsafe {
                    for i in 0..len {
                        let (a, b) = (*x.add(i * sx), *y.add(i * sy));
                        *z.add(i) = if *m.add(i * sm) == 0 { b } else { a };
                    }
                }
            },
        );
    });
}

/// Copies `from` to the places of `to`: both strided, of the same dimensions.
pub(super) fn copy_strided<T: Copy>(memory: &Memory, from: &View, to: &View) {
    if to.len() == 0 {
        return;
    }
    let (x, y) = (from.pointer::<T>(memory).cast_const(), to.pointer::<T>(memory));
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
