//! A strided view of a buffer of a plan. Views cost nothing at run time: reshapes, permutations, broadcasts and slices
//! only change the strides when the plan is made. A view has no address: see `operand.rs`.

use candle_core::DType;

/// Index of a buffer in a program.
pub(super) type BufferId = usize;

/// Offsets and strides count elements.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub buffer: BufferId,
    pub offset: usize,
    pub dims: Vec<usize>,
    pub strides: Vec<usize>,
    pub dtype: DType,
}

/// Row-major strides.
pub(super) fn row_major(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}

impl View {
    pub fn contiguous(buffer: BufferId, dims: &[usize], dtype: DType) -> Self {
        Self {
            buffer,
            offset: 0,
            dims: dims.to_vec(),
            strides: row_major(dims),
            dtype,
        }
    }

    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        let mut dims = self.dims.iter().zip(&self.strides).rev();
        let fits = |(&dim, &stride): (&usize, &usize)| {
            let fits = dim == 1 || stride == expected;
            expected *= dim;
            fits
        };
        self.len() == 0 || dims.all(fits)
    }

    /// The same elements with another shape, if strides can express it.
    pub fn reshaped(&self, dims: &[usize]) -> Option<Self> {
        let strides = if self.is_contiguous() {
            row_major(dims)
        } else {
            self.reshaped_strides(dims)?
        };
        Some(Self {
            dims: dims.to_vec(),
            strides,
            ..self.clone()
        })
    }

    /// Dimensions may be split, and merged if their strides are compatible.
    fn reshaped_strides(&self, dims: &[usize]) -> Option<Vec<usize>> {
        let mut old = self.dims.iter().zip(&self.strides).rev().filter(|(dim, _)| **dim != 1);
        let mut strides = vec![0; dims.len()];
        // The unsplit remainder of the current old dimension, and the stride of the next new one in it.
        let (mut left, mut step) = (1, 0);
        for (&dim, stride) in dims.iter().zip(&mut strides).rev().filter(|(dim, _)| **dim != 1) {
            let mut wanted = dim;
            if left == 1 {
                (left, step) = old.next().map(|(&dim, &stride)| (dim, stride))?;
            }
            *stride = step;
            while !left.is_multiple_of(wanted) {
                if !wanted.is_multiple_of(left) {
                    return None;
                }
                (wanted, step) = (wanted / left, step * left);
                let (&next, &next_stride) = old.next()?;
                if next_stride != step {
                    return None;
                }
                left = next;
            }
            (left, step) = (left / wanted, step * wanted);
        }
        (left == 1 && old.next().is_none()).then_some(strides)
    }

    pub fn permuted(&self, order: &[usize]) -> Self {
        let pick = |list: &[usize]| order.iter().map(|&i| list[i]).collect();
        Self {
            dims: pick(&self.dims),
            strides: pick(&self.strides),
            ..self.clone()
        }
    }

    pub fn broadcast(&self, dims: &[usize]) -> Self {
        let added = dims.len() - self.dims.len();
        let stride = |i: usize| {
            if i < added || self.dims[i - added] != dims[i] {
                0
            } else {
                self.strides[i - added]
            }
        };
        Self {
            dims: dims.to_vec(),
            strides: (0..dims.len()).map(stride).collect(),
            ..self.clone()
        }
    }

    pub fn sliced(&self, start: &[usize], end: &[usize]) -> Self {
        let offset = self.offset
            + start
                .iter()
                .zip(&self.strides)
                .map(|(s, stride)| s * stride)
                .sum::<usize>();
        Self {
            offset,
            dims: start.iter().zip(end).map(|(s, e)| e - s).collect(),
            ..self.clone()
        }
    }

    /// The distance from the first element to the end of the last one, in elements.
    pub fn reach(&self) -> usize {
        if self.len() == 0 {
            return 0;
        }
        let steps = self.dims.iter().zip(&self.strides).map(|(d, s)| (d - 1) * s);
        steps.sum::<usize>() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets of the elements, in row-major order.
    fn places(view: &View) -> Vec<usize> {
        let of = |mut i: usize| {
            let dims = view.dims.iter().zip(&view.strides).rev();
            dims.fold(view.offset, |place, (dim, stride)| {
                let at = i % dim;
                i /= dim;
                place + at * stride
            })
        };
        (0..view.len()).map(of).collect()
    }

    #[test]
    fn reshaped_views_have_the_same_elements() {
        let whole = View::contiguous(0, &[4, 6, 10], DType::F32);
        let columns = View {
            dims: vec![4, 6, 5],
            offset: 3,
            ..whole.clone()
        };
        let cases: [(&View, &[usize], bool); 9] = [
            (&columns, &[24, 5], true),
            (&columns, &[2, 2, 1, 3, 2, 5, 1], true),
            (&columns, &[2, 12, 5], true),
            (&columns, &[4, 30], false),
            (&columns, &[8, 15], false),
            (&whole.permuted(&[2, 0, 1]), &[10, 24], true),
            (&whole.permuted(&[2, 0, 1]), &[5, 2, 12, 2], true),
            (&whole.permuted(&[1, 0, 2]), &[24, 10], false),
            (
                &View::contiguous(0, &[3], DType::F32).broadcast(&[2, 4, 3]),
                &[8, 3],
                true,
            ),
        ];
        for (view, dims, possible) in cases {
            let reshaped = view.reshaped(dims);
            assert_eq!(reshaped.is_some(), possible, "{view:?} as {dims:?}");
            if let Some(reshaped) = reshaped {
                assert_eq!(places(&reshaped), places(view), "{view:?} as {dims:?}");
            }
        }
    }
}
