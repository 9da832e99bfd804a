//! The operands of a step. A step reaches memory only through the operands that it declared when it was made, so what the
//! plan believes a step to read and write is what its kernel can name. Nothing else has an address.

use std::ops::Deref;

use smallvec::SmallVec;

use super::Memory;
use super::view::{BufferId, View};

/// The buffers that a step touches.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    pub reads: SmallVec<[BufferId; 4]>,
    pub writes: SmallVec<[BufferId; 2]>,
}

impl Access {
    /// Whether the order of the two matters.
    pub fn meets(&self, other: &Self) -> bool {
        let writes = |of: &Self, id: &BufferId| of.writes.contains(id);
        self.reads.iter().any(|id| writes(other, id))
            || self
                .writes
                .iter()
                .any(|id| writes(other, id) || other.reads.contains(id))
    }

    /// All buffers, those that are read and written twice.
    pub fn buffers(&self) -> impl Iterator<Item = BufferId> + '_ {
        self.reads.iter().chain(&self.writes).copied()
    }

    /// Takes in what another step touches.
    pub fn join(&mut self, other: &Self) {
        self.reads.extend_from_slice(&other.reads);
        self.writes.extend_from_slice(&other.writes);
    }
}

/// The declaration of a step: turns views into operands and notes what they are for.
#[derive(Default)]
pub(super) struct Operands {
    declared: Declared,
    /// Elements of all that is written.
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

    /// Takes in what another step declared.
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

    /// A view whose every element the step writes; so much of its buffer as lies outside the view stays as it is.
    pub fn write(&mut self, view: &View) -> Write {
        self.declared.writes.push(view.clone());
        self.written += view.len();
        Write(view.clone())
    }

    /// A view that the step changes: what it does not write stays as it is, and it may read what was there.
    pub fn update(&mut self, view: &View) -> Write {
        self.declared.reads.push(view.clone());
        self.write(view)
    }

    /// What was declared, and whether the step writes anything.
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
    /// `T` is the dtype's type; nobody writes the buffer while the slice lives.
    pub unsafe fn slice<'a, T>(&self, memory: &'a Memory) -> &'a [T] {
        debug_assert!(self.is_contiguous());
        // SAFETY: the plan gave the buffer room for the view; the caller vouches for type and exclusivity.
        unsafe { std::slice::from_raw_parts(self.pointer::<T>(memory), self.len()) }
    }

    /// Everything from the first element to the end of a strided view.
    ///
    /// # Safety
    /// `T` is the dtype's type; nobody writes the buffer while the slice lives.
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

    /// The elements of a contiguous view, to be written.
    ///
    /// # Safety
    /// `T` is the dtype's type; nobody else reads or writes the buffer while the slice lives.
    #[allow(clippy::mut_from_ref)] // memory is a table of raw pointers
    pub unsafe fn slice_mut<'a, T>(&self, memory: &'a Memory) -> &'a mut [T] {
        debug_assert!(self.is_contiguous());
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.pointer::<T>(memory), self.len()) }
    }
}
