//! The CPU backend, with the engine's own kernels. A plan becomes a list of closures over one arena: views are strides,
//! buffers have fixed offsets, results have memory of their own, and donated inputs are overwritten in place.

mod arrange;
mod buffer;
mod build;
mod checked;
mod dynamic_slice;
mod elementwise;
mod fused;
pub(crate) mod kernels;
pub mod limits;
mod memory;
mod operand;
mod pointwise;
mod primitives;
mod products;
mod steps;
mod tape;
mod tasks;
mod thread_choice;
mod view;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use candle_core::{CpuStorage, Device, Storage, Tensor};
use smallvec::SmallVec;

use super::{Bindings, Executable, Footprint, Value};
use crate::error::{Context, Error, Result};
use crate::graph::{Graph, Meta};

pub(super) use self::buffer::OutputBuffer;
pub(super) use self::fused::has_kernel;
use self::operand::Declared;
use self::steps::{Check, Step};
use self::thread_choice::ThreadChoice;

/// Compiles an optimised graph.
pub(super) fn compile(graph: &Graph) -> Result<Box<dyn Executable>> {
    Ok(Box::new(build::build(graph, false)?))
}

/// Like [`compile`], but each step runs by itself in poisoned memory, see [`checked`].
pub(super) fn compile_checked(graph: &Graph) -> Result<Box<dyn Executable>> {
    Ok(Box::new(checked::Checked(build::build(graph, true)?)))
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

// SAFETY: the steps of one task write only memory that other tasks do not touch: `tasks` splits them by the operands
// that each step declared, and a step has no other addresses.
unsafe impl Sync for Memory {}

/// The memory of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Location {
    /// This offset of the arena.
    Arena(usize),
    /// This input's memory.
    Input(usize),
    /// This output's own memory.
    Output(usize),
    /// This constant.
    Constant(usize),
}

/// The memory of a result after the last step.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Memory of its own.
    Own,
    /// It has overwritten this input.
    Over(usize),
}

struct Program {
    /// Checks of the inputs that run before the first step.
    checks: Vec<Check>,
    steps: Vec<Step>,
    /// For each call of a step, the graph nodes that it computes.
    owners: Vec<SmallVec<[usize; 1]>>,
    /// What each step declared, kept if the program is to run checked.
    declared: Vec<Declared>,
    /// Size of each buffer in bytes.
    buffers: Vec<usize>,
    /// The steps of each task; tasks may run concurrently.
    tasks: Vec<Range<usize>>,
    places: Vec<Location>,
    arena_bytes: usize,
    /// The first bytes of each hold its element; eight aligned bytes are enough for any dtype.
    constants: Vec<u64>,
    inputs: Vec<Meta>,
    /// Whether a step writes to the input's memory.
    written: Vec<bool>,
    /// Of those, the inputs that may be overwritten in place if they are not shared: no step can fail after the first
    /// write.
    in_place: Vec<bool>,
    outputs: Vec<(Meta, Outcome)>,
    /// Whether a result has large memory of its own.
    has_large_results: bool,
    /// Present for programs that run long enough for the number of threads to matter.
    thread_choice: Option<ThreadChoice>,
}

/// Inline for most plans.
type Pointers = SmallVec<[*mut u8; 8]>;

/// The memory of each result that has its own.
type OutputBuffers = SmallVec<[Option<OutputBuffer>; 4]>;

impl Executable for Program {
    fn run(&self, inputs: &mut Bindings) -> Result<Bindings> {
        let run = |memory: &Memory| match self.tasks.len() {
            0 | 1 => self.steps.iter().try_for_each(|step| step.run(memory)),
            _ => self.run_tasks(memory),
        };
        self.run_with(inputs, |memory| match &self.thread_choice {
            Some(choice) => choice.run(|| run(memory)),
            None => run(memory),
        })
    }

    fn run_timed(&self, inputs: &mut Bindings, seconds: &mut [Option<f64>]) -> Result<Bindings> {
        self.run_with(inputs, |memory| {
            for (step, owners) in self.steps.iter().zip(&self.owners) {
                let start = Instant::now();
                step.run(memory)?;
                let elapsed = start.elapsed().as_secs_f64();
                for (&owner, share) in owners.iter().zip(step.work.shares()) {
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

/// Index of an input, and the copy that the run uses in its place.
type Copies = SmallVec<[(usize, Copied); 2]>;

enum Copied {
    /// Contiguous and read only.
    Tensor(Tensor),
    /// Writable.
    Buffer(OutputBuffer),
}

impl Program {
    /// Runs all steps, with the tasks spread over threads.
    fn run_tasks(&self, memory: &Memory) -> Result<()> {
        let failed = Mutex::new(None);
        kernels::pool::run(self.tasks.len(), &|task| {
            let steps = &self.steps[self.tasks[task].clone()];
            if let Err(error) = steps.iter().try_for_each(|step| step.run(memory)) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), Err)
    }

    /// Binds the inputs, runs the early checks, calls `run` to run the steps (all of them, in order), and collects the
    /// results. If a check fails, no input has been written.
    fn run_with(&self, inputs: &mut Bindings, run: impl FnOnce(&Memory) -> Result<()>) -> Result<Bindings> {
        let mut copies = self.copies(inputs)?;
        let mut results = self.output_buffers()?;
        memory::with_arena(self.arena_bytes, |arena| {
            // Read locks on Candle's storages, held while their addresses are used.
            let mut guards = SmallVec::<[_; 4]>::new();
            let bound = self.addresses(inputs, &mut copies, |tensor| {
                let (storage, layout) = tensor.storage_and_layout();
                let first = first_element(&storage, layout.start_offset() * tensor.dtype().size_in_bytes());
                guards.push(storage);
                first
            })?;
            let mut outputs = Pointers::with_capacity(results.len());
            outputs.extend(results.iter_mut().map(|r| {
                r.as_mut()
                    .map_or(std::ptr::null_mut(), |buffer| pointer_mut(buffer.storage_mut()))
            }));
            let memory = self.memory(arena, &bound, &outputs);
            self.checks.iter().try_for_each(|check| check(&memory))?;
            run(&memory)
        })?;
        let mut values = Bindings::with_capacity(results.len());
        for ((meta, outcome), own) in self.outputs.iter().zip(results) {
            values.push(match (outcome, own) {
                // SAFETY: the steps have written every element.
                (Outcome::Own, Some(buffer)) => unsafe { filled(buffer, meta.shape.elem_count()) }.into(),
                (Outcome::Over(input), _) => overwritten(*input, inputs, &mut copies)?,
                (Outcome::Own, None) => return Err(Error::internal("a result has no memory of its own")),
            });
        }
        Ok(values)
    }

    fn output_buffers(&self) -> Result<OutputBuffers> {
        if self.has_large_results {
            buffer::begin_run();
        }
        let mut output_buffers = OutputBuffers::with_capacity(self.outputs.len());
        for (meta, outcome) in &self.outputs {
            output_buffers.push(match outcome {
                Outcome::Own => Some(OutputBuffer::with_capacity(meta.dtype, meta.shape.elem_count())?),
                Outcome::Over(_) => None,
            });
        }
        Ok(output_buffers)
    }

    /// The address of every buffer in this run.
    fn memory(&self, arena: *mut u8, inputs: &[*mut u8], outputs: &[*mut u8]) -> Memory {
        let address = |place: &Location| match *place {
            Location::Arena(offset) => arena.wrapping_add(offset),
            Location::Input(i) => inputs[i],
            Location::Output(i) => outputs[i],
            Location::Constant(i) => std::ptr::from_ref(&self.constants[i]).cast_mut().cast(),
        };
        Memory {
            pointers: self.places.iter().map(address).collect(),
        }
    }

    /// The inputs to copy before a run: those that are not contiguous, and those that are overwritten while they are
    /// shared or before the last step that may fail.
    fn copies(&self, inputs: &Bindings) -> Result<Copies> {
        if inputs.len() != self.inputs.len() {
            let (takes, found) = (self.inputs.len(), inputs.len());
            return Err(Error::internal(format!("a plan of {takes} inputs got {found}")));
        }
        let mut copies = Copies::new();
        for (input, (value, meta)) in inputs.iter().zip(&self.inputs).enumerate() {
            let copy = match value {
                Value::Host(buffer) if self.written[input] => {
                    // With a count of one, this run holds the only handle, so no other can be cloned meanwhile.
                    let own = self.in_place[input] && Arc::strong_count(buffer) == 1;
                    (!own).then(|| Copied::Buffer(OutputBuffer::clone(buffer)))
                }
                Value::Host(_) => None,
                Value::Tensor(tensor) => copy_of_tensor(tensor, meta, self.written[input])?,
            };
            copies.extend(copy.map(|copy| (input, copy)));
        }
        Ok(copies)
    }

    /// The address of each input or its copy; `lock` read-locks a contiguous tensor and returns its first element.
    fn addresses<'a>(
        &self,
        inputs: &'a mut Bindings,
        copies: &'a mut Copies,
        mut lock: impl FnMut(&'a Tensor) -> *mut u8,
    ) -> Result<Pointers> {
        let mut pointers = Pointers::with_capacity(inputs.len());
        let mut copies = copies.iter_mut().peekable();
        for (input, value) in inputs.iter_mut().enumerate() {
            let copy = copies.next_if(|(copied, _)| *copied == input);
            pointers.push(match (copy.map(|(_, copy)| copy), value) {
                (Some(Copied::Buffer(buffer)), _) => pointer_mut(buffer.storage_mut()),
                (Some(Copied::Tensor(tensor)), _) | (None, Value::Tensor(tensor)) => lock(tensor),
                (None, Value::Host(buffer)) if self.written[input] => match Arc::get_mut(buffer) {
                    Some(buffer) => pointer_mut(buffer.storage_mut()),
                    None => return Err(Error::internal("an input that a plan overwrites is shared")),
                },
                (None, Value::Host(buffer)) => pointer(buffer.storage()),
            });
        }
        Ok(pointers)
    }
}

/// The result that has overwritten an input, or its copy.
fn overwritten(input: usize, inputs: &Bindings, copies: &mut Copies) -> Result<Value> {
    match copies.iter_mut().find(|(copied, _)| *copied == input) {
        Some((_, Copied::Buffer(buffer))) => Ok(buffer.take().into()),
        // The caller drops the input, which leaves the result as the only handle.
        None => Ok(inputs[input].clone()),
        Some((_, Copied::Tensor(_))) => Err(Error::internal("a result has overwritten a tensor of Candle's")),
    }
}

impl From<OutputBuffer> for Value {
    fn from(buffer: OutputBuffer) -> Self {
        Self::Host(Arc::new(buffer))
    }
}

/// The copy of a tensor that a run needs, if any.
fn copy_of_tensor(tensor: &Tensor, meta: &Meta, written: bool) -> Result<Option<Copied>> {
    if !matches!(tensor.device(), Device::Cpu) || tensor.shape() != &meta.shape || tensor.dtype() != meta.dtype {
        let (dtype, dims) = (tensor.dtype(), tensor.dims());
        return Err(Error::internal(format!("a plan for {meta} got {dtype:?}{dims:?}")));
    }
    if tensor.is_contiguous() && !written {
        return Ok(None);
    }
    let tensor = tensor.contiguous().context(|| "contiguous input".into())?;
    if !written {
        return Ok(Some(Copied::Tensor(tensor)));
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (start, len) = (layout.start_offset(), meta.shape.elem_count());
    match &*storage {
        Storage::Cpu(storage) => {
            let copy = copy_range(storage, start, len)?;
            Ok(Some(Copied::Buffer(OutputBuffer::new(copy))))
        }
        _ => Err(Error::internal("an input is not in the memory of the host")),
    }
}

/// Evaluates an expression with `$t` bound to the Rust type of a dtype, for all dtypes of the engine.
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

/// Like `with_type`, for floats only.
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

/// Sets the length of a result from [`OutputBuffer::with_capacity`] after it was written.
///
/// # Safety
/// The buffer has capacity for at least `len` elements, and each has been written.
unsafe fn filled(mut buffer: OutputBuffer, len: usize) -> OutputBuffer {
    // SAFETY: guaranteed by the caller.
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

/// The address at byte offset `bytes` of a storage.
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

/// Address of the first element, for reading; it is written to only through an owned storage.
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
