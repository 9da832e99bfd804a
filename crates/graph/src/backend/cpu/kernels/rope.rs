//! Rotary position embedding: pairs of channels are rotated by an angle given as cosine and sine.

use super::float::{Float, Real};
use super::inout::InOut;
use super::par::{Shared, for_rows, load, simd, store, with_scratch};

/// Sizes and conventions of [`rope`].
#[derive(Clone, Copy, Debug)]
pub struct RopeShape {
    /// Sequences in the batch.
    pub batch: usize,
    /// Positions per sequence.
    pub seq: usize,
    /// Heads at a position.
    pub heads: usize,
    /// Head dimension.
    pub head_dim: usize,
    /// Rotated pairs: the first `2 * pairs` channels; the rest is copied.
    pub pairs: usize,
    /// Channels 2i and 2i + 1 are a pair; otherwise i and i + pairs.
    pub interleaved: bool,
    /// Rotates by the negated angle: the gradient.
    pub inverse: bool,
}

/// Rotates x (batch, seq, heads, `head_dim)`: `(a, b)` becomes `(a cos - b sin, b cos + a sin)`. May be in place.
///
/// `cos` and `sin` are (batch, seq, pairs), or (seq, pairs) for all sequences.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn rope<T: Float, C: Float>(shape: RopeShape, x: &InOut<'_, T>, cos: &[C], sin: &[C]) {
    let RopeShape {
        batch,
        seq,
        heads,
        head_dim: d,
        pairs: r,
        ..
    } = shape;
    assert_eq!(x.len(), batch * seq * heads * d, "rope: x has the wrong size");
    assert!(2 * r <= d, "rope: {r} pairs in {d} channels");
    let shared = cos.len() == seq * r;
    assert!(
        cos.len() == sin.len() && (shared || cos.len() == batch * seq * r),
        "rope: cos and sin have the wrong size"
    );
    let (src, dst) = (Shared::raw(x.src().cast_mut()), Shared::raw(x.dst()));
    let sign = T::Acc::of(if shape.inverse { -1.0 } else { 1.0 });
    for_rows(batch * seq, 4 * heads * d, |range| {
        with_scratch(2 * r + 2 * d, |scratch: &mut [T::Acc]| {
            simd(
                #[inline(always)]
                || {
                    let (angles, work) = scratch.split_at_mut(2 * r);
                    let (c, s) = angles.split_at_mut(r);
                    for row in range {
                        let angle = if shared { row % seq } else { row } * r;
                        widen(&cos[angle..][..r], T::Acc::ONE, c);
                        widen(&sin[angle..][..r], sign, s);
                        for head in 0..heads {
                            let at = (row * heads + head) * d;
                            // SAFETY: the head is in bounds of both buffers and belongs to this task.
                            unsafe { rotate(shape.interleaved, (src.at(at), dst.at(at)), c, s, work) };
                        }
                    }
                },
            );
        });
    });
}

#[inline(always)]
fn widen<A: Real, C: Float>(from: &[C], sign: A, into: &mut [A]) {
    for (to, x) in into.iter_mut().zip(from) {
        *to = A::of(x.to_acc().widen()) * sign;
    }
}

/// One head: widened into the first half of `work`, rotated into the second, and stored.
#[inline(always)]
unsafe fn rotate<T: Float>(
    interleaved: bool,
    (src, dst): (*const T, *mut T),
    cos: &[T::Acc],
    sin: &[T::Acc],
    work: &mut [T::Acc],
) {
    let d = work.len() / 2;
    let r = cos.len();
    let (x, y) = work.split_at_mut(d);
    let y = &mut y[..d];
    // SAFETY: the head has d channels.
    unsafe { load(src, x) };
    if interleaved {
        let pairs = x.chunks_exact(2).zip(y.chunks_exact_mut(2));
        for ((x, y), (&c, &s)) in pairs.zip(cos.iter().zip(sin)) {
            y[0] = x[0] * c - x[1] * s;
            y[1] = x[1] * c + x[0] * s;
        }
    } else {
        let (a, b) = (&x[..r], &x[r..2 * r]);
        let (ya, yb) = y[..2 * r].split_at_mut(r);
        let sin = &sin[..r];
        for i in 0..r {
            ya[i] = a[i] * cos[i] - b[i] * sin[i];
            yb[i] = b[i] * cos[i] + a[i] * sin[i];
        }
    }
    y[2 * r..].copy_from_slice(&x[2 * r..]);
    // SAFETY: as above.
    unsafe { store(y, dst) };
}

#[cfg(test)]
mod tests {
    use super::super::testing::{affordable, close, each_float, epsilon, noise_as, widen};
    use super::*;

    fn naive(shape: RopeShape, x: &[f64], cos: &[f64], sin: &[f64]) -> Vec<f64> {
        let RopeShape {
            seq,
            heads,
            head_dim: d,
            pairs: r,
            ..
        } = shape;
        let mut y = x.to_vec();
        for (at, head) in x.chunks(d).enumerate() {
            let position = at / heads;
            let angle = if cos.len() == seq * r { position % seq } else { position } * r;
            for i in 0..r {
                let (p, q) = if shape.interleaved {
                    (2 * i, 2 * i + 1)
                } else {
                    (i, i + r)
                };
                let (c, s) = (
                    cos[angle + i],
                    if shape.inverse { -sin[angle + i] } else { sin[angle + i] },
                );
                y[at * d + p] = head[p] * c - head[q] * s;
                y[at * d + q] = head[q] * c + head[p] * s;
            }
        }
        y
    }

    fn check<T: Float, C: Float>() {
        for (batch, seq, heads, head_dim, pairs) in [
            (1, 1, 1, 2, 1),
            (2, 3, 2, 10, 5),
            (2, 40, 3, 66, 17),
            (1, 300, 4, 64, 32),
            (1, 0, 2, 4, 2),
            (1, 2, 1, 3, 0),
        ] {
            if !affordable(batch * seq * heads * head_dim) {
                continue;
            }
            for flags in 0..8 {
                let (interleaved, inverse) = (flags & 1 == 1, flags & 2 == 2);
                let shape = RopeShape {
                    batch,
                    seq,
                    heads,
                    head_dim,
                    pairs,
                    interleaved,
                    inverse,
                };
                let rows = if flags & 4 == 4 { seq } else { batch * seq };
                let (mut x, x64) = noise_as::<T>(1, batch * seq * heads * head_dim);
                let ((cos, c64), (sin, s64)) = (noise_as::<C>(2, rows * pairs), noise_as::<C>(3, rows * pairs));
                let mut y = vec![T::default(); x.len()];
                rope(shape, &InOut::new(&x, &mut y), &cos, &sin);
                close(&widen(&y), &naive(shape, &x64, &c64, &s64), 2.0 * epsilon::<T>());
                rope(shape, &InOut::in_place(&mut x), &cos, &sin);
                assert!(x == y);
            }
        }
    }

    fn both<T: Float>() {
        check::<T, T>();
        check::<T, f32>();
    }

    #[test]
    fn agrees_with_the_definition() {
        each_float!(both);
    }
}
