//! A node of the recorded graph: an operation, its inputs, and shapes and dtypes of its outputs. Nodes are immutable
//! with one exception: evaluation replaces the inputs by the values, so an evaluated node holds no history.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use candle_core::{DType, Shape};
use qcell::TCell;
use smallvec::SmallVec;

use super::kind::Kind;
use crate::backend::Value;
use crate::error::{Error, Result};
use crate::lazy_tensor::LazyTensor;

/// Shape and dtype of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Dimensions, row-major.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl Meta {
    /// Shape and dtype together.
    pub fn new(shape: impl Into<Shape>, dtype: DType) -> Self {
        Self {
            shape: shape.into(),
            dtype,
        }
    }

    /// Bytes of a contiguous tensor.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shape.elem_count() * self.dtype.size_in_bytes()
    }
}

/// Shape and dtype of each output of an operation; nearly always one.
pub type Outputs = SmallVec<[Meta; 1]>;

/// Unique identity of a node within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

pub(crate) type Inputs = SmallVec<[LazyTensor; 3]>;
pub(crate) type Values = SmallVec<[Value; 1]>;

/// The type that owns all histories: its single owner (see [`super::walk`]) gives access to them without a lock or a
/// reference count per node.
pub(crate) struct Histories;

pub(crate) struct Node {
    pub id: NodeId,
    pub kind: Arc<Kind>,
    /// The inputs. `None` if there is nothing to compute: the node has a value, or will get one as the argument of a
    /// traced function.
    pub history: TCell<Histories, Option<Inputs>>,
    /// The position in the last walk.
    pub mark: AtomicU64,
    /// One value per output, or none before evaluation.
    values: RwLock<Values>,
}

impl Node {
    /// A node that has not been evaluated.
    pub fn recorded(kind: Arc<Kind>, inputs: Inputs) -> Arc<Self> {
        Self::new(kind, Some(inputs), Values::new())
    }

    /// A leaf with its values, or without any: an argument of a function that is being traced.
    pub fn leaf(kind: Arc<Kind>, values: Values) -> Arc<Self> {
        Self::new(kind, None, values)
    }

    fn new(kind: Arc<Kind>, history: Option<Inputs>, values: Values) -> Arc<Self> {
        Arc::new(Self {
            id: NodeId::next(),
            kind,
            history: TCell::new(history),
            mark: AtomicU64::new(0),
            values: RwLock::new(values),
        })
    }

    /// The values; empty before evaluation. A poisoned lock is harmless: values are replaced in one assignment.
    pub fn values(&self) -> RwLockReadGuard<'_, Values> {
        self.values.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the values of an evaluated node.
    pub fn set_values(&self, values: Values) {
        let mut held = self.values.write().unwrap_or_else(PoisonError::into_inner);
        let former = std::mem::replace(&mut *held, values);
        drop(held);
        // Set by another thread that evaluated it too; dropped outside the lock.
        drop(former);
    }

    /// Replaces one value of an evaluated node by the result of `f`.
    pub fn update_value<R>(&self, output: usize, f: impl FnOnce(Value) -> (Value, R)) -> Result<R> {
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        if output >= values.len() {
            return Err(Error::Placeholder);
        }
        // Moved out, because a second handle would force a copy of the buffer.
        let (value, result) = f(values.remove(output));
        values.insert(output, value);
        Ok(result)
    }

    /// The values of a uniquely held node.
    pub fn values_mut(&mut self) -> &mut Values {
        self.values.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_inputs(&mut self) -> Inputs {
        self.history.get_mut().take().unwrap_or_default()
    }
}

/// Drops long chains without recursion: the inputs of a dropped node go to a work list.
impl Drop for Node {
    fn drop(&mut self) {
        let mut pending = self.take_inputs();
        while let Some(tensor) = pending.pop() {
            if let Some(mut node) = Arc::into_inner(tensor.into_node()) {
                pending.extend(node.take_inputs());
            }
        }
    }
}
