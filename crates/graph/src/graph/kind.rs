//! The kind of a recorded node: the operation with its parameters, the shapes and dtypes of its outputs, the device.
//! Each thread interns the kinds that it records. Recording one again infers nothing and allocates no shapes, and two
//! equal recordings share their kinds, so that comparing them in full mostly compares addresses.

use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use candle_core::{DType, Device, Shape};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHasher};
use smallvec::{SmallVec, smallvec};

use super::infer::{elements, infer};
use super::ir::hash_dims;
use super::node::{Meta, Outputs};
use super::operation::Operation;
use crate::error::{Error, Result};
use crate::lazy_tensor::LazyTensor;

pub(crate) struct Kind {
    pub operation: Operation,
    pub outputs: Outputs,
    pub device: Device,
    /// Number of inputs.
    pub arity: usize,
    /// Hash of the above.
    pub digest: u64,
    /// A hash of shape, dtype and device for each output.
    pub output_digests: SmallVec<[u64; 1]>,
}

/// Equal in everything that a plan depends on.
impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
            && self.operation == other.operation
            && self.outputs == other.outputs
            && self.arity == other.arity
            && self.device.same_device(&other.device)
    }
}

/// Maximum number of interned kinds per thread, several times that of a program. Beyond it, all are dropped.
const CAPACITY: usize = 4096;

/// A kind, and the inputs from which it was inferred.
struct Known {
    kind: Arc<Kind>,
    inputs: SmallVec<[(Arc<Kind>, u32); 3]>,
}

thread_local! {
    /// Interned kinds by a hash of operation and inputs. Of two with the same hash the later one is kept.
    static KNOWN: RefCell<FxHashMap<u64, Known>> = const { RefCell::new(FxHashMap::with_hasher(FxBuildHasher)) };
}

/// The kind under `key`, if it satisfies `fits`.
#[inline]
fn remembered(key: u64, fits: impl FnOnce(&Known) -> bool) -> Option<Arc<Kind>> {
    KNOWN.with_borrow(|known| {
        let found = known.get(&key).filter(|found| fits(found))?;
        Some(Arc::clone(&found.kind))
    })
}

fn remember(key: u64, made: Known) -> Arc<Kind> {
    let kind = Arc::clone(&made.kind);
    KNOWN.with_borrow_mut(|known| {
        if known.len() >= CAPACITY {
            known.clear();
        }
        known.insert(key, made);
    });
    kind
}

impl Kind {
    /// The kind of `operation` on these inputs. `device` is the first input's, or the source's own.
    ///
    /// When number, dtypes, shapes or devices of the inputs do not fit.
    /// When number, dtypes, shapes or devices of the inputs do not fit.
    pub fn of(operation: Operation, inputs: &[&LazyTensor], device: &Device) -> Result<Arc<Self>> {
        let mut state = FxHasher::default();
        operation.hash(&mut state);
        if inputs.is_empty() {
            device.location().hash(&mut state);
        }
        for input in inputs {
            state.write_u64(input.kind().output_digests[input.output() as usize]);
        }
        let key = state.finish();
        let fits = |known: &Known| {
            known.inputs.len() == inputs.len()
                && known.inputs.iter().zip(inputs).all(|(other, input)| is_alike(other, input))
                && known.kind.operation == operation
                // Equal inputs are on one device.
                && (!inputs.is_empty() || known.kind.device.same_device(device))
        };
        match remembered(key, fits) {
            Some(kind) => Ok(kind),
            None => Ok(remember(key, Known::infer(operation, inputs, device)?)),
        }
    }

    /// The kind of a leaf.
    pub fn input(shape: &Shape, dtype: DType, device: &Device) -> Arc<Self> {
        let key = digest(shape, dtype, device);
        let fits = |known: &Known| {
            let (kind, found) = (&known.kind, &known.kind.outputs[0]);
            kind.operation == Operation::Input
                && found.shape == *shape
                && found.dtype == dtype
                && kind.device.same_device(device)
        };
        remembered(key, fits).unwrap_or_else(|| {
            let outputs = smallvec![Meta::new(shape.clone(), dtype)];
            let (kind, inputs) = (Self::new(Operation::Input, outputs, 0, device), SmallVec::new());
            remember(key, Known { kind, inputs })
        })
    }

    fn new(operation: Operation, outputs: Outputs, arity: usize, device: &Device) -> Arc<Self> {
        let output_digests: SmallVec<[u64; 1]> = outputs
            .iter()
            .map(|meta| digest(&meta.shape, meta.dtype, device))
            .collect();
        let mut state = FxHasher::default();
        operation.hash(&mut state);
        state.write_usize(arity);
        output_digests.iter().for_each(|&digest| state.write_u64(digest));
        Arc::new(Self {
            operation,
            outputs,
            device: device.clone(),
            arity,
            digest: state.finish(),
            output_digests,
        })
    }
}

impl Known {
    #[cold]
    fn infer(operation: Operation, inputs: &[&LazyTensor], device: &Device) -> Result<Self> {
        if let Some(other) = inputs.iter().find(|t| !t.device().same_device(device)) {
            return Err(Error::DeviceMismatch {
                operation: operation.name(),
                first: format!("{:?}", device.location()),
                second: format!("{:?}", other.device().location()),
            });
        }
        let metas: SmallVec<[&Meta; 6]> = inputs.iter().map(|t| t.meta()).collect();
        let outputs = infer(&operation, &metas)?;
        if let Some(meta) = outputs.iter().find(|meta| elements(meta.shape.dims()).is_none()) {
            let message = format!("{meta} has more elements than memory can hold");
            return Err(Error::shape(operation.name(), message));
        }
        Ok(Self {
            kind: Kind::new(operation, outputs, inputs.len(), device),
            inputs: inputs.iter().map(|t| (Arc::clone(t.kind()), t.output())).collect(),
        })
    }
}

/// Whether an input has the shape, dtype and device of the one from which a kind was inferred.
#[inline]
pub(crate) fn is_alike((kind, output): &(Arc<Kind>, u32), input: &LazyTensor) -> bool {
    (Arc::ptr_eq(kind, input.kind()) && *output == input.output())
        || (kind.outputs[*output as usize] == *input.meta() && kind.device.same_device(input.device()))
}

fn digest(shape: &Shape, dtype: DType, device: &Device) -> u64 {
    let mut state = FxHasher::default();
    hash_dims(shape.dims(), &mut state);
    state.write_u8(dtype as u8);
    device.location().hash(&mut state);
    state.finish()
}
