//! Lowers an optimised graph to a program: gives every value a view of some buffer, makes one step per kernel call and
//! decides what is overwritten in place. `arrange.rs` orders the steps and places the buffers.

use rustc_hash::FxHashMap;
use smallvec::{SmallVec, smallvec};

use candle_core::DType;

use super::kernels::tuning::programs::LONG_WORK;
use super::operand::{Access, Declared, Operands};
use super::steps::{Check, Pieces, Step, Work};
use super::thread_choice::ThreadChoice;
use super::view::{BufferId, View};
use super::{Location, Memory, Outcome, Program, buffer, elementwise, fused, primitives, with_type};

use crate::error::Result;
use crate::fused::dequant_matmul::QuantFormat;
use crate::graph::{Graph, GraphNode, Meta, Operation, ValueRef};

/// A buffer of the program under construction.
pub(super) struct Buffer {
    pub bytes: usize,
    pub origin: Origin,
    /// The last node that needs its contents.
    needed_until: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Computed,
    Input(usize),
    Constant(usize),
}

pub(super) struct Builder<'a> {
    pub graph: &'a Graph,
    /// The node being lowered.
    node: usize,
    views: Vec<SmallVec<[View; 1]>>,
    pub(super) buffers: Vec<Buffer>,
    pub(super) steps: Vec<Step>,
    /// The graph nodes that each step computes.
    pub(super) owners: Vec<SmallVec<[usize; 1]>>,
    /// The buffers that each step reads and writes.
    pub(super) accesses: Vec<Access>,
    /// The views behind these, kept if the program is to run checked.
    pub(super) declared: Option<Vec<Declared>>,
    /// The buffers that each step's check reads; empty for a step without one.
    pub(super) checked: Vec<SmallVec<[BufferId; 1]>>,
    constants: Vec<u64>,
    inputs: Vec<Meta>,
    pub(super) written: Vec<bool>,
    /// For each value, the last node that needs it, also through views.
    needed: Vec<SmallVec<[usize; 1]>>,
    /// Contiguous copies of strided values.
    copies: FxHashMap<ValueRef, View>,
    /// Activations already quantised against weights in a format.
    pub quantized: FxHashMap<(ValueRef, QuantFormat), View>,
}

/// Builds the program of a graph; `checked` keeps what each step declared.
pub(super) fn build(graph: &Graph, checked: bool) -> Result<Program> {
    let mut builder = Builder {
        graph,
        node: 0,
        views: Vec::with_capacity(graph.nodes.len()),
        buffers: Vec::new(),
        steps: Vec::new(),
        owners: Vec::new(),
        accesses: Vec::new(),
        declared: checked.then(Vec::new),
        checked: Vec::new(),
        constants: Vec::new(),
        inputs: Vec::new(),
        written: Vec::new(),
        needed: needed_until(graph),
        copies: FxHashMap::default(),
        quantized: FxHashMap::default(),
    };
    for (index, node) in graph.nodes.iter().enumerate() {
        builder.node = index;
        let views = if node.operation.is_fused() {
            fused::lower(&mut builder, node)?
        } else {
            primitives::lower(&mut builder, node)?
        };
        builder.assign(views);
    }
    builder.finish()
}

/// The end of each value's live range: the last node that needs it. A view extends the live range of its source.
fn needed_until(graph: &Graph) -> Vec<SmallVec<[usize; 1]>> {
    let mut needed: Vec<SmallVec<[usize; 1]>> = graph
        .nodes
        .iter()
        .enumerate()
        .map(|(i, n)| SmallVec::from_elem(i, n.outputs.len()))
        .collect();
    for output in &graph.outputs {
        needed[output.node as usize][output.output as usize] = usize::MAX;
    }
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        let until = if node.operation.is_view() {
            needed[index][0].max(index)
        } else {
            index
        };
        for input in &node.inputs {
            let slot = &mut needed[input.node as usize][input.output as usize];
            *slot = (*slot).max(until);
        }
    }
    needed
}

impl Builder<'_> {
    /// The node being lowered.
    pub fn index(&self) -> usize {
        self.node
    }

    /// The view of an input of the node being lowered.
    pub fn view(&self, value: ValueRef) -> &View {
        &self.views[value.node as usize][value.output as usize]
    }

    /// Views of all inputs.
    pub fn input_views(&self, node: &GraphNode) -> Vec<View> {
        node.inputs.iter().map(|&input| self.view(input).clone()).collect()
    }

    /// A contiguous view of an input: its own if it is contiguous, else that of a copy, which is made once.
    pub fn contiguous(&mut self, value: ValueRef) -> Result<View> {
        let view = self.view(value).clone();
        if view.is_contiguous() {
            return Ok(view);
        }
        if let Some(copy) = self.copies.get(&value) {
            return Ok(copy.clone());
        }
        let copy = self.copy_of(&view)?;
        self.buffers[copy.buffer].needed_until = self.needed[value.node as usize][value.output as usize];
        self.copies.insert(value, copy.clone());
        Ok(copy)
    }

    /// Contiguous views of all inputs.
    pub fn contiguous_inputs(&mut self, node: &GraphNode) -> Result<Vec<View>> {
        node.inputs.iter().map(|&input| self.contiguous(input)).collect()
    }

    /// A fresh contiguous copy.
    pub fn copy_of(&mut self, view: &View) -> Result<View> {
        let copy = self.fresh(&view.dims, view.dtype);
        let nest = elementwise::Nest::new(&view.dims, &[view]);
        with_type!(view.dtype, T => {
            self.step(|operands| {
                let (from, to) = (operands.read(view), operands.write(&copy));
                move |memory| elementwise::map1::<T, T>(memory, &nest, &from, &to, #[inline(always)] |x| x)
            });
            Ok(())
        })?;
        Ok(copy)
    }

    /// A new buffer.
    pub fn fresh(&mut self, dims: &[usize], dtype: DType) -> View {
        let bytes = dims.iter().product::<usize>() * dtype.size_in_bytes();
        let buffer = self.buffer(bytes, Origin::Computed);
        View::contiguous(buffer, dims, dtype)
    }

    /// A new buffer for output `output` of the node being lowered.
    pub fn output(&mut self, node: &GraphNode, output: usize) -> View {
        let meta = &node.outputs[output];
        self.fresh(meta.shape.dims(), meta.dtype)
    }

    /// An output that reuses the buffer of a candidate if that view covers the whole buffer, has the same size, is
    /// computed by this plan and is dead after this node; else a new buffer. Only for kernels that read an element
    /// before they write it; `candidates` are the views of all inputs.
    pub fn output_over(&mut self, node: &GraphNode, candidates: &[&View]) -> View {
        let meta = &node.outputs[0];
        let alike =
            |a: &View, b: &View| a.offset == b.offset && a.dims == b.dims && a.is_contiguous() && b.is_contiguous();
        let over = candidates.iter().find(|view| {
            let buffer = &self.buffers[view.buffer];
            // A second view of the same memory, such as its transpose, must not be overwritten while it is read.
            if candidates
                .iter()
                .any(|other| other.buffer == view.buffer && !alike(other, view))
            {
                return false;
            }
            let whole = view.offset == 0 && view.is_contiguous() && view.dims == meta.shape.dims();
            whole
                && view.dtype.size_in_bytes() == meta.dtype.size_in_bytes()
                && buffer.bytes == meta.bytes()
                && buffer.origin == Origin::Computed
                && buffer.needed_until <= self.node
        });
        match over {
            Some(view) => View::contiguous(view.buffer, meta.shape.dims(), meta.dtype),
            None => self.output(node, 0),
        }
    }

    /// A view of an input's value that a step may overwrite: its own buffer if the old value is dead after this node,
    /// else a copy. For updates of a few elements, and of optimizer state.
    pub fn writable(&mut self, value: ValueRef) -> Result<View> {
        let view = self.view(value).clone();
        let buffer = &self.buffers[view.buffer];
        let whole = view.offset == 0 && view.is_contiguous() && buffer.bytes == view.len() * view.dtype.size_in_bytes();
        let inputs = &self.graph.nodes[self.node].inputs;
        let lies_there = |view_of: Option<&View>| view_of.is_some_and(|other| other.buffer == view.buffer);
        let touches = |input: &ValueRef| lies_there(Some(self.view(*input))) || lies_there(self.copies.get(input));
        let alone = inputs.iter().filter(|&input| touches(input)).count() == 1;
        if !(whole && alone && buffer.needed_until <= self.node) {
            return self.copy_of(&view);
        }
        match buffer.origin {
            Origin::Constant(_) => self.copy_of(&view),
            Origin::Computed => Ok(view),
            Origin::Input(input) => {
                self.written[input] = true;
                Ok(view)
            }
        }
    }

    /// A constant tensor: a single element viewed with strides of zero.
    pub fn constant(&mut self, meta: &Meta, bytes: [u8; 8]) -> View {
        self.constants.push(u64::from_ne_bytes(bytes));
        let buffer = self.buffer(8, Origin::Constant(self.constants.len() - 1));
        let dims = meta.shape.dims();
        View {
            buffer,
            offset: 0,
            dims: dims.to_vec(),
            strides: vec![0; dims.len()],
            dtype: meta.dtype,
        }
    }

    /// The next input of the plan.
    pub fn input(&mut self, meta: &Meta) -> View {
        self.inputs.push(meta.clone());
        self.written.push(false);
        let buffer = self.buffer(meta.bytes(), Origin::Input(self.inputs.len() - 1));
        View::contiguous(buffer, meta.shape.dims(), meta.dtype)
    }

    /// Appends a kernel call. `declare` declares its operands and returns the call; a call without elements to write is
    /// dropped.
    pub fn step<R>(&mut self, declare: impl FnOnce(&mut Operands) -> R)
    where
        R: Fn(&Memory) + Send + Sync + 'static,
    {
        let mut operands = Operands::default();
        let run = declare(&mut operands);
        self.append(operands, Work::Whole(Box::new(run)), None);
    }

    /// Like [`Self::step`], for a call that fails on some data: `check` declares what it reads, and runs before
    /// anything is written. The check runs even if the call writes nothing.
    pub fn checked_step<C, R>(
        &mut self,
        check: impl FnOnce(&mut Operands) -> C,
        declare: impl FnOnce(&mut Operands) -> R,
    ) where
        C: Fn(&Memory) -> Result<()> + Send + Sync + 'static,
        R: Fn(&Memory) + Send + Sync + 'static,
    {
        let (mut looked_at, mut operands) = (Operands::default(), Operands::default());
        let check = check(&mut looked_at);
        let run = declare(&mut operands);
        let check: (Operands, Check) = (looked_at, Box::new(check));
        self.append(operands, Work::Whole(Box::new(run)), Some(check));
    }

    /// Like [`Self::step`], in `count` pieces with `work` multiply-adds in total, which run in any order on any thread.
    pub fn step_in_pieces<R>(&mut self, (count, work): (usize, usize), declare: impl FnOnce(&mut Operands) -> R)
    where
        R: Fn(&Memory, usize) + Send + Sync + 'static,
    {
        let mut operands = Operands::default();
        let run = Box::new(declare(&mut operands));
        self.append(operands, Work::Pieces(smallvec![Pieces { count, work, run }]), None);
    }

    fn append(&mut self, operands: Operands, work: Work, check: Option<(Operands, Check)>) {
        let (mut declared, writes) = operands.into_declared();
        if !writes && check.is_none() {
            return;
        }
        let work = if writes { work } else { Work::Pieces(SmallVec::new()) };
        let (mut looked_at, mut fails) = (SmallVec::new(), None);
        if let Some((operands, check)) = check {
            let (own, _) = operands.into_declared();
            looked_at = own.reads.iter().map(|view| view.buffer).collect();
            declared.join(own);
            fails = Some(check);
        }
        self.accesses.push(declared.access());
        if let Some(all) = &mut self.declared {
            all.push(declared);
        }
        self.checked.push(looked_at);
        self.steps.push(Step { check: fails, work });
        self.owners.push(smallvec![self.node]);
    }

    fn buffer(&mut self, bytes: usize, origin: Origin) -> BufferId {
        self.buffers.push(Buffer {
            bytes,
            origin,
            needed_until: 0,
        });
        self.buffers.len() - 1
    }

    /// Assigns the views of the node's outputs.
    fn assign(&mut self, views: SmallVec<[View; 1]>) {
        for (view, &needed) in views.iter().zip(&self.needed[self.node]) {
            let buffer = &mut self.buffers[view.buffer];
            buffer.needed_until = buffer.needed_until.max(needed);
        }
        self.views.push(views);
    }

    fn finish(mut self) -> Result<Program> {
        let mut places: FxHashMap<BufferId, Location> = FxHashMap::default();
        let mut outputs = Vec::with_capacity(self.graph.outputs.len());
        let mut taken = vec![false; self.inputs.len()];
        for (index, &value) in self.graph.outputs.iter().enumerate() {
            let view = self.view(value).clone();
            let buffer = &self.buffers[view.buffer];
            let whole = view.offset == 0
                && view.is_contiguous()
                && buffer.bytes == view.len() * view.dtype.size_in_bytes()
                && !places.contains_key(&view.buffer);
            let outcome = match buffer.origin {
                Origin::Computed if whole => {
                    places.insert(view.buffer, Location::Output(index));
                    Outcome::Own
                }
                Origin::Input(input) if whole && self.written[input] && !std::mem::replace(&mut taken[input], true) => {
                    Outcome::Over(input)
                }
                _ => {
                    self.node = value.node as usize;
                    let copy = self.copy_of(&view)?;
                    places.insert(copy.buffer, Location::Output(index));
                    Outcome::Own
                }
            };
            outputs.push((self.graph.meta(value).clone(), outcome));
        }
        let checks = self.early_checks();
        let tasks = self.order_by_tasks();
        let in_place = self.overwritable(&tasks);
        let (places, arena_bytes) = self.place_rest(&places, &tasks);
        let own = outputs.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Own));
        let has_large_results = own.map(|(meta, _)| meta).any(buffer::is_large_result);
        let work: f64 = (0..self.graph.nodes.len()).map(|node| self.work(node)).sum();
        Ok(Program {
            checks,
            steps: self.steps,
            owners: self.owners,
            declared: self.declared.unwrap_or_default(),
            buffers: self.buffers.iter().map(|buffer| buffer.bytes).collect(),
            tasks,
            places,
            arena_bytes,
            constants: self.constants,
            inputs: self.inputs,
            written: self.written,
            in_place,
            outputs,
            has_large_results,
            thread_choice: (work >= LONG_WORK).then(ThreadChoice::new),
        })
    }
}

/// Whether a node is the constant zero.
pub(super) fn is_zero(graph: &Graph, value: ValueRef) -> bool {
    matches!(graph.nodes[value.node as usize].operation, Operation::Constant { value, .. } if value == 0.0)
}
