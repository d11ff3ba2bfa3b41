//! What this CPU can do, found once at run time, and the macro that compiles one body for each answer.
//!
//! Invariant: code compiled for an instruction set runs only after [`level`] has seen it on this machine, so one binary
//! runs everywhere.

use std::sync::OnceLock;

/// What the inner loops may use; each level has all of the former.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What every machine of this architecture has.
    Plain,
    /// AVX2 and FMA: 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 16 lanes.
    Avx512,
    /// AVX512-BF16: products of bf16 pairs added in f32.
    Avx512Bf16,
    /// AMX-BF16 tiles: 16 × 16 sums of 32 products an instruction.
    Amx,
}

impl Level {
    pub(crate) const ALL: [Level; 5] = [Level::Plain, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];
}

/// The best level of this machine.
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| Level::ALL.into_iter().rev().find(|level| has(*level)).unwrap_or(Level::Plain))
}

/// Whether this machine has that level.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has(level: Level) -> bool {
    match level {
        Level::Plain => true,
        Level::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        Level::Avx512 => {
            has(Level::Avx2)
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        }
        Level::Avx512Bf16 => has(Level::Avx512) && is_x86_feature_detected!("avx512bf16"),
        // Never yet seen to run: whoever has such a CPU asks for it, and `cargo test` with it tests this path as well.
        Level::Amx => std::env::var_os("PI0_AMX").is_some() && has(Level::Avx512Bf16) && super::amx::permitted(),
    }
}

/// Whether this machine has that level.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn has(level: Level) -> bool {
    level == Level::Plain
}

/// Compiles the body of a function for AVX-512, for AVX2 and for every machine, and calls the best one. What the body
/// calls must be `#[inline(always)]`, else it is compiled without those instructions.
macro_rules! vectorised {
    ($(#[$attr:meta])* $vis:vis fn $name:ident<$($g:ident: $bound:path),*>($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$attr])*
        #[allow(unsafe_code)]
        $vis fn $name<$($g: $bound),*>($($arg: $ty),*) {
            #[inline(always)]
            fn body<$($g: $bound),*>($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<$($g: $bound),*>($($arg: $ty),*) { body::<$($g),*>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($g: $bound),*>($($arg: $ty),*) { body::<$($g),*>($($arg),*) }

                use $crate::kernels::cpu::{Level, level};
                if level() >= Level::Avx512 {
                    // SAFETY: `level` has seen these features on this CPU.
                    return unsafe { avx512::<$($g),*>($($arg),*) };
                }
                if level() >= Level::Avx2 {
                    // SAFETY: as above.
                    return unsafe { avx2::<$($g),*>($($arg),*) };
                }
            }
            body::<$($g),*>($($arg),*)
        }
    };
}
pub(crate) use vectorised;
