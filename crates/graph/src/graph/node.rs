//! A node of the recorded graph: an operation, its inputs, and what its outputs look like. Nodes are immutable but for
//! one thing: evaluation puts the values in the place of the inputs, so an evaluated node holds no history.

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

/// Metas of an operation's outputs; nearly always one.
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

/// Marks the histories: whoever holds the one owner of this kind (see [`super::walk`]) reads them all, without a lock
/// or a count for each.
pub(crate) struct Histories;

pub(crate) struct Node {
    pub id: NodeId,
    pub kind: Arc<Kind>,
    /// What it is computed from. `None` where there is nothing to compute: a value is there, or will come as the
    /// argument of a traced function.
    pub history: TCell<Histories, Option<Inputs>>,
    /// Where the last walk put it.
    pub mark: AtomicU64,
    /// One for each output, or none yet.
    values: RwLock<Values>,
}

impl Node {
    /// Not run yet.
    pub fn recorded(kind: Arc<Kind>, inputs: Inputs) -> Arc<Self> {
        Self::new(kind, Some(inputs), Values::new())
    }

    /// A leaf with its values, or without any: an argument of a function being traced.
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

    /// The values, none where it has not run. A poisoned lock is harmless: values are replaced in one assignment.
    pub fn values(&self) -> RwLockReadGuard<'_, Values> {
        self.values.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the values of a node that has run.
    pub fn set_values(&self, values: Values) {
        let mut held = self.values.write().unwrap_or_else(PoisonError::into_inner);
        let former = std::mem::replace(&mut *held, values);
        drop(held);
        // Of another thread that ran it too; dropped outside the lock.
        drop(former);
    }

    /// Exchanges one value of an evaluated node for what `f` makes of it.
    pub fn update_value<R>(&self, output: usize, f: impl FnOnce(Value) -> (Value, R)) -> Result<R> {
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        if output >= values.len() {
            return Err(Error::Placeholder);
        }
        // The place must not keep a second handle, or the buffer would be copied.
        let (value, result) = f(values.remove(output));
        values.insert(output, value);
        Ok(result)
    }

    /// The values of a node that nobody else holds.
    pub fn values_mut(&mut self) -> &mut Values {
        self.values.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_inputs(&mut self) -> Inputs {
        self.history.get_mut().take().unwrap_or_default()
    }
}

/// Drops long chains without recursion: a node whose last handle goes away hands its inputs to a list.
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
