//! Weights as a formula: every value of a leaf is a function of the leaf's name and the value's index.
//!
//! With `i` the index in C order and `seed` the FNV-1a hash of the JAX path:
//!
//! ```text
//! k = mix(seed + i) >> 40            24 bits of SplitMix64's output function
//! u = (k · 2^-23 − 1) · √3           the bracket is exact in f32, the product is rounded once
//! w = scale · u + offset             rounded after each operation, never fused
//! ```
//!
//! so `u` has variance 1 and `scale` is a gain over √fan_in. bf16 is `w` rounded to nearest even.
//! Invariant: the same bits everywhere. `golden/procedural/` holds check values recorded from JAX runs of these
//! weights; `cargo xtask synth --check` adds up every value of a published size.

pub(crate) mod recording;
pub(crate) mod tree;

use half::bf16;
use orbax::Dtype;

/// Bytes worth generating at a time: they fit a second-level cache.
pub(crate) const BUFFER_BYTES: usize = 1 << 20;

/// SplitMix64's increment and multipliers (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;
const MULTIPLY: [u64; 2] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB];
/// FNV-1a, 64 bits.
const FNV_BASIS: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;
/// √3, rounded once to f32.
const ROOT_3: f32 = f32::from_bits(0x3FDD_B3D7);

/// One array of a model's tree, and the formula of its values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Leaf {
    /// JAX path joined by `/`, without the root key and without a `value` suffix.
    pub(crate) name: String,
    /// Elements along each axis.
    pub(crate) shape: Vec<u64>,
    /// Hash of the name.
    pub(crate) seed: u64,
    /// Half the width of the values' interval, over √3.
    pub(crate) scale: f32,
    /// Added to every value.
    pub(crate) offset: f32,
}

impl Leaf {
    /// The formula for a leaf of this name and shape. `embedding_gain` is the one gain in which the models differ.
    fn new(name: String, shape: Vec<u64>, embedding_gain: f64) -> Self {
        let rule = rule(&name, &shape, embedding_gain);
        let scale = (rule.gain / (rule.fan_in as f64).sqrt()) as f32;
        Self { seed: hash(&name), name, shape, scale, offset: rule.offset }
    }

    /// Number of values.
    pub(crate) fn len(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Value `index`.
    #[cfg(test)]
    pub(crate) fn value(&self, index: u64) -> f32 {
        let mut value = [0.0];
        self.fill(index, &mut value);
        value[0]
    }

    /// Writes the values from `first` on into `values`. Plain loops, so that the compiler makes vectors of them.
    pub(crate) fn fill(&self, first: u64, values: &mut [f32]) {
        let start = self.seed.wrapping_add(first);
        for (index, value) in values.iter_mut().enumerate() {
            // 24 bits fit a signed integer, whose conversion is one instruction.
            let bits = (mix(start.wrapping_add(index as u64)) >> 40) as i32;
            let unit = (bits as f32 * (1.0 / 8_388_608.0) - 1.0) * ROOT_3;
            *value = self.scale * unit + self.offset;
        }
    }

    /// As [`Leaf::fill`], as little-endian bytes: bf16 rounded to nearest even for [`Dtype::Bf16`], else f32.
    /// `bytes` is a whole number of values; `values` is room to work in, kept by the caller.
    pub(crate) fn fill_bytes(&self, dtype: Dtype, first: u64, values: &mut Vec<f32>, bytes: &mut [u8]) {
        if dtype == Dtype::Bf16 {
            values.resize(bytes.len() / 2, 0.0);
            self.fill(first, values);
            for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(2)) {
                bytes.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
            }
        } else {
            values.resize(bytes.len() / 4, 0.0);
            self.fill(first, values);
            for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(4)) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// The wrapping 32-bit sum of the bit patterns of `len` values from `first` on.
    pub(crate) fn sum(&self, dtype: Dtype, first: u64, len: u64) -> u32 {
        let mut values = vec![0.0; BUFFER_BYTES / size_of::<f32>()];
        let (mut sum, mut done) = (0u32, 0);
        while done < len {
            let count = (len - done).min(values.len() as u64);
            let part = &mut values[..count as usize];
            self.fill(first + done, part);
            sum = part.iter().fold(sum, |sum, value| {
                sum.wrapping_add(match dtype {
                    Dtype::Bf16 => u32::from(bf16::from_f32(*value).to_bits()),
                    _ => value.to_bits(),
                })
            });
            done += count;
        }
        sum
    }
}

/// SplitMix64's output function.
pub(crate) fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(INCREMENT);
    let z = (z ^ (z >> 30)).wrapping_mul(MULTIPLY[0]);
    let z = (z ^ (z >> 27)).wrapping_mul(MULTIPLY[1]);
    z ^ (z >> 31)
}

fn hash(name: &str) -> u64 {
    name.bytes().fold(FNV_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

/// What makes a leaf's scale and offset.
struct Rule {
    gain: f64,
    fan_in: u64,
    offset: f32,
}

/// The first of these that matches the name; each keeps the activations of a random network at a sane size.
fn rule(name: &str, shape: &[u64], embedding_gain: f64) -> Rule {
    let fixed = |gain, offset| Rule { gain, fan_in: 1, offset };
    let spread = |gain, fan_in| Rule { gain, fan_in, offset: 0.0 };
    // Axis `back` counted from the last (1); a leaf has at least as many axes as its rule names.
    let axis = |back: usize| shape[shape.len() - back];
    let leaf = name.rsplit('/').next().unwrap_or(name);
    let module = name.rsplit('/').nth(1).unwrap_or("");
    match leaf {
        // SigLIP's LayerNorm multiplies by it, Gemma's RMSNorm by 1 + it.
        "scale" if module.starts_with("LayerNorm_") || module == "encoder_norm" => fixed(0.1, 1.0),
        "scale" => fixed(0.1, 0.0),
        "bias" => fixed(0.02, 0.0),
        "pos_embedding" => fixed(0.1, 0.0),
        "input_embedding" => spread(embedding_gain, axis(1)),
        // [H, W, I, O]
        "kernel" if module == "embedding" => spread(1.0, axis(2) * axis(3) * axis(4)),
        // [L, N, H, D]
        "kernel" if module == "out" => spread(1.0, axis(2) * axis(3)),
        "w" if module.starts_with("attn_vec_einsum") => spread(1.0, axis(2) * axis(3)),
        // [L, D, N, H]
        "kernel" if matches!(module, "query" | "key" | "value") => spread(1.0, axis(3)),
        // The modulation of an adaptive norm starts near zero.
        "kernel" if module == "Dense_0" && name.contains("norm") => spread(0.3, axis(2)),
        _ => spread(1.0, axis(2)),
    }
}

#[cfg(test)]
mod tests;
