//! The backward pass: one task per (sequence, key head), which processes the blocks of queries in order. With few of
//! these, several tasks share the blocks of one, and their partial sums are added in a fixed order.

use std::ops::Range;

use super::super::float::{Float, Mat, Real, dense, dense_mut, transposed};
use super::super::matmul::dense_product;
use super::super::par::{Shared, for_pieces, simd, store, sum2, with_scratch};
use super::super::tuning::loops::PARALLEL_WORK;
use super::{AttentionParams, AttentionShape, BLOCK_KEYS, HeadsView, Mask, key_blocks, with_split_scratch};

/// The gradients of [`attention`](super::attention) from the gradients of its outputs, `g` and `g_lse` (zero if
/// `None`).
///
/// With p the probabilities, `dv = p^T g`, `ds = p * (g v^T - sum(g * o) + g_lse) * scale`, `dq = ds k`, `dk = ds^T q`.
/// All have the layout of the forward pass, contiguous: dq is (batch, queries, heads, dim), dk and dv are (batch, keys,
/// `kv_heads`, dim), summed over the query heads that share a key head, and 0 from position `kv_len` on.
///
/// # Panics
/// If the sizes are inconsistent.
#[allow(clippy::too_many_arguments)] // Inputs, settings, outputs: each its own thing.
pub fn attention_vjp<T: Float>(
    shape: AttentionShape,
    q: HeadsView<'_, T>,
    k: HeadsView<'_, T>,
    v: HeadsView<'_, T>,
    scale: T::Acc,
    mask: Mask<'_>,
    o: &[T],
    lse: &[T::Acc],
    g: &[T],
    g_lse: Option<&[T::Acc]>,
    dq: &mut [T],
    dk: &mut [T],
    dv: &mut [T],
) {
    let AttentionShape {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        dim,
    } = shape;
    let params = AttentionParams { shape, q, k, v, mask };
    params.check();
    let (q_len, kv_len) = (batch * queries * heads * dim, batch * keys * kv_heads * dim);
    assert_eq!(
        [o.len(), g.len(), dq.len()],
        [q_len; 3],
        "attention: o, g or dq has the wrong size"
    );
    assert_eq!(
        [dk.len(), dv.len()],
        [kv_len; 2],
        "attention: dk or dv has the wrong size"
    );
    assert_eq!(lse.len(), batch * queries * heads, "attention: lse has the wrong size");
    assert!(
        g_lse.is_none_or(|g| g.len() == lse.len()),
        "attention: the gradient of lse has the wrong size"
    );
    let o = HeadsView::contiguous(o, queries, heads, dim);
    let g = HeadsView::contiguous(g, queries, heads, dim);
    let heads_of = BackwardParams {
        params,
        scale,
        o,
        lse,
        g,
        g_lse,
    };
    let (pairs, parts) = (batch * kv_heads, shape.parts());
    let (sums, parallel) = (2 * mask.kv_len * dim, shape.work() >= PARALLEL_WORK);
    let (dq, out) = (Shared::new(dq), (Shared::new(dk), Shared::new(dv)));
    if parts == 1 {
        return for_pieces(pairs, 1, parallel, |pair, _| {
            with_scratch(sums, |sums| {
                // SAFETY: this key head, and its query heads, belong to this task.
                unsafe {
                    heads_of.run(pair, (0, 1), sums, dq);
                    heads_of.params.store_keys(pair, sums, out);
                }
            });
        });
    }
    with_scratch(pairs * parts * sums, |all| {
        let all = Shared::new(all);
        for_pieces(pairs * parts, 1, parallel, |task, _| {
            let (pair, part) = (task / parts, task % parts);
            // SAFETY: these sums, and the queries of this part, belong to this task.
            unsafe { heads_of.run(pair, (part, parts), all.slice(task * sums, sums), dq) };
        });
        for_pieces(pairs, 1, parallel, |pair, _| {
            // SAFETY: this key head belongs to this task.
            unsafe {
                let total = all.slice(pair * parts * sums, sums);
                for part in 1..parts {
                    let more = all.slice((pair * parts + part) * sums, sums);
                    total.iter_mut().zip(more).for_each(|(total, x)| *total += *x);
                }
                heads_of.params.store_keys(pair, total, out);
            }
        });
    });
}

/// The operands of the gradients of all heads.
struct BackwardParams<'a, T: Float> {
    params: AttentionParams<'a, T>,
    scale: T::Acc,
    o: HeadsView<'a, T>,
    lse: &'a [T::Acc],
    g: HeadsView<'a, T>,
    g_lse: Option<&'a [T::Acc]>,
}

impl<T: Float> BackwardParams<'_, T> {
    /// Accumulates dk and dv, `(2, kv_len, dim)`, of one (sequence, key head) over every `parts`-th block of queries
    /// from `part` on, and writes their dq.
    ///
    /// # Safety
    /// No other task writes dq of these queries.
    unsafe fn run(&self, pair: usize, (part, parts): (usize, usize), sums: &mut [T::Acc], dq_out: Shared<T>) {
        let (params, shape) = (&self.params, self.params.shape);
        let (block, dim) = (shape.block_queries(), shape.dim);
        let rows = block * shape.group();
        let lengths = [
            rows * dim,
            rows * BLOCK_KEYS,
            rows * BLOCK_KEYS,
            rows,
            rows,
            params.widened(),
            params.widened(),
        ];
        let factors = [rows * dim, rows * dim, rows * BLOCK_KEYS, rows * BLOCK_KEYS];
        sums.fill(T::Acc::ZERO);
        let (dk, dv) = sums.split_at_mut(sums.len() / 2);
        with_split_scratch::<T, _, 7, 4>(
            lengths,
            factors,
            |[dq, scores, dp, dot, lse, wide_k, wide_v], [q, grad, p, ds]| {
                let (b, g, scale) = (pair / shape.kv_heads, pair % shape.kv_heads, self.scale);
                let mut head = Head {
                    params,
                    b,
                    g,
                    scale,
                    q,
                    grad,
                    dq,
                    scores,
                    dp,
                    p,
                    ds,
                    dot,
                    lse,
                    dk,
                    dv,
                };
                for start in (part * block..shape.queries).step_by(parts * block) {
                    let range = start..shape.queries.min(start + block);
                    head.load(&range, self.o, self.g);
                    head.load_lse(&range, self.lse, self.g_lse);
                    head.block(&range, wide_k, wide_v);
                    // SAFETY: guaranteed by the caller.
                    unsafe { head.store_queries(&range, dq_out) };
                }
            },
        );
    }
}

/// One (sequence, key head): the current block, and the sums over all blocks.
struct Head<'s, 'a, T: Float> {
    params: &'s AttentionParams<'a, T>,
    b: usize,
    g: usize,
    scale: T::Acc,
    /// (rows, dim) of the block: q, the gradient of o, and dq.
    q: &'s mut [T::Factor],
    grad: &'s mut [T::Factor],
    dq: &'s mut [T::Acc],
    /// (rows, `BLOCK_KEYS`): scores, and the gradient of the probabilities.
    scores: &'s mut [T::Acc],
    dp: &'s mut [T::Acc],
    /// (rows, `BLOCK_KEYS`): probabilities, and the gradient of the scores.
    p: &'s mut [T::Factor],
    ds: &'s mut [T::Factor],
    /// (rows): sum(grad * o) minus the gradient of lse, and the log-sum-exp.
    dot: &'s mut [T::Acc],
    lse: &'s mut [T::Acc],
    /// (`kv_len`, dim)
    dk: &'s mut [T::Acc],
    dv: &'s mut [T::Acc],
}

impl<T: Float> Head<'_, '_, T> {
    fn row_count(&self, queries: &Range<usize>) -> usize {
        queries.len() * self.params.shape.group()
    }

    /// The row's index in (batch, queries, heads).
    fn place(&self, queries: &Range<usize>, r: usize) -> usize {
        let (shape, group) = (self.params.shape, self.params.shape.group());
        (self.b * shape.queries + queries.start + r / group) * shape.heads + self.g * group + r % group
    }

    fn load(&mut self, queries: &Range<usize>, o: HeadsView<'_, T>, g: HeadsView<'_, T>) {
        let (rows, dim) = (self.row_count(queries), self.params.shape.dim);
        let len = rows * dim;
        self.params
            .rows(&self.params.q, self.b, self.g, queries, &mut self.q[..len]);
        self.params.rows(&g, self.b, self.g, queries, &mut self.grad[..len]);
        let group = self.params.shape.group();
        let grads = self.grad.chunks_exact(dim).take(rows).enumerate();
        for (dot, (r, g)) in self.dot.iter_mut().zip(grads) {
            let o = o.at(self.b, queries.start + r / group, self.g * group + r % group);
            *dot = simd(
                #[inline(always)]
                || sum2(&o[..dim], g, |o, g| o.to_acc() * g.to_acc()),
            );
        }
        self.dq.fill(T::Acc::ZERO);
    }

    fn load_lse(&mut self, queries: &Range<usize>, lse: &[T::Acc], g_lse: Option<&[T::Acc]>) {
        for r in 0..self.row_count(queries) {
            let at = self.place(queries, r);
            self.lse[r] = lse[at];
            if let Some(g_lse) = g_lse {
                self.dot[r] = self.dot[r] - g_lse[at];
            }
        }
    }

    fn block(&mut self, queries: &Range<usize>, wide_k: &mut [T::Acc], wide_v: &mut [T::Acc]) {
        let (params, b, g) = (self.params, self.b, self.g);
        for keys in key_blocks(params.mask.block_keys(queries)) {
            if params.masked_by_segments(b, queries, &keys) {
                continue;
            }
            let k = params.keys(&params.k, b, g, &keys, wide_k);
            let v = params.keys(&params.v, b, g, &keys, wide_v);
            // SAFETY: every matrix has the size given at its field.
            unsafe { self.products(queries, &keys, k, v) };
        }
    }

    /// # Safety
    /// `k` and `v` are (keys, dim).
    unsafe fn products(
        &mut self,
        queries: &Range<usize>,
        keys: &Range<usize>,
        k: Mat<*const T::Factor>,
        v: Mat<*const T::Factor>,
    ) {
        let (rows, n, dim) = (self.row_count(queries), keys.len(), self.params.shape.dim);
        let one = T::Acc::ONE;
        let (q, grad) = (dense(self.q, dim), dense(self.grad, dim));
        let sums = keys.start * dim..keys.end * dim;
        // SAFETY: guaranteed by the caller, and the lengths of the fields.
        unsafe {
            let (scores, dp) = (dense_mut(self.scores, BLOCK_KEYS), dense_mut(self.dp, BLOCK_KEYS));
            dense_product((rows, n, dim), one, q, transposed(k), scores, false, false);
            dense_product((rows, n, dim), one, grad, transposed(v), dp, false, false);
            simd(
                #[inline(always)]
                || self.score_gradients(queries, keys),
            );
            let (p, ds) = (dense(self.p, BLOCK_KEYS), dense(self.ds, BLOCK_KEYS));
            let dv = dense_mut(&mut self.dv[sums.clone()], dim);
            let dk = dense_mut(&mut self.dk[sums], dim);
            dense_product((n, dim, rows), one, transposed(p), grad, dv, true, false);
            dense_product((n, dim, rows), one, transposed(ds), q, dk, true, false);
            dense_product((rows, dim, n), one, ds, k, dense_mut(self.dq, dim), true, false);
        }
    }

    /// Turns scores and grad @ v^T into probabilities and the gradient of the scores.
    #[inline(always)]
    fn score_gradients(&mut self, queries: &Range<usize>, keys: &Range<usize>) {
        let (group, scale) = (self.params.shape.group(), self.scale);
        let wide = self
            .scores
            .chunks_exact_mut(BLOCK_KEYS)
            .zip(self.dp.chunks_exact_mut(BLOCK_KEYS));
        let narrow = self
            .p
            .chunks_exact_mut(BLOCK_KEYS)
            .zip(self.ds.chunks_exact_mut(BLOCK_KEYS));
        for (r, ((scores, dp), (p, ds))) in wide.zip(narrow).take(queries.len() * group).enumerate() {
            let n = keys.len();
            let (scores, dp, p, ds) = (&mut scores[..n], &mut dp[..n], &mut p[..n], &mut ds[..n]);
            let (lse, dot) = (self.lse[r], self.dot[r]);
            let query = queries.start + r / group;
            if lse == T::Acc::NEG_INFINITY {
                p.fill(T::Factor::default());
                ds.fill(T::Factor::default());
                continue;
            }
            for x in &mut *scores {
                *x = *x * scale;
            }
            self.params
                .mask_scores(self.b, query, keys, scores, T::Acc::NEG_INFINITY);
            // Masked keys have probability 0 but an arbitrary gradient.
            self.params.mask_scores(self.b, query, keys, dp, dot);
            for (score, p) in scores.iter_mut().zip(&mut *p) {
                *score = (*score - lse).exp_below();
                *p = T::Factor::from_acc(*score);
            }
            for ((score, dp), ds) in scores.iter().zip(&*dp).zip(ds) {
                *ds = T::Factor::from_acc(*score * (*dp - dot) * scale);
            }
        }
    }

    unsafe fn store_queries(&self, queries: &Range<usize>, out: Shared<T>) {
        let dim = self.params.shape.dim;
        simd(
            #[inline(always)]
            || {
                for (r, row) in self.dq.chunks_exact(dim).take(self.row_count(queries)).enumerate() {
                    // SAFETY: these rows of dq belong to the caller.
                    unsafe { store(row, out.at(self.place(queries, r) * dim)) };
                }
            },
        );
    }
}

impl<T: Float> AttentionParams<'_, T> {
    /// Rounds dk and dv, `(2, kv_len, dim)`, of one (sequence, key head) and stores them; 0 from `kv_len` on.
    ///
    /// # Safety
    /// No other task writes this head.
    unsafe fn store_keys(&self, pair: usize, sums: &[T::Acc], (dk, dv): (Shared<T>, Shared<T>)) {
        let AttentionShape {
            keys, kv_heads, dim, ..
        } = self.shape;
        let (dk_sums, dv_sums) = sums.split_at(sums.len() / 2);
        for (sums, out) in [(dk_sums, dk), (dv_sums, dv)] {
            simd(
                #[inline(always)]
                || {
                    for j in 0..keys {
                        let at = ((pair / kv_heads * keys + j) * kv_heads + pair % kv_heads) * dim;
                        // SAFETY: this head of dk and dv belongs to the caller.
                        unsafe {
                            match sums.get(j * dim..(j + 1) * dim) {
                                Some(row) => store(row, out.at(at)),
                                None => out.slice(at, dim).fill(T::default()),
                            }
                        }
                    }
                },
            );
        }
    }
}
