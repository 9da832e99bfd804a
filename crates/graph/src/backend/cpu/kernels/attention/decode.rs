//! The forward pass of a few queries, as in decoding: one task per (sequence, part of the keys), for all heads, so that
//! a cache is read contiguously. The partial results of the parts are combined afterwards.

use super::super::float::{Float, Real};
use super::super::par::{Shared, for_pieces, max_nan, rows_of_task, with_scratch};
use super::super::tuning::loops::PARALLEL_WORK;
use super::forward::QueryBlock;
use super::{AttentionParams, BLOCK_KEYS, split, with_split_scratch};

/// Approximate number of keys of a part.
const PART_KEYS: usize = 128;

/// The outputs of [`attention`](super::attention): all queries are one block.
pub(super) fn few_queries<T: Float>(params: &AttentionParams<'_, T>, scale: T::Acc, out: (Shared<T>, Shared<T::Acc>)) {
    let shape = params.shape;
    let (heads, dim, rows) = (shape.kv_heads, shape.dim, shape.queries * shape.group());
    let seen = params.mask.block_keys(&(0..shape.queries));
    let piece = rows_of_task(seen.len(), 1, PART_KEYS);
    let parts = seen.len().div_ceil(piece).max(1);
    // The state of a head's rows after a part of the keys: o, max and sum.
    let lengths = [rows * dim, rows, rows];
    let len: usize = lengths.iter().sum();
    with_scratch(shape.batch * heads * parts * len, |known: &mut [T::Acc]| {
        let to = Shared::new(known);
        let parallel = shape.batch * rows * heads * seen.len() * dim >= PARALLEL_WORK;
        for_pieces(shape.batch * parts, 1, parallel, |task, _| {
            let (b, part) = (task / parts, task % parts);
            let start = seen.start + part * piece;
            let keys = start..seen.end.min(start + piece);
            params.prefetch_heads(&params.k, b, &keys);
            params.prefetch_heads(&params.v, b, &keys);
            for g in 0..heads {
                // SAFETY: the state of this part belongs to this task.
                let known = unsafe { to.slice(((b * heads + g) * parts + part) * len, len) };
                let scratch = [rows * BLOCK_KEYS, params.widened()];
                with_split_scratch::<T, _, 2, 2>(
                    scratch,
                    [rows * dim, rows * BLOCK_KEYS],
                    |[scores, wide], factors| {
                        block(params, (b, g), scale, split(known, lengths), scores, factors).run(keys.clone(), wide);
                    },
                );
            }
        });
        for (i, parts) in known.chunks_exact_mut(parts * len).enumerate() {
            let (first, others) = parts.split_at_mut(len);
            for other in others.chunks_exact_mut(len) {
                join(split(first, lengths), split(other, lengths), dim);
            }
            let whole = block(
                params,
                (i / heads, i % heads),
                scale,
                split(first, lengths),
                &mut [],
                [&mut [], &mut []],
            );
            // SAFETY: these rows of the outputs are written by this task only.
            unsafe { whole.finish(out) };
        }
    });
}

/// All queries on the heads of one key head.
fn block<'s, 'a, T: Float>(
    params: &'s AttentionParams<'a, T>,
    (b, g): (usize, usize),
    scale: T::Acc,
    [o, max, sum]: [&'s mut [T::Acc]; 3],
    scores: &'s mut [T::Acc],
    [q, p]: [&'s mut [T::Factor]; 2],
) -> QueryBlock<'s, 'a, T> {
    let queries = 0..params.shape.queries;
    QueryBlock {
        params,
        b,
        g,
        queries,
        scale,
        q,
        o,
        scores,
        p,
        max,
        sum,
    }
}

/// Combines the state of the same rows after another part of the keys into this one.
fn join<A: Real>([o, max, sum]: [&mut [A]; 3], [other_o, other_max, other_sum]: [&mut [A]; 3], dim: usize) {
    let rows = o.chunks_exact_mut(dim).zip(other_o.chunks_exact(dim));
    for (r, (o, other)) in rows.enumerate() {
        let most = max_nan(max[r], other_max[r]);
        if most == A::NEG_INFINITY {
            continue;
        }
        let (own, others) = ((max[r] - most).exp(), (other_max[r] - most).exp());
        for (o, &other) in o.iter_mut().zip(other) {
            *o = *o * own + other * others;
        }
        sum[r] = sum[r] * own + other_sum[r] * others;
        max[r] = most;
    }
}
