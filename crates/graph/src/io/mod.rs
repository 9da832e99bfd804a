//! Files: the trust boundary of the engine.
//!
//! Everything read here is hostile until checked: sizes, offsets, names and types are validated
//! against the file itself before a byte of data is allocated, and every way a file can lie has its
//! own [`FileError`]. Reading never panics, never allocates more than twice the file plus 64 MiB, and
//! never opens a path that a file's contents could point outside its folder. Writing goes beside the
//! target and is renamed into place, so a reader finds the old file or the new one, never half of one.

mod atomic;
mod checkpoint;
mod elements;
mod error;
mod header;
mod json;
pub mod safetensors;
#[cfg(test)]
mod tests;

pub use atomic::{sync_folder, write_atomically};
pub use checkpoint::Checkpoint;
pub use error::FileError;
pub use json::read_json_object;
pub use safetensors::{SafetensorsFile, TensorInfo};

/// `Result` with [`FileError`].
pub type Result<T> = std::result::Result<T, FileError>;
