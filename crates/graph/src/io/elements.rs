//! Conversion between bytes and numbers: little-endian, a chunk at a time.
//!
//! A tensor is read directly into its final vector and converted on the way, so loading needs memory for one copy of
//! the tensor, in its new type, and one chunk.

use std::io::{Read, Write};

use half::{bf16, f16};

/// Bytes read or written at once: large enough for the disk, small enough for the cache.
const CHUNK: usize = 256 << 10;

/// The reason why a read failed: an I/O error, or a failed allocation of this many bytes.
#[derive(Debug)]
pub(super) enum ReadFault {
    Io(std::io::Error),
    Memory(u64),
}

/// An element type of safetensors files.
pub(super) trait StoredElement: Copy {
    /// Bytes per element.
    const SIZE: usize;
    /// Reads from exactly `SIZE` bytes.
    fn from_le(bytes: &[u8]) -> Self;
    /// Appends `SIZE` bytes.
    fn push_le(self, out: &mut Vec<u8>);
}

macro_rules! element {
    ($($t:ty),*) => {$(
        impl StoredElement for $t {
            const SIZE: usize = size_of::<$t>();
            fn from_le(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(bytes);
                <$t>::from_le_bytes(raw)
            }
            fn push_le(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
element!(f64, f32, f16, bf16, i64, u32, u8);

/// A floating-point element; f64 represents every value of the others exactly, so conversions round once.
pub(super) trait StoredFloat: StoredElement {
    fn widen(self) -> f64;
    fn narrow(value: f64) -> Self;
}

impl StoredFloat for f64 {
    fn widen(self) -> f64 {
        self
    }
    fn narrow(value: f64) -> Self {
        value
    }
}
impl StoredFloat for f32 {
    fn widen(self) -> f64 {
        f64::from(self)
    }
    fn narrow(value: f64) -> Self {
        value as f32
    }
}
impl StoredFloat for f16 {
    fn widen(self) -> f64 {
        f64::from(self.to_f32())
    }
    fn narrow(value: f64) -> Self {
        f16::from_f64(value)
    }
}
impl StoredFloat for bf16 {
    fn widen(self) -> f64 {
        f64::from(self.to_f32())
    }
    fn narrow(value: f64) -> Self {
        bf16::from_f64(value)
    }
}

/// Reads `count` elements of type `S` and converts each to `T`.
pub(super) fn read<S: StoredElement, T>(
    source: &mut impl Read,
    count: usize,
    convert: impl Fn(S) -> T,
) -> Result<Vec<T>, ReadFault> {
    let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
    let mut out = Vec::new();
    out.try_reserve_exact(count).map_err(|_| ReadFault::Memory(bytes))?;
    let mut chunk = vec![0; CHUNK.min(count.saturating_mul(S::SIZE))];
    let mut left = count;
    while left > 0 {
        let now = left.min(CHUNK / S::SIZE);
        let raw = &mut chunk[..now * S::SIZE];
        source.read_exact(raw).map_err(ReadFault::Io)?;
        out.extend(raw.chunks_exact(S::SIZE).map(|b| convert(S::from_le(b))));
        left -= now;
    }
    Ok(out)
}

/// Writes elements little-endian.
pub(super) fn write<T: StoredElement>(target: &mut dyn Write, values: &[T]) -> std::io::Result<()> {
    let mut chunk = Vec::with_capacity(CHUNK);
    for part in values.chunks(CHUNK / T::SIZE) {
        chunk.clear();
        for value in part {
            value.push_le(&mut chunk);
        }
        target.write_all(&chunk)?;
    }
    Ok(())
}
