//! Attention against its definition in f64 with every mask, and gradients against central differences.

use super::super::testing::{affordable, close, differences, each_float, epsilon, noise, noise_as, widen};
use super::*;
use crate::backend::cpu::kernels::Real;

const SCALE: f64 = 0.37;

fn sees(mask: &Mask<'_>, shape: AttentionShape, b: usize, i: usize, j: usize) -> bool {
    let p = mask.offset + i;
    let segment = mask
        .segments
        .is_none_or(|(q, k)| q[b * shape.queries + i] == k[b * shape.keys + j]);
    let past = !mask.causal || (j <= p && mask.window.is_none_or(|w| j + w > p));
    j < mask.kv_len && past && segment
}

/// o and lse computed by the definition; all tensors are contiguous.
fn naive(shape: AttentionShape, mask: &Mask<'_>, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let AttentionShape {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        dim,
    } = shape;
    let (mut o, mut lse) = (
        vec![0.0; batch * queries * heads * dim],
        vec![f64::NEG_INFINITY; batch * queries * heads],
    );
    for b in 0..batch {
        for i in 0..queries {
            for h in 0..heads {
                let row = (b * queries + i) * heads + h;
                let key = |j: usize| ((b * keys + j) * kv_heads + h / (heads / kv_heads)) * dim;
                let seen: Vec<usize> = (0..keys).filter(|&j| sees(mask, shape, b, i, j)).collect();
                let score = |&j: &usize| (0..dim).map(|c| q[row * dim + c] * k[key(j) + c]).sum::<f64>() * SCALE;
                let p: Vec<f64> = seen.iter().map(|j| score(j).exp()).collect();
                let total: f64 = p.iter().sum();
                if seen.is_empty() {
                    continue;
                }
                lse[row] = total.ln();
                for (&j, p) in seen.iter().zip(&p) {
                    for c in 0..dim {
                        o[row * dim + c] += p / total * v[key(j) + c];
                    }
                }
            }
        }
    }
    (o, lse)
}

fn shape(batch: usize, queries: usize, keys: usize, heads: usize, kv_heads: usize, dim: usize) -> AttentionShape {
    AttentionShape {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        dim,
    }
}

fn shapes() -> Vec<AttentionShape> {
    vec![
        shape(1, 1, 1, 1, 1, 1),
        shape(2, 5, 7, 4, 2, 3),
        shape(1, 1, 300, 6, 2, 16),
        shape(1, 1, 150, 7, 1, 8),
        shape(2, 70, 140, 3, 3, 33),
        shape(1, 150, 150, 4, 1, 8),
        shape(1, 0, 3, 2, 1, 4),
        shape(1, 3, 0, 2, 1, 4),
    ]
}

/// Calls `f` with every kind of mask for the shape; segments have about five positions.
fn each_mask(shape: AttentionShape, f: impl Fn(Mask<'_>)) {
    let segment = |n: usize| (0..shape.batch * n).map(|i| (i % n / 5) as u32).collect::<Vec<_>>();
    let (q, k) = (segment(shape.queries), segment(shape.keys));
    let scattered: Vec<u32> = (0..shape.batch * shape.keys).map(|i| (i * 7 % 3) as u32).collect();
    let last = shape.keys.saturating_sub(shape.queries);
    let caches = [
        (shape.keys, 0),
        (shape.keys, last),
        (shape.keys / 2, last),
        (shape.keys, 2),
    ];
    let tried = if cfg!(miri) { &caches[2..3] } else { &caches };
    for &(kv_len, offset) in tried {
        let masks = [(false, None), (true, None), (true, Some(1)), (true, Some(40))];
        for (causal, window) in masks.into_iter().skip(if cfg!(miri) { 2 } else { 0 }) {
            for segments in [None, Some((&q[..], &k[..])), Some((&q[..], &scattered[..]))] {
                f(Mask {
                    causal,
                    window,
                    offset,
                    kv_len,
                    segments,
                });
            }
        }
    }
}

fn forward<T: Float>() {
    for shape in shapes() {
        let AttentionShape {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            dim,
        } = shape;
        if !affordable(batch * queries * keys * heads * dim) {
            continue;
        }
        let (q, q64) = noise_as::<T>(1, batch * queries * heads * dim);
        let (k, k64) = noise_as::<T>(2, batch * keys * kv_heads * dim);
        let (v, v64) = noise_as::<T>(3, batch * keys * kv_heads * dim);
        each_mask(shape, |mask| {
            let mut o = vec![T::from_acc(T::Acc::ONE); q.len()];
            let mut lse = vec![T::Acc::ONE; batch * queries * heads];
            let view = |data, positions, heads| HeadsView::contiguous(data, positions, heads, dim);
            let (qv, kv, vv) = (
                view(&q, queries, heads),
                view(&k, keys, kv_heads),
                view(&v, keys, kv_heads),
            );
            attention(shape, qv, kv, vv, T::Acc::of(SCALE), mask, &mut o, &mut lse);
            let (want, want_lse) = naive(shape, &mask, &q64, &k64, &v64);
            close(&widen(&o), &want, 2.0 * epsilon::<T>() + epsilon::<T::Acc>() * 20.0);
            close(&widen(&lse), &want_lse, epsilon::<T::Acc>() * 20.0);
        });
    }
}

#[test]
fn forward_agrees_with_the_definition() {
    each_float!(forward);
}

/// NaN scores: with masked keys before and after, all of them NaN, or only one.
#[test]
fn a_nan_reaches_exactly_the_queries_that_see_it() {
    // Two blocks of queries; fewer under Miri.
    let queries = if cfg!(miri) { 12 } else { 70 };
    let shape = shape(1, queries, queries, 2, 1, 8);
    let AttentionShape { heads, dim, .. } = shape;
    let mask = Mask {
        causal: true,
        window: Some(3),
        offset: 0,
        kv_len: queries,
        segments: None,
    };
    let (v, _) = noise_as::<f32>(3, queries * dim);
    let middle = Some(queries * 4 / 7);
    for (query, key) in [(middle, None), (None, middle), (Some(queries - 1), Some(0))] {
        let (mut q, _) = noise_as::<f32>(1, queries * heads * dim);
        let (mut k, _) = noise_as::<f32>(2, queries * dim);
        if let Some(query) = query {
            q[query * heads * dim] = f32::NAN;
        }
        if let Some(key) = key {
            k[key * dim] = f32::NAN;
        }
        let view = |data, heads| HeadsView::contiguous(data, queries, heads, dim);
        let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; queries * heads]);
        attention(
            shape,
            view(&q, heads),
            view(&k, 1),
            view(&v, 1),
            0.3,
            mask,
            &mut o,
            &mut lse,
        );
        for (row, (o, lse)) in o.chunks_exact(dim).zip(&lse).enumerate() {
            let (i, head) = (row / heads, row % heads);
            let sees = key.is_some_and(|key| sees(&mask, shape, 0, i, key));
            let nan = sees || query == Some(i) && head == 0;
            assert!(
                o.iter().chain([lse]).all(|x| x.is_nan() == nan),
                "{query:?} {key:?}, row {row}: {o:?} {lse}"
            );
        }
    }
}

#[test]
fn strided_heads_and_caches_agree() {
    // (batch, heads, positions, dim) with spare capacity for positions, against the same numbers in contiguous layout.
    let shape = shape(2, 9, 20, 4, 2, 5);
    let AttentionShape {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        dim,
    } = shape;
    let turn = |data: &[f64], positions: usize, heads: usize, room: usize| {
        let mut out = vec![f64::NAN; batch * heads * room * dim];
        for (at, &x) in data.iter().enumerate() {
            let (c, h, i, b) = (
                at % dim,
                at / dim % heads,
                at / dim / heads % positions,
                at / dim / heads / positions,
            );
            out[((b * heads + h) * room + i) * dim + c] = x;
        }
        out
    };
    let (q, k, v) = (
        noise(1, batch * queries * heads * dim),
        noise(2, batch * keys * kv_heads * dim),
        noise(3, batch * keys * kv_heads * dim),
    );
    let (tq, tk, tv) = (
        turn(&q, queries, heads, 11),
        turn(&k, keys, kv_heads, 25),
        turn(&v, keys, kv_heads, 25),
    );
    let mask = Mask {
        causal: true,
        window: None,
        offset: 6,
        kv_len: 15,
        segments: None,
    };
    let run = |views: [HeadsView<'_, f64>; 3]| {
        let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / dim]);
        attention(shape, views[0], views[1], views[2], SCALE, mask, &mut o, &mut lse);
        o
    };
    let plain = [
        HeadsView::contiguous(&q, queries, heads, dim),
        HeadsView::contiguous(&k, keys, kv_heads, dim),
        HeadsView::contiguous(&v, keys, kv_heads, dim),
    ];
    let turned = |data, heads: usize, room: usize| HeadsView {
        data,
        batch_stride: heads * room * dim,
        seq_stride: dim,
        head_stride: room * dim,
    };
    assert_eq!(
        run(plain),
        run([
            turned(&tq, heads, 11),
            turned(&tk, kv_heads, 25),
            turned(&tv, kv_heads, 25)
        ])
    );
}

/// The gradients of q, k and v, with g as the gradient of the output, and its first numbers as that of lse.
fn gradients<T: Float>(shape: AttentionShape, mask: Mask<'_>, q: &[T], k: &[T], v: &[T], g: &[T]) -> [Vec<T>; 3] {
    let AttentionShape {
        queries,
        keys,
        heads,
        kv_heads,
        dim,
        ..
    } = shape;
    let view = |data, positions, heads| HeadsView::contiguous(data, positions, heads, dim);
    let (qv, kv, vv) = (
        view(q, queries, heads),
        view(k, keys, kv_heads),
        view(v, keys, kv_heads),
    );
    let (mut o, mut lse) = (vec![T::default(); q.len()], vec![T::Acc::ZERO; q.len() / dim]);
    attention(shape, qv, kv, vv, T::Acc::of(SCALE), mask, &mut o, &mut lse);
    let g_lse: Vec<T::Acc> = g.iter().map(|x| x.to_acc()).take(lse.len()).collect();
    let nan = T::from_acc(T::Acc::of(f64::NAN));
    let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|n| vec![nan; n]);
    attention_vjp(
        shape,
        qv,
        kv,
        vv,
        T::Acc::of(SCALE),
        mask,
        &o,
        &lse,
        g,
        Some(&g_lse),
        &mut dq,
        &mut dk,
        &mut dv,
    );
    [dq, dk, dv]
}

#[test]
fn gradients_agree_with_differences() {
    for shape in [
        shape(1, 1, 1, 1, 1, 1),
        shape(2, 4, 6, 4, 2, 3),
        shape(1, 3, 0, 2, 1, 4),
    ] {
        let AttentionShape {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            dim,
        } = shape;
        if !affordable((batch * queries * keys * heads * dim).pow(2)) {
            continue;
        }
        let (q, g) = (
            noise(1, batch * queries * heads * dim),
            noise(4, batch * queries * heads * dim),
        );
        let (k, v) = (
            noise(2, batch * keys * kv_heads * dim),
            noise(3, batch * keys * kv_heads * dim),
        );
        each_mask(shape, |mask| {
            let [dq, dk, dv] = gradients(shape, mask, &q, &k, &v, &g);
            let loss = |q: &[f64], k: &[f64], v: &[f64]| {
                let (o, lse) = naive(shape, &mask, q, k, v);
                let finite = lse.iter().map(|&x| if x.is_finite() { x } else { 0.0 });
                o.iter()
                    .zip(&g)
                    .chain(finite.collect::<Vec<_>>().iter().zip(&g))
                    .map(|(o, g)| o * g)
                    .sum::<f64>()
            };
            close(&dq, &differences(&q, |x| loss(x, &k, &v)), 1e-6);
            close(&dk, &differences(&k, |x| loss(&q, x, &v)), 1e-6);
            close(&dv, &differences(&v, |x| loss(&q, &k, x)), 1e-6);
        });
    }
}

fn narrow<T: Float>() {
    for shape in [
        shape(2, 5, 7, 4, 2, 3),
        shape(2, 70, 140, 3, 3, 33),
        shape(1, 150, 150, 4, 1, 8),
        shape(1, 200, 200, 2, 2, 16),
    ] {
        let AttentionShape {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            dim,
        } = shape;
        if !affordable(batch * queries * keys * heads * dim) {
            continue;
        }
        let (q, q64) = noise_as::<T>(1, batch * queries * heads * dim);
        let (k, k64) = noise_as::<T>(2, batch * keys * kv_heads * dim);
        let (v, v64) = noise_as::<T>(3, batch * keys * kv_heads * dim);
        let (g, g64) = noise_as::<T>(4, q.len());
        each_mask(shape, |mask| {
            let got = gradients(shape, mask, &q, &k, &v, &g);
            let want = gradients(shape, mask, &q64, &k64, &v64, &g64);
            for (got, want) in got.iter().zip(&want) {
                close(&widen(got), want, 4.0 * epsilon::<T>() + 1e-5);
            }
        });
    }
}

#[test]
fn gradients_of_large_and_narrow_inputs_agree_with_f64() {
    each_float!(narrow);
}
