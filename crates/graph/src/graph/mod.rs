//! The representation of a computation: the closed list of operations, the recorded nodes, and the flat graph of a
//! plan. Nothing here runs anything or names a device's memory.

pub(crate) mod class;
pub mod cost;
pub mod infer;
pub mod ir;
pub(crate) mod kind;
pub(crate) mod node;
pub(crate) mod numbered;
pub mod operation;
mod operation_v1;
mod parameters;
mod print;
pub mod verify;
pub(crate) mod walk;

pub use ir::{Graph, GraphNode, ValueRef};
pub use node::{Meta, NodeId, Outputs};
pub use operation::{AdamWOptions, Approximate, AttentionOptions, CrossEntropyOptions, Distribution, Operation};
