//! Kernels that move elements by index: whole slices, single elements, boxes at run-time positions. Additions run in the
//! order of the indices, so results are the same on every run.

use super::reduce::{Block, Number};
use crate::error::{Error, Result};

/// Indices as they come: u32 or i64.
pub(super) trait Index: Copy + Sync + Send + 'static {
    fn signed(self) -> i64;
}

impl Index for u32 {
    fn signed(self) -> i64 {
        i64::from(self)
    }
}

impl Index for i64 {
    fn signed(self) -> i64 {
        self
    }
}

/// The index as a place in a dimension of `size`.
fn place<I: Index>(operation: &'static str, index: I, size: usize) -> Result<usize> {
    let index = index.signed();
    usize::try_from(index).ok().filter(|&i| i < size).ok_or(Error::Index { operation, index, size })
}

/// `out (outer, indices, inner)` from `x (outer, reduced, inner)`.
pub(super) fn select<T: Copy, I: Index>(block: Block, x: &[T], indices: &[I], out: &mut [T]) -> Result<()> {
    let mut parts = out.chunks_exact_mut(block.inner.max(1));
    for outer in 0..block.outer {
        for &index in indices {
            let from = (outer * block.reduced + place("IndexSelect", index, block.reduced)?) * block.inner;
            if let Some(part) = parts.next() {
                part.copy_from_slice(&x[from..from + block.inner]);
            }
        }
    }
    Ok(())
}

/// Adds `updates (outer, indices, inner)` to `out (outer, reduced, inner)`.
pub(super) fn add<T: Number, I: Index>(block: Block, indices: &[I], updates: &[T], out: &mut [T]) -> Result<()> {
    let mut parts = updates.chunks_exact(block.inner.max(1));
    for outer in 0..block.outer {
        for &index in indices {
            let to = (outer * block.reduced + place("IndexAdd", index, block.reduced)?) * block.inner;
            let Some(part) = parts.next() else { continue };
            for (out, &update) in out[to..to + block.inner].iter_mut().zip(part) {
                *out = plus(*out, update);
            }
        }
    }
    Ok(())
}

fn plus<T: Number>(a: T, b: T) -> T {
    let mut sum = a.widen();
    sum += b.widen();
    T::narrow(sum)
}

/// `out[o][i][n] = x[o][indices[o][i][n]][n]`; `picks` is the number of indices along the dimension.
pub(super) fn gather<T: Copy, I: Index>(
    block: Block,
    picks: usize,
    x: &[T],
    indices: &[I],
    out: &mut [T],
) -> Result<()> {
    for (i, (out, &index)) in out.iter_mut().zip(indices).enumerate() {
        let (outer, inner) = (i / (picks * block.inner), i % block.inner);
        *out = x[(outer * block.reduced + place("Gather", index, block.reduced)?) * block.inner + inner];
    }
    Ok(())
}

/// The adjoint of [`gather`]: adds.
pub(super) fn scatter_add<T: Number, I: Index>(
    block: Block,
    picks: usize,
    indices: &[I],
    updates: &[T],
    out: &mut [T],
) -> Result<()> {
    for (i, (&update, &index)) in updates.iter().zip(indices).enumerate() {
        let (outer, inner) = (i / (picks * block.inner), i % block.inner);
        let at = (outer * block.reduced + place("ScatterAdd", index, block.reduced)?) * block.inner + inner;
        out[at] = plus(out[at], update);
    }
    Ok(())
}

/// Where `position..position + length` begins, if it lies in a dimension of `size`.
pub(super) fn box_start(operation: &'static str, position: u32, length: usize, size: usize) -> Result<usize> {
    let position = position as usize;
    if position + length <= size {
        return Ok(position);
    }
    Err(Error::shape(operation, format!("{position}..{} is not inside a dimension of {size}", position + length)))
}

/// `out (outer, length, inner)` from `x (outer, size, inner)` at `start`.
pub(super) fn read_box<T: Copy>(block: Block, length: usize, start: usize, x: &[T], out: &mut [T]) {
    let row = length * block.inner;
    for (outer, out) in out.chunks_exact_mut(row.max(1)).enumerate() {
        let from = (outer * block.reduced + start) * block.inner;
        out.copy_from_slice(&x[from..from + row]);
    }
}

/// Writes `update (outer, length, inner)` into `out (outer, size, inner)` at `start`.
pub(super) fn write_box<T: Copy>(block: Block, length: usize, start: usize, update: &[T], out: &mut [T]) {
    let row = length * block.inner;
    for (outer, update) in update.chunks_exact(row.max(1)).enumerate() {
        let to = (outer * block.reduced + start) * block.inner;
        out[to..to + row].copy_from_slice(update);
    }
}
