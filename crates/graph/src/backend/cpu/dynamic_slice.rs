//! Slices at run-time positions: reading and writing `length` indices of a dimension.

use crate::error::{Error, Result};

/// A shape seen as `(outer, size, inner)` around one dimension.
#[derive(Debug, Clone, Copy)]
pub(super) struct SliceShape {
    pub outer: usize,
    pub size: usize,
    pub inner: usize,
}

/// `(outer, dims[dim], inner)`
pub(super) fn slice_shape(dims: &[usize], dim: usize) -> SliceShape {
    SliceShape {
        outer: dims[..dim].iter().product(),
        size: dims[dim],
        inner: dims[dim + 1..].iter().product(),
    }
}

/// Checks that `position..position + length` lies in a dimension of `size`.
pub(super) fn check_range(operation: &'static str, position: u32, length: usize, size: usize) -> Result<()> {
    let position = position as usize;
    if position + length <= size {
        return Ok(());
    }
    Err(Error::Range {
        operation,
        start: position,
        end: position + length,
        size,
    })
}

/// `out (outer, length, inner)` from `x (outer, size, inner)` at `start`.
pub(super) fn read_slice<T: Copy>(block: SliceShape, length: usize, start: usize, x: &[T], out: &mut [T]) {
    let row = length * block.inner;
    for (outer, out) in out.chunks_exact_mut(row.max(1)).enumerate() {
        let from = (outer * block.size + start) * block.inner;
        out.copy_from_slice(&x[from..from + row]);
    }
}

/// Writes `update (outer, length, inner)` into `out (outer, size, inner)` at `start`.
pub(super) fn write_slice<T: Copy>(block: SliceShape, length: usize, start: usize, update: &[T], out: &mut [T]) {
    let row = length * block.inner;
    for (outer, update) in update.chunks_exact(row.max(1)).enumerate() {
        let to = (outer * block.size + start) * block.inner;
        out[to..to + row].copy_from_slice(update);
    }
}
