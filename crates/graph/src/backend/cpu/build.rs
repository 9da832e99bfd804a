//! From an optimised graph to a program: gives every value a view of some buffer, makes one step per kernel call, decides
//! what is overwritten in place, and places the buffers.

use std::ops::Range;

use rustc_hash::FxHashMap;
use smallvec::{SmallVec, smallvec};

use candle_core::DType;

use super::kernels::tuning::programs::LONG_WORK;
use super::memory::{Life, place};
use super::steps::{Access, Pieces, Step, joined};
use super::tasks::{StepCost, Tasks, tasks};
use super::thread_choice::ThreadChoice;
use super::view::{BufferId, View};
use super::{Memory, Outcome, Place, Program, buffer, elementwise, fused, primitives, with_type};

use crate::error::Result;
use crate::fused::dequant_matmul::QuantFormat;
use crate::graph::{Graph, GraphNode, Meta, Operation, ValueRef, cost};

/// A buffer while the program is being built.
struct Buffer {
    bytes: usize,
    origin: Origin,
    /// The step that writes it first, and the last one that touches it.
    first: usize,
    last: usize,
    /// The last node that needs what is in it.
    needed_until: usize,
}

impl Buffer {
    fn touched_at(&mut self, step: usize) {
        self.first = self.first.min(step);
        self.last = self.last.max(step);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Computed,
    Input(usize),
    Constant(usize),
}

pub(super) struct Builder<'a> {
    pub graph: &'a Graph,
    /// The node being lowered.
    node: usize,
    views: Vec<SmallVec<[View; 1]>>,
    buffers: Vec<Buffer>,
    steps: Vec<Step>,
    /// The nodes that each step computes for.
    owners: Vec<SmallVec<[usize; 1]>>,
    /// What each step touches.
    accesses: Vec<Access>,
    constants: Vec<u64>,
    inputs: Vec<Meta>,
    written: Vec<bool>,
    /// For each value, the last node that needs it, through views too.
    needed: Vec<SmallVec<[usize; 1]>>,
    /// Contiguous copies of strided values.
    copies: FxHashMap<ValueRef, View>,
    /// Values quantised against weights in a format.
    pub quantized: FxHashMap<(ValueRef, QuantFormat), View>,
}

pub(super) fn build(graph: &Graph) -> Result<Program> {
    let mut builder = Builder {
        graph,
        node: 0,
        views: Vec::with_capacity(graph.nodes.len()),
        buffers: Vec::new(),
        steps: Vec::new(),
        owners: Vec::new(),
        accesses: Vec::new(),
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

/// The last node that needs each value. A view's need is its source's.
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

    /// A contiguous view of an input: its own if it is, else that of a copy, made once.
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
        let (from, to) = (view.clone(), copy.clone());
        with_type!(view.dtype, T => {
            self.step(&[view], &[&copy], move |memory| {
                elementwise::map1::<T, T>(memory, &nest, &from, &to, #[inline(always)] |x| x);
                Ok(())
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

    /// The output over one of the candidates' buffers where that is whole, of the same size, computed by this plan and
    /// not needed any more; else a new buffer. Only for kernels that read an element before they write it; `candidates`
    /// are the views of all inputs.
    pub fn output_over(&mut self, node: &GraphNode, candidates: &[&View]) -> View {
        let meta = &node.outputs[0];
        let alike =
            |a: &View, b: &View| a.offset == b.offset && a.dims == b.dims && a.is_contiguous() && b.is_contiguous();
        let over = candidates.iter().find(|view| {
            let buffer = &self.buffers[view.buffer];
            // Another look at the same memory, say its transpose, must not be overwritten while it is read.
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

    /// A view of an input's value that a step may write: its own buffer where nobody needs the old value any more, else a
    /// copy. For updates of a few elements, and of optimizer state.
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

    /// A constant of every element `value`, as strides of zero over one element.
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

    /// Appends a kernel call.
    pub fn step(
        &mut self,
        reads: &[&View],
        writes: &[&View],
        run: impl Fn(&Memory) -> Result<()> + Send + Sync + 'static,
    ) {
        self.append(reads, writes, Step::Whole(Box::new(run)));
    }

    /// Appends a kernel call in so many pieces, of so many multiply-adds together, that run in any order and on any thread.
    pub fn step_in_pieces(
        &mut self,
        reads: &[&View],
        writes: &[&View],
        (count, work): (usize, usize),
        run: impl Fn(&Memory, usize) + Send + Sync + 'static,
    ) {
        let run = Box::new(run);
        self.append(reads, writes, Step::Pieces(smallvec![Pieces { count, work, run }]));
    }

    fn append(&mut self, reads: &[&View], writes: &[&View], step: Step) {
        let now = self.steps.len();
        for view in reads.iter().chain(writes) {
            self.buffers[view.buffer].touched_at(now);
        }
        self.accesses.push(Access {
            reads: reads.iter().map(|view| view.buffer).collect(),
            writes: writes.iter().map(|view| view.buffer).collect(),
            in_pieces: matches!(step, Step::Pieces(_)),
        });
        self.steps.push(step);
        self.owners.push(smallvec![self.node]);
    }

    fn buffer(&mut self, bytes: usize, origin: Origin) -> BufferId {
        self.buffers.push(Buffer {
            bytes,
            origin,
            first: usize::MAX,
            last: 0,
            needed_until: 0,
        });
        self.buffers.len() - 1
    }

    /// Gives the node's outputs their views.
    fn assign(&mut self, views: SmallVec<[View; 1]>) {
        for (view, &needed) in views.iter().zip(&self.needed[self.node]) {
            let buffer = &mut self.buffers[view.buffer];
            buffer.needed_until = buffer.needed_until.max(needed);
        }
        self.views.push(views);
    }

    fn finish(mut self) -> Result<Program> {
        let mut places: FxHashMap<BufferId, Place> = FxHashMap::default();
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
                    places.insert(view.buffer, Place::Output(index));
                    Outcome::Own
                }
                Origin::Input(input) if whole && self.written[input] && !std::mem::replace(&mut taken[input], true) => {
                    Outcome::Over(input)
                }
                _ => {
                    self.node = value.node as usize;
                    let copy = self.copy_of(&view)?;
                    places.insert(copy.buffer, Place::Output(index));
                    Outcome::Own
                }
            };
            outputs.push((self.graph.meta(value).clone(), outcome));
        }
        let tasks = self.order_by_tasks();
        let (places, arena_bytes) = self.place_rest(&places, &tasks);
        let own = outputs.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Own));
        let has_large_results = own.map(|(meta, _)| meta).any(buffer::is_large_result);
        let work: f64 = (0..self.graph.nodes.len()).map(|node| self.work(node)).sum();
        Ok(Program {
            steps: self.steps,
            owners: self.owners,
            tasks,
            places,
            arena_bytes,
            constants: self.constants,
            inputs: self.inputs,
            written: self.written,
            outputs,
            has_large_results,
            thread_choice: (work >= LONG_WORK).then(ThreadChoice::new),
        })
    }

    /// Puts the steps of each task next to each other; the places of each task. Where there is one task, joins steps in
    /// pieces instead.
    fn order_by_tasks(&mut self) -> Vec<Range<usize>> {
        let written = |id: &BufferId| match self.buffers[*id].origin {
            Origin::Computed => true,
            Origin::Input(input) => self.written[input],
            Origin::Constant(_) => false,
        };
        let touched: Vec<SmallVec<[BufferId; 4]>> = self
            .accesses
            .iter()
            .map(|access| {
                access
                    .reads
                    .iter()
                    .chain(&access.writes)
                    .copied()
                    .filter(written)
                    .collect()
            })
            .collect();
        let steps: Vec<StepCost<'_>> = touched
            .iter()
            .zip(&self.owners)
            .map(|(touches, owners)| StepCost {
                touches,
                work: owners.iter().map(|&owner| self.work(owner)).sum(),
            })
            .collect();
        let Tasks { order, ranges } = tasks(&steps, self.buffers.len());
        if ranges.len() > 1 {
            self.arrange(&order.into_iter().map(|step| smallvec![step]).collect::<Vec<_>>());
            return ranges;
        }
        self.arrange(&joined(&self.accesses));
        std::iter::once(0..self.steps.len()).collect()
    }

    /// Puts the steps into another order, those of one place joined.
    fn arrange(&mut self, places: &[SmallVec<[usize; 1]>]) {
        for buffer in &mut self.buffers {
            (buffer.first, buffer.last) = (usize::MAX, 0);
        }
        for (place, members) in places.iter().enumerate() {
            for access in members.iter().map(|&step| &self.accesses[step]) {
                for &id in access.reads.iter().chain(&access.writes) {
                    self.buffers[id].touched_at(place);
                }
            }
        }
        let mut steps: Vec<Option<Step>> = std::mem::take(&mut self.steps).into_iter().map(Some).collect();
        let mut take = |members: &SmallVec<[usize; 1]>| {
            let mut all = members.iter().filter_map(|&step| steps[step].take());
            let mut first = all.next()?;
            if let Step::Pieces(pieces) = &mut first {
                pieces.extend(all.flat_map(|step| match step {
                    Step::Pieces(pieces) => pieces,
                    Step::Whole(_) => SmallVec::new(),
                }));
            }
            Some(first)
        };
        self.steps = places.iter().filter_map(&mut take).collect();
        let owners =
            |members: &SmallVec<[usize; 1]>| members.iter().flat_map(|&step| self.owners[step].clone()).collect();
        self.owners = places.iter().map(owners).collect();
    }

    /// Element operations of a node, about.
    fn work(&self, node: usize) -> f64 {
        let node = &self.graph.nodes[node];
        let inputs: SmallVec<[&Meta; 4]> = node.inputs.iter().map(|&input| self.graph.meta(input)).collect();
        let made: usize = node.outputs.iter().map(|meta| meta.shape.elem_count()).sum();
        cost::flops(&node.operation, &inputs, &node.outputs) + made as f64
    }

    /// Puts what has no place of its own into the arena, for each task a part.
    fn place_rest(&self, fixed: &FxHashMap<BufferId, Place>, tasks: &[Range<usize>]) -> (Vec<Place>, usize) {
        let in_arena: Vec<BufferId> = (0..self.buffers.len())
            .filter(|id| self.buffers[*id].origin == Origin::Computed && !fixed.contains_key(id))
            .collect();
        let (offsets, bytes) = self.offsets(&in_arena, tasks);
        let mut places: Vec<Place> = (0..self.buffers.len())
            .map(|id| match self.buffers[id].origin {
                Origin::Input(i) => Place::Input(i),
                Origin::Constant(i) => Place::Constant(i),
                Origin::Computed => fixed.get(&id).copied().unwrap_or(Place::Arena(0)),
            })
            .collect();
        in_arena
            .iter()
            .zip(offsets)
            .for_each(|(&id, offset)| places[id] = Place::Arena(offset));
        (places, bytes)
    }
}

impl Builder<'_> {
    /// Offsets of these buffers; those of two tasks do not overlap.
    fn offsets(&self, buffers: &[BufferId], tasks: &[Range<usize>]) -> (Vec<usize>, usize) {
        let lives: Vec<Life> = buffers
            .iter()
            .map(|&id| &self.buffers[id])
            // A buffer no step touches has no elements.
            .map(|b| Life {
                bytes: b.bytes,
                first: b.first.min(b.last),
                last: b.last,
            })
            .collect();
        if tasks.len() < 2 {
            return place(&lives);
        }
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
        for (i, life) in lives.iter().enumerate() {
            members[tasks.partition_point(|task| task.end <= life.first)].push(i);
        }
        let (mut offsets, mut end) = (vec![0; lives.len()], 0);
        for members in members {
            let own: Vec<Life> = members.iter().map(|&i| lives[i]).collect();
            let (places, bytes) = place(&own);
            members
                .iter()
                .zip(places)
                .for_each(|(&i, offset)| offsets[i] = end + offset);
            end += bytes;
        }
        (offsets, end)
    }
}

/// Whether a node is the constant zero.
pub(super) fn is_zero(graph: &Graph, value: ValueRef) -> bool {
    matches!(graph.nodes[value.node as usize].operation, Operation::Constant { value, .. } if value == 0.0)
}
