//! Helpers of the kernels' tests: seeded numbers, conversions, comparisons, finite differences.

use super::{Float, Real};

/// Numbers in [-1, 1) from a small linear congruential generator.
pub fn noise(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

pub fn cast<T: Float>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&x| T::from_acc(T::Acc::of(x))).collect()
}

pub fn widen<T: Float>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.to_acc().widen()).collect()
}

/// Seeded noise in T and the same numbers in f64.
pub fn noise_as<T: Float>(seed: u64, n: usize) -> (Vec<T>, Vec<f64>) {
    let t = cast::<T>(&noise(seed, n));
    let wide = widen(&t);
    (t, wide)
}

/// Whether a test case of this many element operations is worth its time: large ones are skipped under Miri, where
/// parallel loops begin at smaller sizes.
pub fn affordable(work: usize) -> bool {
    !cfg!(miri) || work <= 2000
}

/// The rounding error of one operation in T.
pub fn epsilon<T: Float>() -> f64 {
    match std::any::type_name::<T>() {
        "f64" => 1e-15,
        "f32" => 1.2e-7,
        name if name.ends_with("bf16") => 8e-3,
        _ => 1e-3,
    }
}

/// Asserts |got - want| <= tolerance * (1 + |want|) everywhere.
#[track_caller]
pub fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let same = g == w || (g.is_nan() && w.is_nan());
        assert!(
            same || (g - w).abs() <= tolerance * (1.0 + w.abs()),
            "element {i}: {g} instead of {w}"
        );
    }
}

/// Central differences of a scalar function of `x`.
pub fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-6;
    (0..x.len())
        .map(|i| {
            let mut moved = x.to_vec();
            moved[i] = x[i] + step;
            let up = f(&moved);
            moved[i] = x[i] - step;
            (up - f(&moved)) / (2.0 * step)
        })
        .collect()
}

/// Runs a generic test body for each float type; under Miri for one wide and one narrow type.
macro_rules! each_float {
    ($body:ident) => {
        $body::<f32>();
        $body::<half::bf16>();
        if !cfg!(miri) {
            $body::<f64>();
            $body::<half::f16>();
        }
    };
}
pub(crate) use each_float;
