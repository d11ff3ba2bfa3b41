//! JAX trees of the three models in memory, with sizes that never coincide.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;
use std::io::Cursor;

use orbax::{ArrayInfo, Chunk, Dtype, Order, Source};
use remap::Tensor;

pub const L: usize = 3;
pub const N: usize = 4;
pub const H: usize = 5;
pub const V: usize = 7;
pub const W: [usize; 2] = [11, 6];
pub const F: [usize; 2] = [13, 8];
pub const R: usize = 2;
pub const P: usize = 2;
pub const D: usize = 10;
const VISION: (usize, usize, usize, usize) = (2, 3, 9, 17); // L, N, H, F

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Model {
    Pi0,
    Pi05,
    Fast,
}

pub fn heads() -> BTreeMap<(String, char), u64> {
    [("img", 'N', VISION.1), ("llm", 'N', N), ("llm", 'K', 1)]
        .into_iter()
        .map(|(z, l, n)| ((z.to_owned(), l), n as u64))
        .collect()
}

/// Arrays in memory, perhaps cut into chunks.
#[derive(Debug, Clone)]
pub struct Arrays {
    infos: Vec<ArrayInfo>,
    data: Vec<Vec<u8>>,
    chunks: Vec<Vec<Vec<u8>>>,
}

impl PartialEq for Arrays {
    fn eq(&self, other: &Self) -> bool {
        let key = |a: &Arrays| {
            let all = a.infos.iter().zip(&a.data);
            all.map(|(i, d)| (i.name.clone(), (i.shape.clone(), i.dtype, d.clone()))).collect::<BTreeMap<_, _>>()
        };
        key(self) == key(other)
    }
}

impl Arrays {
    pub fn new(all: Vec<(Tensor, Vec<u8>)>) -> Self {
        let (mut infos, mut data) = (vec![], vec![]);
        for (t, bytes) in all {
            let chunk_shape = t.shape.clone();
            infos.push(ArrayInfo { name: t.name, shape: t.shape, dtype: t.dtype, order: Order::C, chunk_shape });
            data.push(bytes);
        }
        let chunks = data.iter().map(|d| vec![d.clone()]).collect();
        Arrays { infos, data, chunks }
    }

    pub fn tensors(&self) -> Vec<Tensor> {
        let tensor = |i: &ArrayInfo| Tensor { name: i.name.clone(), shape: i.shape.clone(), dtype: i.dtype };
        self.infos.iter().map(tensor).collect()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.infos.iter().map(|i| i.name.as_str())
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.infos.iter().position(|i| i.name == name)
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.position(name).map(|i| self.data[i].as_slice())
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        let bytes = self.get(name).unwrap_or_else(|| panic!("no {name}"));
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub fn all_f32(&self) -> impl Iterator<Item = f32> + '_ {
        self.data.iter().flat_map(|d| d.as_chunks::<4>().0).map(|b| f32::from_le_bytes(*b))
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let i = self.position(from).unwrap();
        self.infos[i].name = to.into();
    }

    pub fn remove(&mut self, name: &str) {
        let i = self.position(name).unwrap();
        self.infos.remove(i);
        self.data.remove(i);
        self.chunks.remove(i);
    }

    pub fn reshape(&mut self, name: &str, shape: &[u64]) {
        let i = self.position(name).unwrap();
        self.infos[i].shape = shape.to_vec();
        self.infos[i].chunk_shape = shape.to_vec();
    }

    /// The same arrays in ragged chunks of pseudo-random shape and the given order inside.
    pub fn cut(mut self, seed: u64, order: Order) -> Self {
        let mut state = seed;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            1 + (state >> 33) % n
        };
        for (i, info) in self.infos.iter_mut().enumerate() {
            info.order = order;
            info.chunk_shape = info.shape.iter().map(|n| random(*n)).collect();
            let size = info.dtype.size();
            let grid: Vec<u64> = info.shape.iter().zip(&info.chunk_shape).map(|(n, c)| n.div_ceil(*c)).collect();
            let rank = grid.len();
            let mut chunks = vec![];
            for k in 0..grid.iter().product::<u64>() {
                let mut origin = vec![0; rank];
                let mut rest = k;
                for a in (0..rank).rev() {
                    origin[a] = rest % grid[a] * info.chunk_shape[a];
                    rest /= grid[a];
                }
                let axes: Vec<usize> = if order == Order::C { (0..rank).collect() } else { (0..rank).rev().collect() };
                let mut bytes = vec![];
                for flat in 0..info.chunk_shape.iter().product::<u64>() {
                    let mut at = vec![0; rank];
                    let mut rest = flat;
                    for a in axes.iter().rev() {
                        at[*a] = origin[*a] + rest % info.chunk_shape[*a];
                        rest /= info.chunk_shape[*a];
                    }
                    let inside = at.iter().zip(&info.shape).all(|(i, n)| i < n);
                    let from = at.iter().zip(&info.shape).fold(0, |f, (i, n)| f * n + i) as usize * size;
                    // Padding is garbage on purpose.
                    if inside {
                        bytes.extend_from_slice(&self.data[i][from..from + size]);
                    } else {
                        bytes.extend(std::iter::repeat_n(0xaa, size));
                    }
                }
                chunks.push(bytes);
            }
            self.chunks[i] = chunks;
        }
        self
    }
}

impl Source for Arrays {
    fn arrays(&self) -> &[ArrayInfo] {
        &self.infos
    }
    fn chunk(&self, array: usize, chunk: u64) -> orbax::Result<Chunk<'_>> {
        Ok(Chunk::Stream(Box::new(Cursor::new(&self.chunks[array][chunk as usize]))))
    }
    fn stored_len(&self, array: usize, chunk: u64) -> orbax::Result<u64> {
        Ok(self.chunks[array][chunk as usize].len() as u64)
    }
}

/// The tree of a model as openpi saves it, filled with numbers that are all different.
pub fn jax(model: Model, lora: bool) -> Arrays {
    let (vl, vn, vh, vf) = VISION;
    let mut t: Vec<(String, Vec<usize>)> = vec![];
    let mut add = |name: &str, shape: &[usize]| t.push((name.to_owned(), shape.to_vec()));
    add("PaliGemma/img/embedding/kernel", &[P, P, 3, D]);
    add("PaliGemma/img/embedding/bias", &[D]);
    add("PaliGemma/img/pos_embedding", &[1, 4, D]);
    add("PaliGemma/img/Transformer/encoder_norm/scale", &[D]);
    add("PaliGemma/img/Transformer/encoder_norm/bias", &[D]);
    add("PaliGemma/img/head/kernel", &[D, W[0]]);
    add("PaliGemma/img/head/bias", &[W[0]]);
    add("PaliGemma/llm/embedder/input_embedding", &[V, W[0]]);
    let b = "PaliGemma/img/Transformer/encoderblock";
    for i in 0..2 {
        add(&format!("{b}/LayerNorm_{i}/scale"), &[vl, D]);
        add(&format!("{b}/LayerNorm_{i}/bias"), &[vl, D]);
    }
    for p in ["query", "key", "value"] {
        add(&format!("{b}/MultiHeadDotProductAttention_0/{p}/kernel"), &[vl, D, vn, vh]);
        add(&format!("{b}/MultiHeadDotProductAttention_0/{p}/bias"), &[vl, vn, vh]);
    }
    add(&format!("{b}/MultiHeadDotProductAttention_0/out/kernel"), &[vl, vn, vh, D]);
    add(&format!("{b}/MultiHeadDotProductAttention_0/out/bias"), &[vl, D]);
    add(&format!("{b}/MlpBlock_0/Dense_0/kernel"), &[vl, D, vf]);
    add(&format!("{b}/MlpBlock_0/Dense_0/bias"), &[vl, vf]);
    add(&format!("{b}/MlpBlock_0/Dense_1/kernel"), &[vl, vf, D]);
    add(&format!("{b}/MlpBlock_0/Dense_1/bias"), &[vl, D]);
    let experts = if model == Model::Fast { 1 } else { 2 };
    for (e, suffix) in ["", "_1"].iter().enumerate().take(experts) {
        let (w, f) = (W[e], F[e]);
        let l = "PaliGemma/llm/layers";
        add(&format!("{l}/attn/q_einsum{suffix}/w"), &[L, N, w, H]);
        add(&format!("{l}/attn/kv_einsum{suffix}/w"), &[L, 2, 1, w, H]);
        add(&format!("{l}/attn/attn_vec_einsum{suffix}/w"), &[L, N, H, w]);
        add(&format!("{l}/mlp{suffix}/gating_einsum"), &[L, 2, w, f]);
        add(&format!("{l}/mlp{suffix}/linear"), &[L, f, w]);
        if lora {
            add(&format!("{l}/attn/q_einsum{suffix}/lora_a"), &[L, N, w, R]);
            add(&format!("{l}/attn/q_einsum{suffix}/lora_b"), &[L, N, R, H]);
            add(&format!("{l}/attn/kv_einsum{suffix}/lora_a"), &[L, 2, 1, w, R]);
            add(&format!("{l}/attn/kv_einsum{suffix}/lora_b"), &[L, 2, 1, R, H]);
            add(&format!("{l}/attn/attn_vec_einsum{suffix}/lora_a"), &[L, N, H, R]);
            add(&format!("{l}/attn/attn_vec_einsum{suffix}/lora_b"), &[L, N, R, w]);
            add(&format!("{l}/mlp{suffix}/gating_einsum_lora_a"), &[L, 2, w, R]);
            add(&format!("{l}/mlp{suffix}/gating_einsum_lora_b"), &[L, 2, R, f]);
            add(&format!("{l}/mlp{suffix}/linear_lora_a"), &[L, f, R]);
            add(&format!("{l}/mlp{suffix}/linear_lora_b"), &[L, R, w]);
        }
        for (norm, stack) in [("layers/pre_attention_norm", true), ("layers/pre_ffw_norm", true), ("final_norm", false)]
        {
            let lead: &[usize] = if stack { &[L] } else { &[] };
            if model == Model::Pi05 && e == 1 {
                add(&format!("PaliGemma/llm/{norm}{suffix}/Dense_0/kernel"), &[lead, &[w, 3 * w]].concat());
                add(&format!("PaliGemma/llm/{norm}{suffix}/Dense_0/bias"), &[lead, &[3 * w]].concat());
            } else {
                add(&format!("PaliGemma/llm/{norm}{suffix}/scale"), &[lead, &[w]].concat());
            }
        }
    }
    let w = W[1];
    let projections: &[(&str, usize, usize)] = match model {
        Model::Pi0 => &[
            ("action_in_proj", 3, w),
            ("action_out_proj", w, 3),
            ("state_proj", 3, w),
            ("action_time_mlp_in", 2 * w, w),
            ("action_time_mlp_out", w, w),
        ],
        Model::Pi05 => {
            &[("action_in_proj", 3, w), ("action_out_proj", w, 3), ("time_mlp_in", w, w), ("time_mlp_out", w, w)]
        }
        Model::Fast => &[],
    };
    for (name, x, y) in projections {
        add(&format!("{name}/kernel"), &[*x, *y]);
        add(&format!("{name}/bias"), &[*y]);
    }
    let mut seed = 1u32;
    let all = t.into_iter().map(|(name, shape)| {
        let data = (0..shape.iter().product::<usize>())
            .flat_map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((seed >> 8) as f32 / 8_388_608.0 - 1.0).to_le_bytes()
            })
            .collect();
        let shape = shape.iter().map(|n| *n as u64).collect();
        (Tensor { name, shape, dtype: Dtype::F32 }, data)
    });
    Arrays::new(all.collect())
}
