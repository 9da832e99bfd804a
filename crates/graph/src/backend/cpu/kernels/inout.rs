//! A kernel's input and output, which may be the same memory.

use std::marker::PhantomData;

/// An input and an output of equal length that are either disjoint or exactly the same memory.
///
/// A kernel reads each block of the input before it writes the same block of the output.
pub struct InOut<'a, T> {
    src: *const T,
    dst: *mut T,
    len: usize,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: it represents a `&[T]` and a `&mut [T]`, which may cross threads if T may.
unsafe impl<T: Send + Sync> Sync for InOut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for InOut<'_, T> {}

#[allow(clippy::needless_lifetimes, clippy::elidable_lifetime_names)] // the constructors of the tests name it
impl<'a, T> InOut<'a, T> {
    /// Two distinct buffers.
    #[cfg(test)]
    ///
    /// # Panics
    /// If the lengths differ.
    #[must_use]
    pub fn new(src: &'a [T], dst: &'a mut [T]) -> Self {
        assert_eq!(src.len(), dst.len(), "input and output lengths differ");
        InOut {
            src: src.as_ptr(),
            dst: dst.as_mut_ptr(),
            len: dst.len(),
            memory: PhantomData,
        }
    }

    /// In place: the output is the input.
    #[cfg(test)]
    #[must_use]
    pub fn in_place(buffer: &'a mut [T]) -> Self {
        let dst = buffer.as_mut_ptr();
        InOut {
            src: dst,
            dst,
            len: buffer.len(),
            memory: PhantomData,
        }
    }

    /// From raw memory.
    ///
    /// # Safety
    /// `src` is readable and `dst` writable for `len` elements while the value is alive, `dst` is not accessed
    /// elsewhere meanwhile, and the two ranges are equal or disjoint.
    #[must_use]
    pub unsafe fn from_raw(src: *const T, dst: *mut T, len: usize) -> Self {
        InOut {
            src,
            dst,
            len,
            memory: PhantomData,
        }
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    pub(super) fn src(&self) -> *const T {
        self.src
    }

    pub(super) fn dst(&self) -> *mut T {
        self.dst
    }
}
