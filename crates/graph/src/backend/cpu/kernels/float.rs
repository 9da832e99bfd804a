//! The floating-point element types and the type each one is computed in.
//!
//! Conversions between bf16/f16 and f32 are written as branch-free bit arithmetic, so that loops over them are
//! vectorised on every machine; they agree with `half` bit for bit on every number (a NaN stays a NaN).

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use super::math;
use super::matmul::{Product, kernels_of};

/// An element type of the kernels: f32, f64, f16 or bf16.
pub trait Float: Copy + Send + Sync + Default + PartialOrd + std::fmt::Debug + 'static {
    /// The accumulation type: sums and functions of this type are computed in it.
    type Acc: Real;
    /// The type that intermediate matrices are rounded to before they are multiplied: the type itself, but f32 for f16,
    /// whose range is too small for gradients.
    type Factor: Float<Acc = Self::Acc>;
    /// Whether `Self` and `Self::Factor` are the same type.
    const IS_FACTOR: bool;
    /// Widens to the accumulation type; exact.
    fn to_acc(self) -> Self::Acc;
    /// Rounds to nearest, ties to even.
    fn from_acc(value: Self::Acc) -> Self;
    /// The matrix product of this element type, with a result of any type with the same accumulation type.
    ///
    /// # Safety
    /// Like [`dense_product`](super::matmul::dense_product); no size is 0.
    unsafe fn multiply<C: Float<Acc = Self::Acc>>(product: &Product<'_, Self, C>, parallel: bool);
}

/// [`Float::multiply`] of an element type.
macro_rules! multiply {
    ($t:ident) => {
        unsafe fn multiply<C: Float<Acc = Self::Acc>>(product: &Product<'_, Self, C>, parallel: bool) {
            // SAFETY: forwarded from the caller.
            unsafe { kernels_of::$t(product, parallel) }
        }
    };
}

/// A strided matrix: its first element, row stride and column stride.
#[derive(Clone, Copy, Debug)]
pub struct Mat<P> {
    /// Element (0, 0).
    pub ptr: P,
    /// Row stride in elements.
    pub rows: isize,
    /// Column stride in elements.
    pub cols: isize,
}

impl<T> Mat<*const T> {
    /// The submatrix from element (i, j) on.
    #[inline(always)]
    pub(crate) fn at(self, i: usize, j: usize) -> Self {
        let step = i as isize * self.rows + j as isize * self.cols;
        Mat {
            ptr: self.ptr.wrapping_offset(step),
            ..self
        }
    }

    /// The matrix as one of another type of the same layout.
    pub(crate) fn cast<U>(self) -> Mat<*const U> {
        Mat {
            ptr: self.ptr.cast(),
            rows: self.rows,
            cols: self.cols,
        }
    }
}

/// A row-major matrix.
pub(crate) fn dense<A>(data: &[A], cols: usize) -> Mat<*const A> {
    Mat {
        ptr: data.as_ptr(),
        rows: cols as isize,
        cols: 1,
    }
}

/// A writable row-major matrix.
pub(crate) fn dense_mut<A>(data: &mut [A], cols: usize) -> Mat<*mut A> {
    Mat {
        ptr: data.as_mut_ptr(),
        rows: cols as isize,
        cols: 1,
    }
}

/// The transpose, as a view.
pub(crate) fn transposed<P>(mat: Mat<P>) -> Mat<P> {
    Mat {
        ptr: mat.ptr,
        rows: mat.cols,
        cols: mat.rows,
    }
}

/// An accumulation type (f32 or f64): its arithmetic and elementary functions.
pub trait Real:
    Float<Acc = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Minus infinity.
    const NEG_INFINITY: Self;
    /// Rounds from f64.
    fn of(value: f64) -> Self;
    /// Widens to f64; exact.
    fn widen(self) -> f64;
    /// e to the power `self`.
    fn exp(self) -> Self;
    /// [`exp`](Self::exp) for arguments of at most 0, faster; subnormal results are 0.
    fn exp_below(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// 1 / (1 + exp(-self)).
    fn sigmoid(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
}

macro_rules! real {
    ($t:ident, $math:ident) => {
        impl Float for $t {
            type Acc = $t;
            type Factor = $t;
            const IS_FACTOR: bool = true;
            #[inline(always)]
            fn to_acc(self) -> $t {
                self
            }
            #[inline(always)]
            fn from_acc(value: $t) -> $t {
                value
            }
            multiply!($t);
        }

        impl Real for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            const NEG_INFINITY: $t = $t::NEG_INFINITY;
            #[inline(always)]
            #[allow(clippy::cast_lossless)]
            fn of(value: f64) -> $t {
                value as $t
            }
            #[inline(always)]
            #[allow(clippy::cast_lossless)]
            fn widen(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn exp(self) -> $t {
                math::$math::exp(self)
            }
            #[inline(always)]
            fn exp_below(self) -> $t {
                math::$math::exp_below(self)
            }
            #[inline(always)]
            fn ln(self) -> $t {
                math::$math::ln(self)
            }
            #[inline(always)]
            fn tanh(self) -> $t {
                math::$math::tanh(self)
            }
            #[inline(always)]
            fn erf(self) -> $t {
                math::$math::erf(self)
            }
            #[inline(always)]
            fn sigmoid(self) -> $t {
                math::$math::sigmoid(self)
            }
            #[inline(always)]
            fn sqrt(self) -> $t {
                $t::sqrt(self)
            }
        }
    };
}

real!(f32, single);
real!(f64, double);

impl Float for bf16 {
    type Acc = f32;
    type Factor = bf16;
    const IS_FACTOR: bool = true;
    #[inline(always)]
    fn to_acc(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_acc(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { nan } else { rounded } as u16)
    }
    multiply!(bf16);
}

impl Float for f16 {
    type Acc = f32;
    type Factor = f32;
    const IS_FACTOR: bool = false;
    #[inline(always)]
    fn to_acc(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let sign = (bits & 0x8000) << 16;
        let magnitude = (bits & 0x7fff) << 13;
        // Multiplying by 2^112 changes the exponent from f16's bias to f32's, subnormals included.
        let finite = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
        let special = magnitude | 0x7f80_0000;
        let wide = if magnitude >= 0x0f80_0000 {
            special
        } else {
            finite.to_bits()
        };
        f32::from_bits(sign | wide)
    }
    #[inline(always)]
    fn from_acc(value: f32) -> f16 {
        let bits = value.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        // Below f16's smallest normal 2^-14: adding 0.5 leaves the rounded subnormal in the low bits.
        let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let normal = magnitude
            .wrapping_sub(0x3800_0000)
            .wrapping_add(0xfff + ((magnitude >> 13) & 1))
            >> 13;
        let narrow = if magnitude < 0x3880_0000 { small } else { normal };
        let narrow = if magnitude >= 0x477f_f000 { 0x7c00 } else { narrow };
        let narrow = if magnitude > 0x7f80_0000 { 0x7e00 } else { narrow };
        f16::from_bits((sign | narrow) as u16)
    }
    multiply!(f16);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_widens_like_half_and_round_trips() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            if h.is_nan() {
                assert!(h.to_acc().is_nan() && f16::from_acc(h.to_acc()).is_nan());
            } else {
                assert_eq!(h.to_acc().to_bits(), h.to_f32().to_bits());
                assert_eq!(f16::from_acc(h.to_acc()).to_bits(), bits);
            }
            if b.is_nan() {
                assert!(b.to_acc().is_nan() && bf16::from_acc(b.to_acc()).is_nan());
            } else {
                assert_eq!(b.to_acc().to_bits(), b.to_f32().to_bits());
                assert_eq!(bf16::from_acc(b.to_acc()).to_bits(), bits);
            }
        }
    }

    #[test]
    fn rounding_agrees_with_half() {
        // Every 9973rd f32, and both neighbours of each f16/bf16 rounding boundary.
        let boundaries = (0..=u16::MAX).flat_map(|h| {
            let half = f16::from_bits(h).to_f32().to_bits() + 0x1000;
            let brain = (u32::from(h) << 16) + 0x8000;
            [half - 1, half, half + 1, brain - 1, brain, brain + 1]
        });
        for bits in (0..=u32::MAX).step_by(9973).chain(boundaries) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                assert!(f16::from_acc(x).is_nan() && bf16::from_acc(x).is_nan());
                continue;
            }
            assert_eq!(f16::from_acc(x).to_bits(), f16::from_f32(x).to_bits(), "f16 of {x:e}");
            assert_eq!(
                bf16::from_acc(x).to_bits(),
                bf16::from_f32(x).to_bits(),
                "bf16 of {x:e}"
            );
        }
    }
}
