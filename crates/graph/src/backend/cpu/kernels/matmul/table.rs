//! The kernels that this machine supports: each micro-kernel of `kernel` compiled for each instruction set, and the
//! choice between them, made when a product runs.

use std::sync::OnceLock;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::amx;
#[cfg(target_arch = "x86_64")]
use super::kernel::Transpose;
use super::kernel::{Dots, Kernel, Tile, any_dots, any_tile};
#[cfg(target_arch = "aarch64")]
use super::neon::{Neon32, NeonBf16};
#[cfg(target_arch = "x86_64")]
use super::rates::{self, Rates};
use super::vector_ops::{Portable, VectorOps};
#[cfg(target_arch = "x86_64")]
use super::x86::{
    Narrow32, Narrow64, NarrowBf16, NarrowF16, Wide32, Wide64, WideBf16, WideF16, WidePairs, interleave_pairs,
    round_pairs, transpose_16, transpose_bf16, transpose_f16, transpose_f32, transpose_part_of_16,
};

/// An entry of a panel with two terms.
pub(super) type Pair = [bf16; 2];

/// Statics with the kernels of a [`VectorOps`](super::vector_ops::VectorOps), compiled with the instructions they need.
macro_rules! kernels {
    ($($name:ident: $ops:ty, $rows:literal x $vectors:literal, $round:expr, $interleave:expr, $transpose:expr, [$(#[$attribute:meta])*];)*) => { $(
        static $name: Kernel<<$ops as VectorOps>::Panel, <$ops as VectorOps>::Acc> = {
            $(#[$attribute])*
            unsafe fn tile(t: &Tile<<$ops as VectorOps>::Panel, <$ops as VectorOps>::Acc>) {
                // SAFETY: guaranteed by the caller.
                unsafe { any_tile::<$ops, $rows, { $rows / 2 }, $vectors>(t) }
            }
            $(#[$attribute])*
            unsafe fn dots(d: &Dots<<$ops as VectorOps>::Panel, <$ops as VectorOps>::Acc>) {
                // SAFETY: guaranteed by the caller.
                unsafe { any_dots::<$ops>(d) }
            }
            Kernel {
                lanes: <$ops as VectorOps>::LANES,
                vectors: $vectors,
                rows: $rows,
                tile,
                dots,
                round: $round,
                interleave: $interleave,
                transpose: $transpose,
                reads_lines: false,
                release: None,
            }
        };
    )* };
}

kernels! {
    PORTABLE_32: Portable<f32>, 4 x 1, None, None, None, [];
    PORTABLE_64: Portable<f64>, 4 x 1, None, None, None, [];
    PORTABLE_BF16: Portable<bf16>, 4 x 1, None, None, None, [];
    PORTABLE_F16: Portable<f16>, 4 x 1, None, None, None, [];
}

#[cfg(target_arch = "x86_64")]
kernels! {
    NARROW_32: Narrow32, 6 x 2, None, None, Some(transpose(8, transpose_f32)), [#[target_feature(enable = "avx2,fma,f16c")]];
    NARROW_64: Narrow64, 6 x 2, None, None, None, [#[target_feature(enable = "avx2,fma,f16c")]];
    NARROW_BF16: NarrowBf16, 6 x 2, None, None, None, [#[target_feature(enable = "avx2,fma,f16c")]];
    NARROW_F16: NarrowF16, 6 x 2, None, None, None, [#[target_feature(enable = "avx2,fma,f16c")]];
    WIDE_32: Wide32, 8 x 3, None, None, Some(TRANSPOSE_16), [#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]];
    WIDE_64: Wide64, 8 x 3, None, None, None, [#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]];
    WIDE_BF16: WideBf16, 8 x 3, None, None, None, [#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]];
    WIDE_F16: WideF16, 8 x 3, None, None, None, [#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]];
    WIDE_PAIRS: WidePairs, 8 x 3, Some(round_pairs), Some(interleave_pairs), Some(TRANSPOSE_16), [#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]];
}

/// The kernel of f32 for elements that are widened as they are packed.
#[cfg(target_arch = "x86_64")]
const fn widened(kernel: Kernel<f32, f32>, block: unsafe fn(*const u8, usize, *mut u32, usize)) -> Kernel<f32, f32> {
    Kernel {
        transpose: Some(transpose(8, block)),
        ..kernel
    }
}

#[cfg(target_arch = "x86_64")]
static NARROW_32_OF_BF16: Kernel<f32, f32> = widened(NARROW_32, transpose_bf16);
#[cfg(target_arch = "x86_64")]
static NARROW_32_OF_F16: Kernel<f32, f32> = widened(NARROW_32, transpose_f16);
#[cfg(target_arch = "x86_64")]
static WIDE_32_OF_BF16: Kernel<f32, f32> = widened(WIDE_32, transpose_bf16);
#[cfg(target_arch = "x86_64")]
static WIDE_32_OF_F16: Kernel<f32, f32> = widened(WIDE_32, transpose_f16);

/// [`WIDE_PAIRS`] with tiles multiplied by the matrix unit.
#[cfg(target_arch = "x86_64")]
static AMX_PAIRS: Kernel<Pair, f32> = Kernel {
    vectors: 2,
    rows: amx::ROWS,
    tile: amx::tile,
    reads_lines: true,
    release: Some(amx::release),
    ..WIDE_PAIRS
};

#[cfg(target_arch = "aarch64")]
kernels! {
    NEON_32: Neon32, 8 x 3, None, None, None, [];
    NEON_BF16: NeonBf16, 8 x 3, None, None, None, [];
}

#[cfg(target_arch = "x86_64")]
const fn transpose(edge: usize, run: unsafe fn(*const u8, usize, *mut u32, usize)) -> Transpose {
    Transpose { edge, run, part: None }
}

#[cfg(target_arch = "x86_64")]
const TRANSPOSE_16: Transpose = Transpose {
    edge: 16,
    run: transpose_16,
    part: Some(transpose_part_of_16),
};

/// An instruction set level; each level includes all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // the upper levels are x86's
pub(super) enum Level {
    Portable,
    /// AVX2 with FMA and F16C, or NEON.
    Vectors,
    /// AVX-512 F, BW, VL and DQ.
    Wide,
    /// In addition, products of bf16 pairs.
    Pairs,
    /// In addition, tiles of them: AMX.
    Tiles,
}

/// The best level of this machine.
pub(super) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    #[cfg(test)]
    if let Some(level) = tests::FORCED.get() {
        return level;
    }
    *LEVEL.get_or_init(|| match detect() {
        #[cfg(target_arch = "x86_64")]
        has @ (Level::Pairs | Level::Tiles) => fastest(has),
        level => level,
    })
}

/// The fastest way to multiply bf16: widened to f32, in pairs, or in tiles. On AMD's processors pairs run at the rate
/// of f32, which is twice the throughput; on Intel's at a quarter of it, and with AMX tiles run at many times the rate.
#[cfg(target_arch = "x86_64")]
fn fastest(has: Level) -> Level {
    // SAFETY: asked only where the machine has the instructions of each.
    let measure = || unsafe {
        Rates {
            f32: rates::measure(&WIDE_32, 1.0, 1),
            bf16_pairs: rates::measure(&WIDE_PAIRS, [bf16::ONE; 2], 2),
            bf16_tiles: (has == Level::Tiles).then(|| rates::measure(&AMX_PAIRS, [bf16::ONE; 2], 2)),
        }
    };
    let rates = rates::of_this_machine(&processor(), has == Level::Tiles, measure);
    tracing::debug!(?rates, "rates of products");
    if rates.favour_tiles() {
        Level::Tiles
    } else if rates.favour_pairs() {
        Level::Pairs
    } else {
        Level::Wide
    }
}

/// The processor's vendor, name and signature (family, model, stepping), from CPUID.
#[cfg(target_arch = "x86_64")]
fn processor() -> String {
    use std::arch::x86_64::__cpuid;
    let vendor = __cpuid(0);
    let vendor = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    let signature = __cpuid(1).eax;
    let has_name = __cpuid(0x8000_0000).eax >= 0x8000_0004;
    let leaves = if has_name { 0x8000_0002..0x8000_0005 } else { 0..0 };
    let name: Vec<u8> = leaves
        .map(__cpuid)
        .flat_map(|part| [part.eax, part.ebx, part.ecx, part.edx])
        .flat_map(u32::to_le_bytes)
        .take_while(|&byte| byte != 0)
        .collect();
    let [vendor, name] = [vendor.as_flattened(), &name].map(String::from_utf8_lossy);
    format!("{} {} {signature:08x}", vendor.trim(), name.trim())
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    macro_rules! has {
        ($($feature:tt),*) => { $(is_x86_feature_detected!($feature))&&* };
    }
    // Miri does not interpret vector instructions.
    if cfg!(miri) || !has!("avx2", "fma", "f16c") {
        Level::Portable
    } else if !has!("avx512f", "avx512bw", "avx512vl", "avx512dq") {
        Level::Vectors
    } else if !has!("avx512bf16") {
        Level::Wide
    } else if !amx::is_usable() {
        Level::Pairs
    } else {
        Level::Tiles
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    if cfg!(target_arch = "aarch64") && !cfg!(miri) {
        Level::Vectors
    } else {
        Level::Portable
    }
}

/// The kernel for pairs, if the machine supports it.
pub(super) fn pairs() -> Option<&'static Kernel<Pair, f32>> {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Pairs {
        return Some(&WIDE_PAIRS);
    }
    None
}

/// The kernel for tiles of pairs, if the machine supports it.
pub(super) fn tiles() -> Option<&'static Kernel<Pair, f32>> {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Tiles {
        return Some(&AMX_PAIRS);
    }
    None
}

/// The kernel of an element type for a product of `columns` columns.
macro_rules! choice {
    ($name:ident, $t:ty, $acc:ty, $portable:ident, x86: $narrow:ident $wide:ident, arm: $($neon:ident)?) => {
        pub(super) fn $name(columns: usize) -> &'static Kernel<$t, $acc> {
            #[cfg(target_arch = "x86_64")]
            match level() {
                Level::Portable => {}
                // With few columns half of a wide vector is empty, and two short instructions run at once.
                Level::Wide | Level::Pairs | Level::Tiles if columns > $narrow.lanes => return &$wide,
                _ => return &$narrow,
            }
            $(
                #[cfg(target_arch = "aarch64")]
                if level() > Level::Portable {
                    return &$neon;
                }
            )?
            let _ = columns;
            &$portable
        }
    };
}

choice!(for_f32, f32, f32, PORTABLE_32, x86: NARROW_32 WIDE_32, arm: NEON_32);
choice!(for_f64, f64, f64, PORTABLE_64, x86: NARROW_64 WIDE_64, arm: );
choice!(for_bf16, bf16, f32, PORTABLE_BF16, x86: NARROW_BF16 WIDE_BF16, arm: NEON_BF16);
choice!(for_widened_bf16, f32, f32, PORTABLE_32, x86: NARROW_32_OF_BF16 WIDE_32_OF_BF16, arm: NEON_32);
choice!(for_widened_f16, f32, f32, PORTABLE_32, x86: NARROW_32_OF_F16 WIDE_32_OF_F16, arm: NEON_32);
choice!(for_f16, f16, f32, PORTABLE_F16, x86: NARROW_F16 WIDE_F16, arm: );

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::{Level, detect};

    thread_local! {
        pub(super) static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// Runs `f` at every level that this machine supports.
    pub(in super::super) fn at_each_level(f: impl Fn()) {
        for level in [Level::Portable, Level::Vectors, Level::Wide, Level::Pairs, Level::Tiles] {
            if level <= detect() {
                FORCED.set(Some(level));
                f();
                FORCED.set(None);
            }
        }
    }
}
