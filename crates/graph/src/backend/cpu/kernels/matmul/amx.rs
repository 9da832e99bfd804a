//! The micro-kernel for AMX, the matrix unit of newer Intel processors: one instruction multiplies 16 rows of 32 terms
//! with 32 terms of 16 columns. Rows of A are read in place. CPU features are detected by [`is_usable`] only.

use std::arch::asm;
use std::arch::x86_64::{_mm512_maskz_loadu_epi32, _mm512_store_si512};
use std::cell::Cell;
use std::mem::MaybeUninit;

use super::kernel::Tile;
use super::table::Pair;

/// Rows of a tile register, and the four-byte entries of one.
const EDGE: usize = 16;
/// Rows and columns of C that are computed together: four accumulator registers, two registers for each operand.
pub(super) const ROWS: usize = 2 * EDGE;

/// The operand of `ldtilecfg`: bytes of a row and number of rows of each tile register (Intel SDM, volume 1, 18.3).
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// For `rows` rows of A and C: registers 0 to 3 hold accumulators, 4 and 5 rows of A, 6 and 7 columns of B.
    fn of(rows: usize) -> Self {
        let upper = rows.min(EDGE) as u8;
        let lower = (rows - rows.min(EDGE)).max(1) as u8;
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let columns = EDGE as u8;
        config.row_bytes[..8].fill((4 * EDGE) as u16);
        config.rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, columns, columns]);
        config
    }
}

thread_local! {
    /// The number of rows that this thread's registers are configured for: configuring takes as long as a dozen products.
    static CONFIGURED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// # Safety
/// AMX is usable.
unsafe fn configure(rows: usize) {
    if CONFIGURED.replace(Some(rows)) != Some(rows) {
        let config = Config::of(rows);
        // SAFETY: guaranteed by the caller; the configuration is well-formed.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
    }
}

/// Releases the registers, which the operating system would otherwise save with the thread's state.
///
/// # Safety
/// AMX is usable.
pub(super) unsafe fn release() {
    if CONFIGURED.take().is_some() {
        // SAFETY: guaranteed by the caller.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Rows of each register.
#[repr(C, align(64))]
struct Rows<const N: usize>([[Pair; EDGE]; N]);

/// [`Kernel::tile`](super::kernel::Kernel::tile) for up to [`ROWS`] contiguous rows of A, and one or two vectors of 16
/// columns.
///
/// # Safety
/// Like [`Kernel::tile`](super::kernel::Kernel::tile); AMX and AVX-512F are usable, `a_step` is 1, and the thread calls
/// [`release`] in the end.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn tile(t: &Tile<Pair, f32>) {
    debug_assert!(t.a_step == 1 && t.rows <= ROWS && t.cols.is_multiple_of(EDGE) && t.cols <= 2 * EDGE);
    let (whole, rest) = (t.steps / EDGE, t.steps % EDGE);
    // SAFETY: guaranteed by the caller; both parts are inside the operands.
    unsafe {
        configure(t.rows);
        if whole > 0 {
            products(t, (t.a, t.a_row), (t.b, t.b_step), whole, t.add);
        }
        if rest > 0 {
            // Zero-padded to a whole register.
            let mask = (1 << rest) - 1;
            let (mut a, mut b) = (MaybeUninit::<Rows<ROWS>>::uninit(), MaybeUninit::<Rows<ROWS>>::uninit());
            let (a, b) = (a.as_mut_ptr().cast::<Pair>(), b.as_mut_ptr().cast::<Pair>());
            for r in 0..t.rows {
                let from =
                    t.a.wrapping_byte_offset(r as isize * t.a_row)
                        .wrapping_add(whole * EDGE);
                _mm512_store_si512(a.add(r * EDGE).cast(), _mm512_maskz_loadu_epi32(mask, from.cast()));
            }
            for r in 0..EDGE {
                for c in (0..t.cols).step_by(EDGE) {
                    let from = t.b.wrapping_add((whole * EDGE + r) * t.b_step + c);
                    let there = if r < rest { u16::MAX } else { 0 };
                    let to = b.add(r * 2 * EDGE + c);
                    _mm512_store_si512(to.cast(), _mm512_maskz_loadu_epi32(there, from.cast()));
                }
            }
            products(t, (a, 4 * EDGE as isize), (b, 2 * EDGE), 1, t.add || whole > 0);
        }
    }
}

/// Accumulates `count` times 16 pairs of terms.
///
/// # Safety
/// As [`tile`]; the registers are configured.
#[inline(always)]
unsafe fn products(
    t: &Tile<Pair, f32>,
    (a, a_row): (*const Pair, isize),
    (b, b_step): (*const Pair, usize),
    count: usize,
    add: bool,
) {
    // The instructions, by whether there is a second tile of rows and of columns.
    macro_rules! registers {
        ([$($lower:literal)?] [$($right:literal)?] [$($both:literal)?]) => {
            asm!(
                "test {add:e}, {add:e}",
                "jnz 2f",
                "tilezero tmm0",
                $(concat!("tilezero tmm1", $right),)?
                $(concat!("tilezero tmm2", $lower),)?
                $(concat!("tilezero tmm3", $both),)?
                "jmp 3f /* {c_lower} */",
                "2:",
                "tileloadd tmm0, [{c} + {c_row}]",
                $(concat!("tileloadd tmm1, [{c} + {c_row} + 64]", $right),)?
                $(concat!("tileloadd tmm2, [{c_lower} + {c_row}]", $lower),)?
                $(concat!("tileloadd tmm3, [{c_lower} + {c_row} + 64]", $both),)?
                "3:",
                "tileloadd tmm4, [{a} + {a_row}]",
                "tileloadd tmm6, [{b} + {b_row}]",
                $(concat!("tileloadd tmm5, [{a_lower} + {a_row}]", $lower),)?
                $(concat!("tileloadd tmm7, [{b} + {b_row} + 64]", $right),)?
                "tdpbf16ps tmm0, tmm4, tmm6",
                $(concat!("tdpbf16ps tmm2, tmm5, tmm6", $lower),)?
                $(concat!("tdpbf16ps tmm1, tmm4, tmm7", $right),)?
                $(concat!("tdpbf16ps tmm3, tmm5, tmm7", $both),)?
                "add {a}, 64",
                "add {a_lower}, 64",
                "add {b}, {b_next}",
                "dec {count}",
                "jnz 3b",
                "tilestored [{c} + {c_row}], tmm0",
                $(concat!("tilestored [{c} + {c_row} + 64], tmm1", $right),)?
                $(concat!("tilestored [{c_lower} + {c_row}], tmm2", $lower),)?
                $(concat!("tilestored [{c_lower} + {c_row} + 64], tmm3", $both),)?
                add = in(reg) u32::from(add),
                c = in(reg) t.out,
                c_lower = in(reg) t.out.wrapping_add(EDGE * t.out_row),
                c_row = in(reg) 4 * t.out_row,
                a = inout(reg) a => _,
                a_lower = inout(reg) a.wrapping_byte_offset(EDGE as isize * a_row) => _,
                a_row = in(reg) a_row,
                b = inout(reg) b => _,
                b_row = in(reg) 4 * b_step,
                b_next = in(reg) 4 * EDGE * b_step,
                count = inout(reg) count => _,
                options(nostack),
            )
        };
    }
    // SAFETY: guaranteed by the caller; no instruction accesses a row outside the configuration.
    unsafe {
        match (t.rows > EDGE, t.cols > EDGE) {
            (true, true) => registers!([""][""][""]),
            (true, false) => registers!([""] [] []),
            (false, true) => registers!([] [""] []),
            (false, false) => registers!([] [] []),
        }
    }
}

/// Operations per iteration of [`multiply_registers`]: four products of 16 rows, 16 columns and 32 terms.
pub(crate) const FLOPS: usize = 4 * 2 * EDGE * EDGE * 2 * EDGE;

/// Multiplies registers without loads, to measure the peak rate of the unit.
///
/// # Safety
/// AMX is usable.
pub(crate) unsafe fn multiply_registers(iterations: usize) {
    let config = Config::of(ROWS);
    let operand = Rows([[[half::bf16::from_f32(0.5); 2]; EDGE]; EDGE]);
    if iterations == 0 {
        return;
    }
    // SAFETY: guaranteed by the caller; operands are as long as the configuration says.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tileloadd tmm4, [{operand} + {line}]",
            "tileloadd tmm5, [{operand} + {line}]",
            "tileloadd tmm6, [{operand} + {line}]",
            "tileloadd tmm7, [{operand} + {line}]",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {count}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &raw const config,
            operand = in(reg) &raw const operand,
            line = in(reg) 4 * EDGE,
            count = inout(reg) iterations => _,
            options(nostack),
        );
    }
}

/// Whether the processor has the instructions and the operating system lets this process use their registers, which is
/// requested here (Linux, Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
pub(crate) fn is_usable() -> bool {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};

    /// AMX-BF16 and AMX-TILE, in EDX of leaf 7.
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    /// The state of the tile registers and their configuration, in XCR0.
    const STATE: u64 = 1 << 17 | 1 << 18;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: XCR0 exists if XSAVE does.
        unsafe { _xgetbv(0) }
    }

    // SAFETY: `enabled_state` runs only where XSAVE is detected; the request only changes a permission of this process.
    __cpuid_count(7, 0).edx & FEATURES == FEATURES
        && is_x86_feature_detected!("xsave")
        && unsafe { enabled_state() } & STATE == STATE
        && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
}

/// AMX is not used on other systems.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_usable() -> bool {
    false
}
