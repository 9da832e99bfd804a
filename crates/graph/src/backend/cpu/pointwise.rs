//! Lowers elementwise operations: floats to tapes, whole expressions at once; integers, and casts between f32 and f64
//! or to and from integers, to plain loops.

use std::array;
use std::ops::Range;

use candle_core::DType;
use half::{bf16, f16};
use smallvec::{SmallVec, smallvec};

use super::build::Builder;
use super::elementwise::{Addresses, Nest, map1, map2, select};
use super::kernels::Float;
use super::kernels::par::{Shared, for_pieces, with_scratch, with_space};
use super::kernels::reduce::pairs;
use super::kernels::tuning::loops::PIECE;
use super::operand::Read;
use super::tape::{BLOCK, INPUTS, Number, Tape, identity, join};
use super::view::View;
use super::with_type;
use crate::error::{Error, Result};
use crate::fused::elementwise::{Expression, Reduction, ReductionKind};
use crate::graph::{GraphNode, Operation};
use crate::pass::expression_of;

type Views = SmallVec<[View; 1]>;

/// Runs an expression in one loop.
pub(super) fn expression(builder: &mut Builder<'_>, node: &GraphNode, expression: &Expression) -> Result<Views> {
    let inputs = builder.input_views(node);
    let all: Vec<&View> = inputs.iter().collect();
    if all.len() > INPUTS {
        return Err(Error::no_kernel(node.operation.name(), format!("{} inputs", all.len())));
    }
    if let Some(reduction) = expression.reduction() {
        let out = builder.output(node, 0);
        let rows = RowReduction::new(&all, expression.shape()?.dims(), reduction);
        if expression.is_double() {
            rows.record(builder, &all, &out, Tape::<f64>::new(expression)?);
        } else {
            rows.record(builder, &all, &out, Tape::<f32>::new(expression)?);
        }
        return Ok(smallvec![out]);
    }
    let out = builder.output_over(node, &all);
    if expression.is_double() {
        record(builder, &all, &out, Tape::<f64>::new(expression)?);
    } else {
        record(builder, &all, &out, Tape::<f32>::new(expression)?);
    }
    Ok(smallvec![out])
}

/// The loops of an expression that ends in a row reduction: over rows, and along each row in pieces.
struct RowReduction {
    across: Nest,
    along: Nest,
    kind: ReductionKind,
    /// Elements of all rows together.
    elements: usize,
}

impl RowReduction {
    fn new(inputs: &[&View], dims: &[usize], Reduction { kind, first }: Reduction) -> Self {
        let nest = |part: Range<usize>| {
            let cut = |view: &&View| {
                let whole = view.broadcast(dims);
                View {
                    dims: whole.dims[part.clone()].to_vec(),
                    strides: whole.strides[part.clone()].to_vec(),
                    ..whole
                }
            };
            let views: Vec<View> = inputs.iter().map(cut).collect();
            Nest::new(&dims[part.clone()], &views.iter().collect::<Vec<_>>())
        };
        Self {
            across: nest(0..first),
            along: nest(first..dims.len()),
            kind,
            elements: dims.iter().product(),
        }
    }

    fn record<A: Number>(self, builder: &mut Builder<'_>, inputs: &[&View], out: &View, tape: Tape<A>) {
        builder.step(|operands| {
            let (views, to) = (operands.read_all(inputs.iter().copied()), operands.write(out));
            move |memory| {
                let (rows, pieces) = (to.len(), self.along.chunks());
                let addresses = Addresses::bytes(memory, &views, &to);
                let size = to.dtype.size_in_bytes();
                with_scratch(rows * pieces, |parts: &mut [A]| {
                    self.reduce_pieces(&tape, &views, &addresses, Shared::new(parts));
                    for row in 0..rows {
                        let parts = &parts[row * pieces..][..pieces];
                        let value = pairs(parts, identity(self.kind), |a, b| join(self.kind, a, b));
                        // SAFETY: the result has one element per row.
                        unsafe { tape.round(value, addresses.out(row * size)) };
                    }
                });
            }
        });
    }

    /// The partial results of each piece of each row.
    fn reduce_pieces<A: Number>(
        &self,
        tape: &Tape<A>,
        views: &[Read],
        addresses: &Addresses<u8, u8>,
        parts: Shared<A>,
    ) {
        let pieces = self.along.chunks();
        let items = self.across.elements() * pieces;
        let each = (PIECE * items / self.elements.max(1)).max(1);
        for_pieces(items, each, self.elements >= 4 * PIECE, |_, range| {
            with_space(tape.slots * BLOCK, |scratch: *mut A| {
                let mut item = range.start;
                while item < range.end {
                    let (row, first) = (item / pieces, item % pieces);
                    let last = pieces.min(first + range.end - item);
                    let start = self.across.offsets(row);
                    self.along.for_chunks(&start, first..last, |offsets, piece, len| {
                        let read = starts(addresses, views, offsets);
                        // SAFETY: the nests stay inside the views, and the plan gave their buffers room; the piece
                        // belongs to this task.
                        unsafe {
                            *parts.at(row * pieces + piece) =
                                tape.reduce(self.kind, &read, &self.along.steps, len, scratch);
                        }
                    });
                    item += last - first;
                }
            });
        });
    }
}

/// The addresses at which a loop over the inputs starts.
fn starts(addresses: &Addresses<u8, u8>, inputs: &[Read], offsets: &[usize]) -> [*const u8; INPUTS] {
    array::from_fn(|i| match offsets.get(i) {
        Some(offset) => addresses.input(i, offset * inputs[i].dtype.size_in_bytes()),
        None => std::ptr::null(),
    })
}

fn record<A: Number>(builder: &mut Builder<'_>, inputs: &[&View], out: &View, tape: Tape<A>) {
    let nest = Nest::new(&out.dims, inputs);
    builder.step(|operands| {
        let (views, to) = (operands.read_all(inputs.iter().copied()), operands.write(out));
        move |memory| {
            let addresses = Addresses::bytes(memory, &views, &to);
            let size = to.dtype.size_in_bytes();
            nest.for_pieces(|offsets, out, len| {
                let read = starts(&addresses, &views, offsets);
                with_space(tape.slots * BLOCK, |scratch: *mut A| {
                    // SAFETY: the nest stays inside the views, and the plan gave their buffers room; the result aliases
                    // an input only element by element.
                    unsafe { tape.run(&read, &nest.steps, addresses.out(out * size), len, scratch) };
                });
            });
        }
    });
}

pub(super) fn lower(builder: &mut Builder<'_>, node: &GraphNode) -> Result<Views> {
    if let Some(alone) = expression_of(builder.graph, builder.index())
        && let Operation::Elementwise(only) = &alone.operation
    {
        return expression(builder, &alone, only);
    }
    let inputs = builder.input_views(node);
    let all: Vec<&View> = inputs.iter().collect();
    match (&node.operation, all.as_slice()) {
        (Operation::Cast { .. }, [x]) => {
            let out = builder.output(node, 0);
            with_type!(x.dtype, T => cast_from::<T>(builder, x, &out))?;
            Ok(smallvec![out])
        }
        (Operation::Where, [_, a, _]) => {
            let out = builder.output_over(node, &all);
            match a.dtype {
                DType::U8 => choose::<u8>(builder, &all, &out),
                DType::U32 => choose::<u32>(builder, &all, &out),
                _ => choose::<i64>(builder, &all, &out),
            }
            Ok(smallvec![out])
        }
        (_, [x]) => {
            let out = builder.output_over(node, &all);
            signed(builder, node, x, &out)?;
            Ok(smallvec![out])
        }
        (Operation::Equal | Operation::Less | Operation::LessEqual, [a, b]) => {
            let out = builder.output(node, 0);
            match a.dtype {
                DType::U8 => compare::<u8>(builder, node, [a, b], &out)?,
                DType::U32 => compare::<u32>(builder, node, [a, b], &out)?,
                _ => compare::<i64>(builder, node, [a, b], &out)?,
            }
            Ok(smallvec![out])
        }
        (_, [a, b]) => {
            let out = builder.output_over(node, &all);
            match a.dtype {
                DType::U8 => integer2::<u8>(builder, node, [a, b], &out)?,
                DType::U32 => integer2::<u32>(builder, node, [a, b], &out)?,
                _ => integer2::<i64>(builder, node, [a, b], &out)?,
            }
            Ok(smallvec![out])
        }
        _ => Err(Error::no_kernel(node.operation.name(), format!("{} inputs", all.len()))),
    }
}

fn choose<T: Copy + 'static>(builder: &mut Builder<'_>, inputs: &[&View], out: &View) {
    let nest = Nest::new(&out.dims, inputs);
    builder.step(|operands| {
        let views = [0, 1, 2].map(|i| operands.read(inputs[i]));
        let to = operands.write(out);
        move |memory| select::<T>(memory, &nest, views.each_ref(), &to)
    });
}

fn step1<T: Copy + 'static, U: Copy + 'static>(
    builder: &mut Builder<'_>,
    x: &View,
    out: &View,
    f: impl Fn(T) -> U + Copy + Send + Sync + 'static,
) {
    let nest = Nest::new(&out.dims, &[x]);
    builder.step(|operands| {
        let (from, to) = (operands.read(x), operands.write(out));
        move |memory| map1(memory, &nest, &from, &to, f)
    });
}

fn step2<T: Copy + 'static, U: Copy + 'static>(
    builder: &mut Builder<'_>,
    [a, b]: [&View; 2],
    out: &View,
    f: impl Fn(T, T) -> U + Copy + Send + Sync + 'static,
) {
    let nest = Nest::new(&out.dims, &[a, b]);
    builder.step(|operands| {
        let (left, right, to) = (operands.read(a), operands.read(b), operands.write(out));
        move |memory| map2(memory, &nest, [&left, &right], &to, f)
    });
}

fn signed(builder: &mut Builder<'_>, node: &GraphNode, x: &View, out: &View) -> Result<()> {
    match &node.operation {
        Operation::Neg => step1::<i64, i64>(builder, x, out, i64::wrapping_neg),
        Operation::Abs => step1::<i64, i64>(builder, x, out, i64::wrapping_abs),
        Operation::Sign => step1::<i64, i64>(builder, x, out, i64::signum),
        other => return Err(Error::no_kernel(other.name(), "one integer")),
    }
    Ok(())
}

/// Integer arithmetic: wrapping; division by zero gives zero.
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
        other => return Err(Error::no_kernel(other.name(), "two integers")),
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
        other => return Err(Error::no_kernel(other.name(), "a comparison of integers")),
    }
    Ok(())
}

/// Conversion between any two element types: wrapping between integers; truncating and saturating from floats.
trait Convert: Copy + Send + Sync + 'static {
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
        impl Convert for $t {
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

fn cast_from<T: Convert>(builder: &mut Builder<'_>, x: &View, out: &View) -> Result<()> {
    with_type!(out.dtype, U => {
        match (T::INTEGER && <U as Convert>::INTEGER, x.dtype == DType::F64 || out.dtype == DType::F64) {
            (true, _) => step1::<T, U>(builder, x, out, |v| U::from_i64(v.to_i64())),
            (false, true) => step1::<T, U>(builder, x, out, |v| U::from_f64(v.to_f64())),
            (false, false) => step1::<T, U>(builder, x, out, |v| U::from_f32(v.to_f32())),
        }
        Ok(())
    })
}
