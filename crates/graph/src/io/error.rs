//! The errors of malformed weights files: one variant per kind of defect, with the file and the field.

use std::ops::Range;
use std::path::PathBuf;

use candle_core::DType;

/// What is wrong with a file, where, and how to fix it.
///
/// Paths are shown as given; tensor names come from the file and are shown quoted and escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// An I/O error of the operating system.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted action, such as `open`.
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The path is a folder, a pipe, a socket or a device.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Too short for the 8 bytes that give the header's length.
    #[error("{}: {size} bytes is too short for a safetensors file; is the download complete?", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The declared length of the header exceeds the limit.
    #[error("{}: the header claims {length} bytes, the limit is {limit}; not a safetensors file?", path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Declared length in bytes.
        length: u64,
        /// Largest accepted length in bytes.
        limit: u64,
    },
    /// The declared header ends beyond the end of the file.
    #[error("{}: the header claims {length} bytes but the file has {size}; is the download complete?", path.display())]
    HeaderBeyondFile {
        /// The file.
        path: PathBuf,
        /// Declared header length in bytes.
        length: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// The header is not UTF-8.
    #[error("{}: the header is not UTF-8 (bad byte at {position})", path.display())]
    HeaderNotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first bad byte within the header.
        position: usize,
    },
    /// The header is not the expected JSON object, or a field is missing or of the wrong type.
    #[error("{}: header: {reason}", path.display())]
    HeaderField {
        /// The file.
        path: PathBuf,
        /// The tensor and field, the reason and the position in the header.
        reason: String,
    },
    /// Duplicate names.
    #[error("{}: `{}` appears twice", path.display(), name.escape_debug())]
    DuplicateName {
        /// The file.
        path: PathBuf,
        /// The duplicate name.
        name: String,
    },
    /// More entries than the limit.
    #[error("{}: more than {limit} {what}", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// The kind of entry.
        what: &'static str,
        /// Largest accepted number.
        limit: usize,
    },
    /// A dtype the format does not know.
    #[error("{}: tensor `{}`: unknown dtype `{}`", path.display(), name.escape_debug(), dtype.escape_debug())]
    UnknownDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The dtype as written.
        dtype: String,
    },
    /// The number of elements or bytes overflows 64 bits.
    #[error("{}: tensor `{}`: shape {shape:?} overflows", path.display(), name.escape_debug())]
    ShapeOverflow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Shape and dtype do not match the byte length given by the offsets.
    #[error("{}: tensor `{}`: {dtype} {shape:?} takes {expected} bytes but data_offsets give {found}", path.display(), name.escape_debug())]
    SizeMismatch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its dtype as written.
        dtype: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that shape and dtype need.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
    },
    /// Offsets that are decreasing, or beyond the end of the data.
    #[error("{}: tensor `{}`: data_offsets [{}, {}] do not lie within the {available} bytes of data", path.display(), name.escape_debug(), range.start, range.end)]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The offsets as written, in bytes from the end of the header.
        range: Range<u64>,
        /// Bytes of data in the file.
        available: u64,
    },
    /// Overlapping tensors.
    #[error("{}: tensors `{}` and `{}` overlap", path.display(), first.escape_debug(), second.escape_debug())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// Gaps: bytes that belong to no tensor.
    #[error("{}: data bytes {} to {} belong to no tensor", path.display(), range.start, range.end)]
    Gap {
        /// The file.
        path: PathBuf,
        /// The unused bytes, from the end of the header.
        range: Range<u64>,
    },
    /// The file has no tensor with this name.
    #[error("{}: no tensor `{}`", path.display(), name.escape_debug())]
    NoSuchTensor {
        /// The file or folder.
        path: PathBuf,
        /// The requested name.
        name: String,
    },
    /// A dtype of the format that the engine does not support.
    #[error("{}: tensor `{}`: dtype {dtype} is not supported (F64, F32, F16, BF16, I64, U32 and U8 are)", path.display(), name.escape_debug())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: String,
    },
    /// A conversion on loading that is not between floating-point types.
    #[error("{}: tensor `{}`: cannot load {from:?} as {to:?}; only floating-point types convert", path.display(), name.escape_debug())]
    UnsupportedConversion {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The stored dtype.
        from: DType,
        /// The requested dtype.
        to: DType,
    },
    /// Memory for a tensor cannot be allocated.
    #[error("{}: tensor `{}`: cannot allocate {bytes} bytes", path.display(), name.escape_debug())]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Requested bytes.
        bytes: u64,
    },
    /// A settings file larger than the limit.
    #[error("{}: {size} bytes is too large for a settings file, the limit is {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Largest accepted size in bytes.
        limit: u64,
    },
    /// Not a JSON object, or one with duplicate keys.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The reason, with line and column.
        reason: String,
    },
    /// The index of a sharded checkpoint is malformed.
    #[error("{}: {reason}", path.display())]
    BadIndex {
        /// The index file.
        path: PathBuf,
        /// The field and the reason.
        reason: String,
    },
    /// A shard name that is not the plain name of a `.safetensors` file.
    #[error("{}: weight_map[`{}`]: `{}` is not the plain name of a .safetensors file in this folder; refused", index.display(), tensor.escape_debug(), shard.escape_debug())]
    UnsafeShardName {
        /// The index file.
        index: PathBuf,
        /// A tensor that the index maps to the shard.
        tensor: String,
        /// The refused name.
        shard: String,
    },
    /// The index names a shard that does not exist.
    #[error("{}: tensor `{}` should be in `{shard}`, which does not exist; is the download complete?", index.display(), tensor.escape_debug())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The missing shard.
        shard: String,
        /// A tensor that the index maps to it.
        tensor: String,
    },
    /// The index maps a tensor to a shard that does not contain it.
    #[error("{}: tensor `{}` should be in `{shard}`, which has no such tensor", index.display(), tensor.escape_debug())]
    TensorNotInShard {
        /// The index file.
        index: PathBuf,
        /// The shard.
        shard: String,
        /// The missing tensor.
        tensor: String,
    },
    /// Only pickled weights are present; unpickling can execute arbitrary code, so they are never read.
    #[error("{}: pickled weights can run code when read and are refused; convert them once, in an environment you trust: {advice}", path.display())]
    PickleRefused {
        /// The pickle file found.
        path: PathBuf,
        /// How to convert it.
        advice: &'static str,
    },
    /// A folder without weights.
    #[error("{}: no model.safetensors and no model.safetensors.index.json; is this a model folder?", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A name that the format reserves.
    #[error("{}: a tensor cannot be named `{}`", path.display(), name.escape_debug())]
    ReservedName {
        /// The file being written.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Candle could not create or read a tensor.
    #[error("{}: tensor `{}`: {source}", path.display(), name.escape_debug())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Candle's error.
        source: Box<candle_core::Error>,
    },
}
