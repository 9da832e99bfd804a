//! The engine's own kernels on the host. A plan becomes a list of closures over one arena: views are strides, buffers
//! have fixed places, results get memory of their own, and what nobody else holds is overwritten in place.

mod boxes;
mod build;
mod elementwise;
mod fused;
pub(crate) mod kernels;
pub mod limits;
mod memory;
mod pointwise;
mod primitives;
mod tape;
mod view;

use std::sync::Arc;
use std::time::Instant;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use smallvec::SmallVec;

use super::{Bindings, Executable, Footprint, Value};
use crate::error::{Context, Error, Result};
use crate::graph::{Graph, Meta};

pub(super) use self::fused::has_kernel;

/// Compiles an optimised graph.
pub(super) fn compile(graph: &Graph) -> Result<Box<dyn Executable>> {
    Ok(Box::new(build::build(graph)?))
}

/// One kernel call, with its operands bound.
type Step = Box<dyn Fn(&Memory) -> Result<()> + Send + Sync>;

/// The addresses of a run's buffers.
struct Memory {
    pointers: Pointers,
}

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
    /// For each step, the node of the graph that it computes for.
    owners: Vec<usize>,
    places: Vec<Place>,
    arena_bytes: usize,
    /// The first bytes of each are its element; eight are enough, and aligned, for any.
    constants: Vec<u64>,
    inputs: Vec<Meta>,
    /// Whether a step writes into the input's memory.
    written: Vec<bool>,
    outputs: Vec<(Meta, Outcome)>,
}

/// Few enough for the stack in most plans.
type Pointers = SmallVec<[*mut u8; 8]>;

impl Executable for Program {
    fn run(&self, inputs: Bindings) -> Result<Bindings> {
        self.run_with(inputs, |memory| self.steps.iter().try_for_each(|step| step(memory)))
    }

    fn run_timed(&self, inputs: Bindings, seconds: &mut [Option<f64>]) -> Result<Bindings> {
        self.run_with(inputs, |memory| {
            for (step, &owner) in self.steps.iter().zip(&self.owners) {
                let start = Instant::now();
                step(memory)?;
                *seconds[owner].get_or_insert(0.0) += start.elapsed().as_secs_f64();
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
    /// Binds the inputs, has `run` take the steps (all of them, in order), and collects the results.
    fn run_with(&self, inputs: Bindings, run: impl FnOnce(&Memory) -> Result<()>) -> Result<Bindings> {
        let mut bound = self.bind(inputs)?;
        let mut results: SmallVec<[Option<CpuStorage>; 4]> = SmallVec::with_capacity(self.outputs.len());
        for (meta, outcome) in &self.outputs {
            results.push(match outcome {
                Outcome::Own => Some(room(meta.dtype, meta.shape.elem_count())?),
                Outcome::Over(_) => None,
            });
        }
        memory::with_arena(self.arena_bytes, |arena| {
            // Read locks on storages of Candle's, for as long as their addresses are used.
            let mut guards = SmallVec::<[_; 4]>::new();
            let mut inputs = Pointers::with_capacity(bound.len());
            for input in &mut bound {
                inputs.push(match input {
                    Bound::Owned(storage) => pointer_mut(storage),
                    Bound::Shared(storage) => pointer(storage),
                    Bound::Tensor(tensor) => {
                        let (storage, layout) = tensor.storage_and_layout();
                        let first = first_element(&storage, layout.start_offset() * tensor.dtype().size_in_bytes());
                        guards.push(storage);
                        first
                    }
                });
            }
            let outputs: Pointers = results
                .iter_mut()
                .map(|r| r.as_mut().map_or(std::ptr::null_mut(), pointer_mut))
                .collect();
            let memory = self.memory(arena, &inputs, &outputs);
            run(&memory)
        })?;
        let mut values = Bindings::new();
        for ((meta, outcome), own) in self.outputs.iter().zip(results) {
            let storage = match (outcome, own) {
                // SAFETY: the steps have written every element.
                (Outcome::Own, Some(storage)) => unsafe { filled(storage, meta.shape.elem_count()) },
                (Outcome::Over(input), _) => bound[*input].take()?,
                (Outcome::Own, None) => return Err(Error::Placeholder),
            };
            values.push(Value::Host(Arc::new(storage)));
        }
        Ok(values)
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
    Shared(Arc<CpuStorage>),
    /// Of this run alone; a step may write it.
    Owned(CpuStorage),
}

impl Bound {
    fn take(&mut self) -> Result<CpuStorage> {
        match std::mem::replace(self, Self::Owned(CpuStorage::U8(Vec::new()))) {
            Self::Owned(storage) => Ok(storage),
            Self::Tensor(_) | Self::Shared(_) => Err(Error::Placeholder),
        }
    }
}

impl Program {
    /// Makes every input readable at one address, and those that are written this run's own: the buffer itself where
    /// nobody else holds it, a copy otherwise.
    fn bind(&self, inputs: Bindings) -> Result<SmallVec<[Bound; 4]>> {
        if inputs.len() != self.inputs.len() {
            return Err(Error::Placeholder);
        }
        let zipped = inputs.into_iter().zip(&self.inputs).zip(&self.written);
        zipped
            .map(|((value, meta), &written)| match value {
                Value::Host(storage) if written => Ok(Bound::Owned(Arc::unwrap_or_clone(storage))),
                Value::Host(storage) => Ok(Bound::Shared(storage)),
                Value::Tensor(tensor) => bind_tensor(tensor, meta, written),
                Value::Gone => Err(Error::Placeholder),
            })
            .collect()
    }
}

fn bind_tensor(tensor: Tensor, meta: &Meta, written: bool) -> Result<Bound> {
    let tensor = if tensor.is_contiguous() {
        tensor
    } else {
        tensor.contiguous().context(|| "contiguous input".into())?
    };
    if !matches!(tensor.device(), Device::Cpu) || tensor.shape() != &meta.shape || tensor.dtype() != meta.dtype {
        return Err(Error::shape(
            "Input",
            format!("a plan for {meta} got a {:?} {:?}", tensor.dtype(), tensor.dims()),
        ));
    }
    if !written {
        return Ok(Bound::Tensor(tensor));
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (start, len) = (layout.start_offset(), meta.shape.elem_count());
    match &*storage {
        Storage::Cpu(storage) => copy_range(storage, start, len).map(Bound::Owned),
        _ => Err(Error::Placeholder),
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
            other => Err($crate::error::Error::shape(
                "plan",
                format!("dtype {other:?} on the host"),
            )),
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
            other => Err($crate::error::Error::shape(
                "plan",
                format!("dtype {other:?} is not a float"),
            )),
        }
    };
}
use {with_float, with_type};

/// Memory for a result of `len` elements: reserved, not written, the vector still empty.
fn room(dtype: DType, len: usize) -> Result<CpuStorage> {
    Ok(match dtype {
        DType::F32 => CpuStorage::F32(Vec::with_capacity(len)),
        DType::F64 => CpuStorage::F64(Vec::with_capacity(len)),
        DType::F16 => CpuStorage::F16(Vec::with_capacity(len)),
        DType::BF16 => CpuStorage::BF16(Vec::with_capacity(len)),
        DType::U8 => CpuStorage::U8(Vec::with_capacity(len)),
        DType::U32 => CpuStorage::U32(Vec::with_capacity(len)),
        DType::I64 => CpuStorage::I64(Vec::with_capacity(len)),
        other => return Err(Error::shape("plan", format!("dtype {other:?} on the host"))),
    })
}

/// A result from [`room`] whose elements are there.
///
/// # Safety
/// The room is for at least `len` elements, and each has been written.
unsafe fn filled(mut storage: CpuStorage, len: usize) -> CpuStorage {
    // SAFETY: the caller's promise.
    unsafe {
        match &mut storage {
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
    storage
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
        _ => return Err(Error::shape("plan", "unsupported storage on the host")),
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
