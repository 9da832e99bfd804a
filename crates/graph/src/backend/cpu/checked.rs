//! Runs a program step by step in poisoned memory, to verify what each step declared. Every buffer has a block of its
//! own between guards. A step runs twice with different poison: in the guards, in elements that it did not declare to
//! read, and in all undeclared buffers. Both runs must give the same results, and all other memory must stay unchanged.
//! For tests.

use smallvec::SmallVec;

use super::operand::Declared;
use super::view::{BufferId, View};
use super::{Location, Memory, Outcome, OutputBuffer, Pointers, Program, filled, first_element, pointer_mut};
use crate::backend::{Bindings, Executable, Footprint, Value};
use crate::error::{Error, Result};

/// Guard bytes before and after a buffer, more than a kernel could plausibly overrun in one step.
const GUARD: usize = 256;
/// Poison bytes for memory that a step must not depend on: NaN as a float, then a small number.
const POISON: [u8; 2] = [0xff, 0x11];

/// A program that checks its steps as they run.
pub(super) struct Checked(pub Program);

/// A buffer between guards, aligned like an arena.
#[derive(Clone)]
struct GuardedBuffer {
    lines: Vec<Line>,
    bytes: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl GuardedBuffer {
    fn new(bytes: usize) -> Self {
        let lines = vec![Line([0; 64]); (bytes + 2 * GUARD).div_ceil(64)];
        Self { lines, bytes }
    }

    fn all(&mut self) -> &mut [u8] {
        self.lines.as_flattened_bytes()
    }

    fn contents(&mut self) -> &mut [u8] {
        let bytes = self.bytes;
        &mut self.all()[GUARD..GUARD + bytes]
    }

    fn start(&mut self) -> *mut u8 {
        self.all()[GUARD..].as_mut_ptr()
    }
}

/// Cache lines as bytes.
trait FlattenedBytes {
    fn as_flattened_bytes(&mut self) -> &mut [u8];
}

impl FlattenedBytes for Vec<Line> {
    fn as_flattened_bytes(&mut self) -> &mut [u8] {
        // SAFETY: a line is 64 bytes without padding.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), 64 * self.len()) }
    }
}

/// A mask of the bytes of a buffer that the views cover.
fn mask<'a>(bytes: usize, id: BufferId, views: impl IntoIterator<Item = &'a View>) -> Vec<bool> {
    let mut mask = vec![false; bytes];
    for view in views.into_iter().filter(|view| view.buffer == id) {
        let size = view.dtype.size_in_bytes();
        for element in 0..view.len() {
            let (mut rest, mut at) = (element, view.offset);
            for (dim, stride) in view.dims.iter().zip(&view.strides).rev() {
                at += rest % dim * stride;
                rest /= dim;
            }
            mask[at * size..(at + 1) * size].fill(true);
        }
    }
    mask
}

/// A buffer that a step touches, and which of its bytes the step reads and writes.
struct Touched {
    id: BufferId,
    reads: Vec<bool>,
    writes: Vec<bool>,
}

impl Checked {
    /// A block for each buffer; inputs and constants are filled in.
    fn blocks(&self, inputs: &Bindings) -> Result<Vec<GuardedBuffer>> {
        let program = &self.0;
        let mut given = inputs.clone();
        // A second handle to each input, so that nothing is overwritten.
        let mut copies = program.copies(&given)?;
        let mut guards = SmallVec::<[_; 4]>::new();
        let addresses = program.addresses(&mut given, &mut copies, |tensor| {
            let (storage, layout) = tensor.storage_and_layout();
            let first = first_element(&storage, layout.start_offset() * tensor.dtype().size_in_bytes());
            guards.push(storage);
            first
        })?;
        let places = program.places.iter().zip(&program.buffers);
        Ok(places
            .map(|(place, &bytes)| {
                let mut block = GuardedBuffer::new(bytes);
                match *place {
                    // SAFETY: the input has at least `bytes` bytes, and its read lock is held.
                    Location::Input(i) if bytes > 0 => unsafe {
                        block.start().copy_from_nonoverlapping(addresses[i], bytes);
                    },
                    Location::Constant(i) => block.contents().copy_from_slice(&program.constants[i].to_ne_bytes()),
                    Location::Input(_) | Location::Arena(_) | Location::Output(_) => {}
                }
                block
            })
            .collect())
    }

    /// Runs step `index` with both poisons.
    fn step(&self, index: usize, blocks: &mut [GuardedBuffer]) -> Result<()> {
        let declared = &self.0.declared[index];
        let touched = touched(declared, &self.0.buffers);
        let before: Vec<GuardedBuffer> = touched.iter().map(|t| blocks[t.id].clone()).collect();
        let mut results: Vec<Vec<Vec<u8>>> = Vec::new();
        for poison in POISON {
            results.push(self.run_on(poison, index, &touched, &before, blocks)?);
        }
        if results[0] != results[1] {
            return Err(self.fault(
                index,
                "depends on memory that it did not declare to read, or leaves some unwritten",
            ));
        }
        for ((touched, before), written) in touched.iter().zip(before).zip(results.swap_remove(0)) {
            let block = &mut blocks[touched.id];
            *block = before;
            let places = block.contents().iter_mut().zip(&touched.writes);
            let places = places.filter(|(_, writes)| **writes).map(|(byte, _)| byte);
            places.zip(written).for_each(|(byte, new)| *byte = new);
        }
        Ok(())
    }

    /// Runs a step once; returns what it wrote to each buffer.
    fn run_on(
        &self,
        poison: u8,
        index: usize,
        touched: &[Touched],
        before: &[GuardedBuffer],
        blocks: &mut [GuardedBuffer],
    ) -> Result<Vec<Vec<u8>>> {
        let mut elsewhere = GuardedBuffer::new(self.0.buffers.iter().copied().max().unwrap_or(0));
        elsewhere.all().fill(poison);
        let nowhere = elsewhere.start();
        let mut pointers: Pointers = self.0.buffers.iter().map(|_| nowhere).collect();
        let mut given: Vec<GuardedBuffer> = Vec::new();
        for (touched, before) in touched.iter().zip(before) {
            let (mut block, mut kept) = (before.clone(), before.clone());
            block.all().fill(poison);
            let bytes = block.contents().iter_mut().zip(kept.contents()).zip(&touched.reads);
            bytes
                .filter(|(_, reads)| **reads)
                .for_each(|((byte, kept), _)| *byte = *kept);
            given.push(block.clone());
            blocks[touched.id] = block;
            pointers[touched.id] = blocks[touched.id].start();
        }
        let run = self.0.steps[index].run(&Memory { pointers });
        let mut results = Vec::new();
        for (touched, mut given) in touched.iter().zip(given) {
            let block = &mut blocks[touched.id];
            let written = block.contents().iter().zip(&touched.writes);
            results.push(written.filter(|(_, writes)| **writes).map(|(byte, _)| *byte).collect());
            // Masks out the declared writes: everything else must be unchanged.
            let made = block.contents().iter_mut().zip(given.contents()).zip(&touched.writes);
            made.filter(|(_, writes)| **writes)
                .for_each(|((byte, given), _)| *byte = *given);
            if block.all() != given.all() {
                return Err(self.fault(index, "writes outside the operands that it declared to write"));
            }
        }
        if elsewhere.all().iter().any(|byte| *byte != poison) {
            return Err(self.fault(index, "writes a buffer that it did not declare"));
        }
        run.map(|()| results)
    }

    fn fault(&self, index: usize, what: &str) -> Error {
        let owners = &self.0.owners[index];
        Error::internal(format!(
            "step {index}, which computes node {owners:?} of the plan, {what}"
        ))
    }

    /// The value of a result after the last step.
    fn result(&self, index: usize, blocks: &mut [GuardedBuffer]) -> Result<Value> {
        let (meta, outcome) = &self.0.outputs[index];
        let place = match outcome {
            Outcome::Own => Location::Output(index),
            Outcome::Over(input) => Location::Input(*input),
        };
        let id = self.0.places.iter().position(|other| *other == place);
        let id = id.ok_or_else(|| Error::internal("a result has no buffer"))?;
        let len = meta.shape.elem_count();
        let mut buffer = OutputBuffer::with_capacity(meta.dtype, len)?;
        let to = pointer_mut(buffer.storage_mut());
        // SAFETY: the buffer has capacity for the block's bytes, and all of them are written.
        unsafe {
            to.copy_from_nonoverlapping(blocks[id].start(), meta.bytes());
            Ok(filled(buffer, len).into())
        }
    }
}

/// The buffers that a step declared, without duplicates.
fn touched(declared: &Declared, bytes: &[usize]) -> Vec<Touched> {
    let mut ids: SmallVec<[BufferId; 8]> = declared.access().buffers().collect();
    ids.sort_unstable();
    ids.dedup();
    let touched = ids.into_iter().map(|id| Touched {
        id,
        reads: mask(bytes[id], id, &declared.reads),
        writes: mask(bytes[id], id, &declared.writes),
    });
    touched.collect()
}

impl Executable for Checked {
    fn run(&self, inputs: &mut Bindings) -> Result<Bindings> {
        let mut blocks = self.blocks(inputs)?;
        let pointers = blocks.iter_mut().map(GuardedBuffer::start).collect();
        let memory = Memory { pointers };
        self.0.checks.iter().try_for_each(|check| check(&memory))?;
        for index in 0..self.0.steps.len() {
            self.step(index, &mut blocks)?;
        }
        (0..self.0.outputs.len())
            .map(|index| self.result(index, &mut blocks))
            .collect()
    }

    fn run_timed(&self, inputs: &mut Bindings, seconds: &mut [Option<f64>]) -> Result<Bindings> {
        self.0.run_timed(inputs, seconds)
    }

    fn footprint(&self) -> Footprint {
        self.0.footprint()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use smallvec::smallvec;

    use super::super::build::build;
    use super::super::steps::{Call, Work};
    use super::*;
    use crate::LazyTensor;
    use crate::graph::numbered;

    /// Negates four numbers with a kernel that gets the addresses of input and output.
    fn run(kernel: impl Fn(*mut u8, *mut u8) + Send + Sync + 'static) -> Result<Vec<f32>> {
        let x = LazyTensor::hollow(&[4], DType::F32);
        let graph = numbered::flatten(&[x.neg()?])?.graph;
        let mut program = build(&graph, true)?;
        let [input, output] = [&program.declared[0].reads[0], &program.declared[0].writes[0]].map(|view| view.buffer);
        let call: Call = Box::new(move |memory| kernel(memory.pointers[input], memory.pointers[output]));
        program.steps[0].work = Work::Whole(call);
        let numbers = Tensor::new(&[1f32, 2.0, 3.0, 4.0], &Device::Cpu).unwrap();
        let results = Checked(program).run(&mut smallvec![Value::Tensor(numbers)])?;
        let tensor = results[0].clone().into_tensor(&graph.nodes[1].outputs[0]);
        Ok(tensor.to_vec1().unwrap())
    }

    /// The correct kernel: `output[i] = -input[i]`.
    #[allow(clippy::cast_ptr_alignment)] // blocks are aligned
    fn negate(input: *mut u8, output: *mut u8, range: std::ops::Range<usize>) {
        for i in range {
            // SAFETY: the blocks, guards included, are larger than the offsets that the tests use.
            unsafe { *output.cast::<f32>().add(i) = -*input.cast::<f32>().add(i) };
        }
    }

    fn fault(kernel: impl Fn(*mut u8, *mut u8) + Send + Sync + 'static) -> String {
        match run(kernel) {
            Err(Error::Internal { message }) => message,
            other => panic!("not found out: {other:?}"),
        }
    }

    #[test]
    fn accesses_outside_declared_operands_are_detected() {
        let found = run(|input, output| negate(input, output, 0..4)).unwrap();
        assert_eq!(found, [-1.0, -2.0, -3.0, -4.0]);
        let short = fault(|input, output| negate(input, output, 0..3));
        assert!(short.contains("leaves some unwritten"), "{short}");
        let long = fault(|input, output| negate(input, output, 0..5));
        assert!(long.contains("writes outside"), "{long}");
        let own_input = fault(|input, output| {
            negate(input, output, 0..4);
            negate(input, input, 2..3);
        });
        assert!(own_input.contains("writes outside"), "{own_input}");
        let reads_on = fault(|input, output| {
            negate(input, output, 0..4);
            negate(input.wrapping_add(16), output, 0..1);
        });
        assert!(reads_on.contains("depends on memory"), "{reads_on}");
    }
}
