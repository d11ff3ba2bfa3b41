//! bf16 products on AMX tiles, by inline assembly: the intrinsics are not stable yet.
//!
//! Source: Intel Architecture Instruction Set Extensions Programming Reference, chapter 3 (Intel AMX); Linux
//! `Documentation/arch/x86/xstate.rst` for `arch_prctl`.
//!
//! A tile register holds 16 rows of 64 bytes. tmm0 to tmm3 are the sums of a 32 × 32 block, tmm4 and tmm5 two tiles of
//! activations, tmm6 and tmm7 two of weights. Every tile in memory is 1024 bytes in a row.
//!
//! Invariant: tiles are configured and released within one call of [`Tiles`]'s life, on one thread; subnormal bf16 inputs
//! count as zero, as the instruction has it.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The eight tiles in full size.
static FULL: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether CPU and kernel let this process use tiles; asks the kernel for its permission.
#[cfg(target_os = "linux")]
pub(crate) fn permitted() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let edx = __cpuid_count(7, 0).edx;
    if edx & AMX_BF16 == 0 || edx & AMX_TILE == 0 {
        return false;
    }
    let answer: i64;
    // SAFETY: the system call takes two numbers and touches no memory of ours; it clobbers rcx and r11 alone.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    answer == 0
}

/// Whether CPU and kernel let this process use tiles: only Linux is asked.
#[cfg(not(target_os = "linux"))]
pub(crate) fn permitted() -> bool {
    false
}

/// The configured tiles of this thread, released at the end.
pub(crate) struct Tiles {
    /// The registers belong to the thread.
    _here: std::marker::PhantomData<*const ()>,
}

impl Tiles {
    /// Configures the tiles of this thread.
    ///
    /// # Safety
    /// [`permitted`] has answered true.
    pub(crate) unsafe fn configure() -> Tiles {
        // SAFETY: the CPU has AMX by the caller's word, and the configuration is a valid one of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const FULL, options(nostack, readonly)) };
        Tiles { _here: std::marker::PhantomData }
    }

    /// `c[32][32] (+)= a[32][32 k] · b[32 k][32]`, k = 32 × `tiles`.
    ///
    /// # Safety
    /// `a0`, `a1` (16 rows each) and `b0`, `b1` (16 columns each) are readable for `tiles` × 1024 bytes; `c` is writable
    /// for 32 rows of 32 f32 with `row_bytes` between them. `tiles` is not 0.
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn block(
        &self,
        [a0, a1]: [*const u8; 2],
        [b0, b1]: [*const u8; 2],
        tiles: usize,
        c: *mut f32,
        row_bytes: usize,
        accumulate: bool,
    ) {
        // SAFETY: `Tiles` is configured on this thread; all addresses are within what the caller vouches for.
        unsafe {
            let c00 = c.cast::<u8>();
            let c01 = c00.add(64);
            let c10 = c00.add(16 * row_bytes);
            let c11 = c10.add(64);
            if accumulate {
                asm!(
                    "tileloadd tmm0, [{c00} + {s}*1]",
                    "tileloadd tmm1, [{c01} + {s}*1]",
                    "tileloadd tmm2, [{c10} + {s}*1]",
                    "tileloadd tmm3, [{c11} + {s}*1]",
                    c00 = in(reg) c00, c01 = in(reg) c01, c10 = in(reg) c10, c11 = in(reg) c11, s = in(reg) row_bytes,
                    options(nostack)
                );
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack));
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{a0} + {s}*1]",
                "tileloadd tmm6, [{b0} + {s}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {s}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {s}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {n}",
                "jnz 2b",
                a0 = inout(reg) a0 => _, a1 = inout(reg) a1 => _, b0 = inout(reg) b0 => _, b1 = inout(reg) b1 => _,
                n = inout(reg) tiles => _, s = in(reg) 64usize,
                options(nostack)
            );
            asm!(
                "tilestored [{c00} + {s}*1], tmm0",
                "tilestored [{c01} + {s}*1], tmm1",
                "tilestored [{c10} + {s}*1], tmm2",
                "tilestored [{c11} + {s}*1], tmm3",
                c00 = in(reg) c00, c01 = in(reg) c01, c10 = in(reg) c10, c11 = in(reg) c11, s = in(reg) row_bytes,
                options(nostack)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles of this thread are configured; releasing them has no other effect.
        unsafe { asm!("tilerelease", options(nostack)) };
    }
}
