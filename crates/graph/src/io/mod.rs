//! Files: the trust boundary of the engine.
//!
//! All input is untrusted: sizes, offsets, names and types are validated against the file itself before tensor data is
//! allocated, and each kind of malformed file has its own [`FileError`]. Reading never panics, never allocates more
//! than twice the file plus 64 MiB, and never opens a path outside the folder of a file because of its contents. Writes
//! are atomic: a reader finds the old file or the new one, never a partial one.

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
