//! Elementwise operations: one input, two inputs with broadcasting, comparisons, selection, casts.

use candle_core::{DType, Device, Shape};

use crate::error::Result;
use crate::graph::Operation;
use crate::lazy_tensor::LazyTensor;

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident => $operation:ident;)*) => {
        impl LazyTensor {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// When the operation does not support the dtype.
                pub fn $name(&self) -> Result<Self> {
                    Self::record_one(Operation::$operation, &[self])
                }
            )*
        }
    };
}

unary! {
    /// `-x`
    neg => Neg;
    /// `|x|`
    abs => Abs;
    /// -1, 0 or 1 by the sign of x.
    sign => Sign;
    /// `e^x`
    exp => Exp;
    /// Natural logarithm.
    log => Log;
    /// Square root.
    sqrt => Sqrt;
    /// `1 / sqrt(x)`
    rsqrt => Rsqrt;
    /// `1 / x`
    recip => Recip;
    /// Sine.
    sin => Sin;
    /// Cosine.
    cos => Cos;
    /// Hyperbolic tangent.
    tanh => Tanh;
    /// Error function.
    erf => Erf;
    /// `1 / (1 + e^-x)`
    sigmoid => Sigmoid;
    /// The largest integer not above x.
    floor => Floor;
    /// The same value, as a constant for differentiation.
    stop_gradient => StopGradient;
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident => $operation:ident;)*) => {
        impl LazyTensor {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// When the dtypes differ or the shapes do not broadcast.
                pub fn $name(&self, other: &Self) -> Result<Self> {
                    Self::record_one(Operation::$operation, &[self, other])
                }
            )*
        }
    };
}

binary! {
    /// `self + other`, broadcasting.
    add => Add;
    /// `self - other`, broadcasting.
    sub => Sub;
    /// `self * other`, broadcasting.
    mul => Mul;
    /// `self / other`, broadcasting; of integers truncated, and 0 where `other` is 0.
    div => Div;
    /// `self ^ other`, broadcasting.
    pow => Pow;
    /// The larger of both, broadcasting; NaN where either is NaN.
    maximum => Maximum;
    /// The smaller of both, broadcasting; NaN where either is NaN.
    minimum => Minimum;
    /// `self == other` as u8, broadcasting.
    equal => Equal;
    /// `self < other` as u8, broadcasting.
    less => Less;
    /// `self <= other` as u8, broadcasting.
    less_equal => LessEqual;
}

impl LazyTensor {
    /// `x * value`
    ///
    /// # Errors
    /// When the dtype is not a float.
    pub fn mul_scalar(&self, value: f32) -> Result<Self> {
        Self::record_one(Operation::MulScalar { value }, &[self])
    }

    /// `x + value`
    ///
    /// # Errors
    /// When the dtype is not a float.
    pub fn add_scalar(&self, value: f32) -> Result<Self> {
        Self::record_one(Operation::AddScalar { value }, &[self])
    }

    /// Elements of `a` where this u8 mask is not zero, else of `b`; all three broadcast.
    ///
    /// # Errors
    /// When the dtypes or shapes are incompatible.
    pub fn where_cond(&self, a: &Self, b: &Self) -> Result<Self> {
        Self::record_one(Operation::Where, &[self, a, b])
    }

    /// Conversion to `dtype`; the tensor itself if it has that dtype already.
    ///
    /// # Errors
    /// When the engine does not support `dtype`.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        Self::record_one(Operation::Cast { dtype }, &[self])
    }

    /// A scalar constant of this tensor's dtype and device, to be combined with it by broadcasting.
    ///
    /// # Errors
    /// Never for a tensor of a supported dtype.
    pub fn scalar_like(&self, value: f64) -> Result<Self> {
        Self::full(value, &[], self.dtype(), self.device())
    }

    /// Zeros of this tensor's shape, dtype and device.
    ///
    /// # Errors
    /// Never for a tensor of a supported dtype.
    pub fn zeros_like(&self) -> Result<Self> {
        Self::full(0.0, self.dims(), self.dtype(), self.device())
    }

    /// The index along `dim` as a tensor of `shape`.
    ///
    /// # Errors
    /// When `dim` is not a dimension of `shape`.
    pub fn iota(
        dim: usize,
        shape: &[usize],
        dtype: DType,
        device: &(impl std::borrow::Borrow<Device> + ?Sized),
    ) -> Result<Self> {
        let operation = Operation::Iota {
            dim,
            shape: Shape::from(shape),
            dtype,
        };
        Self::record_source(operation, device.borrow())
    }
}
