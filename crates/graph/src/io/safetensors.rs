//! Safetensors files: open (header only), load one tensor at a time, write whole files atomically.
//!
//! Opening reads and validates the header and keeps the file handle; loading reads just one tensor's bytes, converting
//! them on the way if requested. Never maps the file into memory, so a file that is modified meanwhile gives an error
//! or other numbers, not a crash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use safetensors::Dtype;

use super::elements::{self, ReadFault, StoredElement, StoredFloat};
use super::header::{Header, MAX_HEADER};
use super::{FileError, Result, write_atomically};

/// Size of the length field before the header.
const PREFIX: u64 = 8;

/// The header's entry for one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The stored element type, as the format names it.
    pub dtype: Dtype,
    /// Sizes of the dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The byte range of the data, from the end of the header.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// The engine's dtype for the element type; `None` if it is not supported.
    #[must_use]
    pub fn candle_dtype(&self) -> Option<DType> {
        Some(match self.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::I64 => DType::I64,
            Dtype::U32 => DType::U32,
            Dtype::U8 => DType::U8,
            _ => return None,
        })
    }

    /// Bytes according to shape and dtype; `None` if that, or a stride, overflows.
    pub(super) fn byte_len(&self) -> Option<u64> {
        let bits = |least: usize| {
            let mut dims = self.shape.iter().map(|&d| d.max(least) as u64);
            dims.try_fold(self.dtype.bitsize() as u64, u64::checked_mul)
        };
        // Strides are products of the inner sizes, which can overflow even if an outer size is zero.
        bits(1)?;
        Some(bits(0)?.div_ceil(8))
    }
}

/// An open safetensors file whose header has been checked.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use metal_candle_graph::io::safetensors::{SafetensorsFile, write};
///
/// # let folder = std::env::temp_dir().join(format!("mc-st-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("model.safetensors");
/// let weight = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
/// write(&path, &[("weight", weight)], &Default::default())?;
///
/// let file = SafetensorsFile::open(&path)?;
/// assert_eq!(file.info("weight")?.shape, [2, 2]);
/// assert_eq!(file.load("weight", &Device::Cpu)?.to_vec2::<f32>()?, [[1., 2.], [3., 4.]]);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    /// Where tensor data begins, in bytes from the start of the file.
    data_start: u64,
    header: Header,
}

impl SafetensorsFile {
    /// Opens a file and validates its header against its size; reads no tensor data.
    ///
    /// # Errors
    /// A [`FileError`] for each way in which the header can be malformed: length, encoding, JSON, missing or mistyped
    /// fields, duplicate names, unknown dtypes, overflowing shapes, and offsets that are out of range, overlap, leave
    /// gaps or disagree with shape and dtype.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (mut file, size) = open_regular(&path)?;
        let io = |action| {
            let path = path.clone();
            move |source| FileError::Io { path, action, source }
        };
        if size < PREFIX {
            return Err(FileError::TooShort { path, size });
        }
        let mut prefix = [0; PREFIX as usize];
        file.read_exact(&mut prefix).map_err(io("read"))?;
        let length = u64::from_le_bytes(prefix);
        if length > size - PREFIX {
            return Err(FileError::HeaderBeyondFile { path, length, size });
        }
        if length > MAX_HEADER {
            return Err(FileError::HeaderTooLarge {
                path,
                length,
                limit: MAX_HEADER,
            });
        }
        let mut json = vec![0; length as usize];
        file.read_exact(&mut json).map_err(io("read the header"))?;
        let data_start = PREFIX + length;
        let header = Header::parse(&path, &json, size - data_start)?;
        Ok(Self {
            path,
            file: Mutex::new(file),
            data_start,
            header,
        })
    }

    /// The path it was opened with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Dtype, shape and byte range of one tensor.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`].
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || FileError::NoSuchTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        };
        self.header.tensors.get(name).ok_or_else(missing)
    }

    /// The `__metadata__` of the file; empty if there is none.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Loads one tensor in its stored dtype onto `device`.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`], [`FileError::UnsupportedDtype`], [`FileError::OutOfMemory`], and
    /// [`FileError::Io`] if the file has shrunk since it was opened.
    pub fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let stored = self.supported(name)?;
        self.load_as(name, stored, device)
    }

    /// Loads one tensor as `dtype` onto `device`, converting while it reads: the host holds one copy, in the new type.
    /// Floating-point types are converted to each other, rounding to nearest.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`FileError::UnsupportedConversion`] to or from an integer type.
    pub fn load_as(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.supported(name)? {
            DType::F64 => self.load_float::<f64>(name, dtype, device),
            DType::F32 => self.load_float::<f32>(name, dtype, device),
            DType::F16 => self.load_float::<f16>(name, dtype, device),
            DType::BF16 => self.load_float::<bf16>(name, dtype, device),
            DType::I64 if dtype == DType::I64 => self.read(name, device, |v: i64| v),
            DType::U32 if dtype == DType::U32 => self.read(name, device, |v: u32| v),
            DType::U8 if dtype == DType::U8 => self.read(name, device, |v: u8| v),
            from => Err(self.unsupported_conversion(name, from, dtype)),
        }
    }

    fn load_float<S: StoredFloat + WithDType>(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        match dtype {
            same if same == S::DTYPE => self.read(name, device, |v: S| v),
            DType::F64 => self.read(name, device, |v: S| v.widen()),
            DType::F32 => self.read(name, device, |v: S| f32::narrow(v.widen())),
            DType::F16 => self.read(name, device, |v: S| f16::narrow(v.widen())),
            DType::BF16 => self.read(name, device, |v: S| bf16::narrow(v.widen())),
            to => Err(self.unsupported_conversion(name, S::DTYPE, to)),
        }
    }

    fn read<S: StoredElement, T: WithDType>(
        &self,
        name: &str,
        device: &Device,
        convert: impl Fn(S) -> T,
    ) -> Result<Tensor> {
        let info = self.info(name)?;
        let bytes = info.range.end - info.range.start;
        let values = {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(self.data_start + info.range.start))
                .map_err(ReadFault::Io)
                .and_then(|_| elements::read(&mut *file, bytes as usize / S::SIZE, convert))
        };
        let values = values.map_err(|fault| match fault {
            ReadFault::Io(source) => FileError::Io {
                path: self.path.clone(),
                action: "read tensor data",
                source,
            },
            ReadFault::Memory(bytes) => FileError::OutOfMemory {
                path: self.path.clone(),
                name: name.to_owned(),
                bytes,
            },
        })?;
        Tensor::from_vec(values, info.shape.as_slice(), device).map_err(|e| tensor_fault(&self.path, name, e))
    }

    fn supported(&self, name: &str) -> Result<DType> {
        let info = self.info(name)?;
        info.candle_dtype().ok_or_else(|| FileError::UnsupportedDtype {
            path: self.path.clone(),
            name: name.to_owned(),
            dtype: info.dtype.to_string(),
        })
    }

    fn unsupported_conversion(&self, name: &str, from: DType, to: DType) -> FileError {
        FileError::UnsupportedConversion {
            path: self.path.clone(),
            name: name.to_owned(),
            from,
            to,
        }
    }
}

/// Writes tensors and metadata to `path`, atomically (see [`write_atomically`]).
///
/// The layout is that of the `safetensors` reference: widest dtype first, then by name, header padded to
/// 8 bytes, so the file does not depend on the order of `tensors`. Holds one tensor at a time on the host.
///
/// # Errors
/// [`FileError::DuplicateName`], [`FileError::ReservedName`], [`FileError::UnsupportedDtype`],
/// [`FileError::Tensor`] if a tensor cannot be read from its device, [`FileError::Io`]. On any error
/// the file that was there before is untouched.
pub fn write<N: AsRef<str>>(path: &Path, tensors: &[(N, Tensor)], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut order = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        order.push((stored_dtype(path, name.as_ref(), tensor)?, name.as_ref(), tensor));
    }
    order.sort_by(|(left, a, _), (right, b, _)| right.cmp(left).then(a.cmp(b)));
    let header = header_json(path, &order, metadata)?;
    let mut fault = None;
    let outcome = write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, name, tensor) in &order {
            write_tensor(out, tensor).map_err(|e| match e {
                WriteFault::Io(e) => e,
                WriteFault::Candle(e) => {
                    fault = Some(tensor_fault(path, name, e));
                    std::io::Error::other("tensor not readable")
                }
            })?;
        }
        Ok(())
    });
    fault.map_or(outcome, Err)
}

/// The JSON header, padded with spaces so that data begins at a multiple of 8 bytes.
fn header_json(path: &Path, order: &[(Dtype, &str, &Tensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut json = serde_json::Map::new();
    if !metadata.is_empty() {
        json.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (dtype, name, tensor) in order {
        if *name == "__metadata__" {
            return Err(FileError::ReservedName {
                path: path.to_owned(),
                name: (*name).to_owned(),
            });
        }
        let end = offset + tensor.elem_count() * dtype.bitsize() / 8;
        let entry = serde_json::json!({
            "dtype": dtype.to_string(), "shape": tensor.dims(), "data_offsets": [offset, end],
        });
        if json.insert((*name).to_owned(), entry).is_some() {
            return Err(FileError::DuplicateName {
                path: path.to_owned(),
                name: (*name).to_owned(),
            });
        }
        offset = end;
    }
    let mut header = serde_json::Value::Object(json).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(PREFIX as usize), b' ');
    if header.len() as u64 > MAX_HEADER {
        return Err(FileError::HeaderTooLarge {
            path: path.to_owned(),
            length: header.len() as u64,
            limit: MAX_HEADER,
        });
    }
    Ok(header)
}

fn stored_dtype(path: &Path, name: &str, tensor: &Tensor) -> Result<Dtype> {
    Ok(match tensor.dtype() {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
        other => {
            return Err(FileError::UnsupportedDtype {
                path: path.to_owned(),
                name: name.to_owned(),
                dtype: format!("{other:?}"),
            });
        }
    })
}

enum WriteFault {
    Io(std::io::Error),
    Candle(candle_core::Error),
}

fn write_tensor(out: &mut dyn Write, tensor: &Tensor) -> std::result::Result<(), WriteFault> {
    fn values<T: WithDType + StoredElement>(
        out: &mut dyn Write,
        tensor: &Tensor,
    ) -> std::result::Result<(), WriteFault> {
        let flat = tensor
            .flatten_all()
            .and_then(|t| t.to_vec1::<T>())
            .map_err(WriteFault::Candle)?;
        elements::write(out, &flat).map_err(WriteFault::Io)
    }
    match tensor.dtype() {
        DType::F64 => values::<f64>(out, tensor),
        DType::F32 => values::<f32>(out, tensor),
        DType::F16 => values::<f16>(out, tensor),
        DType::BF16 => values::<bf16>(out, tensor),
        DType::I64 => values::<i64>(out, tensor),
        DType::U32 => values::<u32>(out, tensor),
        _ => values::<u8>(out, tensor),
    }
}

/// Opens a regular file for reading; opening a pipe would block, and a folder cannot be read.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |source| FileError::Io {
        path: path.to_owned(),
        action: "open",
        source,
    };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(FileError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    Ok((file, size))
}

fn tensor_fault(path: &Path, name: &str, source: candle_core::Error) -> FileError {
    FileError::Tensor {
        path: path.to_owned(),
        name: name.to_owned(),
        source: Box::new(source),
    }
}
