//! Walks over recorded nodes, all iterative: a chain of a million operations must not overflow the stack. Only one walk
//! runs at a time in the process. It owns all histories meanwhile, so that it follows plain references, and it marks
//! nodes with their positions instead of using a map. A walk runs nothing and records nothing.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use qcell::TCellOwner;
use smallvec::SmallVec;

use super::node::{Histories, Inputs, Node};
use crate::lazy_tensor::LazyTensor;

/// The owner of the histories.
pub(super) struct Walker {
    histories: TCellOwner<Histories>,
    /// The next mark. Marks increase monotonically, which tells those of earlier walks from the current ones.
    clock: u64,
}

/// Locks out other walks. The holder must not lock again, so it must not evaluate.
pub(super) fn walker() -> MutexGuard<'static, Walker> {
    static WALKER: LazyLock<Mutex<Walker>> = LazyLock::new(|| {
        let histories = TCellOwner::new();
        Mutex::new(Walker { histories, clock: 1 })
    });
    // The marks of a walk that panicked are below the clock, so they count as old.
    WALKER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Iterates over all reachable nodes in post-order, each once with its inputs: `None` for a leaf.
pub(super) struct Walk<'a> {
    histories: &'a TCellOwner<Histories>,
    clock: &'a mut u64,
    /// The mark of the first node.
    start: u64,
    /// Tensors that come first and are treated as leaves.
    stops: std::slice::Iter<'a, LazyTensor>,
    roots: std::slice::Iter<'a, LazyTensor>,
    /// (node, its inputs, the next input to visit)
    stack: Vec<(&'a LazyTensor, &'a [LazyTensor], usize)>,
}

impl<'a> Walk<'a> {
    pub fn new(walker: &'a mut Walker, stops: &'a [LazyTensor], roots: &'a [LazyTensor]) -> Self {
        let Walker { histories, clock } = walker;
        Self {
            histories,
            start: *clock,
            clock,
            stops: stops.iter(),
            roots: roots.iter(),
            stack: Vec::new(),
        }
    }

    /// The position of a visited node.
    #[inline]
    pub fn position(&self, tensor: &LazyTensor) -> u32 {
        (tensor.node().mark.load(Ordering::Relaxed) - self.start) as u32
    }

    fn is_visited(&self, tensor: &LazyTensor) -> bool {
        tensor.node().mark.load(Ordering::Relaxed) >= self.start
    }

    fn mark(&mut self, tensor: &LazyTensor) {
        tensor.node().mark.store(*self.clock, Ordering::Relaxed);
        *self.clock += 1;
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (&'a LazyTensor, Option<&'a [LazyTensor]>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while let Some(stop) = self.stops.next() {
            if !self.is_visited(stop) {
                self.mark(stop);
                return Some((stop, None));
            }
        }
        loop {
            let tensor = match self.stack.last_mut() {
                None => self.roots.next()?,
                Some((tensor, inputs, next)) => {
                    let Some(input) = inputs.get(*next) else {
                        let closed = (*tensor, Some(*inputs));
                        self.stack.pop();
                        self.mark(closed.0);
                        return Some(closed);
                    };
                    *next += 1;
                    input
                }
            };
            // Graphs have no cycles, so an unmarked node on the stack is not met again.
            if self.is_visited(tensor) {
                continue;
            }
            let Some(inputs) = self.histories.ro(&tensor.node().history) else {
                self.mark(tensor);
                return Some((tensor, None));
            };
            self.stack.push((tensor, inputs, 0));
        }
    }
}

/// Number of nodes reachable from `root`.
pub(crate) fn count(root: &LazyTensor) -> usize {
    Walk::new(&mut walker(), &[], std::slice::from_ref(root)).count()
}

/// A visited node.
pub(crate) struct Visited {
    pub tensor: LazyTensor,
    /// Empty for a leaf.
    pub inputs: Inputs,
    /// Positions of the inputs in the order.
    pub positions: SmallVec<[u32; 3]>,
}

/// The visited nodes in post-order, and the positions of some of them.
pub(crate) struct PostOrder {
    pub nodes: Vec<Visited>,
    pub roots: Vec<u32>,
    /// `None` for tensors that were not reached.
    pub wanted: Vec<Option<u32>>,
}

/// Every node reachable from `roots` without going beyond `stops`, which come first and without inputs. The positions
/// of `wanted` among them are returned as well.
pub(crate) fn post_order(stops: &[LazyTensor], roots: &[LazyTensor], wanted: &[LazyTensor]) -> PostOrder {
    let mut walker = walker();
    let mut walk = Walk::new(&mut walker, stops, roots);
    let mut nodes = Vec::new();
    while let Some((tensor, inputs)) = walk.next() {
        let inputs = inputs.unwrap_or_default();
        nodes.push(Visited {
            tensor: tensor.clone(),
            inputs: inputs.into(),
            positions: inputs.iter().map(|input| walk.position(input)).collect(),
        });
    }
    let found = |tensor: &LazyTensor| walk.is_visited(tensor).then(|| walk.position(tensor));
    PostOrder {
        nodes,
        roots: roots.iter().map(|root| walk.position(root)).collect(),
        wanted: wanted.iter().map(found).collect(),
    }
}

/// Takes the histories of evaluated nodes. The result must be dropped after the walk lock is released.
pub(crate) fn forget<'a>(nodes: impl Iterator<Item = &'a Arc<Node>>) -> SmallVec<[Option<Inputs>; 2]> {
    let mut walker = walker();
    nodes.map(|node| walker.histories.rw(&node.history).take()).collect()
}
