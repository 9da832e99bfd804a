//! The kernels that this machine supports, and the choice between them, made when a product runs.

use std::sync::OnceLock;

use super::dots::{DotKernel, portable_4, portable_8};
#[cfg(target_arch = "x86_64")]
use super::x86::{narrow_4, narrow_8, wide_4, wide_8};
use crate::fused::dequant_matmul::QuantFormat;

/// An instruction set level; each level includes all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // the upper levels are for x86-64
pub(super) enum Level {
    Portable,
    /// AVX2 with FMA and F16C.
    Narrow,
    /// AVX-512 F, BW, VL and DQ with VNNI: dot products of bytes.
    Wide,
}

/// The level of this machine.
fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    #[cfg(test)]
    if let Some(level) = tests::FORCED.get() {
        return level;
    }
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    macro_rules! has {
        ($($feature:tt),*) => { $(is_x86_feature_detected!($feature))&&* };
    }
    if !has!("avx2", "fma", "f16c") {
        Level::Portable
    } else if !has!("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni") {
        Level::Narrow
    } else {
        Level::Wide
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// The fastest kernel for weights in `format`.
pub(super) fn dots(format: QuantFormat) -> DotKernel {
    match (level(), format) {
        #[cfg(target_arch = "x86_64")]
        (Level::Wide, QuantFormat::Q8_0) => wide_8,
        #[cfg(target_arch = "x86_64")]
        (Level::Wide, QuantFormat::Q4_0) => wide_4,
        #[cfg(target_arch = "x86_64")]
        (Level::Narrow, QuantFormat::Q8_0) => narrow_8,
        #[cfg(target_arch = "x86_64")]
        (Level::Narrow, QuantFormat::Q4_0) => narrow_4,
        (_, QuantFormat::Q8_0) => portable_8,
        (_, QuantFormat::Q4_0) => portable_4,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::{Level, detect};

    thread_local! {
        pub(super) static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// Runs `f` at every level that this machine supports.
    pub(in super::super) fn at_each_level(f: impl Fn()) {
        for level in [Level::Portable, Level::Narrow, Level::Wide] {
            if level <= detect() {
                FORCED.set(Some(level));
                f();
                FORCED.set(None);
            }
        }
    }
}
