//! What a user calls, grouped by kind. Each method records one operation (or a few) and returns at once;
//! shape and dtype errors surface here.

mod elementwise;
mod fused;
mod index;
mod matmul;
mod movement;
mod random;
mod reduce;

pub use fused::{AdamWState, AttentionInputs};
