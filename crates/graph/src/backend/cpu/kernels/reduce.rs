//! Sum, maximum and position of the maximum along one dimension of (outer, n, inner).
//!
//! Sums are blocked: several accumulators inside a chunk, pairwise between chunks, so that long sums stay accurate; the
//! order depends on the sizes alone.

use super::element::Element;
use super::par::{BLOCK, Shared, for_rows, lanes1, max_nan, simd};
use super::scratch::Filled;

/// Elements of a row, or rows of a column block, that are reduced sequentially.
const CHUNK: usize = 4096;
const ROW_CHUNK: usize = 64;

/// The sizes of a reduction: x is (outer, n, inner), the result (outer, inner).
#[derive(Clone, Copy, Debug)]
pub struct ReduceShape {
    /// Product of the dimensions before the reduced one.
    pub outer: usize,
    /// Size of the reduced dimension.
    pub n: usize,
    /// Product of the dimensions after the reduced one.
    pub inner: usize,
}

impl ReduceShape {
    fn check<T, U>(&self, x: &[T], out: &[U]) {
        assert_eq!(
            x.len(),
            self.outer * self.n * self.inner,
            "reduce: x has the wrong size"
        );
        assert_eq!(
            out.len(),
            self.outer * self.inner,
            "reduce: the output has the wrong size"
        );
    }
}

/// Sums; accumulated in f32 for f16 and bf16; integers wrap. 0 if n is 0.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn sum<T: Element>(shape: ReduceShape, x: &[T], out: &mut [T]) {
    reduce(shape, x, out, T::ZERO, T::plus);
}

/// Maxima; NaN if any element is NaN, the lowest value if n is 0.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn max<T: Element>(shape: ReduceShape, x: &[T], out: &mut [T]) {
    reduce(shape, x, out, T::LOWEST, max_nan);
}

/// The position of the first maximum, or of the first NaN; 0 if n is 0.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn argmax<T: Element>(shape: ReduceShape, x: &[T], out: &mut [u32]) {
    shape.check(x, out);
    let ReduceShape { n, inner, .. } = shape;
    let result = Shared::new(out);
    for_rows(out.len(), 2 * n, |range| {
        for at in range {
            if inner == 1 {
                // SAFETY: the result belongs to this task.
                unsafe { *result.at(at) = row_argmax(&x[at * n..][..n]) };
                continue;
            }
            let start = at / inner * n * inner + at % inner;
            let column = x[start.min(x.len())..].iter().step_by(inner).take(n).map(|v| v.widen());
            // SAFETY: the result belongs to this task.
            unsafe { *result.at(at) = first_largest(column) };
        }
    });
}

/// Finds the maximum with many accumulators, then its position.
fn row_argmax<T: Element>(row: &[T]) -> u32 {
    let top = lanes(row, T::LOWEST, max_nan);
    let place = if is_nan(top) {
        row.iter().position(|x| is_nan(x.widen()))
    } else {
        row.iter().position(|x| x.widen() == top)
    };
    place.unwrap_or(0) as u32
}

#[allow(clippy::eq_op)] // only NaN differs from itself
fn is_nan<V: Copy + PartialOrd>(value: V) -> bool {
    value != value
}

fn first_largest<V: Copy + PartialOrd>(values: impl Iterator<Item = V>) -> u32 {
    let mut best: Option<(u32, V)> = None;
    for (i, value) in (0u32..).zip(values) {
        if is_nan(value) {
            return i;
        }
        if best.is_none_or(|(_, largest)| value > largest) {
            best = Some((i, value));
        }
    }
    best.map_or(0, |(i, _)| i)
}

fn reduce<T: Element>(
    shape: ReduceShape,
    x: &[T],
    out: &mut [T],
    identity: T::Sum,
    f: impl Fn(T::Sum, T::Sum) -> T::Sum + Copy + Sync,
) {
    shape.check(x, out);
    let ReduceShape { outer, n, inner } = shape;
    if out.is_empty() {
        return;
    }
    if inner == 1 && outer == 1 {
        out[0] = T::round(long_row(x, identity, f));
    } else if inner == 1 {
        let result = Shared::new(out);
        for_rows(outer, n, |range| {
            for row in range {
                // SAFETY: the result belongs to this task.
                unsafe { *result.at(row) = T::round(row_of_chunks(&x[row * n..][..n], identity, f)) };
            }
        });
    } else {
        columns(shape, x, out, identity, f);
    }
}

/// One row; its chunks are spread over threads.
fn long_row<T: Element>(x: &[T], identity: T::Sum, f: impl Fn(T::Sum, T::Sum) -> T::Sum + Copy + Sync) -> T::Sum {
    let mut partials = Filled::new(x.len().div_ceil(CHUNK), identity);
    let result = Shared::new(&mut partials);
    for_rows(x.len().div_ceil(CHUNK), CHUNK, |range| {
        for chunk in range {
            let part = &x[chunk * CHUNK..x.len().min((chunk + 1) * CHUNK)];
            // SAFETY: the chunk belongs to this task.
            unsafe { *result.at(chunk) = lanes(part, identity, f) };
        }
    });
    pairs(&partials, identity, f)
}

/// Like [`long_row`] on this thread: reduces the halves of the row recursively.
fn row_of_chunks<T: Element>(row: &[T], identity: T::Sum, f: impl Fn(T::Sum, T::Sum) -> T::Sum + Copy) -> T::Sum {
    if row.len() <= CHUNK {
        return lanes(row, identity, f);
    }
    let (left, right) = row.split_at(row.len().div_ceil(CHUNK).div_ceil(2) * CHUNK);
    f(row_of_chunks(left, identity, f), row_of_chunks(right, identity, f))
}

/// Reduces a chunk with many accumulators.
fn lanes<T: Element>(x: &[T], identity: T::Sum, f: impl Fn(T::Sum, T::Sum) -> T::Sum + Copy) -> T::Sum {
    simd(
        #[inline(always)]
        || {
            lanes1(
                x,
                identity,
                #[inline(always)]
                |s, x| f(s, x.widen()),
                f,
            )
        },
    )
}

/// Pairwise reduction.
pub(crate) fn pairs<S: Copy>(values: &[S], identity: S, f: impl Fn(S, S) -> S + Copy) -> S {
    match values {
        [] => identity,
        [one] => *one,
        _ => {
            let (left, right) = values.split_at(values.len().div_ceil(2));
            f(pairs(left, identity, f), pairs(right, identity, f))
        }
    }
}

/// inner > 1: blocks of columns, accumulated over the rows: [`ROW_CHUNK`] rows at a time, then as many partial sums at a
/// time, so that long sums stay accurate.
fn columns<T: Element>(
    ReduceShape { outer, n, inner }: ReduceShape,
    x: &[T],
    out: &mut [T],
    identity: T::Sum,
    f: impl Fn(T::Sum, T::Sum) -> T::Sum + Copy + Sync,
) {
    let result = Shared::new(out);
    let blocks = inner.div_ceil(BLOCK);
    for_rows(outer * blocks, n * BLOCK.min(inner), |range| {
        for at in range {
            let (row, start) = (at / blocks, at % blocks * BLOCK);
            let len = BLOCK.min(inner - start);
            let rows = (0..n).map(|i| &x[(row * n + i) * inner + start..][..len]);
            // SAFETY: the columns belong to this task.
            let out = unsafe { result.slice(row * inner + start, len) };
            simd(
                #[inline(always)]
                || column_block(rows, out, identity, f),
            );
        }
    });
}

#[inline(always)]
fn column_block<'a, T: Element>(
    rows: impl Iterator<Item = &'a [T]>,
    out: &mut [T],
    identity: T::Sum,
    f: impl Fn(T::Sum, T::Sum) -> T::Sum,
) {
    let mut levels = [[identity; BLOCK]; 3];
    let [part, middle, total] = levels.each_mut().map(|level| &mut level[..out.len()]);
    for (i, row) in rows.enumerate() {
        if i > 0 && i % ROW_CHUNK == 0 {
            carry(part, middle, identity, &f);
        }
        if i > 0 && i % (ROW_CHUNK * ROW_CHUNK) == 0 {
            carry(middle, total, identity, &f);
        }
        for (part, x) in part.iter_mut().zip(row) {
            *part = f(*part, x.widen());
        }
    }
    carry(part, middle, identity, &f);
    carry(middle, total, identity, &f);
    for (out, total) in out.iter_mut().zip(total) {
        *out = T::round(*total);
    }
}

/// Adds the accumulators of one level to those of the next.
#[inline(always)]
fn carry<S: Copy>(from: &mut [S], to: &mut [S], identity: S, f: impl Fn(S, S) -> S) {
    for (to, from) in to.iter_mut().zip(from) {
        (*to, *from) = (f(*to, *from), identity);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Float;
    use super::super::testing::{affordable, close, each_float, epsilon, noise_as, widen};
    use super::*;

    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (3, 0, 2),
        (0, 5, 1),
        (7, 33, 1),
        (5, 5000, 1),
        (1, 100_003, 1),
        (3, 300, 7),
        (1, 1000, 600),
        (40, 9, 64),
    ];

    /// The elements of each line along the reduced dimension.
    fn lines<T: Copy>((outer, n, inner): (usize, usize, usize), x: &[T]) -> Vec<Vec<T>> {
        let line = |at: usize| (0..n).map(|i| x[(at / inner * n + i) * inner + at % inner]).collect();
        (0..outer * inner).map(line).collect()
    }

    fn floats<T: Float + Element>() {
        for (outer, n, inner) in SHAPES {
            if !affordable(outer * n * inner) {
                continue;
            }
            let (x, x64) = noise_as::<T>(1, outer * n * inner);
            let shape = ReduceShape { outer, n, inner };
            let (mut sums, mut tops) = (vec![T::default(); outer * inner], vec![T::default(); outer * inner]);
            let mut places = vec![7; outer * inner];
            sum(shape, &x, &mut sums);
            max(shape, &x, &mut tops);
            argmax(shape, &x, &mut places);
            let lines = lines((outer, n, inner), &x64);
            let want: Vec<f64> = lines.iter().map(|line| line.iter().sum()).collect();
            let epsilon = epsilon::<T>() + 40.0 * epsilon::<T::Acc>() + 1e-12;
            close(&widen(&sums), &want, epsilon);
            let top = |line: &Vec<f64>| line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let want: Vec<f64> = lines.iter().map(top).collect();
            close(&widen(&tops), &want, 0.0);
            let place = |(line, top): (&Vec<f64>, &f64)| line.iter().position(|x| x == top).unwrap_or(0) as u32;
            assert_eq!(places, lines.iter().zip(&want).map(place).collect::<Vec<_>>());
        }
    }

    #[test]
    fn floats_agree_with_the_definition() {
        each_float!(floats);
    }

    #[test]
    fn a_long_sum_of_ones_and_small_numbers_is_accurate() {
        let x = vec![0.1f32; 1 << 22];
        let want = f64::from(0.1f32) * x.len() as f64;
        for (n, inner) in [(1 << 22, 1), (1 << 20, 4)] {
            let mut out = vec![0.0f32; inner];
            sum(ReduceShape { outer: 1, n, inner }, &x, &mut out);
            let total: f64 = out.iter().map(|&x| f64::from(x)).sum();
            assert!((total - want).abs() < 1e-5 * want, "{total} instead of {want}");
        }
    }

    #[test]
    fn nan_and_infinity() {
        for inner in [1, 2] {
            let shape = ReduceShape { outer: 1, n: 40, inner };
            let run = |at: usize, value: f32| {
                let mut x = vec![1.0f32; 40 * inner];
                x[at * inner] = value;
                let (mut top, mut place) = (vec![0.0; inner], vec![9; inner]);
                max(shape, &x, &mut top);
                argmax(shape, &x, &mut place);
                (top[0], place[0])
            };
            for at in [0, 5, 32, 39] {
                assert!(run(at, f32::NAN).0.is_nan());
                assert_eq!(run(at, f32::NAN).1, at as u32);
                assert_eq!(run(at, f32::INFINITY), (f32::INFINITY, at as u32));
            }
            assert_eq!(run(0, f32::NEG_INFINITY), (1.0, 1));
        }
        let (mut top, mut place) = ([0.0f32], [9]);
        let nothing = [f32::NEG_INFINITY; 3];
        max(
            ReduceShape {
                outer: 1,
                n: 3,
                inner: 1,
            },
            &nothing,
            &mut top,
        );
        argmax(
            ReduceShape {
                outer: 1,
                n: 3,
                inner: 1,
            },
            &nothing,
            &mut place,
        );
        assert_eq!((top, place), ([f32::NEG_INFINITY], [0]));
    }

    fn integers<T: Element + From<u8> + Ord>(wrapping: fn(T, T) -> T) {
        for (outer, n, inner) in SHAPES {
            if !affordable(outer * n * inner) {
                continue;
            }
            let x: Vec<T> = (0..outer * n * inner).map(|i| T::from((i * 37 % 251) as u8)).collect();
            let shape = ReduceShape { outer, n, inner };
            let (mut sums, mut tops) = (vec![T::default(); outer * inner], vec![T::default(); outer * inner]);
            let mut places = vec![7; outer * inner];
            sum(shape, &x, &mut sums);
            max(shape, &x, &mut tops);
            argmax(shape, &x, &mut places);
            for (i, line) in lines((outer, n, inner), &x).iter().enumerate() {
                assert_eq!(sums[i], line.iter().copied().fold(T::default(), wrapping));
                let Some(&top) = line.iter().max() else { continue };
                assert_eq!(tops[i], top);
                assert_eq!(Some(places[i] as usize), line.iter().position(|&x| x == top));
            }
        }
    }

    #[test]
    fn integers_agree_with_the_definition_and_wrap() {
        integers::<u8>(u8::wrapping_add);
        integers::<u32>(u32::wrapping_add);
        integers::<i64>(i64::wrapping_add);
    }
}
