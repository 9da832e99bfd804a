//! The operations as methods of [`LazyTensor`], grouped by kind. Each method records one operation (or a few) and
//! returns at once; shape and dtype errors are reported here.

mod elementwise;
mod fused;
mod index;
mod matmul;
mod movement;
mod random;
mod reduce;

pub use fused::{AdamWState, AttentionInputs};
