//! Indexed reads and additions along one dimension: `index_select`, `gather`, `index_add`, `scatter_add`.
//!
//! Indices are checked before anything is written. Additions to one element happen in the order of the indices,
//! whatever the number of threads.

use super::element::Element;
use super::error::KernelError;
use super::par::{BLOCK, Shared, for_rows};
use super::scratch::Filled;

/// An index type: u32 or i64.
pub trait Index: Copy + Send + Sync + 'static {
    /// The value, for error messages.
    fn value(self) -> i64;
    /// The position in a dimension of size `n`, if it is in range.
    #[inline(always)]
    fn position(self, n: usize) -> Option<usize> {
        usize::try_from(self.value()).ok().filter(|&i| i < n)
    }
}

impl Index for u32 {
    #[inline(always)]
    fn value(self) -> i64 {
        i64::from(self)
    }
}

impl Index for i64 {
    #[inline(always)]
    fn value(self) -> i64 {
        self
    }
}

/// The sizes of an indexed operation: the data is (outer, n, inner), the selected or added slices are (outer, m,
/// inner).
#[derive(Clone, Copy, Debug)]
pub struct IndexShape {
    /// Product of the dimensions before the indexed one.
    pub outer: usize,
    /// Size of the indexed dimension.
    pub n: usize,
    /// Number of selected or added slices.
    pub m: usize,
    /// Product of the dimensions after the indexed one.
    pub inner: usize,
}

impl IndexShape {
    fn check<T>(&self, data: &[T], picked: &[T], operation: &str) {
        assert_eq!(
            data.len(),
            self.outer * self.n * self.inner,
            "{operation}: the data has the wrong size"
        );
        assert_eq!(
            picked.len(),
            self.outer * self.m * self.inner,
            "{operation}: the selected slices have the wrong size"
        );
    }
}

/// Checks the index at `element` of the list.
fn inside<I: Index>(index: I, n: usize, element: usize, operation: &'static str) -> Result<usize, KernelError> {
    index.position(n).ok_or(KernelError::Index {
        operation,
        element,
        index: index.value(),
        size: n,
    })
}

/// Checks that every index is in range for a dimension of `n`.
///
/// # Errors
/// If one does not.
pub fn check_indices<I: Index>(indices: &[I], n: usize, operation: &'static str) -> Result<(), KernelError> {
    indices
        .iter()
        .enumerate()
        .try_for_each(|(element, &index)| inside(index, n, element, operation).map(drop))
}

/// `out[o, j, i] = x[o, indices[j], i]`; indices (m).
///
/// # Errors
/// If an index is out of range.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn index_select<T: Copy + Send + Sync, I: Index>(
    shape: IndexShape,
    x: &[T],
    indices: &[I],
    out: &mut [T],
) -> Result<(), KernelError> {
    let IndexShape { outer, n, m, inner } = shape;
    shape.check(x, out, "index_select");
    assert_eq!(indices.len(), m, "index_select: the indices have the wrong size");
    check_indices(indices, n, "index_select")?;
    let result = Shared::new(out);
    for_rows(outer * m, inner, |range| {
        for row in range {
            let from = (row / m * n + indices[row % m].value() as usize) * inner;
            // SAFETY: the row belongs to this task.
            unsafe { result.slice(row * inner, inner) }.copy_from_slice(&x[from..][..inner]);
        }
    });
    Ok(())
}

/// `out[o, j, i] = x[o, indices[o, j, i], i]`; indices (outer, m, inner).
///
/// # Errors
/// If an index is out of range.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn gather<T: Copy + Send + Sync, I: Index>(
    shape: IndexShape,
    x: &[T],
    indices: &[I],
    out: &mut [T],
) -> Result<(), KernelError> {
    let IndexShape { n, m, inner, .. } = shape;
    shape.check(x, out, "gather");
    assert_eq!(indices.len(), out.len(), "gather: the indices have the wrong size");
    check_indices(indices, n, "gather")?;
    let result = Shared::new(out);
    for_rows(indices.len(), 4, |range| {
        for at in range {
            let (o, i) = (at / (m * inner), at % inner);
            // SAFETY: the element belongs to this task.
            unsafe { *result.at(at) = x[(o * n + indices[at].value() as usize) * inner + i] };
        }
    });
    Ok(())
}

/// `out[o, indices[j], i] += x[o, j, i]`; indices (m). All additions to an element are summed before the sum is
/// rounded.
///
/// # Errors
/// If an index is out of range; nothing is added then.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn index_add<T: Element, I: Index>(
    shape: IndexShape,
    x: &[T],
    indices: &[I],
    out: &mut [T],
) -> Result<(), KernelError> {
    let IndexShape { outer, n, m, inner } = shape;
    shape.check(out, x, "index_add");
    assert_eq!(indices.len(), m, "index_add: the indices have the wrong size");
    let mut sources = Filled::new(m, (0, 0));
    for (element, (source, &index)) in sources.iter_mut().zip(indices).enumerate() {
        *source = (inside(index, n, element, "index_add")?, element);
    }
    // Sorts by target; sources of one target keep their order.
    sources.sort_unstable();
    // The range of the sources of each target.
    let mut targets = Filled::new(m, (0, 0));
    let (mut count, mut end) = (0, 0);
    for (target, sources) in targets.iter_mut().zip(sources.chunk_by(|a, b| a.0 == b.0)) {
        *target = (end, end + sources.len());
        (count, end) = (count + 1, target.1);
    }
    targets.truncate(count);
    let result = Shared::new(out);
    let blocks = inner.div_ceil(BLOCK);
    let each = targets.len() * blocks;
    for_rows(
        outer * each,
        BLOCK.min(inner) * m.div_ceil(targets.len().max(1)),
        |range| {
            for at in range {
                let (o, target, start) = (at / each, targets[at % each / blocks], at % blocks * BLOCK);
                let sources = &sources[target.0..target.1];
                let len = BLOCK.min(inner - start);
                // SAFETY: this block of this target belongs to this task.
                let out = unsafe { result.slice((o * n + sources[0].0) * inner + start, len) };
                add_rows(
                    out,
                    sources.iter().map(|&(_, j)| &x[(o * m + j) * inner + start..][..len]),
                );
            }
        },
    );
    Ok(())
}

fn add_rows<'a, T: Element>(out: &mut [T], rows: impl Iterator<Item = &'a [T]>) {
    let mut sums = [T::ZERO; BLOCK];
    let sums = &mut sums[..out.len()];
    for (sum, out) in sums.iter_mut().zip(&*out) {
        *sum = out.widen();
    }
    for row in rows {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum = T::plus(*sum, x.widen());
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = T::round(*sum);
    }
}

/// `out[o, indices[o, j, i], i] += x[o, j, i]`; indices (outer, m, inner). Each addition is rounded.
///
/// # Errors
/// If an index is out of range; nothing is added then.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn scatter_add<T: Element, I: Index>(
    shape: IndexShape,
    x: &[T],
    indices: &[I],
    out: &mut [T],
) -> Result<(), KernelError> {
    let IndexShape { outer, n, m, inner } = shape;
    shape.check(out, x, "scatter_add");
    assert_eq!(indices.len(), x.len(), "scatter_add: the indices have the wrong size");
    check_indices(indices, n, "scatter_add")?;
    let result = Shared::new(out);
    let blocks = inner.div_ceil(BLOCK);
    for_rows(outer * blocks, 4 * m * BLOCK.min(inner), |range| {
        for at in range {
            let (o, start) = (at / blocks, at % blocks * BLOCK);
            for j in 0..m {
                for i in start..inner.min(start + BLOCK) {
                    let from = (o * m + j) * inner + i;
                    let to = result.at((o * n + indices[from].value() as usize) * inner + i);
                    // SAFETY: these columns of this outer row belong to this task.
                    unsafe { *to = T::round(T::plus((*to).widen(), x[from].widen())) };
                }
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Float;
    use super::super::testing::{affordable, close, each_float, epsilon, noise_as, widen};
    use super::*;

    /// outer, n, m, inner
    const SHAPES: [(usize, usize, usize, usize); 8] = [
        (1, 1, 1, 1),
        (2, 3, 5, 4),
        (1, 50, 2000, 300),
        (3, 7, 0, 2),
        (0, 3, 2, 1),
        (300, 40, 3, 1),
        (2, 5, 9, 0),
        (1, 2, 40, 513),
    ];

    fn indices(n: usize, count: usize) -> Vec<u32> {
        (0..count).map(|i| (i * 7919 % 10_007 % n.max(1)) as u32).collect()
    }

    fn check<T: Float + Element>() {
        for (outer, n, m, inner) in SHAPES {
            if !affordable(outer * m * inner) {
                continue;
            }
            let shape = IndexShape { outer, n, m, inner };
            let ((data, data64), (more, more64)) =
                (noise_as::<T>(1, outer * n * inner), noise_as::<T>(2, outer * m * inner));
            let (few, many) = (indices(n, m), indices(n, outer * m * inner));
            let wide = |list: &[u32]| list.iter().map(|&i| i64::from(i)).collect::<Vec<_>>();
            let place = |at: usize, index: u32| (at / (m * inner) * n + index as usize) * inner + at % inner;
            let row = |at: usize| few[at / inner % m];

            let mut out = more.clone();
            index_select(shape, &data, &few, &mut out).unwrap();
            assert!((0..out.len()).all(|at| out[at] == data[place(at, row(at))]));
            gather(shape, &data, &wide(&many), &mut out).unwrap();
            assert!((0..out.len()).all(|at| out[at] == data[place(at, many[at])]));

            let (mut added, mut scattered) = (data.clone(), data.clone());
            let (mut want_added, mut want_scattered) = (data64.clone(), data64.clone());
            index_add(shape, &more, &wide(&few), &mut added).unwrap();
            scatter_add(shape, &more, &many, &mut scattered).unwrap();
            for at in 0..more64.len() {
                want_added[place(at, row(at))] += more64[at];
                want_scattered[place(at, many[at])] += more64[at];
            }
            close(&widen(&added), &want_added, epsilon::<T>() + 30.0 * epsilon::<T::Acc>());
            // About m / n roundings of sums of that many terms.
            close(
                &widen(&scattered),
                &want_scattered,
                epsilon::<T>() * (1.0 + (m / n.max(1)) as f64),
            );
        }
    }

    #[test]
    fn agree_with_the_definition() {
        each_float!(check);
    }

    #[test]
    fn integers() {
        let shape = IndexShape {
            outer: 1,
            n: 3,
            m: 4,
            inner: 1,
        };
        let mut out = [200u8, 0, 7];
        index_add(shape, &[100, 1, 2, 3], &[0u32, 2, 2, 1], &mut out).unwrap();
        assert_eq!(out, [44, 3, 10]);
        let mut out = [1i64, 2, 3];
        scatter_add(shape, &[10, 20, 30, 40], &[1i64, 1, 0, 2], &mut out).unwrap();
        assert_eq!(out, [31, 32, 43]);
        let mut out = [0u32; 4];
        index_select(shape, &[7u32, 8, 9], &[2i64, 0, 0, 1], &mut out).unwrap();
        assert_eq!(out, [9, 7, 7, 8]);
    }

    #[test]
    fn an_index_outside_is_an_error_and_writes_nothing() {
        let shape = IndexShape {
            outer: 1,
            n: 3,
            m: 2,
            inner: 1,
        };
        for bad in [3, -1, i64::MIN, i64::MAX] {
            let error = |operation| {
                Err(KernelError::Index {
                    operation,
                    element: 1,
                    index: bad,
                    size: 3,
                })
            };
            let (data, mut two, mut three) = ([1.0f32; 3], [5.0f32; 2], [5.0f32; 3]);
            assert_eq!(index_select(shape, &data, &[0, bad], &mut two), error("index_select"));
            assert_eq!(gather(shape, &data, &[0, bad], &mut two), error("gather"));
            assert_eq!(index_add(shape, &[1.0; 2], &[0, bad], &mut three), error("index_add"));
            assert_eq!(
                scatter_add(shape, &[1.0; 2], &[0, bad], &mut three),
                error("scatter_add")
            );
            assert_eq!((two, three), ([5.0; 2], [5.0; 3]));
        }
    }
}
