//! Every way a weights file can lie, each with the file and the field it lies about.

use std::ops::Range;
use std::path::PathBuf;

use candle_core::DType;

/// What is wrong with a file, where, and what to do about it.
///
/// Paths are shown as given; tensor names come from the file and are shown quoted and escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, such as `open`.
        action: &'static str,
        /// The system's reason.
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
    /// The header claims more bytes than this reader accepts.
    #[error("{}: the header claims {length} bytes, the limit is {limit}; not a safetensors file?", path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Claimed length in bytes.
        length: u64,
        /// Largest accepted length in bytes.
        limit: u64,
    },
    /// The header would end after the file does.
    #[error("{}: the header claims {length} bytes but the file has {size}; is the download complete?", path.display())]
    HeaderBeyondFile {
        /// The file.
        path: PathBuf,
        /// Claimed header length in bytes.
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
    /// The header is not the JSON object it should be, or a field is missing or of the wrong type.
    #[error("{}: header: {reason}", path.display())]
    HeaderField {
        /// The file.
        path: PathBuf,
        /// The tensor and field, the reason and the position in the header.
        reason: String,
    },
    /// Two entries have one name.
    #[error("{}: `{}` appears twice", path.display(), name.escape_debug())]
    DuplicateName {
        /// The file.
        path: PathBuf,
        /// The repeated name.
        name: String,
    },
    /// More entries than any real file has.
    #[error("{}: more than {limit} {what}", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// What there is too much of.
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
    /// The number of elements or bytes does not fit in 64 bits.
    #[error("{}: tensor `{}`: shape {shape:?} overflows", path.display(), name.escape_debug())]
    ShapeOverflow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Shape and dtype ask for another number of bytes than the offsets give.
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
    /// Offsets that end before they begin, or after the data does.
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
    /// Two tensors share bytes.
    #[error("{}: tensors `{}` and `{}` overlap", path.display(), first.escape_debug(), second.escape_debug())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// Bytes that belong to no tensor.
    #[error("{}: data bytes {} to {} belong to no tensor", path.display(), range.start, range.end)]
    Gap {
        /// The file.
        path: PathBuf,
        /// The unclaimed bytes, from the end of the header.
        range: Range<u64>,
    },
    /// The file has no tensor of this name.
    #[error("{}: no tensor `{}`", path.display(), name.escape_debug())]
    NoSuchTensor {
        /// The file or folder.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// A dtype of the format that the engine does not compute with.
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
        /// The dtype asked for.
        to: DType,
    },
    /// There is not enough memory for a tensor.
    #[error("{}: tensor `{}`: cannot allocate {bytes} bytes", path.display(), name.escape_debug())]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Bytes asked for.
        bytes: u64,
    },
    /// A settings file larger than any real one.
    #[error("{}: {size} bytes is too large for a settings file, the limit is {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Largest accepted size in bytes.
        limit: u64,
    },
    /// Not a JSON object, or an ambiguous one.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The reason, with line and column.
        reason: String,
    },
    /// The index of a sharded checkpoint is not what it should be.
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
        /// A tensor that is said to be in the shard.
        tensor: String,
        /// The refused name.
        shard: String,
    },
    /// The index names a shard that is not there.
    #[error("{}: tensor `{}` should be in `{shard}`, which does not exist; is the download complete?", index.display(), tensor.escape_debug())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The missing shard.
        shard: String,
        /// A tensor it should hold.
        tensor: String,
    },
    /// The index promises a tensor that its shard lacks.
    #[error("{}: tensor `{}` should be in `{shard}`, which has no such tensor", index.display(), tensor.escape_debug())]
    TensorNotInShard {
        /// The index file.
        index: PathBuf,
        /// The shard.
        shard: String,
        /// The promised tensor.
        tensor: String,
    },
    /// Only pickled weights are present; unpickling can run any program, so they are never read.
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
    /// Candle could not make or read out a tensor.
    #[error("{}: tensor `{}`: {source}", path.display(), name.escape_debug())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Candle's reason.
        source: Box<candle_core::Error>,
    },
}
