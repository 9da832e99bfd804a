//! Reductions of `(outer, reduced, inner)` blocks. The order of additions depends on the sizes alone, so results do not
//! depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::kernels::Float;
use super::kernels::par::simd;

/// How a kind of number is summed and compared.
pub(super) trait Number: Copy + Send + Sync + PartialOrd + 'static {
    /// What sums are kept in.
    type Sum: Copy + Send + Sync + Default + std::ops::AddAssign;
    fn widen(self) -> Self::Sum;
    fn narrow(sum: Self::Sum) -> Self;
    /// NaN, which wins a maximum.
    fn is_nan(self) -> bool;
}

macro_rules! float_number {
    ($($t:ty),*) => { $(
        impl Number for $t {
            type Sum = <$t as Float>::Acc;
            #[inline(always)]
            fn widen(self) -> Self::Sum { Float::to_acc(self) }
            #[inline(always)]
            fn narrow(sum: Self::Sum) -> Self { <$t as Float>::from_acc(sum) }
            #[inline(always)]
            fn is_nan(self) -> bool { <$t>::is_nan(self) }
        }
    )* };
}
float_number!(f32, f64, half::f16, half::bf16);

/// A wrapping sum of integers.
#[derive(Clone, Copy, Default)]
pub(super) struct Wrapping<T>(T);

macro_rules! integer_number {
    ($($t:ty),*) => { $(
        impl std::ops::AddAssign for Wrapping<$t> {
            fn add_assign(&mut self, other: Self) { self.0 = self.0.wrapping_add(other.0); }
        }
        impl Number for $t {
            type Sum = Wrapping<$t>;
            fn widen(self) -> Self::Sum { Wrapping(self) }
            fn narrow(sum: Self::Sum) -> Self { sum.0 }
            fn is_nan(self) -> bool { false }
        }
    )* };
}
integer_number!(u8, u32, i64);

/// The block `(outer, reduced, inner)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub outer: usize,
    pub reduced: usize,
    pub inner: usize,
}

/// Independent sums that fill a vector register.
const LANES: usize = 32;
/// Elements summed in one go, so that rounding errors grow with the number of chunks only.
const CHUNK: usize = 4096;
/// Work below which a call stays on its thread.
const SERIAL: usize = 1 << 16;

impl Block {
    /// Runs `f` over ranges of the outputs `(outer, inner)`: whole rows of `inner` where that is more than one.
    fn run<U: Send>(self, out: &mut [U], f: impl Fn(usize, Range<usize>, &mut [U]) + Sync) {
        if out.is_empty() {
            return;
        }
        let width = if self.inner == 1 { 1 } else { 1024.min(self.inner) };
        let work = |(row, out): (usize, &mut [U])| {
            for (piece, part) in out.chunks_mut(width).enumerate() {
                let start = piece * width;
                f(row, start..start + part.len(), part);
            }
        };
        if self.outer * self.reduced * self.inner < SERIAL {
            out.chunks_mut(self.inner).enumerate().for_each(work);
        } else if self.outer == 1 {
            // One row: spread its columns.
            let jobs = out.par_chunks_mut(width).enumerate();
            jobs.for_each(|(piece, part)| f(0, piece * width..piece * width + part.len(), part));
        } else {
            out.par_chunks_mut(self.inner).enumerate().for_each(work);
        }
    }
}

/// Sums over the middle dimension.
pub(super) fn sum<T: Number>(block: Block, x: &[T], out: &mut [T]) {
    block.run(out, |row, columns, out| {
        let x = &x[row * block.reduced * block.inner..][..block.reduced * block.inner];
        simd(
            #[inline(always)]
            || {
                if block.inner == 1 {
                    out[0] = T::narrow(sum_slice(x));
                } else {
                    sum_columns(block, x, columns, out);
                }
            },
        );
    });
}

#[inline(always)]
fn sum_slice<T: Number>(x: &[T]) -> T::Sum {
    let mut total = T::Sum::default();
    for chunk in x.chunks(CHUNK) {
        let mut lanes = [T::Sum::default(); LANES];
        let mut whole = chunk.chunks_exact(LANES);
        for part in &mut whole {
            for (lane, &value) in lanes.iter_mut().zip(part) {
                *lane += value.widen();
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(whole.remainder()) {
            *lane += value.widen();
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                let other = lanes[i + width];
                lanes[i] += other;
            }
            width /= 2;
        }
        total += lanes[0];
    }
    total
}

#[inline(always)]
fn sum_columns<T: Number>(block: Block, x: &[T], columns: Range<usize>, out: &mut [T]) {
    let mut sums = vec![T::Sum::default(); columns.len()];
    for row in x.chunks(block.inner) {
        for (sum, &value) in sums.iter_mut().zip(&row[columns.clone()]) {
            *sum += value.widen();
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = T::narrow(sum);
    }
}

/// Maxima over the middle dimension; NaN wins.
pub(super) fn max<T: Number>(block: Block, x: &[T], out: &mut [T]) {
    best(block, x, out, |value, _| value);
}

/// Indices of the first maxima over the middle dimension; the first NaN wins.
pub(super) fn argmax<T: Number>(block: Block, x: &[T], out: &mut [u32]) {
    best(block, x, out, |_, index| index as u32);
}

fn best<T: Number, U: Send>(block: Block, x: &[T], out: &mut [U], pick: impl Fn(T, usize) -> U + Sync) {
    block.run(out, |row, columns, out| {
        let x = &x[row * block.reduced * block.inner..][..block.reduced * block.inner];
        for (column, out) in columns.zip(out) {
            let (mut value, mut index) = (x[column], 0);
            for i in 1..block.reduced {
                let other = x[i * block.inner + column];
                if other > value || (other.is_nan() && !value.is_nan()) {
                    (value, index) = (other, i);
                }
            }
            *out = pick(value, index);
        }
    });
}
