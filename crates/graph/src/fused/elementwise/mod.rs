//! An expression of elementwise operations, computed in one loop: intermediate values never reach memory. Its last term
//! may be a row reduction (sum or maximum over the trailing dimensions). Expressions are made by the pass `fuse`; users
//! never record one. With a kernel, intermediate values of f16 and bf16 stay in the accumulation type unless a cast
//! rounds them.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Shape};
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::graph::{Meta, Operation};
use crate::lazy_tensor::LazyTensor;

/// Elementwise operations on inputs and on each other, optionally with a row reduction at the end; the value of the
/// last one is the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    /// Shapes and dtypes of the inputs; each broadcasts to the loop's shape.
    pub inputs: Vec<Meta>,
    /// The terms in evaluation order.
    pub terms: Vec<Term>,
}

/// One operation of an expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// Elementwise, or a constant; the last term may also be a sum or maximum.
    pub operation: Operation,
    /// Its inputs.
    pub operands: SmallVec<[Operand; 3]>,
    /// Shape and dtype of its value.
    pub meta: Meta,
}

/// An operand of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// An input of the expression.
    Input(usize),
    /// The value of an earlier term.
    Term(usize),
}

/// A reduction of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reduction {
    /// The function that reduces a row.
    pub kind: ReductionKind,
    /// The first dimension of a row.
    pub first: usize,
}

/// The function that reduces a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReductionKind {
    /// The sum of its elements.
    Sum,
    /// The largest of them; NaN where one is NaN.
    Max,
}

impl Reduction {
    /// An operation as a row reduction of a shape: `None` unless it reduces exactly the trailing dimensions.
    #[must_use]
    pub fn of(operation: &Operation, shape: &Shape) -> Option<Self> {
        let (kind, dims) = match operation {
            Operation::Sum { dims } => (ReductionKind::Sum, dims),
            Operation::Max { dims } => (ReductionKind::Max, dims),
            _ => return None,
        };
        let first = *dims.first()?;
        let is_whole = (first..shape.rank()).all(|dim| shape.dims()[dim] == 1 || dims.contains(&dim));
        is_whole.then_some(Self { kind, first })
    }
}

impl Expression {
    /// Shape and dtype of the result, checked against those of each term.
    ///
    /// # Errors
    /// If an operand is missing or comes later, an operation is not elementwise, or a reduction is not one of rows.
    pub fn result(&self) -> Result<&Meta> {
        let wrong = |message: String| Error::internal(format!("Elementwise: {message}"));
        let elementwise = self.elementwise().len();
        if let Some(reduction) = self.terms.get(elementwise)
            && reduction.operands[..] != [Operand::Term(elementwise - 1)]
        {
            return Err(wrong("does not reduce the preceding term".to_owned()));
        }
        for (index, term) in self.elementwise().iter().enumerate() {
            let exists = |operand: &Operand| match *operand {
                Operand::Input(i) => i < self.inputs.len(),
                Operand::Term(t) => t < index,
            };
            if !term.operation.is_elementwise() && !matches!(term.operation, Operation::Constant { .. }) {
                return Err(wrong(format!("{} is not elementwise", term.operation.name())));
            }
            if !term.operands.iter().all(exists) {
                return Err(wrong(format!("term {index} has a missing operand")));
            }
        }
        let last = self.terms.last();
        last.map(|term| &term.meta).ok_or_else(|| wrong("has no term".into()))
    }

    /// The terms that are computed element by element.
    #[must_use]
    pub fn elementwise(&self) -> &[Term] {
        &self.terms[..self.terms.len() - usize::from(self.reduction().is_some())]
    }

    /// The reduction at the end, if there is one.
    #[must_use]
    pub fn reduction(&self) -> Option<Reduction> {
        let [.., before, last] = &self.terms[..] else {
            return None;
        };
        Reduction::of(&last.operation, &before.meta.shape)
    }

    /// The shape of the loop.
    ///
    /// # Errors
    /// As [`result`](Self::result).
    pub fn shape(&self) -> Result<&Shape> {
        let last = self.result()?;
        Ok(self.elementwise().last().map_or(&last.shape, |term| &term.meta.shape))
    }

    /// Whether every number is computed in f64.
    #[must_use]
    pub fn is_double(&self) -> bool {
        let metas = self.inputs.iter().chain(self.terms.iter().map(|term| &term.meta));
        metas.into_iter().any(|meta| meta.dtype == DType::F64)
    }
}

/// `Mul(0, Sigmoid(0))`: inputs by their indices.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Long expressions name their terms, so that shared ones are printed once.
        for (index, term) in self.terms.iter().enumerate() {
            write!(f, "{}t{index} = {}", if index == 0 { "" } else { "; " }, term.operation)?;
            for operand in &term.operands {
                match operand {
                    Operand::Input(i) => write!(f, " #{i}")?,
                    Operand::Term(t) => write!(f, " t{t}")?,
                }
            }
        }
        Ok(())
    }
}

/// The definition: the operations one by one.
///
/// # Errors
/// When the inputs do not fit the expression.
pub fn fallback(inputs: &[LazyTensor], expression: &Arc<Expression>) -> Result<LazyTensor> {
    let mut values: Vec<LazyTensor> = Vec::with_capacity(expression.terms.len());
    let device = inputs.first().map(LazyTensor::device);
    for term in &expression.terms {
        let operands: SmallVec<[&LazyTensor; 3]> = term
            .operands
            .iter()
            .map(|operand| match *operand {
                Operand::Input(i) => &inputs[i],
                Operand::Term(t) => &values[t],
            })
            .collect();
        let value = match (operands.is_empty(), device) {
            (true, Some(device)) => LazyTensor::record_source(term.operation.clone(), device)?,
            _ => LazyTensor::record_one(term.operation.clone(), &operands)?,
        };
        drop(operands);
        values.push(value);
    }
    values.pop().ok_or_else(|| Error::internal("Elementwise: has no term"))
}
