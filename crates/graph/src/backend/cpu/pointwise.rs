//! Lowers elementwise operations: for each operation and dtype, one closure that the loops of `elementwise` inline.

use candle_core::DType;
use half::{bf16, f16};
use smallvec::{SmallVec, smallvec};

use super::build::Builder;
use super::elementwise::{map1, map2, select};
use super::kernels::{Float, Real};
use super::primitives::nest;
use super::view::View;
use super::{with_float, with_type};
use crate::error::{Error, Result};
use crate::graph::{GraphNode, Operation};

type Views = SmallVec<[View; 1]>;

pub(super) fn lower(builder: &mut Builder<'_>, node: &GraphNode) -> Result<Views> {
    let inputs = builder.input_views(node);
    let all: Vec<&View> = inputs.iter().collect();
    match (&node.operation, all.as_slice()) {
        (Operation::Cast { .. }, [x]) => {
            let out = builder.output(node, 0);
            with_type!(x.dtype, T => cast_from::<T>(builder, x, &out))?;
            Ok(smallvec![out])
        }
        (Operation::Where, [mask, a, b]) => {
            let out = builder.output_over(node, &all);
            let (nest, views, to) = (nest(&out, [mask, a, b]), inputs.clone(), out.clone());
            with_type!(a.dtype, T => {
                builder.step(&all, &[&out], move |memory| {
                    select::<T>(memory, &nest, &views[0], [&views[1], &views[2]], &to);
                    Ok(())
                });
                Ok(())
            })?;
            Ok(smallvec![out])
        }
        (_, [x]) => {
            let out = builder.output_over(node, &all);
            match x.dtype {
                DType::I64 => signed(builder, node, x, &out)?,
                _ => with_float!(x.dtype, T => float1::<T>(builder, node, x, &out))?,
            }
            Ok(smallvec![out])
        }
        (Operation::Equal | Operation::Less | Operation::LessEqual, [a, b]) => {
            let out = builder.output(node, 0);
            with_type!(a.dtype, T => compare::<T>(builder, node, [a, b], &out))?;
            Ok(smallvec![out])
        }
        (_, [a, b]) => {
            let out = builder.output_over(node, &all);
            match a.dtype {
                DType::U8 => integer2::<u8>(builder, node, [a, b], &out)?,
                DType::U32 => integer2::<u32>(builder, node, [a, b], &out)?,
                DType::I64 => integer2::<i64>(builder, node, [a, b], &out)?,
                _ => with_float!(a.dtype, T => float2::<T>(builder, node, [a, b], &out))?,
            }
            Ok(smallvec![out])
        }
        _ => Err(Error::shape(node.operation.name(), "is not elementwise")),
    }
}

fn step1<T: Copy + 'static, U: Copy + 'static>(
    builder: &mut Builder<'_>,
    x: &View,
    out: &View,
    f: impl Fn(T) -> U + Copy + Send + Sync + 'static,
) {
    let (nest, from, to) = (nest(out, [x]), x.clone(), out.clone());
    builder.step(&[x], &[out], move |memory| {
        map1(memory, &nest, &from, &to, f);
        Ok(())
    });
}

fn step2<T: Copy + 'static, U: Copy + 'static>(
    builder: &mut Builder<'_>,
    [a, b]: [&View; 2],
    out: &View,
    f: impl Fn(T, T) -> U + Copy + Send + Sync + 'static,
) {
    let (nest, left, right, to) = (nest(out, [a, b]), a.clone(), b.clone(), out.clone());
    builder.step(&[a, b], &[out], move |memory| {
        map2(memory, &nest, [&left, &right], &to, f);
        Ok(())
    });
}

/// Binds `|x| ..` in the accumulation type as a step.
macro_rules! acc1 {
    ($t:ty, $builder:expr, $x:expr, $out:expr, |$v:ident| $body:expr) => {
        step1::<$t, $t>(
            $builder,
            $x,
            $out,
            #[inline(always)]
            move |value| {
                let $v = value.to_acc();
                <$t>::from_acc($body)
            },
        )
    };
}

fn float1<T: Float>(builder: &mut Builder<'_>, node: &GraphNode, x: &View, out: &View) -> Result<()> {
    use Operation as O;
    let zero = T::Acc::ZERO;
    let one = T::Acc::ONE;
    match &node.operation {
        O::Neg => acc1!(T, builder, x, out, |v| -v),
        // 0 - -0 is 0.
        O::Abs => acc1!(T, builder, x, out, |v| if v <= zero { zero - v } else { v }),
        O::Sign => acc1!(T, builder, x, out, |v| if v > zero {
            one
        } else if v < zero {
            -one
        } else {
            zero
        }),
        O::Exp => acc1!(T, builder, x, out, |v| v.exp()),
        O::Log => acc1!(T, builder, x, out, |v| v.ln()),
        O::Sqrt => acc1!(T, builder, x, out, |v| v.sqrt()),
        O::Rsqrt => acc1!(T, builder, x, out, |v| one / v.sqrt()),
        O::Recip => acc1!(T, builder, x, out, |v| one / v),
        O::Sin => acc1!(T, builder, x, out, |v| T::Acc::of(libm::sin(v.widen()))),
        O::Cos => acc1!(T, builder, x, out, |v| T::Acc::of(libm::cos(v.widen()))),
        O::Tanh => acc1!(T, builder, x, out, |v| v.tanh()),
        O::Erf => acc1!(T, builder, x, out, |v| v.erf()),
        O::Sigmoid => acc1!(T, builder, x, out, |v| v.sigmoid()),
        O::Floor => acc1!(T, builder, x, out, |v| T::Acc::of(v.widen().floor())),
        O::MulScalar { value } => {
            let factor = T::Acc::of(f64::from(*value));
            acc1!(T, builder, x, out, |v| v * factor);
        }
        O::AddScalar { value } => {
            let summand = T::Acc::of(f64::from(*value));
            acc1!(T, builder, x, out, |v| v + summand);
        }
        other => return Err(Error::shape(other.name(), "is not elementwise of one float")),
    }
    Ok(())
}

fn signed(builder: &mut Builder<'_>, node: &GraphNode, x: &View, out: &View) -> Result<()> {
    match &node.operation {
        Operation::Neg => step1::<i64, i64>(builder, x, out, i64::wrapping_neg),
        Operation::Abs => step1::<i64, i64>(builder, x, out, i64::wrapping_abs),
        Operation::Sign => step1::<i64, i64>(builder, x, out, i64::signum),
        other => return Err(Error::shape(other.name(), "is not elementwise of one integer")),
    }
    Ok(())
}

macro_rules! acc2 {
    ($t:ty, $builder:expr, $views:expr, $out:expr, |$a:ident, $b:ident| $body:expr) => {
        step2::<$t, $t>(
            $builder,
            $views,
            $out,
            #[inline(always)]
            move |left, right| {
                let ($a, $b) = (left.to_acc(), right.to_acc());
                <$t>::from_acc($body)
            },
        )
    };
}

fn float2<T: Float>(builder: &mut Builder<'_>, node: &GraphNode, views: [&View; 2], out: &View) -> Result<()> {
    use Operation as O;
    match &node.operation {
        O::Add => acc2!(T, builder, views, out, |a, b| a + b),
        O::Sub => acc2!(T, builder, views, out, |a, b| a - b),
        O::Mul => acc2!(T, builder, views, out, |a, b| a * b),
        O::Div => acc2!(T, builder, views, out, |a, b| a / b),
        O::Pow => acc2!(T, builder, views, out, |a, b| T::Acc::of(libm::pow(
            a.widen(),
            b.widen()
        ))),
        O::Maximum => acc2!(T, builder, views, out, |a, b| if a < b { b } else { a }),
        O::Minimum => acc2!(T, builder, views, out, |a, b| if b < a { b } else { a }),
        other => return Err(Error::shape(other.name(), "is not elementwise of two floats")),
    }
    Ok(())
}

/// Arithmetic of integers: wrapping, and division by zero gives zero.
trait Integer: Copy + Ord + Send + Sync + 'static {
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
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

fn integer2<T: Integer>(builder: &mut Builder<'_>, node: &GraphNode, views: [&View; 2], out: &View) -> Result<()> {
    match &node.operation {
        Operation::Add => step2::<T, T>(builder, views, out, T::plus),
        Operation::Sub => step2::<T, T>(builder, views, out, T::minus),
        Operation::Mul => step2::<T, T>(builder, views, out, T::times),
        Operation::Div => step2::<T, T>(builder, views, out, T::over),
        Operation::Maximum => step2::<T, T>(builder, views, out, Ord::max),
        Operation::Minimum => step2::<T, T>(builder, views, out, Ord::min),
        other => return Err(Error::shape(other.name(), "is not elementwise of two integers")),
    }
    Ok(())
}

fn compare<T: PartialOrd + Copy + Send + Sync + 'static>(
    builder: &mut Builder<'_>,
    node: &GraphNode,
    views: [&View; 2],
    out: &View,
) -> Result<()> {
    match &node.operation {
        Operation::Equal => step2::<T, u8>(builder, views, out, |a, b| u8::from(a == b)),
        Operation::Less => step2::<T, u8>(builder, views, out, |a, b| u8::from(a < b)),
        Operation::LessEqual => step2::<T, u8>(builder, views, out, |a, b| u8::from(a <= b)),
        other => return Err(Error::shape(other.name(), "is not a comparison")),
    }
    Ok(())
}

/// Conversion between any two element types: wrapping between integers, truncating and saturating from floats.
trait Number: Copy + Send + Sync + 'static {
    const INTEGER: bool;
    fn to_f64(self) -> f64;
    fn to_i64(self) -> i64;
    fn to_f32(self) -> f32;
    fn from_f64(value: f64) -> Self;
    fn from_f32(value: f32) -> Self;
    fn from_i64(value: i64) -> Self;
}

macro_rules! number {
    ($($t:ty: $integer:expr, $to64:expr, $to32:expr, $toint:expr, $from64:expr, $from32:expr, $fromint:expr);* $(;)?) => { $(
        impl Number for $t {
            const INTEGER: bool = $integer;
            #[inline(always)]
            fn to_f64(self) -> f64 { $to64(self) }
            #[inline(always)]
            fn to_f32(self) -> f32 { $to32(self) }
            #[inline(always)]
            fn to_i64(self) -> i64 { $toint(self) }
            #[inline(always)]
            fn from_f64(value: f64) -> Self { $from64(value) }
            #[inline(always)]
            fn from_f32(value: f32) -> Self { $from32(value) }
            #[inline(always)]
            fn from_i64(value: i64) -> Self { $fromint(value) }
        }
    )* };
}
number!(
    f32: false, |x: f32| f64::from(x), |x| x, |x| x as i64, |x| x as f32, |x| x, |x| x as f32;
    f64: false, |x| x, |x| x as f32, |x| x as i64, |x| x, |x: f32| f64::from(x), |x| x as f64;
    f16: false, |x: f16| f64::from(x.to_acc()), |x: f16| x.to_acc(), |x: f16| x.to_acc() as i64, |x: f64| f16::from_acc(x as f32), f16::from_acc, |x| f16::from_acc(x as f32);
    bf16: false, |x: bf16| f64::from(x.to_acc()), |x: bf16| x.to_acc(), |x: bf16| x.to_acc() as i64, |x: f64| bf16::from_acc(x as f32), bf16::from_acc, |x| bf16::from_acc(x as f32);
    u8: true, |x: u8| f64::from(x), |x: u8| f32::from(x), i64::from, |x| x as u8, |x| x as u8, |x| x as u8;
    u32: true, |x: u32| f64::from(x), |x| x as f32, i64::from, |x| x as u32, |x| x as u32, |x| x as u32;
    i64: true, |x| x as f64, |x| x as f32, |x| x, |x| x as i64, |x| x as i64, |x| x;
);

fn cast_from<T: Number>(builder: &mut Builder<'_>, x: &View, out: &View) -> Result<()> {
    with_type!(out.dtype, U => {
        match (T::INTEGER && <U as Number>::INTEGER, x.dtype == DType::F64 || out.dtype == DType::F64) {
            (true, _) => step1::<T, U>(builder, x, out, |v| U::from_i64(v.to_i64())),
            (false, true) => step1::<T, U>(builder, x, out, |v| U::from_f64(v.to_f64())),
            (false, false) => step1::<T, U>(builder, x, out, |v| U::from_f32(v.to_f32())),
        }
        Ok(())
    })
}
