//! Fills memory from the counter-based streams of [`crate::random`]: element i depends only on the key and i.

use super::float::{Float, Real};
use super::par::{Shared, for_rows};
use crate::random::{block, pair};

/// A key: two words of key, two of stream.
pub type Key = [u32; 4];

/// Raw bits.
pub fn fill_bits(key: Key, out: &mut [u32]) {
    fill(key, 8, out, |words| words);
}

/// Uniform in [0, 1): with 32 bits for f64, with 24 otherwise (then rounded to T).
pub fn fill_uniform<T: Float>(key: Key, out: &mut [T]) {
    let wide = size_of::<T::Acc>() == size_of::<f64>();
    fill(key, 12, out, |words| {
        words.map(|word| {
            let value = if wide {
                f64::from(word) / 4_294_967_296.0
            } else {
                f64::from(word >> 8) / 16_777_216.0
            };
            T::from_acc(T::Acc::of(value))
        })
    });
}

/// Standard normal, computed in f64 (then rounded to T).
pub fn fill_normal<T: Float>(key: Key, out: &mut [T]) {
    fill(key, 200, out, |[a, b, c, d]| {
        let ((w, x), (y, z)) = (pair(a, b), pair(c, d));
        [w, x, y, z].map(|value| T::from_acc(T::Acc::of(value)))
    });
}

/// Writes `f(block i)` to elements 4i .. 4i + 4.
fn fill<T: Copy + Send + Sync>(
    [k0, k1, c2, c3]: Key,
    work: usize,
    out: &mut [T],
    f: impl Fn([u32; 4]) -> [T; 4] + Sync,
) {
    let n = out.len();
    let result = Shared::new(out);
    for_rows(n.div_ceil(4), work, |range| {
        for i in range {
            let values = f(block([k0, k1], [c2, c3], i as u64));
            let len = (n - 4 * i).min(4);
            // SAFETY: these elements belong to this task.
            unsafe { result.slice(4 * i, len) }.copy_from_slice(&values[..len]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{affordable, each_float};
    use super::*;
    use crate::random;

    const KEY: Key = [1, 2, 3, 4];

    #[test]
    fn bits_are_those_of_the_stream_however_long() {
        for n in [0, 1, 5, 70_003] {
            if !affordable(n) {
                continue;
            }
            let mut out = vec![0; n];
            fill_bits(KEY, &mut out);
            assert_eq!(out, random::bits([1, 2], [3, 4]).take(n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn numbers_are_those_of_the_stream() {
        let n = 40_001;
        let (mut narrow, mut wide) = (vec![0f32; n], vec![0f64; n]);
        fill_uniform(KEY, &mut narrow);
        fill_uniform(KEY, &mut wide);
        assert!(narrow.iter().copied().eq(random::uniform32([1, 2], [3, 4]).take(n)));
        assert!(wide.iter().copied().eq(random::uniform64([1, 2], [3, 4]).take(n)));
        fill_normal(KEY, &mut narrow);
        fill_normal(KEY, &mut wide);
        assert!(narrow.iter().copied().eq(random::normal32([1, 2], [3, 4]).take(n)));
        assert!(wide.iter().copied().eq(random::normal64([1, 2], [3, 4]).take(n)));
    }

    fn moments<T: Float>() {
        let mut out = vec![T::default(); 100_000];
        let run = |out: &[T]| {
            let values: Vec<f64> = out.iter().map(|x| x.to_acc().widen()).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            (
                mean,
                values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64,
            )
        };
        fill_uniform(KEY, &mut out);
        let (mean, variance) = run(&out);
        assert!(
            (mean - 0.5).abs() < 0.005 && (variance - 1.0 / 12.0).abs() < 0.002,
            "{mean} {variance}"
        );
        fill_normal(KEY, &mut out);
        let (mean, variance) = run(&out);
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        each_float!(moments);
    }
}
