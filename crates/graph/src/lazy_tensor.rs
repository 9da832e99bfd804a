//! The tensor handle. A `LazyTensor` refers to one output of one recorded node; cloning it is cheap, operations on it
//! record and do not run. Values are computed only in `eval`, the `to_*` methods and compiled functions.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor, WithDType};
use smallvec::smallvec;

use crate::backend::Value;
use crate::error::{Context, Error, Result};
use crate::graph::infer::{elements, infer};
use crate::graph::kind::Kind;
use crate::graph::node::{Inputs, Node, Values};
use crate::graph::verify::is_supported;
use crate::graph::{Graph, Meta, NodeId, Operation, numbered, walk};
use crate::plan;

/// A tensor that may not have been computed yet.
///
/// ```
/// use candle_core::Device;
/// use metal_candle_graph::LazyTensor;
///
/// let a = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu)?;
/// let b = LazyTensor::from_slice(&[3.0, 4.0], &[2], &Device::Cpu)?;
/// let c = a.add(&b)?.mul_scalar(2.0)?; // recorded
/// assert_eq!(c.graph_size(), 4);
/// assert_eq!(c.to_vec::<f32>()?, [8.0, 12.0]); // planned and run
/// # Ok::<(), metal_candle_graph::Error>(())
/// ```
#[derive(Clone)]
pub struct LazyTensor {
    node: Arc<Node>,
    output: u32,
}

impl LazyTensor {
    /// An input that holds `tensor`. It shares the tensor's memory, but not its autograd history in Candle.
    ///
    /// # Errors
    /// When the engine does not support the tensor's dtype.
    pub fn from_tensor(tensor: Tensor) -> Result<Self> {
        let dtype = tensor.dtype();
        if !is_supported(dtype) {
            return Err(Error::UnsupportedDType {
                operation: "from_tensor",
                found: dtype,
            });
        }
        let kind = Kind::input(tensor.shape(), dtype, tensor.device());
        // The graph has its own gradients, so the tensor is detached from Candle's autograd. The memory stays shared.
        let tensor = if tensor.track_op() { tensor.detach() } else { tensor };
        Ok(Self::from_value(Value::Tensor(tensor), kind))
    }

    /// An input of dtype f32.
    ///
    /// # Errors
    /// When the number of values is not the product of `shape`.
    pub fn from_slice(values: &[f32], shape: &[usize], device: &(impl Borrow<Device> + ?Sized)) -> Result<Self> {
        Self::from_data(values, shape, device)
    }

    /// An input of any supported element type.
    ///
    /// # Errors
    /// When the number of values is not the product of `shape`.
    pub fn from_data<T: WithDType>(
        values: &[T],
        shape: &[usize],
        device: &(impl Borrow<Device> + ?Sized),
    ) -> Result<Self> {
        if elements(shape) != Some(values.len()) {
            return Err(Error::shape(
                "from_slice",
                format!("{} values do not fill shape {shape:?}", values.len()),
            ));
        }
        let tensor = Tensor::from_slice(values, shape, device.borrow()).context(|| format!("from_slice {shape:?}"))?;
        Self::from_tensor(tensor)
    }

    /// Zeros.
    ///
    /// # Errors
    /// When the engine does not support `dtype`.
    pub fn zeros(shape: &[usize], dtype: DType, device: &(impl Borrow<Device> + ?Sized)) -> Result<Self> {
        Self::full(0.0, shape, dtype, device)
    }

    /// Ones.
    ///
    /// # Errors
    /// When the engine does not support `dtype`.
    pub fn ones(shape: &[usize], dtype: DType, device: &(impl Borrow<Device> + ?Sized)) -> Result<Self> {
        Self::full(1.0, shape, dtype, device)
    }

    /// A tensor filled with `value`.
    ///
    /// # Errors
    /// When the engine does not support `dtype`.
    pub fn full(value: f64, shape: &[usize], dtype: DType, device: &(impl Borrow<Device> + ?Sized)) -> Result<Self> {
        let operation = Operation::Constant {
            value,
            shape: Shape::from(shape),
            dtype,
        };
        Self::record_source(operation, device.borrow())
    }

    /// Records an operation without inputs (a constant, indices).
    ///
    /// # Errors
    /// When the operation takes inputs or its parameters do not fit.
    #[allow(clippy::needless_pass_by_value)] // recording takes ownership, as in `record`
    pub fn record_source(operation: Operation, device: &Device) -> Result<Self> {
        let kind = Kind::of(operation, &[], device)?;
        Ok(Self::of(Node::recorded(kind, Inputs::new()), 0))
    }

    /// An input that can be combined with this tensor. Tensors built separately combine freely, so this is
    /// [`Self::from_tensor`] under the name that version 1 gave it.
    ///
    /// # Errors
    /// See [`Self::from_tensor`].
    pub fn add_tensor_to_graph(&self, tensor: Tensor) -> Result<Self> {
        Self::from_tensor(tensor)
    }

    /// A leaf without a value, for tests that only inspect graphs.
    #[cfg(test)]
    pub(crate) fn hollow(shape: &[usize], dtype: DType) -> Self {
        Self::placeholder(&Meta::new(shape, dtype), &Device::Cpu)
    }

    /// A placeholder: an argument of a function that is being traced, with a shape and no value.
    pub(crate) fn placeholder(meta: &Meta, device: &Device) -> Self {
        let kind = Kind::input(&meta.shape, meta.dtype, device);
        Self::of(Node::leaf(kind, Values::new()), 0)
    }

    pub(crate) fn from_value(value: Value, kind: Arc<Kind>) -> Self {
        Self::of(Node::leaf(kind, smallvec![value]), 0)
    }

    pub(crate) fn of(node: Arc<Node>, output: u32) -> Self {
        Self { node, output }
    }

    /// Records an operation and returns its outputs.
    ///
    /// # Errors
    /// When number, dtypes, shapes or devices of the inputs do not fit; the message names the operation.
    pub fn record(operation: Operation, inputs: &[&Self]) -> Result<Vec<Self>> {
        let node = Self::record_node(operation, inputs)?;
        Ok((0..node.kind.outputs.len() as u32)
            .map(|output| Self::of(Arc::clone(&node), output))
            .collect())
    }

    /// Records an operation of one output.
    pub(crate) fn record_one(operation: Operation, inputs: &[&Self]) -> Result<Self> {
        Self::record_node(operation, inputs).map(|node| Self::of(node, 0))
    }

    #[allow(clippy::needless_pass_by_value)] // as above
    fn record_node(operation: Operation, inputs: &[&Self]) -> Result<Arc<Node>> {
        let Some(first) = inputs.first() else {
            // Reports the expected number of inputs; an operation without inputs needs a device.
            infer(&operation, &[])?;
            return Err(Error::shape(
                operation.name(),
                "is a source, recorded with `record_source`",
            ));
        };
        let kind = Kind::of(operation, inputs, first.device())?;
        Ok(Node::recorded(kind, inputs.iter().map(|&t| t.clone()).collect()))
    }

    /// The shape, known without evaluation.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.meta().shape
    }

    /// The sizes of the dimensions.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        self.meta().shape.dims()
    }

    /// Number of dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.dims().len()
    }

    /// The dtype, known without evaluation.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.meta().dtype
    }

    /// The device it is computed on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.node.kind.device
    }

    /// The id of this tensor's node.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.node.id
    }

    /// Shape and dtype.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.node.kind.outputs[self.output as usize]
    }

    /// Nodes reachable from this tensor, itself included. An evaluated tensor has dropped its history and counts 1.
    #[must_use]
    pub fn graph_size(&self) -> usize {
        walk::count(self)
    }

    /// The reachable graph in flat form: it prints as text (`Display`) and as Graphviz dot ([`Graph::to_dot`]).
    ///
    /// # Errors
    /// Never for a single tensor's graph on one device.
    pub fn graph(&self) -> Result<Graph> {
        numbered::flatten(std::slice::from_ref(self)).map(|flat| flat.graph)
    }

    /// Whether the value has been computed.
    #[must_use]
    pub fn is_evaluated(&self) -> bool {
        !self.node.values().is_empty()
    }

    /// Computes the value (once) and drops the history.
    ///
    /// # Errors
    /// When a kernel fails, for example on an index out of range.
    pub fn eval(&self) -> Result<Tensor> {
        plan::evaluate(std::slice::from_ref(self))?;
        self.evaluated_tensor()
    }

    /// Computes the value and returns it as a Candle tensor: an alias of [`Self::eval`].
    ///
    /// # Errors
    /// See [`Self::eval`].
    pub fn to_tensor(&self) -> Result<Tensor> {
        self.eval()
    }

    /// Computes the value and returns its elements in row-major order.
    ///
    /// # Errors
    /// See [`Self::eval`]; also when `T` is not the dtype's type.
    pub fn to_vec<T: WithDType>(&self) -> Result<Vec<T>> {
        let tensor = self.eval()?;
        tensor
            .flatten_all()
            .and_then(|t| t.to_vec1())
            .context(|| format!("to_vec of {}", self.meta()))
    }

    /// Computes the single element.
    ///
    /// # Errors
    /// See [`Self::to_vec`]; also when there is not exactly one element.
    pub fn to_scalar<T: WithDType>(&self) -> Result<T> {
        match self.to_vec::<T>()?.as_slice() {
            [value] => Ok(*value),
            _ => Err(Error::shape(
                "to_scalar",
                format!("{:?} does not have exactly one element", self.dims()),
            )),
        }
    }

    /// The value as a Candle tensor. The buffer moves to Candle, without a copy if it was not shared.
    fn evaluated_tensor(&self) -> Result<Tensor> {
        self.node.update_value(self.output as usize, |value| {
            let tensor = value.into_tensor(self.meta());
            (Value::Tensor(tensor.clone()), tensor)
        })
    }

    /// The value of an evaluated tensor.
    pub(crate) fn value(&self) -> Result<Value> {
        let values = self.node.values();
        values.get(self.output as usize).cloned().ok_or(Error::Placeholder)
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The node, if this is its only handle.
    pub(crate) fn node_mut(&mut self) -> Option<&mut Node> {
        Arc::get_mut(&mut self.node)
    }

    pub(crate) fn kind(&self) -> &Arc<Kind> {
        &self.node.kind
    }

    pub(crate) fn into_node(self) -> Arc<Node> {
        self.node
    }

    pub(crate) fn output(&self) -> u32 {
        self.output
    }
}

/// Evaluates several tensors as one plan: common subexpressions are computed once.
///
/// # Errors
/// See [`LazyTensor::eval`]; also when the tensors live on different devices.
pub fn eval_all(tensors: &[LazyTensor]) -> Result<Vec<Tensor>> {
    plan::evaluate(tensors)?;
    tensors.iter().map(LazyTensor::evaluated_tensor).collect()
}

/// Shape, dtype and state; never the values, so that printing does not evaluate anything.
impl fmt::Debug for LazyTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let standing = if self.is_evaluated() { "evaluated" } else { "recorded" };
        write!(
            f,
            "LazyTensor({} {}, {standing})",
            self.node.kind.operation.name(),
            self.meta()
        )
    }
}
