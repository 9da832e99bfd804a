//! Products tile by tile: B is cut into panels of columns, which are packed unless they can be read in place, and so
//! are the rows of A. How sums are computed depends on the sizes alone, how they are split over threads also on the
//! number of threads.

use std::mem::MaybeUninit;
use std::ops::Range;

use smallvec::SmallVec;

use super::super::float::{Float, Real};
use super::super::par::{for_pieces, prefetch, with_space};
use super::super::pool::threads;
use super::super::tuning::matmul::{
    CHUNK, CHUNK_BYTES, FEW_ROWS, NARROW_ROWS, PANEL_BYTES, ROW_BYTES, ROW_TERMS, TASK_ROWS, TASKS,
};
use super::drive::{FACTORS, Factors, LINE, Product};
use super::kernel::{Kernel, TILE, Tile};
use super::lines::{Lines, group_height, pack_rows};
use super::pack::{Block, Entry};

/// The columns of B as a kernel reads them; see [`Tile`].
struct Panel<P> {
    ptr: *const P,
    step: usize,
    steps: usize,
    cols: usize,
}

impl<S> Factors<S> {
    /// Prefetches part `part` of `parts` of some columns of B.
    fn ask_for(&self, columns: &Range<usize>, part: usize, parts: usize) {
        // Contiguous runs of elements: columns, or parts of rows.
        let (runs, length, step) = if self.b.rows == 1 {
            (columns.len(), self.k, self.b.cols)
        } else {
            (self.k, columns.len(), self.b.rows)
        };
        let bytes = length * size_of::<S>();
        let first = self.b.at(0, columns.start).ptr;
        for run in part * runs / parts..(part + 1) * runs / parts {
            let run = first.wrapping_offset(run as isize * step).cast::<u8>();
            (0..bytes).step_by(LINE).for_each(|at| prefetch(run.wrapping_add(at)));
        }
    }
}

impl<S: Float, C: Float<Acc = S::Acc>> Product<'_, S, C> {
    /// Packs each A, a chunk of rows at a time.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    pub(super) unsafe fn packed<P: Entry<S>>(&self, kernel: &Kernel<P, S::Acc>, parallel: bool) {
        let (m, n) = self.dims;
        if n <= kernel.vectors * kernel.lanes {
            // SAFETY: forwarded from the caller.
            return unsafe { self.narrow(kernel, parallel) };
        }
        let steps = |factors: &Factors<S>| factors.k.div_ceil(P::TERMS);
        let row: usize = self.factors.iter().map(steps).sum();
        let chunk = (CHUNK_BYTES / (row * size_of::<P>())).clamp(TASK_ROWS, CHUNK);
        let heights = self.factors.iter().map(|f| group_height(kernel, f));
        let height = heights.max().unwrap_or(kernel.rows);
        let chunk = chunk.next_multiple_of(height);
        for first in (0..m).step_by(chunk) {
            let rows = chunk.min(m - first);
            let padded = rows.next_multiple_of(height);
            with_space(padded * row, |mut space: *mut P| {
                let pack = |factors: &Factors<S>| {
                    let to = space;
                    space = space.wrapping_add(padded * steps(factors));
                    // SAFETY: the rows are inside A, and the buffer has capacity for them.
                    unsafe { pack_rows(kernel, factors, (first, rows), to, parallel) }
                };
                let lines: SmallVec<[Lines<P>; FACTORS]> = self.factors.iter().map(pack).collect();
                // SAFETY: forwarded from the caller; the lines hold these rows.
                unsafe { self.tiles(kernel, &lines, (first, rows), parallel) };
            });
        }
    }

    /// Computes the tiles; `a` holds the rows from `first` on, of each product.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    pub(super) unsafe fn tiles<P: Entry<S>>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        a: &[Lines<P>],
        (first, rows): (usize, usize),
        parallel: bool,
    ) {
        let n = self.dims.1;
        // Panels of about equal width: a narrow remainder is slow.
        let across = n.div_ceil(kernel.vectors * kernel.lanes);
        let width = n.div_ceil(across).next_multiple_of(kernel.lanes);
        let lies = self.factors.iter().all(|f| self.is_read_in_place::<P>(f));
        let shares = |f: &Factors<S>| f.b.cols == 1 && !self.is_read_in_place::<P>(f);
        let terms: usize = self.factors.iter().map(|f| f.k).sum();
        let by_rows = kernel.reads_lines || terms <= ROW_TERMS && terms * n * size_of::<S>() <= ROW_BYTES;
        let threads = if parallel { threads() } else { 1 };
        let shared = if kernel.reads_lines {
            // Rows of A stay in the L1 cache for several panels.
            let panel = terms * width * size_of::<S>();
            (across / (TASKS * threads)).min(PANEL_BYTES / panel).max(1)
        } else if by_rows && rows > kernel.rows {
            across
        } else if lies && rows <= kernel.rows {
            // Nothing to pack, and little work per panel.
            FACTORS / self.factors.len()
        } else if self.factors.iter().any(shares) {
            // Panels that share cache lines of a row-major B are packed together.
            LINE.div_ceil(width * size_of::<S>())
        } else {
            1
        };
        let (mut across, mut unit) = (across.div_ceil(shared), shared * width);
        if shared == 1 && !kernel.reads_lines && across >= TASKS * threads {
            // Each thread gets the same number of columns, up to a vector.
            unit = kernel.lanes;
            across = across.next_multiple_of(threads).min(n.div_ceil(unit));
        }
        let edge = |task: usize| n.min(task * n.div_ceil(unit) / across * unit);
        // Few columns: the rows are split too.
        let least = if across == 1 { NARROW_ROWS } else { TASK_ROWS };
        let down = (TASKS * threads).div_ceil(across).clamp(1, rows.div_ceil(least));
        let task_rows = rows.div_ceil(down).next_multiple_of(kernel.rows);
        let count = across * rows.div_ceil(task_rows);
        for_pieces(count, 1, parallel, |task, _| {
            let task = in_turns(task, count, threads);
            let (column, i) = (task % across, task / across * task_rows);
            // With few rows there is no time to prefetch the next panels.
            let ahead = usize::from(rows > FEW_ROWS);
            let columns = Columns {
                own: edge(column)..edge(column + 1),
                width,
                by_rows,
                next: edge(column + 1)..edge(column + 1 + ahead),
            };
            // SAFETY: the tile belongs to this task.
            unsafe { self.columns(kernel, a, (first, i, task_rows.min(rows - i)), &columns) };
        });
    }

    /// A single panel of columns: rows of each A are packed by the task that multiplies them, and stay in its cache.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn narrow<P: Entry<S>>(&self, kernel: &Kernel<P, S::Acc>, parallel: bool) {
        let (m, n) = self.dims;
        let stride = n.next_multiple_of(kernel.lanes);
        // A multiple of tiles, groups, and transposed blocks.
        let heights = self.factors.iter().map(|f| group_height(kernel, f));
        let height = heights.max().unwrap_or(kernel.rows);
        let is_transposed = self.factors.iter().any(|f| f.a.rows == 1 && f.a.cols != 1);
        let edge = kernel
            .transpose
            .as_ref()
            .filter(|_| is_transposed)
            .map_or(1, |transpose| transpose.edge);
        let height = height * (edge / gcd(height, edge));
        let tasks = if parallel { TASKS * threads() } else { 1 };
        let down = tasks.clamp(1, m.div_ceil(NARROW_ROWS));
        let task_rows = m.div_ceil(down).next_multiple_of(height);
        let steps: usize = self.factors.iter().map(|f| f.k.div_ceil(P::TERMS)).sum();
        for_pieces(m, task_rows, parallel, |_, range| {
            with_space(height * steps, |space: *mut P| {
                // SAFETY: these are all columns; the rows belong to this task, and the buffer has capacity for them.
                unsafe {
                    let columns = Columns {
                        own: 0..n,
                        width: stride,
                        by_rows: false,
                        next: 0..0,
                    };
                    self.with_panels(kernel, &columns, |panels| {
                        for i in range.clone().step_by(height) {
                            let rows = height.min(range.end - i);
                            let mut space = space;
                            let pack = |factors: &Factors<S>| {
                                let to = space;
                                space = space.wrapping_add(height * factors.k.div_ceil(P::TERMS));
                                pack_rows(kernel, factors, (i, rows), to, false)
                            };
                            let lines: SmallVec<[Lines<P>; FACTORS]> = self.factors.iter().map(pack).collect();
                            self.rows_of_tiles(kernel, (&lines, panels), (i, 0, rows), &columns);
                        }
                    });
                }
            });
        });
    }

    /// Computes the tiles of some columns.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn columns<P: Entry<S>>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        a: &[Lines<P>],
        rows: (usize, usize, usize),
        columns: &Columns,
    ) {
        // SAFETY: forwarded from the caller.
        unsafe {
            self.with_panels(kernel, columns, |panels| {
                self.rows_of_tiles(kernel, (a, panels), rows, columns);
            });
        }
    }

    /// Calls `f` with the panels of each B for the same columns.
    ///
    /// # Safety
    /// The columns are inside each B.
    #[inline(always)]
    unsafe fn with_panels<P: Entry<S>>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        columns: &Columns,
        f: impl FnOnce(&[Panel<P>]),
    ) {
        let strides = columns.panels().map(|own| own.len().next_multiple_of(kernel.lanes));
        let packed = self.factors.iter().filter(|f| !self.is_read_in_place::<P>(f));
        let steps: usize = packed.map(|f| f.k.div_ceil(P::TERMS)).sum();
        with_space(steps * strides.sum::<usize>(), |mut space: *mut P| {
            let mut panels = SmallVec::<[Panel<P>; FACTORS]>::new();
            for own in columns.panels() {
                let stride = own.len().next_multiple_of(kernel.lanes);
                // SAFETY: guaranteed by the caller, and the buffer holds these panels.
                unsafe { self.panels(kernel, space, (own.start, own.len(), stride), &mut panels) };
                space = space.wrapping_add(steps * stride);
            }
            f(&panels);
        });
    }

    /// Computes the tiles of some columns in some rows: `rows` of them from line `start` of `a` on, line 0 being row
    /// `first`. Prefetches the next columns meanwhile.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    #[inline(always)]
    unsafe fn rows_of_tiles<P: Entry<S>>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        (a, panels): (&[Lines<P>], &[Panel<P>]),
        (first, start, rows): (usize, usize, usize),
        columns: &Columns,
    ) {
        let mut room = Room([const { MaybeUninit::<S::Acc>::uninit() }; TILE]);
        let used = &mut room.0[..kernel.rows.min(rows) * columns.width.next_multiple_of(kernel.lanes)];
        used.fill(MaybeUninit::new(S::Acc::ZERO));
        // SAFETY: initialised above.
        let room = unsafe { std::slice::from_raw_parts_mut(used.as_mut_ptr().cast::<S::Acc>(), used.len()) };
        let (tiles, across) = (rows.div_ceil(kernel.rows), columns.panels().len());
        for part in 0..tiles * across {
            let (number, tile) = if columns.by_rows {
                (part % across, part / across)
            } else {
                (part / tiles, part % tiles)
            };
            if !columns.next.is_empty() {
                let ask = |factors: &Factors<S>| factors.ask_for(&columns.next, part, tiles * across);
                self.factors.iter().for_each(ask);
            }
            let i = start + tile * kernel.rows;
            let (own, count) = (columns.panel(number), kernel.rows.min(start + rows - i));
            let (j, cols, stride) = (own.start, own.len(), own.len().next_multiple_of(kernel.lanes));
            let sums = &mut room[..kernel.rows.min(rows) * stride];
            let direct = cols == stride && self.sums_in_place();
            let place = self.c.wrapping_add((first + i) * self.c_row + j);
            let (out, out_row) = if direct {
                (place.cast(), self.c_row)
            } else {
                (sums.as_mut_ptr(), stride)
            };
            let panels = panels[number * self.factors.len()..].iter();
            for (number, (a, panel)) in a.iter().zip(panels).enumerate() {
                let tile = Tile {
                    steps: panel.steps,
                    a: a.at(i),
                    a_row: a.line,
                    a_step: a.step,
                    rows: count,
                    b: panel.ptr,
                    b_step: panel.step,
                    cols: panel.cols,
                    add: number > 0 || direct && !self.addends.is_empty(),
                    out,
                    out_row,
                };
                // SAFETY: the operands are in bounds; a tile has at most TILE sums.
                unsafe { (kernel.tile)(&tile) };
            }
            if !direct {
                // SAFETY: the block is inside C.
                unsafe { self.write(kernel, sums, stride, (first + i, j), (count, cols)) };
            }
        }
        if let Some(release) = kernel.release {
            // SAFETY: the machine has the kernel's instructions.
            unsafe { release() };
        }
    }

    /// Adds the columns from `j` on of each B to the panels, in place or packed into the buffer.
    ///
    /// # Safety
    /// The columns are inside each B; the buffer has capacity for `stride` columns of each.
    unsafe fn panels<P: Entry<S>>(
        &self,
        kernel: &Kernel<P, S::Acc>,
        mut space: *mut P,
        (j, cols, stride): (usize, usize, usize),
        panels: &mut SmallVec<[Panel<P>; FACTORS]>,
    ) {
        let panel = |factors: &Factors<S>| {
            let steps = factors.k.div_ceil(P::TERMS);
            let from = factors.b.at(0, j);
            if self.is_read_in_place::<P>(factors) {
                let (ptr, step) = (from.ptr.cast(), from.rows as usize);
                return Panel { ptr, step, steps, cols };
            }
            let ptr = space;
            space = space.wrapping_add(steps * stride);
            let block = Block {
                from,
                terms: factors.k,
                cols,
            };
            // SAFETY: guaranteed by the caller.
            unsafe {
                if cols < stride {
                    std::ptr::write_bytes(ptr, 0, steps * stride);
                }
                block.pack(kernel, stride, ptr);
            }
            let (step, cols) = (stride, stride);
            Panel { ptr, step, steps, cols }
        };
        panels.extend(self.factors.iter().map(panel));
    }
}

/// Accumulators of a tile, whose rows are aligned to cache lines.
#[repr(align(64))]
struct Room<A>([MaybeUninit<A>; TILE]);

/// The columns that a task computes, panel by panel.
struct Columns {
    own: Range<usize>,
    /// Panel width.
    width: usize,
    /// Whether C is written row by row, each group of rows through all panels.
    by_rows: bool,
    /// The columns that this thread likely computes next.
    next: Range<usize>,
}

impl Columns {
    fn panels(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        (0..self.own.len().div_ceil(self.width)).map(|number| self.panel(number))
    }

    fn panel(&self, number: usize) -> Range<usize> {
        let start = self.own.start + number * self.width;
        start..self.own.end.min(start + self.width)
    }
}

/// Reorders tasks such that threads which take tasks in turn each walk through adjacent ones.
fn in_turns(task: usize, count: usize, threads: usize) -> usize {
    let (turn, thread) = (task / threads, task % threads);
    // The first `more` threads have one more task.
    let (each, more) = (count / threads, count % threads);
    thread * each + thread.min(more) + turn
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
