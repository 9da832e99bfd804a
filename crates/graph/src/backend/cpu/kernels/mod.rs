//! CPU kernels: plain functions over slices of contiguous (or explicitly strided) memory.
//!
//! A kernel knows nothing of graphs, nodes or devices: it is given memory and sizes, checks that they fit, and
//! computes. Arithmetic is done in the accumulation type of the element ([`Float::Acc`]: f32 for f32, f16 and bf16; f64
//! for f64). Large calls are spread over the threads of `pool` in blocks that depend on the shape alone, so a result
//! never depends on the number of threads. No kernel allocates more than a small scratch per task.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod dequant_matmul;
mod element;
mod error;
mod float;
pub mod gelu;
pub mod index;
mod inout;
pub mod layer_norm;
pub mod math;
pub mod matmul;
pub(crate) mod par;
pub mod pool;
pub mod random;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
mod row;
mod scratch;
pub mod softmax;
pub mod swiglu;
pub(crate) mod tuning;

pub use error::KernelError;
pub use float::{Float, Mat, Real};
pub use inout::InOut;

#[cfg(test)]
pub(crate) mod testing;
