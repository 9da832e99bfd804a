//! The engine's own kernels on the host. A plan becomes a list of closures over one arena: views are strides, buffers
//! have fixed places, results get memory of their own, and what nobody else holds is overwritten in place.

mod boxes;
mod buffer;
mod build;
mod elementwise;
mod fused;
pub(crate) mod kernels;
pub mod limits;
mod memory;
mod pointwise;
mod primitives;
mod products;
mod steps;
mod tape;
mod tasks;
mod view;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use candle_core::{CpuStorage, Device, Storage, Tensor};
use smallvec::SmallVec;

use super::{Bindings, Executable, Footprint, Value};
use crate::error::{Context, Error, Result};
use crate::graph::{Graph, Meta};

pub(super) use self::buffer::Buffer;
pub(super) use self::fused::has_kernel;
use self::steps::Step;

/// Compiles an optimised graph.
pub(super) fn compile(graph: &Graph) -> Result<Box<dyn Executable>> {
    Ok(Box::new(build::build(graph)?))
}

/// See [`super::release_memory`].
pub(super) fn release_memory() {
    memory::release();
    buffer::release();
}

/// The addresses of a run's buffers.
struct Memory {
    pointers: Pointers,
}

// SAFETY: the steps of one task touch what other tasks only read, or do not touch; `tasks` cuts them so.
unsafe impl Sync for Memory {}

/// Where a buffer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At this offset of the arena.
    Arena(usize),
    /// In this input's memory.
    Input(usize),
    /// In this output's own memory.
    Output(usize),
    /// In this constant.
    Constant(usize),
}

/// Where a result is found when the steps are done.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// It has memory of its own.
    Own,
    /// It was written over this input.
    Over(usize),
}

struct Program {
    steps: Vec<Step>,
    /// For each call of a step, the node of the graph that it computes for.
    owners: Vec<SmallVec<[usize; 1]>>,
    /// Steps of each task: tasks may run side by side.
    tasks: Vec<Range<usize>>,
    places: Vec<Place>,
    arena_bytes: usize,
    /// The first bytes of each are its element; eight are enough, and aligned, for any.
    constants: Vec<u64>,
    inputs: Vec<Meta>,
    /// Whether a step writes into the input's memory.
    written: Vec<bool>,
    outputs: Vec<(Meta, Outcome)>,
    /// Whether a result has large memory of its own.
    has_large_results: bool,
}

/// Few enough for the stack in most plans.
type Pointers = SmallVec<[*mut u8; 8]>;

/// The memory of each result that has its own.
type Rooms = SmallVec<[Option<Buffer>; 4]>;

impl Executable for Program {
    fn run(&self, inputs: Bindings) -> Result<Bindings> {
        self.run_with(inputs, |memory| match self.tasks.len() {
            0 | 1 => self.steps.iter().try_for_each(|step| step.run(memory)),
            _ => self.run_tasks(memory),
        })
    }

    fn run_timed(&self, inputs: Bindings, seconds: &mut [Option<f64>]) -> Result<Bindings> {
        self.run_with(inputs, |memory| {
            for (step, owners) in self.steps.iter().zip(&self.owners) {
                let start = Instant::now();
                step.run(memory)?;
                let elapsed = start.elapsed().as_secs_f64();
                for (&owner, share) in owners.iter().zip(step.shares()) {
                    *seconds[owner].get_or_insert(0.0) += elapsed * share;
                }
            }
            Ok(())
        })
    }

    fn footprint(&self) -> Footprint {
        let own = self
            .outputs
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Own));
        Footprint {
            arena: self.arena_bytes,
            outputs: own.map(|(meta, _)| meta.bytes()).sum(),
        }
    }
}

impl Program {
    /// Takes the steps, the tasks spread over threads.
    fn run_tasks(&self, memory: &Memory) -> Result<()> {
        let failed = Mutex::new(None);
        kernels::pool::run(self.tasks.len(), true, &|task| {
            let steps = &self.steps[self.tasks[task].clone()];
            if let Err(error) = steps.iter().try_for_each(|step| step.run(memory)) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), Err)
    }

    /// Binds the inputs, has `run` take the steps (all of them, in order), and collects the results.
    fn run_with(&self, inputs: Bindings, run: impl FnOnce(&Memory) -> Result<()>) -> Result<Bindings> {
        let mut bound = self.bind(inputs)?;
        let mut results = self.rooms()?;
        memory::with_arena(self.arena_bytes, |arena| {
            // Read locks on storages of Candle's, for as long as their addresses are used.
            let mut guards = SmallVec::<[_; 4]>::with_capacity(bound.len());
            let mut inputs = Pointers::with_capacity(bound.len());
            for input in &mut bound {
                inputs.push(match input {
                    Bound::Owned(buffer) => pointer_mut(buffer.storage_mut()),
                    Bound::Shared(buffer) => pointer(buffer.storage()),
                    Bound::Tensor(tensor) => {
                        let (storage, layout) = tensor.storage_and_layout();
                        let first = first_element(&storage, layout.start_offset() * tensor.dtype().size_in_bytes());
                        guards.push(storage);
                        first
                    }
                });
            }
            let mut outputs = Pointers::with_capacity(results.len());
            outputs.extend(results.iter_mut().map(|r| {
                r.as_mut()
                    .map_or(std::ptr::null_mut(), |buffer| pointer_mut(buffer.storage_mut()))
            }));
            let memory = self.memory(arena, &inputs, &outputs);
            run(&memory)
        })?;
        let mut values = Bindings::with_capacity(results.len());
        for ((meta, outcome), own) in self.outputs.iter().zip(results) {
            let buffer = match (outcome, own) {
                // SAFETY: the steps have written every element.
                (Outcome::Own, Some(buffer)) => unsafe { filled(buffer, meta.shape.elem_count()) },
                (Outcome::Over(input), _) => bound[*input].take()?,
                (Outcome::Own, None) => return Err(Error::internal("a result has no memory of its own")),
            };
            values.push(Value::Host(Arc::new(buffer)));
        }
        Ok(values)
    }

    fn rooms(&self) -> Result<Rooms> {
        if self.has_large_results {
            buffer::begin_run();
        }
        let mut rooms = Rooms::with_capacity(self.outputs.len());
        for (meta, outcome) in &self.outputs {
            rooms.push(match outcome {
                Outcome::Own => Some(Buffer::with_room(meta.dtype, meta.shape.elem_count())?),
                Outcome::Over(_) => None,
            });
        }
        Ok(rooms)
    }

    /// The address of every buffer in this run.
    fn memory(&self, arena: *mut u8, inputs: &[*mut u8], outputs: &[*mut u8]) -> Memory {
        let address = |place: &Place| match *place {
            Place::Arena(offset) => arena.wrapping_add(offset),
            Place::Input(i) => inputs[i],
            Place::Output(i) => outputs[i],
            Place::Constant(i) => std::ptr::from_ref(&self.constants[i]).cast_mut().cast(),
        };
        Memory {
            pointers: self.places.iter().map(address).collect(),
        }
    }
}

/// An input as a run holds it.
enum Bound {
    /// Candle's, contiguous; locked for reading while the run lasts.
    Tensor(Tensor),
    /// The engine's, read only.
    Shared(Arc<Buffer>),
    /// Of this run alone; a step may write it.
    Owned(Buffer),
}

impl Bound {
    fn take(&mut self) -> Result<Buffer> {
        match self {
            Self::Owned(buffer) => Ok(buffer.take()),
            Self::Tensor(_) | Self::Shared(_) => Err(Error::internal("a result was written over a shared input")),
        }
    }
}

impl Program {
    /// Makes every input readable at one address, and those that are written this run's own: the buffer itself where
    /// nobody else holds it, a copy otherwise.
    fn bind(&self, inputs: Bindings) -> Result<SmallVec<[Bound; 4]>> {
        if inputs.len() != self.inputs.len() {
            return Err(Error::internal(format!(
                "a plan of {} inputs got {}",
                self.inputs.len(),
                inputs.len()
            )));
        }
        let mut bound = SmallVec::with_capacity(inputs.len());
        for ((value, meta), &written) in inputs.into_iter().zip(&self.inputs).zip(&self.written) {
            bound.push(match value {
                Value::Host(buffer) if written => Bound::Owned(Arc::unwrap_or_clone(buffer)),
                Value::Host(buffer) => Bound::Shared(buffer),
                Value::Tensor(tensor) => bind_tensor(tensor, meta, written)?,
                Value::Gone => return Err(Error::internal("an input was taken away")),
            });
        }
        Ok(bound)
    }
}

fn bind_tensor(tensor: Tensor, meta: &Meta, written: bool) -> Result<Bound> {
    let tensor = if tensor.is_contiguous() {
        tensor
    } else {
        tensor.contiguous().context(|| "contiguous input".into())?
    };
    if !matches!(tensor.device(), Device::Cpu) || tensor.shape() != &meta.shape || tensor.dtype() != meta.dtype {
        return Err(Error::internal(format!(
            "a plan for {meta} got {:?}{:?}",
            tensor.dtype(),
            tensor.dims()
        )));
    }
    if !written {
        return Ok(Bound::Tensor(tensor));
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (start, len) = (layout.start_offset(), meta.shape.elem_count());
    match &*storage {
        Storage::Cpu(storage) => copy_range(storage, start, len).map(|copy| Bound::Owned(Buffer::new(copy))),
        _ => Err(Error::internal("an input is not in the memory of the host")),
    }
}

/// Runs an expression with `$t` bound to the Rust type of a dtype, any that the engine computes with.
macro_rules! with_type {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            candle_core::DType::F16 => {
                type $t = half::f16;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            candle_core::DType::U8 => {
                type $t = u8;
                $body
            }
            candle_core::DType::U32 => {
                type $t = u32;
                $body
            }
            candle_core::DType::I64 => {
                type $t = i64;
                $body
            }
            found => Err($crate::error::Error::UnsupportedDType {
                operation: "plan",
                found,
            }),
        }
    };
}

/// As `with_type`, floats only.
macro_rules! with_float {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            candle_core::DType::F16 => {
                type $t = half::f16;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            other => Err($crate::error::Error::internal(format!(
                "a kernel of floats got {other:?}"
            ))),
        }
    };
}
use {with_float, with_type};

/// A result from [`Buffer::with_room`] whose elements are there.
///
/// # Safety
/// The room is for at least `len` elements, and each has been written.
unsafe fn filled(mut buffer: Buffer, len: usize) -> Buffer {
    // SAFETY: the caller's promise.
    unsafe {
        match buffer.storage_mut() {
            CpuStorage::F32(data) => data.set_len(len),
            CpuStorage::F64(data) => data.set_len(len),
            CpuStorage::F16(data) => data.set_len(len),
            CpuStorage::BF16(data) => data.set_len(len),
            CpuStorage::U8(data) => data.set_len(len),
            CpuStorage::U32(data) => data.set_len(len),
            CpuStorage::I64(data) => data.set_len(len),
            _ => {}
        }
    }
    buffer
}

/// The address `bytes` into a storage.
fn first_element(storage: &Storage, bytes: usize) -> *mut u8 {
    match storage {
        Storage::Cpu(storage) => pointer(storage).wrapping_add(bytes),
        _ => std::ptr::null_mut(),
    }
}

fn copy_range(storage: &CpuStorage, start: usize, len: usize) -> Result<CpuStorage> {
    let range = start..start + len;
    Ok(match storage {
        CpuStorage::F32(data) => CpuStorage::F32(data[range].to_vec()),
        CpuStorage::F64(data) => CpuStorage::F64(data[range].to_vec()),
        CpuStorage::F16(data) => CpuStorage::F16(data[range].to_vec()),
        CpuStorage::BF16(data) => CpuStorage::BF16(data[range].to_vec()),
        CpuStorage::U8(data) => CpuStorage::U8(data[range].to_vec()),
        CpuStorage::U32(data) => CpuStorage::U32(data[range].to_vec()),
        CpuStorage::I64(data) => CpuStorage::I64(data[range].to_vec()),
        _ => return Err(Error::internal("an input has a storage that is not supported")),
    })
}

/// Address of the first element, to be read; written only through an owned storage.
fn pointer(storage: &CpuStorage) -> *mut u8 {
    match storage {
        CpuStorage::F32(data) => data.as_ptr().cast_mut().cast(),
        CpuStorage::F64(data) => data.as_ptr().cast_mut().cast(),
        CpuStorage::F16(data) => data.as_ptr().cast_mut().cast(),
        CpuStorage::BF16(data) => data.as_ptr().cast_mut().cast(),
        CpuStorage::U8(data) => data.as_ptr().cast_mut(),
        CpuStorage::U32(data) => data.as_ptr().cast_mut().cast(),
        CpuStorage::I64(data) => data.as_ptr().cast_mut().cast(),
        _ => std::ptr::null_mut(),
    }
}

fn pointer_mut(storage: &mut CpuStorage) -> *mut u8 {
    match storage {
        CpuStorage::F32(data) => data.as_mut_ptr().cast(),
        CpuStorage::F64(data) => data.as_mut_ptr().cast(),
        CpuStorage::F16(data) => data.as_mut_ptr().cast(),
        CpuStorage::BF16(data) => data.as_mut_ptr().cast(),
        CpuStorage::U8(data) => data.as_mut_ptr(),
        CpuStorage::U32(data) => data.as_mut_ptr().cast(),
        CpuStorage::I64(data) => data.as_mut_ptr().cast(),
        _ => std::ptr::null_mut(),
    }
}
