//! Orders the steps of a program, moves checks to the front, decides which inputs may be overwritten, and assigns arena
//! offsets to buffers.

use std::ops::Range;

use rustc_hash::FxHashMap;
use smallvec::{SmallVec, smallvec};

use super::Location;
use super::build::{Builder, Origin};
use super::memory::{LiveRange, place};
use super::operand::Declared;
use super::steps::{Check, Step, Work, joined};
use super::tasks::{StepCost, Tasks, tasks};
use super::view::BufferId;
use crate::graph::{Meta, cost};

impl Builder<'_> {
    /// Takes out the checks that read only plan inputs: they run before the first step. Checks of computed values run
    /// right before their step.
    pub fn early_checks(&mut self) -> Vec<Check> {
        let is_given = |id: &BufferId| match self.buffers[*id].origin {
            Origin::Computed => false,
            Origin::Constant(_) => true,
            Origin::Input(input) => !self.written[input],
        };
        let steps = self.steps.iter_mut().zip(&self.checked);
        let early = steps.filter(|(_, looked_at)| looked_at.iter().all(is_given));
        early.filter_map(|(step, _)| step.check.take()).collect()
    }

    /// For each input, whether steps may overwrite it in place: no step that may fail runs after the first write to it.
    /// The others are copied first, so that a failed run leaves its inputs unchanged.
    pub fn overwritable(&self, tasks: &[Range<usize>]) -> Vec<bool> {
        let last_check = self.steps.iter().rposition(|step| step.check.is_some());
        let mut overwritable = self.written.clone();
        let Some(last_check) = last_check else {
            return overwritable;
        };
        for (step, access) in self.accesses.iter().enumerate() {
            // A step checks before it writes. Tasks run in no particular order.
            if step < last_check || tasks.len() > 1 {
                for &id in &access.writes {
                    if let Origin::Input(input) = self.buffers[id].origin {
                        overwritable[input] = false;
                    }
                }
            }
        }
        overwritable
    }

    /// Reorders the steps so that those of each task are contiguous; returns the range of each task. With a single
    /// task, merges steps that run in pieces instead.
    pub fn order_by_tasks(&mut self) -> Vec<Range<usize>> {
        let written = |id: &BufferId| match self.buffers[*id].origin {
            Origin::Computed => true,
            Origin::Input(input) => self.written[input],
            Origin::Constant(_) => false,
        };
        let touched: Vec<SmallVec<[BufferId; 4]>> = self
            .accesses
            .iter()
            .map(|access| access.buffers().filter(written).collect())
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
        let in_pieces = |step: &Step| step.check.is_none() && matches!(step.work, Work::Pieces(_));
        let steps = self.accesses.iter().zip(self.steps.iter().map(in_pieces));
        self.arrange(&joined(steps));
        std::iter::once(0..self.steps.len()).collect()
    }

    /// Permutes the steps; those of one entry of `places` are merged into one.
    fn arrange(&mut self, places: &[SmallVec<[usize; 1]>]) {
        let mut steps: Vec<Option<Step>> = std::mem::take(&mut self.steps).into_iter().map(Some).collect();
        let mut take = |members: &SmallVec<[usize; 1]>| {
            let mut all = members.iter().filter_map(|&step| steps[step].take());
            let mut first = all.next()?;
            if let Work::Pieces(pieces) = &mut first.work {
                pieces.extend(all.flat_map(|step| match step.work {
                    Work::Pieces(pieces) => pieces,
                    Work::Whole(_) => SmallVec::new(),
                }));
            }
            Some(first)
        };
        self.steps = places.iter().filter_map(&mut take).collect();
        let access = |members: &SmallVec<[usize; 1]>| {
            let mut access = self.accesses[members[0]].clone();
            members[1..].iter().for_each(|&step| access.join(&self.accesses[step]));
            access
        };
        self.accesses = places.iter().map(access).collect();
        if let Some(declared) = &mut self.declared {
            let mut all: Vec<Option<Declared>> = std::mem::take(declared).into_iter().map(Some).collect();
            let joined = |members: &SmallVec<[usize; 1]>| {
                let mut joined = Declared::default();
                let members = members.iter().filter_map(|&step| all[step].take());
                members.for_each(|declared| joined.join(declared));
                joined
            };
            *declared = places.iter().map(joined).collect();
        }
        let owners =
            |members: &SmallVec<[usize; 1]>| members.iter().flat_map(|&step| self.owners[step].clone()).collect();
        self.owners = places.iter().map(owners).collect();
    }

    /// Approximate element operations of a node.
    pub(super) fn work(&self, node: usize) -> f64 {
        let node = &self.graph.nodes[node];
        let inputs: SmallVec<[&Meta; 4]> = node.inputs.iter().map(|&input| self.graph.meta(input)).collect();
        let made: usize = node.outputs.iter().map(|meta| meta.shape.elem_count()).sum();
        cost::flops(&node.operation, &inputs, &node.outputs) + made as f64
    }

    /// Assigns arena offsets to all buffers without fixed memory, with a separate part of the arena for each task.
    pub fn place_rest(&self, fixed: &FxHashMap<BufferId, Location>, tasks: &[Range<usize>]) -> (Vec<Location>, usize) {
        let in_arena: Vec<BufferId> = (0..self.buffers.len())
            .filter(|id| self.buffers[*id].origin == Origin::Computed && !fixed.contains_key(id))
            .collect();
        let (offsets, bytes) = self.offsets(&in_arena, tasks);
        let mut places: Vec<Location> = (0..self.buffers.len())
            .map(|id| match self.buffers[id].origin {
                Origin::Input(i) => Location::Input(i),
                Origin::Constant(i) => Location::Constant(i),
                Origin::Computed => fixed.get(&id).copied().unwrap_or(Location::Arena(0)),
            })
            .collect();
        in_arena
            .iter()
            .zip(offsets)
            .for_each(|(&id, offset)| places[id] = Location::Arena(offset));
        (places, bytes)
    }

    /// The live range of each buffer: its first and last step. A buffer that no step touches is empty.
    fn touched(&self) -> Vec<(usize, usize)> {
        let mut touched = vec![(usize::MAX, 0); self.buffers.len()];
        for (step, access) in self.accesses.iter().enumerate() {
            for id in access.buffers() {
                let (first, last) = &mut touched[id];
                (*first, *last) = ((*first).min(step), (*last).max(step));
            }
        }
        touched.iter().map(|&(first, last)| (first.min(last), last)).collect()
    }

    /// Arena offsets of these buffers; those of two tasks do not overlap.
    fn offsets(&self, buffers: &[BufferId], tasks: &[Range<usize>]) -> (Vec<usize>, usize) {
        let touched = self.touched();
        let life = |&id: &BufferId| {
            let (first, last) = touched[id];
            let bytes = self.buffers[id].bytes;
            LiveRange { bytes, first, last }
        };
        let live_ranges: Vec<LiveRange> = buffers.iter().map(life).collect();
        if tasks.len() < 2 {
            return place(&live_ranges);
        }
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
        for (i, life) in live_ranges.iter().enumerate() {
            members[tasks.partition_point(|task| task.end <= life.first)].push(i);
        }
        let (mut offsets, mut end) = (vec![0; live_ranges.len()], 0);
        for members in members {
            let own: Vec<LiveRange> = members.iter().map(|&i| live_ranges[i]).collect();
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
