//! Output buffers, and a pool that recycles large ones. A large buffer whose last handle was dropped is kept for the
//! next result of the same type and size, since touching fresh pages costs more than writing to mapped ones: a training
//! step reuses the gradient buffers of the step before. The pool and the buffers in use together never exceed the peak
//! use so far.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, DType};
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::graph::Meta;

/// Minimum size in bytes of a pooled buffer; smaller ones go to the allocator.
const MIN_POOLED: usize = 1 << 17;

/// A buffer stays in the pool for this many runs with large results.
const MAX_AGE: u64 = 16;

/// An output buffer, owned by the engine. Contiguous.
pub(crate) struct OutputBuffer(CpuStorage);

const NONE: CpuStorage = CpuStorage::U8(Vec::new());

impl OutputBuffer {
    pub fn new(storage: CpuStorage) -> Self {
        let bytes = large_bytes_of(&storage);
        if bytes > 0 {
            pool().use_more(bytes);
        }
        Self(storage)
    }

    /// An empty output buffer with capacity for `len` elements, not initialised.
    pub fn with_capacity(dtype: DType, len: usize) -> Result<Self> {
        if is_large(dtype, len)
            && let Some(storage) = pool().take(dtype, len)
        {
            return Ok(Self(storage));
        }
        Ok(Self::new(match dtype {
            DType::F32 => CpuStorage::F32(Vec::with_capacity(len)),
            DType::F64 => CpuStorage::F64(Vec::with_capacity(len)),
            DType::F16 => CpuStorage::F16(Vec::with_capacity(len)),
            DType::BF16 => CpuStorage::BF16(Vec::with_capacity(len)),
            DType::U8 => CpuStorage::U8(Vec::with_capacity(len)),
            DType::U32 => CpuStorage::U32(Vec::with_capacity(len)),
            DType::I64 => CpuStorage::I64(Vec::with_capacity(len)),
            found => {
                return Err(Error::UnsupportedDType {
                    operation: "plan",
                    found,
                });
            }
        }))
    }

    pub fn storage(&self) -> &CpuStorage {
        &self.0
    }

    pub fn storage_mut(&mut self) -> &mut CpuStorage {
        &mut self.0
    }

    /// The storage; it does not return to the pool.
    pub fn into_storage(mut self) -> CpuStorage {
        let storage = std::mem::replace(&mut self.0, NONE);
        let bytes = large_bytes_of(&storage);
        if bytes > 0 {
            pool().used -= bytes;
        }
        storage
    }

    /// Moves the contents out.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self(NONE))
    }
}

impl Clone for OutputBuffer {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Drop for OutputBuffer {
    fn drop(&mut self) {
        let mut storage = std::mem::replace(&mut self.0, NONE);
        if let Some((dtype, len)) = emptied(&mut storage)
            && is_large(dtype, len)
        {
            pool().add(storage, dtype, len);
        }
    }
}

fn is_large(dtype: DType, len: usize) -> bool {
    len * dtype.size_in_bytes() >= MIN_POOLED
}

/// Whether a result of this shape and dtype comes from the pool.
pub(super) fn is_large_result(meta: &Meta) -> bool {
    is_large(meta.dtype, meta.shape.elem_count())
}

/// Marks the start of a run with large results.
pub(super) fn begin_run() {
    let mut pool = pool();
    pool.run += 1;
    let oldest = pool.run.saturating_sub(MAX_AGE);
    // Sorted by age.
    let expired = pool.free.partition_point(|free| free.freed_in < oldest);
    pool.drop_first(expired);
}

/// Frees all pooled buffers.
pub(super) fn release() {
    let mut pool = pool();
    let all = pool.free.len();
    pool.drop_first(all);
    pool.peak = pool.used;
}

/// Large free buffers. Sizes are in bytes unless stated otherwise.
struct BufferPool {
    free: Vec<FreeBuffer>,
    free_bytes: usize,
    used: usize,
    /// Peak use.
    peak: usize,
    /// Number of runs with large results.
    run: u64,
}

fn pool() -> MutexGuard<'static, BufferPool> {
    static POOL: Mutex<BufferPool> = Mutex::new(BufferPool::EMPTY);
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BufferPool {
    const EMPTY: Self = Self {
        free: Vec::new(),
        free_bytes: 0,
        used: 0,
        peak: 0,
        run: 0,
    };

    /// Takes the most recently freed buffer of this type and size.
    fn take(&mut self, dtype: DType, len: usize) -> Option<CpuStorage> {
        let fits = |free: &FreeBuffer| free.dtype == dtype && free.len == len;
        let found = self.free.remove(self.free.iter().rposition(fits)?);
        self.free_bytes -= found.bytes();
        self.used += found.bytes();
        Some(found.storage)
    }

    fn use_more(&mut self, bytes: usize) {
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        self.enforce_limit();
    }

    /// Returns a free buffer, emptied, to the pool.
    fn add(&mut self, storage: CpuStorage, dtype: DType, len: usize) {
        let free = FreeBuffer {
            storage,
            dtype,
            len,
            freed_in: self.run,
        };
        self.used -= free.bytes();
        self.free_bytes += free.bytes();
        self.free.push(free);
        self.enforce_limit();
    }

    /// Frees the oldest buffers while pooled and used bytes together exceed the peak use.
    fn enforce_limit(&mut self) {
        let (mut count, mut all) = (0, self.used + self.free_bytes);
        while all > self.peak && count < self.free.len() {
            all -= self.free[count].bytes();
            count += 1;
        }
        self.drop_first(count);
    }

    fn drop_first(&mut self, count: usize) {
        let expired = self.free.drain(..count);
        self.free_bytes -= expired.map(|free| free.bytes()).sum::<usize>();
    }
}

/// A free buffer with capacity for `len` elements.
struct FreeBuffer {
    storage: CpuStorage,
    dtype: DType,
    len: usize,
    /// The run in which it was freed.
    freed_in: u64,
}

impl FreeBuffer {
    fn bytes(&self) -> usize {
        self.len * self.dtype.size_in_bytes()
    }
}

/// The size of a storage in bytes if it is large, else 0.
fn large_bytes_of(storage: &CpuStorage) -> usize {
    let bytes = match storage {
        CpuStorage::F32(data) => data.capacity() * size_of::<f32>(),
        CpuStorage::F64(data) => data.capacity() * size_of::<f64>(),
        CpuStorage::F16(data) => data.capacity() * size_of::<f16>(),
        CpuStorage::BF16(data) => data.capacity() * size_of::<bf16>(),
        CpuStorage::U8(data) => data.capacity(),
        CpuStorage::U32(data) => data.capacity() * size_of::<u32>(),
        CpuStorage::I64(data) => data.capacity() * size_of::<i64>(),
        _ => 0,
    };
    if bytes >= MIN_POOLED { bytes } else { 0 }
}

/// Clears the vector and returns its dtype and capacity; `None` for a dtype that results never have.
fn emptied(storage: &mut CpuStorage) -> Option<(DType, usize)> {
    fn room<T>(data: &mut Vec<T>) -> usize {
        data.clear();
        data.capacity()
    }
    Some(match storage {
        CpuStorage::F32(data) => (DType::F32, room(data)),
        CpuStorage::F64(data) => (DType::F64, room(data)),
        CpuStorage::F16(data) => (DType::F16, room(data)),
        CpuStorage::BF16(data) => (DType::BF16, room(data)),
        CpuStorage::U8(data) => (DType::U8, room(data)),
        CpuStorage::U32(data) => (DType::U32, room(data)),
        CpuStorage::I64(data) => (DType::I64, room(data)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(len: usize) -> CpuStorage {
        CpuStorage::F32(Vec::with_capacity(len))
    }

    fn free(pool: &BufferPool) -> Vec<usize> {
        pool.free.iter().map(|free| free.len).collect()
    }

    #[test]
    fn buffers_are_pooled_by_type_and_size_within_the_limit() {
        let mut pool = BufferPool::EMPTY;
        for len in [4, 5, 1] {
            pool.use_more(4 * len);
        }
        for len in [4, 5, 1] {
            pool.add(empty(len), DType::F32, len);
        }
        assert_eq!((free(&pool), pool.free_bytes, pool.used), (vec![4, 5, 1], 40, 0));
        assert!(pool.take(DType::F32, 6).is_none() && pool.take(DType::U32, 5).is_none());
        let Some(CpuStorage::F32(found)) = pool.take(DType::F32, 5) else {
            panic!("the second one waits");
        };
        assert_eq!((found.capacity(), pool.free_bytes, pool.used), (5, 20, 20));
        // Another one, of a new size: only the oldest is freed.
        pool.use_more(4 * 3);
        assert_eq!((free(&pool), pool.used, pool.peak), (vec![1], 32, 40));
        // Use at a new peak: nothing can be kept.
        pool.use_more(4 * 4);
        assert_eq!((free(&pool), pool.used, pool.peak), (vec![], 48, 48));
    }

    #[test]
    fn emptied_buffers_keep_their_capacity() {
        let mut storage = CpuStorage::BF16(vec![half::bf16::ONE; 9]);
        assert_eq!(emptied(&mut storage), Some((DType::BF16, 9)));
        let CpuStorage::BF16(data) = storage else {
            panic!("the same type");
        };
        assert!(data.is_empty() && data.capacity() >= 9);
    }
}
