//! Scratch memory of kernels. A thread keeps its scratch buffers for its next task, so that kernels that run repeatedly
//! do not allocate.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::float::Float;

/// A cache line of any bits.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _bits: [u64; 8],
}

thread_local! {
    /// Free buffers; the one for the outermost call is last.
    static SPARE: Cell<Vec<Vec<Line>>> = const { Cell::new(Vec::new()) };
}

/// Buffers up to this size in bytes are kept by a thread.
const KEPT_BYTES: usize = 64 << 20;

/// Takes a buffer with capacity for `len` values.
fn take<P>(len: usize) -> Vec<Line> {
    const { assert!(align_of::<P>() <= align_of::<Line>()) };
    let lines = (len * size_of::<P>()).div_ceil(size_of::<Line>());
    let mut spare = SPARE.take();
    let buffer = spare.pop().unwrap_or_default();
    SPARE.set(spare);
    if buffer.len() < lines {
        return vec![Line { _bits: [0; 8] }; lines];
    }
    buffer
}

fn give_back(buffer: Vec<Line>) {
    if buffer.len() * size_of::<Line>() <= KEPT_BYTES {
        let mut spare = SPARE.take();
        spare.push(buffer);
        SPARE.set(spare);
    }
}

/// Calls `f` with uninitialised scratch of `len` elements, aligned to a cache line. Calls may nest.
pub(crate) fn with_scratch<A: Float, R>(len: usize, f: impl FnOnce(&mut [A]) -> R) -> R {
    with_space(len, |space: *mut A| {
        // SAFETY: the memory belongs to this call, and any bits are valid Floats.
        f(unsafe { std::slice::from_raw_parts_mut(space, len) })
    })
}

/// Calls `f` with a pointer to memory for `len` values, aligned to a cache line. Calls may nest.
pub(crate) fn with_space<P, R>(len: usize, f: impl FnOnce(*mut P) -> R) -> R {
    if len == 0 {
        return f(NonNull::<Line>::dangling().as_ptr().cast());
    }
    let mut buffer = take::<P>(len);
    let result = f(buffer.as_mut_ptr().cast());
    give_back(buffer);
    result
}

/// A vector in scratch memory.
pub(crate) struct Filled<P> {
    buffer: Vec<Line>,
    len: usize,
    values: PhantomData<P>,
}

impl<P: Copy> Filled<P> {
    /// A vector of `len` copies of `value`.
    pub(crate) fn new(len: usize, value: P) -> Self {
        let mut buffer = take::<P>(len);
        let first = buffer.as_mut_ptr().cast::<P>();
        for i in 0..len {
            // SAFETY: the buffer has capacity for `len` values, aligned.
            unsafe { first.add(i).write(value) };
        }
        let values = PhantomData;
        Self { buffer, len, values }
    }

    /// Truncates to `len` values.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl<P> Deref for Filled<P> {
    type Target = [P];

    fn deref(&self) -> &[P] {
        // SAFETY: `new` wrote that many values.
        unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast(), self.len) }
    }
}

impl<P> DerefMut for Filled<P> {
    fn deref_mut(&mut self) -> &mut [P] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.as_mut_ptr().cast(), self.len) }
    }
}

impl<P> Drop for Filled<P> {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_scratch_does_not_overlap() {
        for round in 1..4usize {
            let mut pairs = Filled::new(100 * round, (7usize, round));
            let bytes = Filled::new(3, 9u8);
            with_scratch(50 * round, |scratch: &mut [f64]| scratch.fill(1.5));
            pairs.truncate(50);
            assert!(pairs.len() == 50 && pairs.iter().all(|&pair| pair == (7, round)));
            assert_eq!(*bytes, [9; 3]);
        }
        assert!(Filled::new(0, 1.0f32).is_empty());
    }
}
