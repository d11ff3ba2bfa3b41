//! The engines of [`gemm`](super::gemm): AMX, AVX512-BF16, AVX-512, AVX2, and plain Rust for every machine.
//!
//! The first two multiply bf16 by bf16; the others widen bf16 weights in registers, or take f32 weights as they are, and
//! multiply them with f32 activations.
//!
//! Invariant: every engine gives the sums of the same products; they differ in the order of adding alone (and AMX and
//! AVX512-BF16 in taking subnormal bf16 numbers as zero).
#![allow(unsafe_code)]

use std::marker::PhantomData;

use super::gemm::{DEEP, Engine, PANEL, TILE};

/// Plain Rust, for every machine.
pub(crate) struct Plain<B>(PhantomData<B>);

/// An element of packed weights that the widening engines read.
pub(crate) trait Weight: Copy + Send + Sync + 'static {
    /// Where column `c` of inner row `k` lies in a tile.
    fn slot(k: usize, c: usize) -> usize;
    fn wide(self) -> f32;
}

impl Weight for u16 {
    #[inline(always)]
    fn slot(k: usize, c: usize) -> usize {
        k / 2 * 2 * PANEL + 2 * c + k % 2
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }
}

impl Weight for f32 {
    #[inline(always)]
    fn slot(k: usize, c: usize) -> usize {
        k * PANEL + c
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl<B: Weight> Engine for Plain<B> {
    type A = f32;
    type B = B;

    unsafe fn start() -> Self {
        Plain(PhantomData)
    }

    unsafe fn rows(
        &self,
        a: *const f32,
        panel: usize,
        b: [*const B; 2],
        tiles: usize,
        c: *mut f32,
        stride: usize,
        rows: usize,
        accumulate: bool,
    ) {
        for row in 0..rows {
            for (half, b) in b.into_iter().enumerate() {
                // SAFETY: the caller vouches for these 16 columns of the row, and for the tiles below.
                let c = unsafe { std::slice::from_raw_parts_mut(c.add(row * stride + half * PANEL), PANEL) };
                let mut sums = [0f32; PANEL];
                if accumulate {
                    sums.copy_from_slice(c);
                }
                for t in 0..tiles {
                    // SAFETY: as above.
                    let (a, b) = unsafe {
                        let a = a.add(row / PANEL * panel + t * TILE + row % PANEL * DEEP);
                        (std::slice::from_raw_parts(a, DEEP), std::slice::from_raw_parts(b.add(t * TILE), TILE))
                    };
                    for (k, x) in a.iter().enumerate() {
                        for (column, sum) in sums.iter_mut().enumerate() {
                            *sum += x * b[B::slot(k, column)].wide();
                        }
                    }
                }
                c.copy_from_slice(&sums);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{AmxBf16, Avx2, Avx512, Avx512Bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::marker::PhantomData;

    use super::super::amx::Tiles;
    use super::super::gemm::{DEEP, Engine, PANEL, TILE};
    use super::Weight;

    /// bf16 × bf16 on tiles.
    pub(crate) struct AmxBf16(Tiles);
    /// bf16 × bf16, pairs at a time.
    pub(crate) struct Avx512Bf16;
    /// f32 × widened bf16 or f32, 16 lanes.
    pub(crate) struct Avx512<B>(PhantomData<B>);
    /// f32 × widened bf16 or f32, 8 lanes.
    pub(crate) struct Avx2<B>(PhantomData<B>);

    /// What computes a few rows: from activations `A` and weights `P`, that many tiles, into sums of that stride, from
    /// zero or accumulating.
    type Kernel<A, P> = unsafe fn(*const A, P, usize, *mut f32, usize, bool);

    /// Goes down the rows of every panel, as many at a time as there are kernels for: `kernels[r - 1]` takes r rows.
    ///
    /// # Safety
    /// As [`Engine::rows`]; the CPU has what the kernels are made for.
    #[allow(clippy::too_many_arguments)]
    unsafe fn in_blocks<A, P: Copy>(
        kernels: &[Kernel<A, P>],
        a: *const A,
        panel: usize,
        b: P,
        tiles: usize,
        c: *mut f32,
        stride: usize,
        rows: usize,
        accumulate: bool,
    ) {
        let mut row = 0;
        while row < rows {
            let inside = row % PANEL;
            let count = (rows - row).min(PANEL - inside).min(kernels.len());
            // SAFETY: the rows are within the panel and the sums; the caller vouches for both and for the CPU.
            unsafe {
                let a = a.add(row / PANEL * panel + inside * DEEP);
                kernels[count - 1](a, b, tiles, c.add(row * stride), stride, accumulate);
            }
            row += count;
        }
    }

    impl Engine for AmxBf16 {
        type A = u16;
        type B = u16;

        unsafe fn start() -> Self {
            // SAFETY: the caller vouches for AMX.
            AmxBf16(unsafe { Tiles::configure() })
        }

        unsafe fn rows(
            &self,
            a: *const u16,
            panel: usize,
            [b0, b1]: [*const u16; 2],
            tiles: usize,
            c: *mut f32,
            stride: usize,
            rows: usize,
            accumulate: bool,
        ) {
            for row in (0..rows).step_by(2 * PANEL) {
                // SAFETY: activations and sums reach to the next multiple of 32 rows, by the caller's word.
                unsafe {
                    let a0 = a.add(row / PANEL * panel).cast::<u8>();
                    let a1 = a.add((row / PANEL + 1) * panel).cast::<u8>();
                    let c = c.add(row * stride);
                    self.0.block([a0, a1], [b0.cast(), b1.cast()], tiles, c, stride * size_of::<f32>(), accumulate);
                }
            }
        }
    }

    impl Engine for Avx512Bf16 {
        type A = u16;
        type B = u16;

        unsafe fn start() -> Self {
            Avx512Bf16
        }

        unsafe fn rows(
            &self,
            a: *const u16,
            panel: usize,
            b: [*const u16; 2],
            tiles: usize,
            c: *mut f32,
            stride: usize,
            rows: usize,
            accumulate: bool,
        ) {
            const KERNELS: [Kernel<u16, [*const u16; 2]>; 8] =
                [pairs::<1>, pairs::<2>, pairs::<3>, pairs::<4>, pairs::<5>, pairs::<6>, pairs::<7>, pairs::<8>];
            // SAFETY: by the caller's word.
            unsafe { in_blocks(&KERNELS, a, panel, b, tiles, c, stride, rows, accumulate) }
        }
    }

    /// `R` rows × 32 columns of bf16 products.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pairs<const R: usize>(
        a: *const u16,
        [b0, b1]: [*const u16; 2],
        tiles: usize,
        c: *mut f32,
        stride: usize,
        accumulate: bool,
    ) {
        // SAFETY: the caller vouches for `R` rows of tiles at `a`, for the tiles at `b0` and `b1` and for `c`; the
        // transmutes are between two names of one 512-bit register.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            if accumulate {
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm512_loadu_ps(c.add(r * stride)), _mm512_loadu_ps(c.add(r * stride + PANEL))];
                }
            }
            for t in 0..tiles {
                let (a, b0, b1) = (a.add(t * TILE), b0.add(t * TILE), b1.add(t * TILE));
                for p in 0..DEEP / 2 {
                    let w0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b0.add(p * 2 * PANEL).cast()));
                    let w1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b1.add(p * 2 * PANEL).cast()));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let pair = a.add(r * DEEP + 2 * p).cast::<i32>().read_unaligned();
                        let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair));
                        sums[0] = _mm512_dpbf16_ps(sums[0], x, w0);
                        sums[1] = _mm512_dpbf16_ps(sums[1], x, w1);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(r * stride), sums[0]);
                _mm512_storeu_ps(c.add(r * stride + PANEL), sums[1]);
            }
        }
    }

    /// How a pair of inner rows of packed weights is brought into two registers of f32.
    pub(crate) trait Load: Weight {
        /// # Safety
        /// The CPU has AVX-512 F, BW; the tile is readable.
        unsafe fn pair512(tile: *const Self, pair: usize) -> [__m512; 2];
        /// Columns `8 half` to `8 half + 8`.
        ///
        /// # Safety
        /// The CPU has AVX2; the tile is readable.
        unsafe fn pair256(tile: *const Self, pair: usize, half: usize) -> [__m256; 2];
    }

    impl Load for u16 {
        #[inline(always)]
        unsafe fn pair512(tile: *const u16, pair: usize) -> [__m512; 2] {
            // SAFETY: by the caller's word; a bf16 number is the upper half of its f32.
            unsafe {
                let both = _mm512_loadu_si512(tile.add(pair * 2 * PANEL).cast());
                let upper = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(upper)]
            }
        }

        #[inline(always)]
        unsafe fn pair256(tile: *const u16, pair: usize, half: usize) -> [__m256; 2] {
            // SAFETY: as above.
            unsafe {
                let both = _mm256_loadu_si256(tile.add(pair * 2 * PANEL + half * PANEL).cast());
                let upper = _mm256_and_si256(both, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)), _mm256_castsi256_ps(upper)]
            }
        }
    }

    impl Load for f32 {
        #[inline(always)]
        unsafe fn pair512(tile: *const f32, pair: usize) -> [__m512; 2] {
            // SAFETY: by the caller's word.
            unsafe {
                let tile = tile.add(pair * 2 * PANEL);
                [_mm512_loadu_ps(tile), _mm512_loadu_ps(tile.add(PANEL))]
            }
        }

        #[inline(always)]
        unsafe fn pair256(tile: *const f32, pair: usize, half: usize) -> [__m256; 2] {
            // SAFETY: by the caller's word.
            unsafe {
                let tile = tile.add(pair * 2 * PANEL + half * PANEL / 2);
                [_mm256_loadu_ps(tile), _mm256_loadu_ps(tile.add(PANEL))]
            }
        }
    }

    impl<B: Load> Engine for Avx512<B> {
        type A = f32;
        type B = B;

        unsafe fn start() -> Self {
            Avx512(PhantomData)
        }

        unsafe fn rows(
            &self,
            a: *const f32,
            panel: usize,
            b: [*const B; 2],
            tiles: usize,
            c: *mut f32,
            stride: usize,
            rows: usize,
            accumulate: bool,
        ) {
            let kernels: [Kernel<f32, [*const B; 2]>; 8] = [
                wide512::<B, 1>,
                wide512::<B, 2>,
                wide512::<B, 3>,
                wide512::<B, 4>,
                wide512::<B, 5>,
                wide512::<B, 6>,
                wide512::<B, 7>,
                wide512::<B, 8>,
            ];
            // SAFETY: by the caller's word.
            unsafe { in_blocks(&kernels, a, panel, b, tiles, c, stride, rows, accumulate) }
        }
    }

    /// `R` rows × 32 columns of f32 products.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn wide512<B: Load, const R: usize>(
        a: *const f32,
        [b0, b1]: [*const B; 2],
        tiles: usize,
        c: *mut f32,
        stride: usize,
        accumulate: bool,
    ) {
        // SAFETY: the caller vouches for `R` rows of tiles at `a`, for the tiles at `b0` and `b1` and for `c`.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            if accumulate {
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm512_loadu_ps(c.add(r * stride)), _mm512_loadu_ps(c.add(r * stride + PANEL))];
                }
            }
            for t in 0..tiles {
                let (a, b0, b1) = (a.add(t * TILE), b0.add(t * TILE), b1.add(t * TILE));
                for p in 0..DEEP / 2 {
                    let [first0, second0] = B::pair512(b0, p);
                    let [first1, second1] = B::pair512(b1, p);
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*a.add(r * DEEP + 2 * p));
                        sums[0] = _mm512_fmadd_ps(x, first0, sums[0]);
                        sums[1] = _mm512_fmadd_ps(x, first1, sums[1]);
                        let x = _mm512_set1_ps(*a.add(r * DEEP + 2 * p + 1));
                        sums[0] = _mm512_fmadd_ps(x, second0, sums[0]);
                        sums[1] = _mm512_fmadd_ps(x, second1, sums[1]);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(r * stride), sums[0]);
                _mm512_storeu_ps(c.add(r * stride + PANEL), sums[1]);
            }
        }
    }

    impl<B: Load> Engine for Avx2<B> {
        type A = f32;
        type B = B;

        unsafe fn start() -> Self {
            Avx2(PhantomData)
        }

        unsafe fn rows(
            &self,
            a: *const f32,
            panel: usize,
            b: [*const B; 2],
            tiles: usize,
            c: *mut f32,
            stride: usize,
            rows: usize,
            accumulate: bool,
        ) {
            let kernels: [Kernel<f32, *const B>; 4] =
                [wide256::<B, 1>, wide256::<B, 2>, wide256::<B, 3>, wide256::<B, 4>];
            for (half, b) in b.into_iter().enumerate() {
                // SAFETY: the columns of this panel; otherwise by the caller's word.
                unsafe {
                    let c = c.add(half * PANEL);
                    in_blocks(&kernels, a, panel, b, tiles, c, stride, rows, accumulate);
                }
            }
        }
    }

    /// `R` rows × 16 columns of f32 products.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn wide256<B: Load, const R: usize>(
        a: *const f32,
        b: *const B,
        tiles: usize,
        c: *mut f32,
        stride: usize,
        accumulate: bool,
    ) {
        // SAFETY: the caller vouches for `R` rows of tiles at `a`, for the tiles at `b` and for `c`.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            if accumulate {
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm256_loadu_ps(c.add(r * stride)), _mm256_loadu_ps(c.add(r * stride + 8))];
                }
            }
            for t in 0..tiles {
                let (a, b) = (a.add(t * TILE), b.add(t * TILE));
                for p in 0..DEEP / 2 {
                    let [first0, second0] = B::pair256(b, p, 0);
                    let [first1, second1] = B::pair256(b, p, 1);
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = _mm256_set1_ps(*a.add(r * DEEP + 2 * p));
                        sums[0] = _mm256_fmadd_ps(x, first0, sums[0]);
                        sums[1] = _mm256_fmadd_ps(x, first1, sums[1]);
                        let x = _mm256_set1_ps(*a.add(r * DEEP + 2 * p + 1));
                        sums[0] = _mm256_fmadd_ps(x, second0, sums[0]);
                        sums[1] = _mm256_fmadd_ps(x, second1, sums[1]);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                _mm256_storeu_ps(c.add(r * stride), sums[0]);
                _mm256_storeu_ps(c.add(r * stride + 8), sums[1]);
            }
        }
    }
}
