//! The graph reachable from some targets, numbered in topological order. Nothing is copied out of the nodes: the plan
//! cache hashes and compares this form, and only a miss builds a [`Graph`].

use std::hash::Hasher;
use std::sync::Arc;

use candle_core::Device;
use rustc_hash::FxHasher;
use smallvec::{SmallVec, smallvec};

use super::ir::{Graph, GraphNode, ValueRef};
use super::kind::Kind;
use super::node::Node;
use super::operation::Operation;
use super::walk::{Walk, walker};
use crate::backend::Bindings;
use crate::error::{Error, Result};
use crate::lazy_tensor::LazyTensor;

/// The role of a node in the flat graph: an operation, or a leaf with one `Input` per output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Operation,
    Leaf { output: u32 },
}

/// A recorded graph, borrowed from the walk that numbered it.
pub(crate) struct Numbered<'a> {
    /// The nodes of the flat graph.
    entries: Vec<(&'a Arc<Kind>, Role)>,
    /// The inputs of all operations, concatenated.
    edges: Vec<ValueRef>,
    outputs: SmallVec<[ValueRef; 4]>,
    leaves: Vec<&'a Arc<Node>>,
    /// For each recorded node, the index of its first entry.
    firsts: Vec<u32>,
    device: &'a Device,
    hash: u64,
}

/// The structure of a recorded graph: the key of its plan. It contains kinds, no data.
pub(crate) struct PlanKey {
    entries: Vec<(Arc<Kind>, Role)>,
    edges: Vec<ValueRef>,
    outputs: SmallVec<[ValueRef; 4]>,
}

/// A flat graph and the leaf behind each of its `Input` nodes, in order.
pub(crate) struct Flat {
    pub graph: Graph,
    pub leaves: Vec<LazyTensor>,
}

/// Numbers the nodes reachable from `targets` and calls `f` with them. The walk's lock is held meanwhile, so `f` must
/// neither evaluate nor compute a gradient.
///
/// # Errors
/// [`Error::DeviceMismatch`] when targets live on different devices.
pub(crate) fn number<R>(targets: &[LazyTensor], f: impl FnOnce(&Numbered<'_>) -> Result<R>) -> Result<R> {
    let device = targets.first().map_or(&Device::Cpu, LazyTensor::device);
    if let Some(other) = targets.iter().find(|t| !t.device().same_device(device)) {
        return Err(Error::DeviceMismatch {
            operation: "eval",
            first: format!("{:?}", device.location()),
            second: format!("{:?}", other.device().location()),
        });
    }
    let mut walker = walker();
    let mut walk = Walk::new(&mut walker, &[], targets);
    let mut numbered = Numbered {
        entries: Vec::new(),
        edges: Vec::new(),
        outputs: SmallVec::new(),
        leaves: Vec::new(),
        firsts: Vec::new(),
        device,
        hash: 0,
    };
    let mut hash = FxHasher::default();
    while let Some((tensor, inputs)) = walk.next() {
        numbered.push(&walk, tensor, inputs, &mut hash);
    }
    for target in targets {
        let value = numbered.value(&walk, target, &mut hash);
        numbered.outputs.push(value);
    }
    numbered.hash = hash.finish();
    f(&numbered)
}

impl<'a> Numbered<'a> {
    fn push(&mut self, walk: &Walk<'a>, tensor: &'a LazyTensor, inputs: Option<&'a [LazyTensor]>, hash: &mut FxHasher) {
        let kind = tensor.kind();
        self.firsts.push(self.entries.len() as u32);
        if let Some(inputs) = inputs {
            hash.write_u64(kind.digest);
            for input in inputs {
                let value = self.value(walk, input, hash);
                self.edges.push(value);
            }
            self.entries.push((kind, Role::Operation));
            return;
        }
        self.leaves.push(tensor.node());
        for (output, &digest) in (0..).zip(&kind.output_digests) {
            hash.write_u64(digest);
            self.entries.push((kind, Role::Leaf { output }));
        }
    }

    /// The value in the flat graph for the tensor of a visited node.
    fn value(&self, walk: &Walk<'a>, tensor: &LazyTensor, hash: &mut FxHasher) -> ValueRef {
        let (first, output) = (self.firsts[walk.position(tensor) as usize], tensor.output());
        let value = match self.entries[first as usize].1 {
            Role::Operation => ValueRef { node: first, output },
            Role::Leaf { .. } => ValueRef {
                node: first + output,
                output: 0,
            },
        };
        hash.write_u64(u64::from(value.node) << 32 | u64::from(value.output));
        value
    }

    /// A hash of the structure.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether `key` has this structure, compared in full.
    pub fn is(&self, key: &PlanKey) -> bool {
        self.entries.len() == key.entries.len()
            && self.edges == key.edges
            && self.outputs == key.outputs
            && self
                .entries
                .iter()
                .zip(&key.entries)
                .all(|(found, kept)| is_same((found.0, found.1), (&kept.0, kept.1)))
    }

    pub fn key(&self) -> PlanKey {
        PlanKey {
            entries: self
                .entries
                .iter()
                .map(|&(kind, role)| (Arc::clone(kind), role))
                .collect(),
            edges: self.edges.clone(),
            outputs: self.outputs.clone(),
        }
    }

    /// The flat graph.
    pub fn graph(&self) -> Graph {
        let mut edges = &self.edges[..];
        let nodes = self.entries.iter().map(|&(kind, role)| match role {
            Role::Leaf { output } => GraphNode {
                operation: Operation::Input,
                inputs: SmallVec::new(),
                outputs: smallvec![kind.outputs[output as usize].clone()],
            },
            Role::Operation => {
                let (inputs, rest) = edges.split_at(kind.arity);
                edges = rest;
                GraphNode {
                    operation: kind.operation.clone(),
                    inputs: inputs.into(),
                    outputs: kind.outputs.clone(),
                }
            }
        });
        Graph {
            nodes: nodes.collect(),
            outputs: self.outputs.to_vec(),
            device: self.device.clone(),
        }
    }

    /// The leaves bound to the `Input` nodes, in order.
    pub fn leaves(&self) -> impl Iterator<Item = LazyTensor> {
        let tensors = |node: &'a Arc<Node>| {
            (0..node.kind.outputs.len() as u32).map(|output| LazyTensor::of(Arc::clone(node), output))
        };
        self.leaves.iter().copied().flat_map(tensors)
    }

    /// The values of the leaves.
    ///
    /// # Errors
    /// [`Error::Placeholder`] when one is an argument of a function that is being traced.
    pub fn values(&self) -> Result<Bindings> {
        let mut values = Bindings::with_capacity(self.leaves.len());
        for node in &self.leaves {
            let held = node.values();
            if held.is_empty() {
                return Err(Error::Placeholder);
            }
            values.extend(held.iter().cloned());
        }
        Ok(values)
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.device
    }
}

/// Whether two entries are equal for a plan. The origin of a leaf's value does not count.
#[inline]
fn is_same((a, role): (&Arc<Kind>, Role), (b, other): (&Arc<Kind>, Role)) -> bool {
    match (role, other) {
        (Role::Operation, Role::Operation) => Arc::ptr_eq(a, b) || a == b,
        (Role::Leaf { output: i }, Role::Leaf { output: j }) => {
            (Arc::ptr_eq(a, b) && i == j)
                || (a.outputs[i as usize] == b.outputs[j as usize] && a.device.same_device(&b.device))
        }
        (Role::Operation, Role::Leaf { .. }) | (Role::Leaf { .. }, Role::Operation) => false,
    }
}

/// The graph reachable from `targets`, copied out, and its leaves.
///
/// # Errors
/// See [`number`].
pub(crate) fn flatten(targets: &[LazyTensor]) -> Result<Flat> {
    number(targets, |numbered| {
        Ok(Flat {
            graph: numbered.graph(),
            leaves: numbered.leaves().collect(),
        })
    })
}
