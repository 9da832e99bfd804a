//! A node of the recorded graph: an operation, its inputs, and what its outputs look like. Nodes are immutable but for
//! one thing: evaluation replaces the inputs by the values, so an evaluated node holds no history.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use candle_core::{DType, Device, Shape};
use smallvec::SmallVec;

use super::operation::Operation;
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

/// Where a node stands.
pub(crate) enum State {
    /// Not run yet (an `Input` in this state is a placeholder of a traced function).
    Recorded(Inputs),
    /// Run: one value per output, no history.
    Evaluated(Values),
}

pub(crate) struct Node {
    pub id: NodeId,
    pub operation: Operation,
    pub outputs: Outputs,
    pub device: Device,
    state: RwLock<State>,
}

impl Node {
    pub fn new(operation: Operation, outputs: Outputs, device: Device, state: State) -> Arc<Self> {
        Arc::new(Self {
            id: NodeId::next(),
            operation,
            outputs,
            device,
            state: RwLock::new(state),
        })
    }

    /// Reads the state. A poisoned lock is harmless: the state is replaced in one assignment.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the state and returns the former one, so that the caller drops it outside the lock.
    pub fn replace_state(&self, state: State) -> State {
        std::mem::replace(&mut *self.state.write().unwrap_or_else(PoisonError::into_inner), state)
    }

    /// Exchanges one value of an evaluated node for what `f` makes of it.
    pub fn update_value<R>(&self, output: usize, f: impl FnOnce(Value) -> Result<(Value, R)>) -> Result<R> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let State::Evaluated(values) = &mut *state else {
            return Err(Error::Placeholder);
        };
        // The place must not keep a second handle, or the buffer would be copied.
        let value = std::mem::replace(&mut values[output], Value::Gone);
        let (value, result) = f(value)?;
        values[output] = value;
        Ok(result)
    }

    fn take_inputs(&mut self) -> Inputs {
        match self.state.get_mut().unwrap_or_else(PoisonError::into_inner) {
            State::Recorded(inputs) => std::mem::take(inputs),
            State::Evaluated(_) => Inputs::new(),
        }
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
