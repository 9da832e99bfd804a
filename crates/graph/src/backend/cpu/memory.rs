//! Memory planning: one arena per run, with offsets that are fixed when the plan is made, from the live range of each
//! buffer (first write to last read). Arenas are kept for later runs.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error, realloc};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::kernels::pool::threads;

/// Cache-line alignment, so that vectors do not straddle lines.
pub(super) const ALIGNMENT: usize = 64;

/// The live range of one buffer, in steps, and its size.
#[derive(Debug, Clone, Copy)]
pub(super) struct LiveRange {
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

/// With this many buffers or more, they are placed in order of first use: the search over all others would be
/// quadratic.
const MANY: usize = 4096;

/// Offsets of buffers such that two with overlapping live ranges never overlap in memory, and the arena's size.
pub(super) fn place(live_ranges: &[LiveRange]) -> (Vec<usize>, usize) {
    if live_ranges.len() < MANY {
        by_size(live_ranges)
    } else {
        by_time(live_ranges)
    }
}

/// Greedy by size: the largest first, each at the lowest offset that is free over its live range.
fn by_size(live_ranges: &[LiveRange]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..live_ranges.len()).collect();
    order.sort_by_key(|&i| (Reverse(live_ranges[i].bytes), live_ranges[i].first));
    let mut offsets = vec![0; live_ranges.len()];
    // Placed buffers by offset.
    let mut placed: Vec<usize> = Vec::new();
    let mut size = 0;
    for i in order {
        let life = live_ranges[i];
        let bytes = life.bytes.next_multiple_of(ALIGNMENT);
        let mut offset = 0;
        for &other in &placed {
            let taken = live_ranges[other];
            if taken.first <= life.last && life.first <= taken.last {
                if offset + bytes <= offsets[other] {
                    break;
                }
                offset = offset.max(offsets[other] + taken.bytes.next_multiple_of(ALIGNMENT));
            }
        }
        offsets[i] = offset;
        size = size.max(offset + bytes);
        let position = placed.partition_point(|&other| offsets[other] <= offset);
        placed.insert(position, i);
    }
    (offsets, size)
}

/// In the order of their first steps, each in the smallest free range that fits (best fit), like an allocator.
fn by_time(live_ranges: &[LiveRange]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..live_ranges.len()).collect();
    order.sort_by_key(|&i| (live_ranges[i].first, Reverse(live_ranges[i].bytes)));
    let mut offsets = vec![0; live_ranges.len()];
    let mut free_ranges = FreeRanges::default();
    let mut alive: BinaryHeap<Reverse<(usize, usize)>> = BinaryHeap::new();
    for i in order {
        while let Some(&Reverse((last, ended))) = alive.peek() {
            if last >= live_ranges[i].first {
                break;
            }
            alive.pop();
            free_ranges.free(offsets[ended], live_ranges[ended].bytes.next_multiple_of(ALIGNMENT));
        }
        offsets[i] = free_ranges.take(live_ranges[i].bytes.next_multiple_of(ALIGNMENT));
        alive.push(Reverse((live_ranges[i].last, i)));
    }
    (offsets, free_ranges.end)
}

/// Free ranges of an arena that grows at its end.
#[derive(Default)]
struct FreeRanges {
    /// Length by offset; adjacent ranges are merged.
    by_offset: BTreeMap<usize, usize>,
    /// `(length, offset)` of the same.
    by_length: BTreeSet<(usize, usize)>,
    end: usize,
}

impl FreeRanges {
    fn take(&mut self, bytes: usize) -> usize {
        let Some(&(length, offset)) = self.by_length.range((bytes, 0)..).next() else {
            self.end += bytes;
            return self.end - bytes;
        };
        self.remove(offset, length);
        if length > bytes {
            self.insert(offset + bytes, length - bytes);
        }
        offset
    }

    fn free(&mut self, offset: usize, bytes: usize) {
        let (mut start, mut length) = (offset, bytes);
        if let Some((&before, &size)) = self.by_offset.range(..offset).next_back()
            && before + size == offset
        {
            self.remove(before, size);
            (start, length) = (before, length + size);
        }
        if let Some(&size) = self.by_offset.get(&(offset + bytes)) {
            self.remove(offset + bytes, size);
            length += size;
        }
        self.insert(start, length);
    }

    fn insert(&mut self, offset: usize, length: usize) {
        // An empty buffer takes no space.
        if length > 0 {
            self.by_offset.insert(offset, length);
            self.by_length.insert((length, offset));
        }
    }

    fn remove(&mut self, offset: usize, length: usize) {
        self.by_offset.remove(&offset);
        self.by_length.remove(&(length, offset));
    }
}

/// Aligned, uninitialised bytes.
pub(super) struct Arena {
    /// An allocation of `bytes` plus the alignment.
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: an arena is plain memory with a single owner.
unsafe impl Send for Arena {}

impl Arena {
    fn new(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        // SAFETY: the size is not zero.
        let pointer = unsafe { alloc(layout) };
        if pointer.is_null() {
            handle_alloc_error(layout);
        }
        Self { pointer, bytes }
    }

    /// Grows the arena. The system remaps pages where it can; touching fresh pages is most of the cost of an
    /// allocation.
    fn grow(&mut self, bytes: usize) {
        let layout = Self::layout(bytes);
        // SAFETY: allocated with this layout; the new size is not zero, and `layout` checked that it is possible.
        let pointer = unsafe { realloc(self.pointer, Self::layout(self.bytes), layout.size()) };
        if pointer.is_null() {
            handle_alloc_error(layout);
        }
        (self.pointer, self.bytes) = (pointer, bytes);
    }

    /// The address of the first byte.
    fn start(&self) -> *mut u8 {
        self.pointer.wrapping_add(self.pointer.align_offset(ALIGNMENT))
    }

    /// With the alignment of two words: with a larger one, growing would copy.
    fn layout(bytes: usize) -> Layout {
        Layout::array::<u128>((bytes + ALIGNMENT).div_ceil(size_of::<u128>()))
            .unwrap_or_else(|_| handle_alloc_error(Layout::new::<u128>()))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout.
        unsafe { dealloc(self.pointer, Self::layout(self.bytes)) }
    }
}

/// Free arenas, by size.
static SPARE: Mutex<Vec<Arena>> = Mutex::new(Vec::new());

fn spare() -> MutexGuard<'static, Vec<Arena>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees all free arenas.
pub(super) fn release() {
    let arenas = std::mem::take(&mut *spare());
    drop(arenas);
}

/// Plans with an arena of at most this size in bytes use the stack instead.
const SMALL: usize = 4096;

#[repr(C, align(64))]
struct Small([MaybeUninit<u8>; SMALL]);

/// Calls `f` with the address of an arena of at least `bytes`: the smallest free one that is large enough, else the
/// largest, grown.
pub(super) fn with_arena<R>(bytes: usize, f: impl FnOnce(*mut u8) -> R) -> R {
    if bytes <= SMALL {
        let mut small = Small([MaybeUninit::uninit(); SMALL]);
        return f(small.0.as_mut_ptr().cast());
    }
    let taken = {
        let mut spare = spare();
        let fitting = spare.partition_point(|arena| arena.bytes < bytes);
        if fitting < spare.len() {
            Some(spare.remove(fitting))
        } else {
            spare.pop()
        }
    };
    let mut arena = taken.unwrap_or_else(|| Arena::new(bytes));
    if arena.bytes < bytes {
        arena.grow(bytes);
    }
    let result = f(arena.start());
    let mut spare = spare();
    let place = spare.partition_point(|other| other.bytes <= arena.bytes);
    spare.insert(place, arena);
    // One for each run that can be active at once; the larger ones are kept.
    let surplus = spare.len().saturating_sub(threads().max(2));
    drop(spare.drain(..surplus).collect::<Vec<_>>());
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_are_aligned_disjoint_and_grow() {
        let fill = |arena: *mut u8, bytes: usize, value: u8| {
            assert!(arena.addr().is_multiple_of(ALIGNMENT));
            // SAFETY: the arena belongs to this call and has that size.
            unsafe { arena.write_bytes(value, bytes) };
        };
        for bytes in [100, SMALL, SMALL + 1, 3 * SMALL, 2 * SMALL] {
            with_arena(bytes, |outer| {
                fill(outer, bytes, 1);
                with_arena(bytes + 64, |inner| fill(inner, bytes + 64, 2));
                // SAFETY: written above.
                assert!((0..bytes).all(|at| unsafe { *outer.add(at) } == 1));
            });
        }
        release();
        with_arena(2 * SMALL, |arena| fill(arena, 2 * SMALL, 3));
    }

    #[test]
    fn buffers_with_overlapping_live_ranges_are_disjoint() {
        let numbers: Vec<u32> = crate::random::bits([5, 6], [7, 8]).take(600).collect();
        let live_ranges: Vec<LiveRange> = numbers
            .chunks(3)
            .map(|n| {
                let first = n[0] as usize % 100;
                LiveRange {
                    bytes: 1 + n[1] as usize % 5000,
                    first,
                    last: first + n[2] as usize % 10,
                }
            })
            .collect();
        for (name, (offsets, size)) in [("by size", by_size(&live_ranges)), ("by time", by_time(&live_ranges))] {
            for i in 0..live_ranges.len() {
                assert!(offsets[i] + live_ranges[i].bytes <= size && offsets[i].is_multiple_of(ALIGNMENT));
                for j in 0..i {
                    let together =
                        live_ranges[i].first <= live_ranges[j].last && live_ranges[j].first <= live_ranges[i].last;
                    let apart = offsets[i] + live_ranges[i].bytes <= offsets[j]
                        || offsets[j] + live_ranges[j].bytes <= offsets[i];
                    assert!(!together || apart, "{name}: {i} and {j} share memory");
                }
            }
            let total: usize = live_ranges.iter().map(|life| life.bytes).sum();
            assert!(size < total / 4, "{name}: {size} of {total}: memory is reused");
        }
    }
}
