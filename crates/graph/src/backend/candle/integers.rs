//! Wrapping integer arithmetic. Candle's own arithmetic is Rust's: in a build with overflow checks it panics on
//! overflow, and it panics on division by zero in every build. So integers are computed on the host and copied back to
//! the device.

use candle_core::{DType, Device, Result, Shape, Tensor, WithDType};

use crate::graph::Operation;

/// Wrapping arithmetic.
trait Integer: WithDType {
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// The truncated quotient; 0 where the divisor is 0.
    fn over(self, other: Self) -> Self;
}

macro_rules! integer {
    ($($t:ty),*) => { $(
        impl Integer for $t {
            fn plus(self, other: Self) -> Self { self.wrapping_add(other) }
            fn minus(self, other: Self) -> Self { self.wrapping_sub(other) }
            fn times(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn over(self, other: Self) -> Self { if other == 0 { 0 } else { self.wrapping_div(other) } }
        }
    )* };
}
integer!(u8, u32, i64);

macro_rules! with_integer {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            DType::U8 => {
                type $t = u8;
                $body
            }
            DType::U32 => {
                type $t = u32;
                $body
            }
            DType::I64 => {
                type $t = i64;
                $body
            }
            other => Err(candle_core::Error::Msg(format!("{other:?} is not an integer"))),
        }
    };
}

fn list<T: WithDType>(x: &Tensor) -> Result<Vec<T>> {
    x.flatten_all()?.to_vec1()
}

fn tensor<T: WithDType>(values: Vec<T>, shape: &Shape, device: &Device) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)
}

/// `Neg`, `Abs` and `Sign`.
pub(super) fn unary(operation: &Operation, x: &Tensor) -> Result<Tensor> {
    let f = match operation {
        Operation::Neg => i64::wrapping_neg,
        Operation::Abs => i64::wrapping_abs,
        Operation::Sign => i64::signum,
        other => {
            return Err(candle_core::Error::Msg(format!(
                "{other} is not a unary operation on integers"
            )));
        }
    };
    tensor(list(x)?.into_iter().map(f).collect(), x.shape(), x.device())
}

/// `Add`, `Sub`, `Mul` and `Div`, broadcasting to `shape`.
pub(super) fn binary(operation: &Operation, x: &Tensor, y: &Tensor, shape: &Shape) -> Result<Tensor> {
    fn of<T: Integer>(operation: &Operation, x: Vec<T>, y: Vec<T>) -> Result<Vec<T>> {
        let f = match operation {
            Operation::Add => T::plus,
            Operation::Sub => T::minus,
            Operation::Mul => T::times,
            Operation::Div => T::over,
            other => {
                return Err(candle_core::Error::Msg(format!(
                    "{other} is not a binary operation on integers"
                )));
            }
        };
        Ok(x.into_iter().zip(y).map(|(x, y)| f(x, y)).collect())
    }
    let (left, right) = (x.broadcast_as(shape)?, y.broadcast_as(shape)?);
    with_integer!(x.dtype(), T => tensor(of::<T>(operation, list(&left)?, list(&right)?)?, shape, x.device()))
}

/// Sums over `dims`, which have size 1 in `shape`.
pub(super) fn sum(x: &Tensor, dims: &[usize], shape: &Shape) -> Result<Tensor> {
    let kept = (0..x.rank()).filter(|dim| !dims.contains(dim));
    let order: Vec<usize> = kept.chain(dims.iter().copied()).collect();
    let count: usize = dims.iter().map(|&dim| x.dims()[dim]).product();
    let moved = if order.is_empty() { x.clone() } else { x.permute(order)? };
    with_integer!(x.dtype(), T => {
        let values: Vec<T> = list(&moved)?;
        let sums = values.chunks(count.max(1)).map(|row| row.iter().copied().fold(0, T::plus));
        tensor(sums.collect(), shape, x.device())
    })
}

/// `x` with `updates` added along `dim`: whole slices by `indices (m)`, or single elements with one index each.
pub(super) fn add_at(whole: bool, dim: usize, x: &Tensor, indices: &Tensor, updates: &Tensor) -> Result<Tensor> {
    let inner: usize = x.dims()[dim + 1..].iter().product();
    let (size, added) = (x.dims()[dim], updates.dims()[dim]);
    let indices: Vec<i64> = list(&indices.to_dtype(DType::I64)?)?;
    with_integer!(x.dtype(), T => {
        let (mut values, updates): (Vec<T>, Vec<T>) = (list(x)?, list(updates)?);
        for (at, update) in updates.into_iter().enumerate() {
            let (outer, j, i) = (at / (added * inner), at / inner % added, at % inner);
            let index = indices[if whole { j } else { at }] as usize;
            let place = &mut values[(outer * size + index) * inner + i];
            *place = place.plus(update);
        }
        tensor(values, x.shape(), x.device())
    })
}
