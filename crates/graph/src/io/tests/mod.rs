//! Malformed files, one defect each, and valid files.

mod checkpoint;
mod header;
mod round_trip;

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

/// A file with this header and this many data bytes.
fn file(header: &str, data: usize) -> (TempDir, PathBuf) {
    raw(&[&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![7; data]].concat())
}

/// A file with these bytes, in a folder of its own.
fn raw(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}
