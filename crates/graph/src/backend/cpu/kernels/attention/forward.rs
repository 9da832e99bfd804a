//! The forward pass: one task per (sequence, key head, block of queries). For few queries, see
//! [`decode`](super::decode).

use std::ops::Range;

use super::super::float::{Float, Mat, Real, dense, dense_mut, transposed};
use super::super::matmul::dense_product;
use super::super::par::{Shared, for_pieces, max_nan, max1, simd, store, sum1};
use super::super::tuning::attention::FEW_ROWS;
use super::super::tuning::loops::PARALLEL_WORK;
use super::decode::few_queries;
use super::{AttentionParams, AttentionShape, BLOCK_KEYS, HeadsView, Mask, key_blocks, with_split_scratch};

/// Writes o (batch, queries, heads, dim) and lse (batch, queries, heads), the log-sum-exp of the masked scores, both
/// contiguous; 0 and minus infinity for a query that sees no key.
///
/// # Panics
/// If the sizes are inconsistent.
#[allow(clippy::too_many_arguments)] // Inputs, settings, outputs: each its own thing.
pub fn attention<T: Float>(
    shape: AttentionShape,
    q: HeadsView<'_, T>,
    k: HeadsView<'_, T>,
    v: HeadsView<'_, T>,
    scale: T::Acc,
    mask: Mask<'_>,
    o: &mut [T],
    lse: &mut [T::Acc],
) {
    let AttentionShape {
        batch,
        queries,
        heads,
        kv_heads,
        dim,
        ..
    } = shape;
    let params = AttentionParams { shape, q, k, v, mask };
    params.check();
    assert_eq!(
        o.len(),
        batch * queries * heads * dim,
        "attention: o has the wrong size"
    );
    assert_eq!(lse.len(), batch * queries * heads, "attention: lse has the wrong size");
    if o.is_empty() {
        return;
    }
    let out = (Shared::new(o), Shared::new(lse));
    if queries * shape.group() <= FEW_ROWS {
        return few_queries(&params, scale, out);
    }
    let block = shape.block_queries();
    let (blocks, groups) = (queries.div_ceil(block), batch * kv_heads);
    for_pieces(groups * blocks, 1, shape.work() >= PARALLEL_WORK, |task, _| {
        // The last queries see the most keys, so their tasks start first.
        let start = (blocks - 1 - task / groups) * block;
        let (b, g) = (task % groups / kv_heads, task % kv_heads);
        let range = start..queries.min(start + block);
        let rows = range.len() * shape.group();
        let lengths = [rows * dim, rows * BLOCK_KEYS, rows, rows, params.widened()];
        let factors = [rows * dim, rows * BLOCK_KEYS];
        with_split_scratch::<T, _, 5, 2>(lengths, factors, |[o, scores, max, sum, wide], [q, p]| {
            let mut block = QueryBlock {
                params: &params,
                b,
                g,
                queries: range,
                scale,
                q,
                o,
                scores,
                p,
                max,
                sum,
            };
            block.run(params.mask.block_keys(&block.queries), wide);
            // SAFETY: the rows of this block belong to this task.
            unsafe { block.finish(out) };
        });
    });
}

/// The rows (query, head of the group) of one task, with the running state of their online softmax.
pub(super) struct QueryBlock<'s, 'a, T: Float> {
    pub params: &'s AttentionParams<'a, T>,
    pub b: usize,
    pub g: usize,
    pub queries: Range<usize>,
    pub scale: T::Acc,
    /// (rows, dim)
    pub q: &'s mut [T::Factor],
    /// (rows, dim): sum of exp(score - max) * value.
    pub o: &'s mut [T::Acc],
    /// (rows, `BLOCK_KEYS`)
    pub scores: &'s mut [T::Acc],
    /// exp(score - max), rounded to the factor type.
    pub p: &'s mut [T::Factor],
    /// (rows): the largest score.
    pub max: &'s mut [T::Acc],
    /// (rows): sum of exp(score - max).
    pub sum: &'s mut [T::Acc],
}

impl<T: Float> QueryBlock<'_, '_, T> {
    /// Updates the state with these keys.
    pub fn run(&mut self, keys: Range<usize>, wide: &mut [T::Acc]) {
        let (params, b, g) = (self.params, self.b, self.g);
        params.rows(&params.q, b, g, &self.queries, self.q);
        self.o.fill(T::Acc::ZERO);
        self.max.fill(T::Acc::NEG_INFINITY);
        self.sum.fill(T::Acc::ZERO);
        for keys in key_blocks(keys) {
            if params.masked_by_segments(b, &self.queries, &keys) {
                continue;
            }
            let k = params.keys(&params.k, b, g, &keys, wide);
            self.score(k, keys.len());
            simd(
                #[inline(always)]
                || self.soften(&keys),
            );
            let v = params.keys(&params.v, b, g, &keys, wide);
            self.weigh(v, keys.len());
        }
    }

    /// scores = q @ k^T
    fn score(&mut self, k: Mat<*const T::Factor>, keys: usize) {
        let (rows, dim) = (self.max.len(), self.params.shape.dim);
        let scores = dense_mut(self.scores, BLOCK_KEYS);
        let (q, k) = (dense(self.q, dim), transposed(k));
        // SAFETY: q is (rows, dim), k (keys, dim) and the scores have room for (rows, keys).
        unsafe { dense_product((rows, keys, dim), T::Acc::ONE, q, k, scores, false, false) };
    }

    /// Turns scores into exp(score - max), and rescales the running max, sum and output.
    #[inline(always)]
    fn soften(&mut self, keys: &Range<usize>) {
        let (group, dim) = (self.params.shape.group(), self.params.shape.dim);
        let rows = self
            .scores
            .chunks_exact_mut(BLOCK_KEYS)
            .zip(self.p.chunks_exact_mut(BLOCK_KEYS));
        for (r, (row, p)) in rows.enumerate() {
            let (row, p) = (&mut row[..keys.len()], &mut p[..keys.len()]);
            let query = self.queries.start + r / group;
            for x in &mut *row {
                *x = *x * self.scale;
            }
            self.params.mask_scores(self.b, query, keys, row, T::Acc::NEG_INFINITY);
            let max = max_nan(self.max[r], max1(row, |x| x));
            if max == T::Acc::NEG_INFINITY {
                p.fill(T::Factor::default());
                continue;
            }
            // The first block of keys, and most later ones, need no exponential here.
            let shrink = match self.max[r] {
                before if before == max => T::Acc::ONE,
                before if before == T::Acc::NEG_INFINITY => T::Acc::ZERO,
                before => (before - max).exp(),
            };
            for (x, p) in row.iter_mut().zip(p) {
                *x = (*x - max).exp_below();
                *p = T::Factor::from_acc(*x);
            }
            self.max[r] = max;
            self.sum[r] = self.sum[r] * shrink + sum1(row, |x| x);
            if shrink != T::Acc::ONE {
                for o in &mut self.o[r * dim..][..dim] {
                    *o = *o * shrink;
                }
            }
        }
    }

    /// o += probabilities @ v
    fn weigh(&mut self, v: Mat<*const T::Factor>, keys: usize) {
        let (rows, dim) = (self.max.len(), self.params.shape.dim);
        let o = dense_mut(self.o, dim);
        // SAFETY: the probabilities are (rows, keys), v (keys, dim), o (rows, dim).
        unsafe {
            dense_product(
                (rows, dim, keys),
                T::Acc::ONE,
                dense(self.p, BLOCK_KEYS),
                v,
                o,
                true,
                false,
            );
        }
    }

    /// Divides by the sums and writes the rows to the outputs.
    ///
    /// # Safety
    /// The outputs have the sizes given at [`attention`], and no other task writes these rows.
    pub unsafe fn finish(self, (o, lse): (Shared<T>, Shared<T::Acc>)) {
        let AttentionShape {
            queries, heads, dim, ..
        } = self.params.shape;
        let group = self.params.shape.group();
        for (r, row) in self.o.chunks_exact_mut(dim).enumerate() {
            let query = self.b * queries + self.queries.start + r / group;
            let at = query * heads + self.g * group + r % group;
            let nothing = self.max[r] == T::Acc::NEG_INFINITY;
            let factor = if nothing {
                T::Acc::ZERO
            } else {
                T::Acc::ONE / self.sum[r]
            };
            simd(
                #[inline(always)]
                || {
                    for x in row.iter_mut() {
                        *x = *x * factor;
                    }
                    // SAFETY: guaranteed by the caller.
                    unsafe { store(row, o.at(at * dim)) };
                },
            );
            // SAFETY: guaranteed by the caller.
            unsafe {
                *lse.at(at) = if nothing {
                    self.max[r]
                } else {
                    self.max[r] + self.sum[r].ln()
                };
            }
        }
    }
}
