//! Interprets an expression of elementwise operations block by block: each instruction is a short loop over slots that
//! stay in the L1 cache, and only inputs and the result touch memory. Slots are assigned when the plan is made; nothing
//! here allocates.

use candle_core::DType;
use half::{bf16, f16};
use smallvec::SmallVec;

use super::kernels::par::{lanes1, max_nan, simd, sum1};
use super::kernels::{Float, Real};
use crate::error::{Error, Result};
use crate::fused::elementwise::{Expression, Operand, ReductionKind};
use crate::graph::Operation;

/// Elements per block.
pub(super) const BLOCK: usize = 512;
/// Maximum inputs of a tape.
pub(super) const INPUTS: usize = 16;

/// One operation over a block.
#[derive(Debug, Clone, Copy)]
struct Instruction<A> {
    code: Code<A>,
    operands: [OperandPlace; 3],
    slot: usize,
}

/// The location of an operand's block of values.
#[derive(Debug, Clone, Copy)]
enum OperandPlace {
    Input(usize),
    Slot(usize),
}

#[derive(Debug, Clone, Copy)]
enum Code<A> {
    Fill(A),
    Neg,
    Abs,
    Sign,
    Exp,
    Log,
    Sqrt,
    Rsqrt,
    Recip,
    Sin,
    Cos,
    Tanh,
    Erf,
    Sigmoid,
    Floor,
    MulScalar(A),
    AddScalar(A),
    RoundBrain,
    RoundHalf,
    Copy,
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Maximum,
    Minimum,
    Equal,
    Less,
    LessEqual,
    Where,
}

/// How an input is read.
#[derive(Debug, Clone, Copy)]
struct Load {
    dtype: DType,
    /// The slot it is widened into, unless it is read in place.
    slot: usize,
}

/// An expression as instructions over slots of [`BLOCK`] values.
#[derive(Debug, Clone)]
pub(super) struct Tape<A> {
    loads: SmallVec<[Load; 4]>,
    instructions: Vec<Instruction<A>>,
    /// Number of slots; the result is in the last instruction's.
    pub slots: usize,
    result: DType,
}

/// An element type that tapes compute in, with its conversions from and to the stored dtypes.
pub(super) trait Number: Real {
    const DTYPE: DType;
}

impl Number for f32 {
    const DTYPE: DType = DType::F32;
}

impl Number for f64 {
    const DTYPE: DType = DType::F64;
}

impl<A: Number> Tape<A> {
    pub fn new(expression: &Expression) -> Result<Self> {
        let (result, terms) = (expression.result()?.dtype, expression.elementwise());
        let mut last_use = vec![0; terms.len()];
        for (index, term) in terms.iter().enumerate() {
            for operand in &term.operands {
                if let Operand::Term(t) = *operand {
                    last_use[t] = index;
                }
            }
        }
        let mut slots = expression.inputs.len();
        let loads = expression.inputs.iter().enumerate().map(|(slot, meta)| Load {
            dtype: meta.dtype,
            slot,
        });
        let loads = loads.collect();
        let (mut free, mut places): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        let mut instructions = Vec::with_capacity(terms.len());
        for (index, term) in terms.iter().enumerate() {
            // Never an operand's slot: loops over overlapping memory are not vectorised.
            let slot = free.pop().unwrap_or_else(|| {
                slots += 1;
                slots - 1
            });
            let mut operands = [OperandPlace::Slot(slot); 3];
            for (place, operand) in operands.iter_mut().zip(&term.operands) {
                *place = match *operand {
                    Operand::Input(i) => OperandPlace::Input(i),
                    Operand::Term(t) => OperandPlace::Slot(places[t]),
                };
            }
            instructions.push(Instruction {
                code: code(&term.operation)?,
                operands,
                slot,
            });
            places.push(slot);
            for operand in &term.operands {
                if let Operand::Term(t) = *operand
                    && last_use[t] == index
                    && !free.contains(&places[t])
                {
                    free.push(places[t]);
                }
            }
        }
        Ok(Self {
            loads,
            instructions,
            slots,
            result,
        })
    }

    /// Computes `len` elements: input i starts at `inputs[i]` with stride `steps[i]`; the result is written to `out`.
    ///
    /// # Safety
    /// The inputs are readable and `out` writable in that extent; `out` equals an input or is disjoint from it;
    /// `scratch` has capacity for [`BLOCK`] values per slot.
    pub unsafe fn run(&self, inputs: &[*const u8], steps: &[usize], out: *mut u8, len: usize, scratch: *mut A) {
        let size = self.result.size_in_bytes();
        // SAFETY: guaranteed by the caller.
        unsafe {
            self.for_blocks(
                (inputs, steps),
                len,
                scratch,
                #[inline(always)]
                |start, values| {
                    narrow(
                        self.result,
                        values.as_ptr(),
                        out.wrapping_add(start * size),
                        values.len(),
                    );
                },
            );
        }
    }

    /// Reduces `len` elements to one; for expressions with a reduction, otherwise like [`run`](Self::run).
    ///
    /// # Safety
    /// As [`run`](Self::run).
    pub unsafe fn reduce(
        &self,
        kind: ReductionKind,
        inputs: &[*const u8],
        steps: &[usize],
        len: usize,
        scratch: *mut A,
    ) -> A {
        let mut total = identity(kind);
        // SAFETY: guaranteed by the caller.
        unsafe {
            self.for_blocks(
                (inputs, steps),
                len,
                scratch,
                #[inline(always)]
                |_, values| {
                    let part = match kind {
                        ReductionKind::Sum => sum1(
                            values,
                            #[inline(always)]
                            |x| x,
                        ),
                        ReductionKind::Max => lanes1(values, A::NEG_INFINITY, max_nan, max_nan),
                    };
                    total = join(kind, total, part);
                },
            );
        }
        total
    }

    /// Rounds a value to the result's dtype.
    ///
    /// # Safety
    /// `to` is writable for one element.
    pub unsafe fn round(&self, value: A, to: *mut u8) {
        // SAFETY: guaranteed by the caller.
        unsafe { narrow(self.result, &raw const value, to, 1) };
    }

    /// Calls `f` with the values of each block and the index of its first element.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn for_blocks(
        &self,
        (inputs, steps): (&[*const u8], &[usize]),
        len: usize,
        scratch: *mut A,
        mut f: impl FnMut(usize, &[A]),
    ) {
        simd(
            #[inline(always)]
            || {
                let slot = |slot: usize| scratch.wrapping_add(slot * BLOCK);
                for start in (0..len).step_by(BLOCK) {
                    let count = BLOCK.min(len - start);
                    let mut read: [*const A; INPUTS] = [std::ptr::null(); INPUTS];
                    for (i, load) in self.loads.iter().enumerate() {
                        let size = load.dtype.size_in_bytes();
                        let from = inputs[i].wrapping_add(start * steps[i] * size);
                        if load.dtype == A::DTYPE && steps[i] == 1 {
                            read[i] = from.cast();
                            continue;
                        }
                        read[i] = slot(load.slot);
                        // A repeated value was loaded in the first block.
                        if steps[i] != 0 || start == 0 {
                            let all = if steps[i] == 0 { BLOCK.min(len) } else { count };
                            // SAFETY: guaranteed by the caller.
                            unsafe { widen(load.dtype, from, steps[i], slot(load.slot), all) };
                        }
                    }
                    let mut last = scratch.cast_const();
                    for instruction in &self.instructions {
                        let place = |place: OperandPlace| match place {
                            OperandPlace::Input(i) => read[i],
                            OperandPlace::Slot(s) => slot(s).cast_const(),
                        };
                        let operands = instruction.operands.map(place);
                        // SAFETY: each slot holds a block, and no operand is also the result.
                        unsafe { step(instruction.code, operands, slot(instruction.slot), count) };
                        last = slot(instruction.slot);
                    }
                    // SAFETY: the last instruction wrote them.
                    f(start, unsafe { std::slice::from_raw_parts(last, count) });
                }
            },
        );
    }
}

/// The identity element of a reduction.
pub(super) fn identity<A: Number>(kind: ReductionKind) -> A {
    match kind {
        ReductionKind::Sum => A::ZERO,
        ReductionKind::Max => A::NEG_INFINITY,
    }
}

/// Combines the results of two parts of a row.
#[inline(always)]
pub(super) fn join<A: Number>(kind: ReductionKind, a: A, b: A) -> A {
    match kind {
        ReductionKind::Sum => a + b,
        ReductionKind::Max => max_nan(a, b),
    }
}

fn code<A: Number>(operation: &Operation) -> Result<Code<A>> {
    use Operation as O;
    Ok(match operation {
        O::Constant { value, dtype, .. } => Code::Fill(rounded(*value, *dtype)),
        O::Neg => Code::Neg,
        O::Abs => Code::Abs,
        O::Sign => Code::Sign,
        O::Exp => Code::Exp,
        O::Log => Code::Log,
        O::Sqrt => Code::Sqrt,
        O::Rsqrt => Code::Rsqrt,
        O::Recip => Code::Recip,
        O::Sin => Code::Sin,
        O::Cos => Code::Cos,
        O::Tanh => Code::Tanh,
        O::Erf => Code::Erf,
        O::Sigmoid => Code::Sigmoid,
        O::Floor => Code::Floor,
        O::MulScalar { value } => Code::MulScalar(A::of(f64::from(*value))),
        O::AddScalar { value } => Code::AddScalar(A::of(f64::from(*value))),
        O::Cast { dtype: DType::BF16 } => Code::RoundBrain,
        O::Cast { dtype: DType::F16 } => Code::RoundHalf,
        O::Cast { .. } => Code::Copy,
        O::Add => Code::Add,
        O::Sub => Code::Sub,
        O::Mul => Code::Mul,
        O::Div => Code::Div,
        O::Pow => Code::Pow,
        O::Maximum => Code::Maximum,
        O::Minimum => Code::Minimum,
        O::Equal => Code::Equal,
        O::Less => Code::Less,
        O::LessEqual => Code::LessEqual,
        O::Where => Code::Where,
        other => return Err(Error::no_kernel(other.name(), "it inside an expression")),
    })
}

/// A constant as an element of its dtype.
fn rounded<A: Number>(value: f64, dtype: DType) -> A {
    match dtype {
        DType::BF16 => A::of(f64::from(bf16::from_f64(value))),
        DType::F16 => A::of(f64::from(f16::from_f64(value))),
        DType::U8 => A::of(f64::from(value as u8)),
        _ => A::of(value),
    }
}

/// # Safety
/// As [`Tape::run`].
#[inline(always)]
#[allow(clippy::cast_ptr_alignment)] // the elements are of this dtype
unsafe fn widen<A: Number>(dtype: DType, from: *const u8, step: usize, to: *mut A, count: usize) {
    #[inline(always)]
    unsafe fn each<T: Copy, A>(from: *const T, step: usize, to: *mut A, count: usize, f: impl Fn(T) -> A) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match step {
                1 => (0..count).for_each(|i| *to.add(i) = f(*from.add(i))),
                0 => {
                    let value = *from;
                    (0..count).for_each(|i| *to.add(i) = f(value));
                }
                _ => (0..count).for_each(|i| *to.add(i) = f(*from.add(i * step))),
            }
        }
    }
    // SAFETY: guaranteed by the caller.
    unsafe {
        match dtype {
            DType::F64 => each(from.cast::<f64>(), step, to, count, A::of),
            DType::F32 => each(from.cast::<f32>(), step, to, count, |x| A::of(f64::from(x))),
            DType::BF16 => each(from.cast::<bf16>(), step, to, count, |x| A::of(f64::from(x.to_acc()))),
            DType::F16 => each(from.cast::<f16>(), step, to, count, |x| A::of(f64::from(x.to_acc()))),
            _ => each(from, step, to, count, |x| A::of(f64::from(x))),
        }
    }
}

/// # Safety
/// As [`Tape::run`].
#[inline(always)]
#[allow(clippy::cast_ptr_alignment)] // the elements are of this dtype
unsafe fn narrow<A: Number>(dtype: DType, from: *const A, to: *mut u8, count: usize) {
    #[inline(always)]
    unsafe fn each<A: Copy, T>(from: *const A, to: *mut T, count: usize, f: impl Fn(A) -> T) {
        // SAFETY: guaranteed by the caller.
        unsafe { (0..count).for_each(|i| *to.add(i) = f(*from.add(i))) }
    }
    // SAFETY: guaranteed by the caller.
    unsafe {
        match dtype {
            DType::F64 => each(from, to.cast(), count, |x: A| x.widen()),
            DType::F32 => each(from, to.cast(), count, |x: A| x.widen() as f32),
            DType::BF16 => each(from, to.cast(), count, |x: A| bf16::from_acc(x.widen() as f32)),
            DType::F16 => each(from, to.cast(), count, |x: A| f16::from_acc(x.widen() as f32)),
            _ => each(from, to, count, |x: A| u8::from(x != A::ZERO)),
        }
    }
}

/// Executes one instruction over a block.
///
/// # Safety
/// The operands that the code takes are readable and `out` is writable, for `count` values, and disjoint from them.
#[inline(always)]
#[allow(clippy::too_many_lines, clippy::eq_op)] // one table; only NaN differs from itself
unsafe fn step<A: Number>(code: Code<A>, [a, b, c]: [*const A; 3], out: *mut A, count: usize) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let flag = |x: bool| if x { A::ONE } else { A::ZERO };
        macro_rules! one {
            (|$x:ident| $body:expr) => {
                for i in 0..count {
                    let $x = *a.add(i);
                    *out.add(i) = $body;
                }
            };
        }
        macro_rules! two {
            (|$x:ident, $y:ident| $body:expr) => {
                for i in 0..count {
                    let ($x, $y) = (*a.add(i), *b.add(i));
                    *out.add(i) = $body;
                }
            };
        }
        match code {
            Code::Fill(value) => (0..count).for_each(|i| *out.add(i) = value),
            Code::Neg => one!(|x| -x),
            // 0 - -0 is 0.
            Code::Abs => one!(|x| if x <= A::ZERO { A::ZERO - x } else { x }),
            Code::Sign => one!(|x| if x > A::ZERO {
                A::ONE
            } else if x < A::ZERO {
                -A::ONE
            } else {
                A::ZERO
            }),
            Code::Exp => one!(|x| x.exp()),
            Code::Log => one!(|x| x.ln()),
            Code::Sqrt => one!(|x| x.sqrt()),
            Code::Rsqrt => one!(|x| A::ONE / x.sqrt()),
            Code::Recip => one!(|x| A::ONE / x),
            Code::Sin => one!(|x| A::of(libm::sin(x.widen()))),
            Code::Cos => one!(|x| A::of(libm::cos(x.widen()))),
            Code::Tanh => one!(|x| x.tanh()),
            Code::Erf => one!(|x| x.erf()),
            Code::Sigmoid => one!(|x| x.sigmoid()),
            Code::Floor => one!(|x| A::of(x.widen().floor())),
            Code::MulScalar(value) => one!(|x| x * value),
            Code::AddScalar(value) => one!(|x| x + value),
            Code::RoundBrain => one!(|x| A::of(f64::from(bf16::from_acc(x.widen() as f32).to_acc()))),
            Code::RoundHalf => one!(|x| A::of(f64::from(f16::from_acc(x.widen() as f32).to_acc()))),
            Code::Copy => one!(|x| x),
            Code::Add => two!(|x, y| x + y),
            Code::Sub => two!(|x, y| x - y),
            Code::Mul => two!(|x, y| x * y),
            Code::Div => two!(|x, y| x / y),
            Code::Pow => two!(|x, y| A::of(libm::pow(x.widen(), y.widen()))),
            // NaN if either is NaN.
            Code::Maximum => two!(|x, y| if x < y || y != y { y } else { x }),
            Code::Minimum => two!(|x, y| if y < x || y != y { y } else { x }),
            Code::Equal => two!(|x, y| flag(x == y)),
            Code::Less => two!(|x, y| flag(x < y)),
            Code::LessEqual => two!(|x, y| flag(x <= y)),
            Code::Where => {
                for i in 0..count {
                    *out.add(i) = if *a.add(i) == A::ZERO { *c.add(i) } else { *b.add(i) };
                }
            }
        }
    }
}
