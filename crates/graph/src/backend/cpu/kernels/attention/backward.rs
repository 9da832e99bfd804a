//! The gradient: one task for each (sequence, key head), which goes through the blocks of queries in order.

use std::ops::Range;

use super::super::float::{Float, Mat, Real, dense, dense_mut, transposed};
use super::super::matmul::dense_product;
use super::super::par::{PARALLEL_WORK, Shared, for_pieces, simd, store, sum2, with_scratch};
use super::{AttentionShape, BLOCK_KEYS, HeadsView, Job, Mask, cut, key_blocks};

/// The gradients of [`attention`](super::attention) from those of its results, `g` and (0 if missing) `g_lse`.
///
/// With p the probabilities, `dv = p^T g`, `ds = p * (g v^T - sum(g * o) + g_lse) * scale`, `dq = ds k`, `dk = ds^T q`. All are as the forward pass lays them out; dq is (batch, queries, heads, dim), dk and dv are
/// (batch, keys, `kv_heads`, dim), contiguous, the sums over the query heads that share a key head; 0 from `kv_len` on.
///
/// # Panics
/// If the sizes do not fit.
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
    let job = Job { shape, q, k, v, mask };
    job.check();
    let (q_len, kv_len) = (batch * queries * heads * dim, batch * keys * kv_heads * dim);
    assert_eq!(
        [o.len(), g.len(), dq.len()],
        [q_len; 3],
        "attention: o, g or dq has another size"
    );
    assert_eq!(
        [dk.len(), dv.len()],
        [kv_len; 2],
        "attention: dk or dv has another size"
    );
    assert_eq!(lse.len(), batch * queries * heads, "attention: lse has another size");
    assert!(
        g_lse.is_none_or(|g| g.len() == lse.len()),
        "attention: the gradient of lse has another size"
    );
    let o = HeadsView::contiguous(o, queries, heads, dim);
    let g = HeadsView::contiguous(g, queries, heads, dim);
    let out = [Shared::new(dq), Shared::new(dk), Shared::new(dv)];
    let rows = shape.block_queries() * shape.group();
    let seen = mask.kv_len * dim;
    let widened = if T::IS_ACC { 0 } else { BLOCK_KEYS * dim };
    let (wide, square) = (rows * dim, rows * BLOCK_KEYS);
    let lengths = [
        wide, wide, wide, square, square, rows, rows, widened, widened, seen, seen,
    ];
    for_pieces(batch * kv_heads, 1, shape.work() >= PARALLEL_WORK, |task, _| {
        with_scratch(lengths.iter().sum(), |scratch| {
            let [q, g_rows, dq, p, ds, dot, row_lse, wide_k, wide_v, dk, dv] = cut(scratch, lengths);
            let (b, group) = (task / kv_heads, task % kv_heads);
            dk.fill(T::Acc::ZERO);
            dv.fill(T::Acc::ZERO);
            let mut head = Head {
                job: &job,
                b,
                g: group,
                scale,
                q,
                grad: g_rows,
                dq,
                p,
                ds,
                dot,
                lse: row_lse,
                dk,
                dv,
            };
            let block = shape.block_queries();
            for start in (0..queries).step_by(block) {
                let range = start..queries.min(start + block);
                head.load(&range, o, g);
                head.load_lse(&range, lse, g_lse);
                head.block(&range, wide_k, wide_v);
                // SAFETY: the rows belong to this task.
                unsafe { head.store_queries(&range, out[0]) };
            }
            // SAFETY: this key head belongs to this task.
            unsafe { head.store_keys(out[1], out[2]) };
        });
    });
}

/// One (sequence, key head): the block at work, and the sums over all blocks.
struct Head<'s, 'a, T: Float> {
    job: &'s Job<'a, T>,
    b: usize,
    g: usize,
    scale: T::Acc,
    /// (rows, dim) of the block: q, the gradient of o, and dq.
    q: &'s mut [T::Acc],
    grad: &'s mut [T::Acc],
    dq: &'s mut [T::Acc],
    /// (rows, `BLOCK_KEYS`): probabilities, and the gradient of the scores.
    p: &'s mut [T::Acc],
    ds: &'s mut [T::Acc],
    /// (rows): sum(grad * o) less the gradient of lse, and the log-sum-exp.
    dot: &'s mut [T::Acc],
    lse: &'s mut [T::Acc],
    /// (`kv_len`, dim)
    dk: &'s mut [T::Acc],
    dv: &'s mut [T::Acc],
}

impl<T: Float> Head<'_, '_, T> {
    fn row_count(&self, queries: &Range<usize>) -> usize {
        queries.len() * self.job.shape.group()
    }

    /// The row's number among (batch, queries, heads).
    fn place(&self, queries: &Range<usize>, r: usize) -> usize {
        let (shape, group) = (self.job.shape, self.job.shape.group());
        (self.b * shape.queries + queries.start + r / group) * shape.heads + self.g * group + r % group
    }

    fn load(&mut self, queries: &Range<usize>, o: HeadsView<'_, T>, g: HeadsView<'_, T>) {
        let (rows, dim) = (self.row_count(queries), self.job.shape.dim);
        let len = rows * dim;
        self.job.rows(&self.job.q, self.b, self.g, queries, &mut self.q[..len]);
        self.job.rows(&g, self.b, self.g, queries, &mut self.grad[..len]);
        // dq holds o until the dot products are made.
        self.job.rows(&o, self.b, self.g, queries, &mut self.dq[..len]);
        let pairs = self.dq.chunks_exact(dim).zip(self.grad.chunks_exact(dim));
        for (dot, (o, g)) in self.dot.iter_mut().zip(pairs.take(rows)) {
            *dot = sum2(o, g, |o, g| o * g);
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
        let (job, b, g) = (self.job, self.b, self.g);
        for keys in key_blocks(job.mask.block_keys(queries)) {
            if job.apart(b, queries, &keys) {
                continue;
            }
            let k = job.keys(&job.k, b, g, &keys, wide_k);
            let v = job.keys(&job.v, b, g, &keys, wide_v);
            // SAFETY: every matrix has the sizes its field names.
            unsafe { self.products(queries, &keys, k, v) };
        }
    }

    /// # Safety
    /// `k` and `v` are (keys, dim).
    unsafe fn products(
        &mut self,
        queries: &Range<usize>,
        keys: &Range<usize>,
        k: Mat<*const T::Acc>,
        v: Mat<*const T::Acc>,
    ) {
        let (rows, n, dim) = (self.row_count(queries), keys.len(), self.job.shape.dim);
        let one = T::Acc::ONE;
        let (q, grad) = (dense(self.q, dim), dense(self.grad, dim));
        let sums = keys.start * dim..keys.end * dim;
        // SAFETY: the caller's promise, and the lengths of the fields.
        unsafe {
            let (p, ds) = (dense_mut(self.p, BLOCK_KEYS), dense_mut(self.ds, BLOCK_KEYS));
            dense_product((rows, n, dim), self.scale, q, transposed(k), p, false, false);
            dense_product((rows, n, dim), one, grad, transposed(v), ds, false, false);
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

    /// From scores and grad @ v^T to probabilities and the gradient of the scores.
    #[inline(always)]
    fn score_gradients(&mut self, queries: &Range<usize>, keys: &Range<usize>) {
        let (group, scale) = (self.job.shape.group(), self.scale);
        let rows = self
            .p
            .chunks_exact_mut(BLOCK_KEYS)
            .zip(self.ds.chunks_exact_mut(BLOCK_KEYS));
        for (r, (p, ds)) in rows.take(queries.len() * group).enumerate() {
            let (p, ds) = (&mut p[..keys.len()], &mut ds[..keys.len()]);
            let (lse, dot) = (self.lse[r], self.dot[r]);
            let query = queries.start + r / group;
            if lse == T::Acc::NEG_INFINITY {
                p.fill(T::Acc::ZERO);
                ds.fill(T::Acc::ZERO);
                continue;
            }
            for (p, ds) in p.iter_mut().zip(&mut *ds) {
                *p = (*p - lse).exp();
                *ds = *p * (*ds - dot) * scale;
            }
            self.job.hide(self.b, query, keys, p, T::Acc::ZERO);
            self.job.hide(self.b, query, keys, ds, T::Acc::ZERO);
        }
    }

    unsafe fn store_queries(&self, queries: &Range<usize>, out: Shared<T>) {
        let dim = self.job.shape.dim;
        for (r, row) in self.dq.chunks_exact(dim).take(self.row_count(queries)).enumerate() {
            // SAFETY: the caller owns these rows of dq.
            unsafe { store(row, out.at(self.place(queries, r) * dim)) };
        }
    }

    unsafe fn store_keys(&self, dk: Shared<T>, dv: Shared<T>) {
        let AttentionShape {
            keys, kv_heads, dim, ..
        } = self.job.shape;
        for (sums, out) in [(&self.dk, dk), (&self.dv, dv)] {
            for j in 0..keys {
                let at = ((self.b * keys + j) * kv_heads + self.g) * dim;
                // SAFETY: the caller owns this head of dk and dv.
                unsafe {
                    match sums.get(j * dim..(j + 1) * dim) {
                        Some(row) => store(row, out.at(at)),
                        None => out.slice(at, dim).fill(T::default()),
                    }
                }
            }
        }
    }
}
