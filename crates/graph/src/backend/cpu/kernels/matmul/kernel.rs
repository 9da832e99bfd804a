//! The two micro-kernels of all products, written once over the vector operations of an instruction set: a tile of C
//! from rows of A and a panel of B, and dot products of rows of A with columns of B.

use half::bf16;

use super::super::float::{Mat, Real};
use super::super::par::each;
use super::vector_ops::VectorOps;

/// Maximum number of accumulators of a tile.
pub(super) const TILE: usize = 32 * 32;

/// Maximum rows and columns of a block of dot products.
pub(super) const DOTS: usize = 4;
/// Vectors of each column per iteration for a single row.
const UNROLLED: usize = 2;

/// One tile: entry `p` of row `r` of A is at `a_row * r` bytes plus `a_step * p` entries, entry `p` of the panel of B
/// is the `cols` entries from `b_step * p` on. The sums are stored at `out` in whole vectors, with row stride
/// `out_row`; with `add` they are added to the sums there.
pub(super) struct Tile<P, A> {
    pub steps: usize,
    pub a: *const P,
    pub a_row: isize,
    pub a_step: usize,
    pub rows: usize,
    pub b: *const P,
    pub b_step: usize,
    pub cols: usize,
    pub add: bool,
    pub out: *mut A,
    pub out_row: usize,
}

/// Dot products of `rows` rows of A, at most [`DOTS`], with `cols` columns of B, both contiguous, with strides in
/// bytes; row r times column c is stored at `out[r * out_row + c]`.
pub(super) struct Dots<P, A> {
    pub steps: usize,
    pub a: *const P,
    pub a_row: isize,
    pub rows: usize,
    pub b: *const P,
    pub b_col: isize,
    pub cols: usize,
    pub out: *mut A,
    pub out_row: usize,
}

impl<P, A: Real> Dots<P, A> {
    /// The address of the result for row `r` and column `c`.
    #[inline(always)]
    fn place(&self, r: usize, c: usize) -> *mut A {
        self.out.wrapping_add(r * self.out_row + c)
    }

    /// The address of a column; missing ones repeat the last.
    #[inline(always)]
    fn column(&self, c: usize) -> *const P {
        self.b.wrapping_byte_offset(c.min(self.cols - 1) as isize * self.b_col)
    }
}

/// `to = sums * alpha + addends` for `rows` rows of `cols` sums; the row strides are `stride` sums and `to_row`
/// elements.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only there is a machine's own conversion used
pub(super) struct Round<'a> {
    pub sums: *const f32,
    pub stride: usize,
    pub alpha: f32,
    /// Their columns are contiguous; the first one starts at the first column of `to`.
    pub addends: &'a [Mat<*const bf16>],
    pub to: *mut bf16,
    pub to_row: usize,
    pub rows: usize,
    pub cols: usize,
}

/// Interleaves two rows into the given number of pairs.
type Interleave = unsafe fn([*const bf16; 2], *mut [bf16; 2], usize);

/// The micro-kernels for one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernel<P: 'static, A: 'static> {
    /// Columns per vector.
    pub lanes: usize,
    /// Vectors per tile.
    pub vectors: usize,
    /// Rows per tile.
    pub rows: usize,
    /// # Safety
    /// The machine has the instructions; all inputs of the tile are readable, its sums writable; no size is 0.
    pub tile: unsafe fn(&Tile<P, A>),
    /// # Safety
    /// As `tile`.
    pub dots: unsafe fn(&Dots<P, A>),
    /// Scales and adds sums, and rounds to bf16.
    ///
    /// # Safety
    /// As `tile`.
    pub round: Option<unsafe fn(&Round<'_>)>,
    /// Interleaves two rows of bf16 into pairs.
    ///
    /// # Safety
    /// As `tile`.
    pub interleave: Option<Interleave>,
    pub transpose: Option<Transpose>,
    /// Whether `tile` reads each row of A as one contiguous run of entries.
    pub reads_lines: bool,
    /// Called by a thread after its last tile.
    ///
    /// # Safety
    /// The machine has the instructions.
    pub release: Option<unsafe fn()>,
}

/// Transposes square blocks of elements during packing.
#[derive(Clone, Copy)]
pub(super) struct Transpose {
    /// Rows and columns of a block.
    pub edge: usize,
    /// From rows with a stride in bytes to columns with a stride in entries (of four bytes).
    ///
    /// # Safety
    /// As [`Kernel::tile`]; the elements are those of the kernel's products.
    pub run: unsafe fn(*const u8, usize, *mut u32, usize),
    /// The same for fewer rows and columns.
    ///
    /// # Safety
    /// As `run`.
    pub part: Option<TransposePart>,
}

impl Transpose {
    /// Transposes a whole block or a part of one.
    ///
    /// # Safety
    /// Like [`run`](Self::run); the block may be smaller only if `part` is present.
    pub unsafe fn block(
        &self,
        (from, from_step): (*const u8, usize),
        (to, to_step): (*mut u32, usize),
        size: (usize, usize),
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match self.part.filter(|_| size != (self.edge, self.edge)) {
                Some(part) => part((from, from_step), (to, to_step), size),
                None => (self.run)(from, from_step, to, to_step),
            }
        }
    }
}

/// From rows with a stride in bytes to columns with a stride in entries; the numbers of rows and of columns.
type TransposePart = unsafe fn((*const u8, usize), (*mut u32, usize), (usize, usize));

/// Zero accumulators.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn zeros<W: VectorOps, const C: usize, const R: usize>() -> [[W::Sums; C]; R] {
    each(
        #[inline(always)]
        |_| {
            each(
                #[inline(always)]
                // SAFETY: guaranteed by the caller.
                |_| unsafe { W::zero() },
            )
        },
    )
}

/// # Safety
/// As [`Kernel::tile`].
#[inline(always)]
unsafe fn tile<W: VectorOps, const R: usize, const V: usize>(t: &Tile<W::Panel, W::Acc>) {
    let last = t.cols - (V - 1) * W::LANES;
    // SAFETY: guaranteed by the caller.
    unsafe {
        if R == 1 && last == W::LANES {
            row_tile::<W, V>(
                t,
                #[inline(always)]
                |from| W::load(from),
            );
        } else if R == 1 {
            row_tile::<W, V>(
                t,
                #[inline(always)]
                |from| W::load_part(from, last),
            );
        } else if last == W::LANES {
            tile_with::<W, R, V>(
                t,
                #[inline(always)]
                |from| W::load(from),
            );
        } else {
            tile_with::<W, R, V>(
                t,
                #[inline(always)]
                |from| W::load_part(from, last),
            );
        }
    }
}

/// # Safety
/// As [`Kernel::tile`].
#[inline(always)]
unsafe fn tile_with<W: VectorOps, const R: usize, const V: usize>(
    t: &Tile<W::Panel, W::Acc>,
    load_last: impl Fn(*const W::Panel) -> W::Vector,
) {
    // SAFETY: guaranteed by the caller. Missing rows repeat the last one.
    unsafe {
        let mut rows = [t.a; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = t.a.byte_offset(r.min(t.rows - 1) as isize * t.a_row);
        }
        let mut sums: [[W::Sums; V]; R] = zeros::<W, V, R>();
        // The condition is inside the loop: a loop over the existing rows would keep the accumulators in memory.
        for (r, sums) in sums.iter_mut().enumerate() {
            if t.add && r < t.rows {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = W::fetch(t.out.add(r * t.out_row + v * W::LANES));
                }
            }
        }
        let (mut at, mut b) = (0, t.b);
        for _ in 0..t.steps {
            let mut right = [load_last(b.wrapping_add((V - 1) * W::LANES)); V];
            for (v, right) in right.iter_mut().enumerate().take(V - 1) {
                *right = W::load(b.add(v * W::LANES));
            }
            for r in 0..R {
                let left = W::splat(rows[r].add(at));
                for v in 0..V {
                    sums[r][v] = W::fma(sums[r][v], left, right[v]);
                }
            }
            at += t.a_step;
            b = b.wrapping_add(t.b_step);
        }
        for (r, sums) in sums.iter().enumerate() {
            if r < t.rows {
                for (v, &sum) in sums.iter().enumerate() {
                    W::store(sum, t.out.add(r * t.out_row + v * W::LANES));
                }
            }
        }
    }
}

/// Independent accumulators of a single row, to hide the latency of dependent additions.
const APART: usize = 4;

/// A tile of one row.
///
/// # Safety
/// As [`Kernel::tile`].
#[inline(always)]
unsafe fn row_tile<W: VectorOps, const V: usize>(
    t: &Tile<W::Panel, W::Acc>,
    load_last: impl Fn(*const W::Panel) -> W::Vector,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sums: [[W::Sums; V]; APART] = zeros::<W, V, APART>();
        let whole = t.steps - t.steps % APART;
        for at in (0..whole).step_by(APART) {
            for (i, sums) in sums.iter_mut().enumerate() {
                row_step::<W, V>(t, &load_last, at + i, sums);
            }
        }
        for at in whole..t.steps {
            row_step::<W, V>(t, &load_last, at, &mut sums[0]);
        }
        let [a, b, c, d] = sums;
        for v in 0..V {
            let mut sum = W::join(W::join(a[v], b[v]), W::join(c[v], d[v]));
            let to = t.out.add(v * W::LANES);
            if t.add {
                sum = W::join(W::fetch(to), sum);
            }
            W::store(sum, to);
        }
    }
}

/// Accumulates one step of a row.
///
/// # Safety
/// As [`Kernel::tile`].
#[inline(always)]
unsafe fn row_step<W: VectorOps, const V: usize>(
    t: &Tile<W::Panel, W::Acc>,
    load_last: &impl Fn(*const W::Panel) -> W::Vector,
    at: usize,
    sums: &mut [W::Sums; V],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (left, b) = (W::splat(t.a.add(at * t.a_step)), t.b.wrapping_add(at * t.b_step));
        for (v, sum) in sums.iter_mut().enumerate().take(V - 1) {
            *sum = W::fma(*sum, left, W::load(b.add(v * W::LANES)));
        }
        sums[V - 1] = W::fma(sums[V - 1], left, load_last(b.wrapping_add((V - 1) * W::LANES)));
    }
}

/// # Safety
/// As [`Kernel::tile`]; at most `R` rows and `V` vectors. `H` is half of `R`.
#[inline(always)]
pub(super) unsafe fn any_tile<W: VectorOps, const R: usize, const H: usize, const V: usize>(
    t: &Tile<W::Panel, W::Acc>,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match t.rows {
            1 => any_columns::<W, 1, V>(t),
            rows if rows <= H => any_columns::<W, H, V>(t),
            _ => any_columns::<W, R, V>(t),
        }
    }
}

/// # Safety
/// As [`any_tile`].
#[inline(always)]
unsafe fn any_columns<W: VectorOps, const R: usize, const V: usize>(t: &Tile<W::Panel, W::Acc>) {
    let vectors = t.cols.div_ceil(W::LANES);
    // SAFETY: guaranteed by the caller.
    unsafe {
        if V > 1 && vectors == 1 {
            tile::<W, R, 1>(t);
        } else if V > 2 && vectors == 2 {
            tile::<W, R, 2>(t);
        } else {
            tile::<W, R, V>(t);
        }
    }
}

/// # Safety
/// As [`Kernel::dots`]; at most `R` rows.
#[inline(always)]
unsafe fn dots<W: VectorOps, const R: usize>(d: &Dots<W::Panel, W::Acc>) {
    // SAFETY: guaranteed by the caller. Missing rows and columns repeat the last one.
    unsafe {
        let mut rows = [d.a; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = d.a.byte_offset(r.min(d.rows - 1) as isize * d.a_row);
        }
        for first in (0..d.cols).step_by(DOTS) {
            let cols: [*const W::Panel; DOTS] = each(
                #[inline(always)]
                |c| d.column(first + c),
            );
            let mut sums: [[W::Sums; DOTS]; R] = zeros::<W, DOTS, R>();
            let whole = d.steps - d.steps % W::LANES;
            let mut at = 0;
            while at < whole {
                let mut right = [W::load(cols[0].add(at)); DOTS];
                for c in 1..DOTS {
                    right[c] = W::load(cols[c].add(at));
                }
                for r in 0..R {
                    let left = W::load(rows[r].add(at));
                    for c in 0..DOTS {
                        sums[r][c] = W::fma(sums[r][c], left, right[c]);
                    }
                }
                at += W::LANES;
            }
            if whole < d.steps {
                let rest = d.steps - whole;
                for r in 0..R {
                    let left = W::load_part(rows[r].add(whole), rest);
                    for c in 0..DOTS {
                        sums[r][c] = W::fma(sums[r][c], left, W::load_part(cols[c].add(whole), rest));
                    }
                }
            }
            for (r, &sums) in sums.iter().enumerate() {
                if r < d.rows {
                    some_totals::<W>(sums, d.place(r, first), d.cols - first);
                }
            }
        }
    }
}

/// Stores the horizontal sums of the first `count` vectors, or of all.
///
/// # Safety
/// Like [`Kernel::dots`]; that many can be written.
#[inline(always)]
unsafe fn some_totals<W: VectorOps>(sums: [W::Sums; DOTS], to: *mut W::Acc, count: usize) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if count >= DOTS {
            return W::totals(sums, to);
        }
        let mut totals = [W::Acc::ZERO; DOTS];
        W::totals(sums, totals.as_mut_ptr());
        for (i, &total) in totals.iter().enumerate().take(count) {
            *to.add(i) = total;
        }
    }
}

/// A single row. Memory is read faster in a few long streams than in many short ones, so the columns that are processed
/// together are far apart: the columns are cut into parts, each column begins a part, and the parts are read side by
/// side. The hardware prefetches such streams.
///
/// # Safety
/// As [`Kernel::dots`].
#[inline(always)]
unsafe fn row_dots<W: VectorOps>(d: &Dots<W::Panel, W::Acc>) {
    // SAFETY: guaranteed by the caller. Missing columns repeat the last one.
    unsafe {
        let part = d.cols.div_ceil(DOTS);
        for i in 0..part {
            let cols: [*const W::Panel; DOTS] = each(
                #[inline(always)]
                |c| d.column(c * part + i),
            );
            let mut sums: [[W::Sums; DOTS]; UNROLLED] = zeros::<W, DOTS, UNROLLED>();
            let mut at = 0;
            while at + UNROLLED * W::LANES <= d.steps {
                for (u, sums) in sums.iter_mut().enumerate() {
                    let at = at + u * W::LANES;
                    let left = W::load(d.a.add(at));
                    for (sum, col) in sums.iter_mut().zip(cols) {
                        *sum = W::fma(*sum, left, W::load(col.add(at)));
                    }
                }
                at += UNROLLED * W::LANES;
            }
            while at < d.steps {
                let rest = (d.steps - at).min(W::LANES);
                let left = W::load_part(d.a.add(at), rest);
                for (sum, col) in sums[0].iter_mut().zip(cols) {
                    *sum = W::fma(*sum, left, W::load_part(col.add(at), rest));
                }
                at += rest;
            }
            let [first, last] = sums;
            let mut totals = [W::Acc::ZERO; DOTS];
            let joined = each(
                #[inline(always)]
                |c| W::join(first[c], last[c]),
            );
            W::totals(joined, totals.as_mut_ptr());
            for (c, total) in totals.into_iter().enumerate() {
                *d.place(0, (c * part + i).min(d.cols - 1)) = total;
            }
        }
    }
}

/// # Safety
/// As [`Kernel::dots`].
#[inline(always)]
pub(super) unsafe fn any_dots<W: VectorOps>(d: &Dots<W::Panel, W::Acc>) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if d.rows == 1 {
            row_dots::<W>(d);
        } else {
            dots::<W, DOTS>(d);
        }
    }
}
