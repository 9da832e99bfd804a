//! Every element type of the engine, for kernels that need only additions and comparisons.

use half::{bf16, f16};

use super::float::{Float, Real};

/// An element type: f32, f64, f16, bf16, u8, u32 or i64.
pub trait Element: Copy + Send + Sync + Default + PartialEq + std::fmt::Debug + 'static {
    /// The accumulator type: [`Float::Acc`], or the integer itself.
    type Sum: Copy + Send + Sync + PartialOrd + 'static;
    /// 0
    const ZERO: Self::Sum;
    /// The identity of maximum: less than or equal to everything but NaN.
    const LOWEST: Self::Sum;
    /// Widens; exact.
    fn widen(self) -> Self::Sum;
    /// Rounds.
    fn round(value: Self::Sum) -> Self;
    /// Adds; integers wrap.
    fn plus(a: Self::Sum, b: Self::Sum) -> Self::Sum;
}

macro_rules! float_elements {
    ($($t:ty),*) => {$(
        impl Element for $t {
            type Sum = <$t as Float>::Acc;
            const ZERO: Self::Sum = <Self::Sum as Real>::ZERO;
            const LOWEST: Self::Sum = <Self::Sum as Real>::NEG_INFINITY;
            #[inline(always)]
            fn widen(self) -> Self::Sum {
                self.to_acc()
            }
            #[inline(always)]
            fn round(value: Self::Sum) -> Self {
                Self::from_acc(value)
            }
            #[inline(always)]
            fn plus(a: Self::Sum, b: Self::Sum) -> Self::Sum {
                a + b
            }
        }
    )*};
}

macro_rules! integer_elements {
    ($($t:ty),*) => {$(
        impl Element for $t {
            type Sum = $t;
            const ZERO: $t = 0;
            const LOWEST: $t = <$t>::MIN;
            #[inline(always)]
            fn widen(self) -> $t {
                self
            }
            #[inline(always)]
            fn round(value: $t) -> $t {
                value
            }
            #[inline(always)]
            fn plus(a: $t, b: $t) -> $t {
                a.wrapping_add(b)
            }
        }
    )*};
}

float_elements!(f32, f64, f16, bf16);
integer_elements!(u8, u32, i64);
