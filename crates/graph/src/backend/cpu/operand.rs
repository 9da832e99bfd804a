//! The operands of a step. A step accesses memory only through the operands that it declared when it was made, so the
//! plan knows every buffer that its kernel reads or writes. Nothing else has an address.

use std::ops::Deref;

use smallvec::SmallVec;

use super::Memory;
use super::view::{BufferId, View};

/// The buffers that a step reads and writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    pub reads: SmallVec<[BufferId; 4]>,
    pub writes: SmallVec<[BufferId; 2]>,
}

impl Access {
    /// Whether the two steps conflict, so that their order matters.
    pub fn meets(&self, other: &Self) -> bool {
        let writes = |of: &Self, id: &BufferId| of.writes.contains(id);
        self.reads.iter().any(|id| writes(other, id))
            || self
                .writes
                .iter()
                .any(|id| writes(other, id) || other.reads.contains(id))
    }

    /// All buffers; those that are both read and written appear twice.
    pub fn buffers(&self) -> impl Iterator<Item = BufferId> + '_ {
        self.reads.iter().chain(&self.writes).copied()
    }

    /// Adds the accesses of another step.
    pub fn join(&mut self, other: &Self) {
        self.reads.extend_from_slice(&other.reads);
        self.writes.extend_from_slice(&other.writes);
    }
}

/// The declaration of a step: turns views into operands and records how they are accessed.
#[derive(Default)]
pub(super) struct Operands {
    declared: Declared,
    /// Total number of elements written.
    written: usize,
}

/// The views that a step reads and writes.
#[derive(Default)]
pub(super) struct Declared {
    pub reads: SmallVec<[View; 4]>,
    pub writes: SmallVec<[View; 2]>,
}

impl Declared {
    /// The buffers of the views.
    pub fn access(&self) -> Access {
        Access {
            reads: self.reads.iter().map(|view| view.buffer).collect(),
            writes: self.writes.iter().map(|view| view.buffer).collect(),
        }
    }

    /// Adds the declarations of another step.
    pub fn join(&mut self, other: Self) {
        self.reads.extend(other.reads);
        self.writes.extend(other.writes);
    }
}

impl Operands {
    /// A view whose elements the step reads.
    pub fn read(&mut self, view: &View) -> Read {
        self.declared.reads.push(view.clone());
        Read(view.clone())
    }

    /// Several views whose elements the step reads.
    pub fn read_all<'v>(&mut self, views: impl IntoIterator<Item = &'v View>) -> Vec<Read> {
        views.into_iter().map(|view| self.read(view)).collect()
    }

    /// A view whose every element the step writes; the rest of its buffer is left unchanged.
    pub fn write(&mut self, view: &View) -> Write {
        self.declared.writes.push(view.clone());
        self.written += view.len();
        Write(view.clone())
    }

    /// A view that the step updates: it may read the old elements and leave some unchanged.
    pub fn update(&mut self, view: &View) -> Write {
        self.declared.reads.push(view.clone());
        self.write(view)
    }

    /// The declarations, and whether the step writes any element.
    pub fn into_declared(self) -> (Declared, bool) {
        (self.declared, self.written > 0)
    }
}

/// An operand that a step reads.
#[derive(Debug)]
pub(super) struct Read(View);

/// An operand that a step writes.
#[derive(Debug)]
pub(super) struct Write(View);

impl Deref for Read {
    type Target = View;

    fn deref(&self) -> &View {
        &self.0
    }
}

impl Deref for Write {
    type Target = View;

    fn deref(&self) -> &View {
        &self.0
    }
}

fn address(view: &View, memory: &Memory) -> *mut u8 {
    memory.pointers[view.buffer].wrapping_add(view.offset * view.dtype.size_in_bytes())
}

fn typed<T>(view: &View, memory: &Memory) -> *mut T {
    debug_assert_eq!(size_of::<T>(), view.dtype.size_in_bytes(), "{view:?}");
    memory.pointers[view.buffer].cast::<T>().wrapping_add(view.offset)
}

impl Read {
    /// Address of the first element, for a type known at run time only.
    pub fn address(&self, memory: &Memory) -> *const u8 {
        address(&self.0, memory)
    }

    /// Address of the first element.
    pub fn pointer<T>(&self, memory: &Memory) -> *const T {
        typed(&self.0, memory)
    }

    /// The elements of a contiguous view.
    ///
    /// # Safety
    /// `T` is the dtype's type; the buffer is not written while the slice is alive.
    pub unsafe fn slice<'a, T>(&self, memory: &'a Memory) -> &'a [T] {
        debug_assert!(self.is_contiguous());
        // SAFETY: the plan gave the buffer room for the view; the caller vouches for type and exclusivity.
        unsafe { std::slice::from_raw_parts(self.pointer::<T>(memory), self.len()) }
    }

    /// The memory of a strided view from its first to its last element.
    ///
    /// # Safety
    /// `T` is the dtype's type; the buffer is not written while the slice is alive.
    pub unsafe fn span<'a, T>(&self, memory: &'a Memory) -> &'a [T] {
        // SAFETY: the last element of the view is inside the buffer.
        unsafe { std::slice::from_raw_parts(self.pointer::<T>(memory), self.reach()) }
    }
}

impl Write {
    /// Address of the first element, for a type known at run time only.
    pub fn address(&self, memory: &Memory) -> *mut u8 {
        address(&self.0, memory)
    }

    /// Address of the first element.
    pub fn pointer<T>(&self, memory: &Memory) -> *mut T {
        typed(&self.0, memory)
    }

    /// The elements of a contiguous view, writable.
    ///
    /// # Safety
    /// `T` is the dtype's type; the buffer is not accessed elsewhere while the slice is alive.
    #[allow(clippy::mut_from_ref)] // memory is a table of raw pointers
    pub unsafe fn slice_mut<'a, T>(&self, memory: &'a Memory) -> &'a mut [T] {
        debug_assert!(self.is_contiguous());
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.pointer::<T>(memory), self.len()) }
    }
}
