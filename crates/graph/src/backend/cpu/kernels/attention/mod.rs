//! Scaled dot-product attention with an online softmax: `o = softmax(scale * q k^T, masked) v`.
//!
//! Works block by block of queries and keys, so no (queries, keys) matrix is materialised; fully masked blocks are
//! skipped. Query heads that share a key head are rows of one block, so each key is read once for all of them. A query
//! that sees no key gives 0. The gradient recomputes the probabilities from the saved log-sum-exp.
//!
//! Scores, maxima and sums are f32 (f64 for f64); operands of products are rounded to the element's factor type, so
//! bf16 is multiplied as bf16.

mod backward;
mod decode;
mod forward;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use backward::attention_vjp;
pub use forward::attention;

use super::float::{Float, Mat};
use super::par::{prefetch, widen, with_scratch};
use super::tuning::attention::TASKS;

/// Maximum rows (query, head of the group) of a block, unless a single group is larger.
const BLOCK_ROWS: usize = 112;
/// The queries of a block are a multiple of this, so that products have no remainder rows.
const QUERIES: usize = 8;
/// Keys of a block.
const BLOCK_KEYS: usize = 256;

/// Sizes of an attention: q is (batch, queries, heads, dim), k and v are (batch, keys, `kv_heads`, dim).
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Sequences in the batch.
    pub batch: usize,
    /// Queries per sequence.
    pub queries: usize,
    /// Capacity for keys per sequence.
    pub keys: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Head dimension.
    pub dim: usize,
}

impl AttentionShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Queries per block.
    fn block_queries(&self) -> usize {
        let queries = BLOCK_ROWS / self.group();
        let even = if queries > QUERIES {
            queries - queries % QUERIES
        } else {
            queries
        };
        even.clamp(1, self.queries.max(1))
    }

    /// Number of tasks for the gradient of one (sequence, key head).
    fn parts(&self) -> usize {
        let blocks = self.queries.div_ceil(self.block_queries());
        TASKS.div_ceil(self.batch * self.kv_heads).clamp(1, blocks.max(1))
    }

    /// Approximate number of element operations.
    fn work(&self) -> usize {
        self.batch * self.heads * self.queries * self.keys * self.dim
    }
}

/// A strided view of heads: channel c of (sequence, position, head) is `data[sequence * batch_stride + position *
/// seq_stride + head * head_stride + c]`.
#[derive(Clone, Copy, Debug)]
pub struct HeadsView<'a, T> {
    /// The buffer.
    pub data: &'a [T],
    /// Stride between sequences, in elements.
    pub batch_stride: usize,
    /// Stride between positions, in elements.
    pub seq_stride: usize,
    /// Stride between heads, in elements.
    pub head_stride: usize,
}

impl<'a, T> HeadsView<'a, T> {
    /// A contiguous (batch, positions, heads, dim) buffer.
    #[must_use]
    pub fn contiguous(data: &'a [T], positions: usize, heads: usize, dim: usize) -> Self {
        HeadsView {
            data,
            batch_stride: positions * heads * dim,
            seq_stride: heads * dim,
            head_stride: dim,
        }
    }

    fn check(&self, batch: usize, positions: usize, heads: usize, dim: usize, name: &str) {
        if batch * positions * heads * dim > 0 {
            let last = (batch - 1) * self.batch_stride
                + (positions - 1) * self.seq_stride
                + (heads - 1) * self.head_stride
                + dim;
            assert!(last <= self.data.len(), "attention: {name} exceeds its buffer");
        }
    }

    fn at(&self, sequence: usize, position: usize, head: usize) -> &'a [T] {
        &self.data[sequence * self.batch_stride + position * self.seq_stride + head * self.head_stride..]
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// Query i is at position `offset + i` and sees no later key.
    pub causal: bool,
    /// With `causal`: a query sees only this many positions, its own included.
    pub window: Option<usize>,
    /// The position of the first query.
    pub offset: usize,
    /// Keys from this position on are not valid.
    pub kv_len: usize,
    /// Segment of each query (batch, queries) and key (batch, keys): only the same segment is seen.
    pub segments: Option<(&'a [u32], &'a [u32])>,
}

impl Mask<'_> {
    /// The keys visible to query i, ignoring segments; both ends are monotonic in i.
    fn keys(&self, i: usize) -> Range<usize> {
        if !self.causal {
            return 0..self.kv_len;
        }
        let next = self.offset + i + 1;
        let end = self.kv_len.min(next);
        let start = self.window.map_or(0, |w| next.saturating_sub(w));
        start.min(end)..end
    }

    /// The keys visible to any query of a block.
    fn block_keys(&self, queries: &Range<usize>) -> Range<usize> {
        let (first, last) = (self.keys(queries.start), self.keys(queries.end - 1));
        first.start..last.end.max(first.start)
    }
}

/// The inputs of one attention.
struct AttentionParams<'a, T> {
    shape: AttentionShape,
    q: HeadsView<'a, T>,
    k: HeadsView<'a, T>,
    v: HeadsView<'a, T>,
    mask: Mask<'a>,
}

impl<T: Float> AttentionParams<'_, T> {
    fn check(&self) {
        let AttentionShape {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            dim,
        } = self.shape;
        assert!(
            kv_heads > 0 && heads % kv_heads == 0,
            "attention: {heads} heads on {kv_heads} key heads"
        );
        assert!(
            self.mask.kv_len <= keys,
            "attention: {} of {keys} keys",
            self.mask.kv_len
        );
        self.q.check(batch, queries, heads, dim, "q");
        self.k.check(batch, keys, kv_heads, dim, "k");
        self.v.check(batch, keys, kv_heads, dim, "v");
        if let Some((q, k)) = self.mask.segments {
            let fits = q.len() == batch * queries && k.len() == batch * keys;
            assert!(fits, "attention: segments have the wrong size");
        }
    }

    /// Gathers the rows (query, head of group g) of a block.
    fn rows(&self, view: &HeadsView<'_, T>, b: usize, g: usize, queries: &Range<usize>, into: &mut [T::Factor]) {
        let (group, dim) = (self.shape.group(), self.shape.dim);
        for (r, row) in into.chunks_exact_mut(dim).enumerate() {
            let from = &view.at(b, queries.start + r / group, g * group + r % group)[..dim];
            if T::IS_FACTOR {
                // SAFETY: both types are the same, and the row belongs to the caller.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().cast(), row.as_mut_ptr(), dim) };
                continue;
            }
            for (to, x) in row.iter_mut().zip(from) {
                *to = T::Factor::from_acc(x.to_acc());
            }
        }
    }

    /// Prefetches the keys or values of all heads.
    fn prefetch_heads(&self, view: &HeadsView<'_, T>, b: usize, keys: &Range<usize>) {
        let line = 64 / size_of::<T>();
        for position in keys.clone() {
            for g in 0..self.shape.kv_heads {
                let head = view.at(b, position, g).as_ptr();
                (0..self.shape.dim)
                    .step_by(line)
                    .for_each(|c| prefetch(head.wrapping_add(c)));
            }
        }
    }

    /// Scratch elements that [`keys`](Self::keys) needs.
    fn widened(&self) -> usize {
        if T::IS_FACTOR { 0 } else { BLOCK_KEYS * self.shape.dim }
    }

    /// Keys or values of a block: in place, or widened into scratch.
    fn keys(
        &self,
        view: &HeadsView<'_, T>,
        b: usize,
        g: usize,
        keys: &Range<usize>,
        scratch: &mut [T::Acc],
    ) -> Mat<*const T::Factor> {
        let mat = Mat {
            ptr: view.at(b, keys.start, g).as_ptr(),
            rows: view.seq_stride as isize,
            cols: 1,
        };
        if T::IS_FACTOR {
            return mat.cast();
        }
        // SAFETY: `check` verified that the keys are in bounds. Factors of another type than T are accumulators.
        unsafe { widen(mat, (keys.len(), self.shape.dim), scratch) }.cast()
    }

    /// Whether segments mask every key of the block for all of its queries.
    fn masked_by_segments(&self, b: usize, queries: &Range<usize>, keys: &Range<usize>) -> bool {
        let Some((q, k)) = self.mask.segments else {
            return false;
        };
        let q = &q[b * self.shape.queries..][queries.clone()];
        let k = &k[b * self.shape.keys..][keys.clone()];
        let (Some(q_least), Some(q_most)) = (q.iter().min(), q.iter().max()) else {
            return true;
        };
        let (Some(k_least), Some(k_most)) = (k.iter().min(), k.iter().max()) else {
            return true;
        };
        q_most < k_least || k_most < q_least
    }

    /// Writes `hidden` to the scores of masked keys.
    #[inline(always)]
    fn mask_scores(&self, b: usize, i: usize, keys: &Range<usize>, row: &mut [T::Acc], hidden: T::Acc) {
        let seen = self.mask.keys(i);
        let start = seen.start.clamp(keys.start, keys.end) - keys.start;
        let end = seen.end.clamp(keys.start, keys.end) - keys.start;
        row[..start.min(end)].fill(hidden);
        row[end..].fill(hidden);
        if let Some((q, k)) = self.mask.segments {
            let segment = q[b * self.shape.queries + i];
            let k = &k[b * self.shape.keys..][keys.clone()];
            for (x, &other) in row.iter_mut().zip(k) {
                *x = if other == segment { *x } else { hidden };
            }
        }
    }
}

/// Splits `range` into blocks of at most [`BLOCK_KEYS`] keys.
fn key_blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(BLOCK_KEYS)
        .map(move |start| start..end.min(start + BLOCK_KEYS))
}

/// Calls `f` with scratch split into parts of these lengths: of accumulators, and of factors.
fn with_split_scratch<T: Float, R, const N: usize, const M: usize>(
    lengths: [usize; N],
    factors: [usize; M],
    f: impl FnOnce([&mut [T::Acc]; N], [&mut [T::Factor]; M]) -> R,
) -> R {
    with_scratch(lengths.iter().sum(), |scratch| {
        with_scratch(factors.iter().sum(), |narrow| {
            f(split(scratch, lengths), split(narrow, factors))
        })
    })
}

/// Splits scratch into parts of these lengths.
fn split<A, const N: usize>(mut scratch: &mut [A], lengths: [usize; N]) -> [&mut [A]; N] {
    lengths.map(|len| {
        let (part, rest) = std::mem::take(&mut scratch).split_at_mut(len);
        scratch = rest;
        part
    })
}
