//! The two activation types, f32 and bf16, seen alike, and the exponential function of the inner loops.
//!
//! Source: the reduction by ln 2 in two parts is Cody and Waite's (*Software Manual for the Elementary Functions*, 1980);
//! the polynomial is the Taylor series to degree 7, whose remainder on |r| ≤ ln 2 / 2 is below 6e-9.
//!
//! Invariant: everything here is branch-free and inlined, so that loops over it vectorise. NaN stays NaN.

use burn::tensor::Element;
use half::bf16;

/// f32 or bf16: read exactly into f32, written with one rounding to nearest even.
pub(crate) trait Real: Element + Copy + Send + Sync + 'static {
    fn wide(self) -> f32;
    fn narrow(x: f32) -> Self;
    /// `f(x)` for f32; for bf16 what a table of all 65536 numbers says, by bits.
    fn map_or_look_up(self, f: impl Fn(f32) -> f32, table: &[u16]) -> Self;
    /// That many zeros, of memory that the system has zeroed and nobody has touched yet, so that the first touch is
    /// shared among the threads.
    fn zeros(count: usize) -> Vec<Self>;
}

impl Real for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn map_or_look_up(self, f: impl Fn(f32) -> f32, _: &[u16]) -> f32 {
        f(self)
    }
    fn zeros(count: usize) -> Vec<f32> {
        vec![0.0; count]
    }
}

impl Real for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        bf16::from_bits(bf16_bits(x))
    }
    #[inline(always)]
    fn map_or_look_up(self, _: impl Fn(f32) -> f32, table: &[u16]) -> bf16 {
        bf16::from_bits(table[usize::from(self.to_bits())])
    }
    fn zeros(count: usize) -> Vec<bf16> {
        use half::vec::HalfBitsVecExt;
        vec![0u16; count].reinterpret_into()
    }
}

/// The bits of `x` rounded to bf16: the carry out of the lower half rounds, and goes over into the exponent where it must.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    // A NaN must not be carried into infinity: its quiet bit is set instead.
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// e^x to about 1 ulp; 0 below −104, infinite above 89.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Added to a number of the range below, it pushes the fraction out of the mantissa: rounding without a branch.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Written so that NaN goes through.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let p = 1.984_127e-4f32;
    let p = p.mul_add(r, 1.388_888_9e-3);
    let p = p.mul_add(r, 8.333_334e-3);
    let p = p.mul_add(r, 4.166_666_8e-2);
    let p = p.mul_add(r, 1.666_666_7e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors: n reaches from −150 to 128, beyond one exponent on both sides.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// 2^n for |n| < 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_and_reaches_both_ends() {
        let mut worst = 0f64;
        for i in 0..400_000 {
            let x = -87.0 + i as f32 * (175.0 / 400_000.0);
            let truth = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - truth) / truth).abs());
        }
        assert!(worst < 1.3e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-2.4e38), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn bf16_is_rounded_as_the_crate_half_rounds() {
        let mut bits = 1u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(bits);
            assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x:e}");
        }
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0, -0.0, f32::from_bits(0x7f80_0001)] {
            assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x:e}");
        }
    }
}
