//! Gemma with one or two experts: each token belongs to an expert with its own weights, and all attend together.
//!
//! Invariants: an input of `None` is an expert that does not run; k is cached after RoPE; every product is in the
//! activations' dtype. Sources: openpi 15a9616, models/gemma.py and models/gemma_fast.py.
//! Letters: B batch, T query, S key, N heads, K kv heads, H head size, W width, F hidden, V vocabulary, E expert.

use burn::module::{Module, Param};
use burn::tensor::{Bool, DType, Device, Int, Tensor};

use super::cache::Cache;
use super::linear::{FromHeads, IntoHeads, Linear, joined, param, wider};
use super::norm::{Modulation, RmsNorm};
use super::rope::Rope;
use super::settings;
use crate::kernels;

/// The language model and the action expert.
#[derive(Module, Debug)]
pub struct Language {
    /// Words to vectors, and vectors to logits.
    pub embed: Embed,
    /// Transformer blocks.
    pub blocks: Vec<Block>,
    /// The last norm of each expert.
    pub norms: Vec<RmsNorm>,
}

/// The table of word vectors.
#[derive(Module, Debug)]
pub struct Embed {
    /// `[V, W]`.
    pub weight: Param<Tensor<2>>,
}

/// A layer: one slice of it for each expert.
#[derive(Module, Debug)]
pub struct Block {
    /// By expert.
    pub experts: Vec<Expert>,
}

/// An expert's weights of one layer.
#[derive(Module, Debug)]
pub struct Expert {
    /// Before the attention.
    pub norm1: RmsNorm,
    /// `[W, N H]`.
    pub q: IntoHeads,
    /// `[W, K H]`.
    pub k: IntoHeads,
    /// `[W, K H]`.
    pub v: IntoHeads,
    /// `[N H, W]`.
    pub o: FromHeads,
    /// Before the feed-forward.
    pub norm2: RmsNorm,
    /// `[W, F]`.
    pub gate: Linear,
    /// `[W, F]`.
    pub up: Linear,
    /// `[F, W]`.
    pub down: Linear,
}

/// Where the queries stand and what they may see.
#[derive(Debug, Clone)]
pub struct Attend {
    /// sin and cos at their positions.
    pub rope: Rope,
    /// `[B, T, S]`; `None` if everything is seen.
    pub mask: Option<Tensor<3, Bool>>,
    /// pi0-FAST leaves q in f32 after RoPE; the others round it.
    pub query_f32: bool,
    /// Keys and values of zero after the others, as in a cache that is not full. They only weigh on queries that see
    /// nothing.
    pub unused_keys: usize,
}

/// What the time makes of every norm of an adaptive expert.
#[derive(Debug, Clone)]
pub struct Modulations {
    /// By layer: before the attention, before the feed-forward.
    pub layers: Vec<[Modulation; 2]>,
    /// Of the last norm.
    pub last: Modulation,
}

impl Modulations {
    /// Of one row of the conditions: what every row of a batch shares.
    pub fn row(&self, row: usize) -> Self {
        Modulations {
            layers: self.layers.iter().map(|[a, b]| [a.row(row), b.row(row)]).collect(),
            last: self.last.row(row),
        }
    }

    /// `first` for so many tokens, `then` for so many more; both of one row.
    pub fn by_token((first, n): (&Self, usize), (then, m): (&Self, usize)) -> Self {
        let both = |a, b| Modulation::by_token((a, n), (b, m));
        let layers = first.layers.iter().zip(&then.layers);
        Modulations {
            layers: layers.map(|([a, b], [c, d])| [both(a, c), both(b, d)]).collect(),
            last: both(&first.last, &then.last),
        }
    }
}

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// To the last norm.
    Whole,
    /// Only until the keys and values of the last layer are there: all that a cache needs.
    Cache,
}

impl Language {
    /// Experts of these sizes.
    pub fn init(experts: &[settings::Expert], vocabulary: usize, device: &Device) -> Self {
        let width = experts.first().map_or(0, |e| e.width);
        let depth = experts.first().map_or(0, |e| e.depth);
        let block = || Block { experts: experts.iter().map(|e| Expert::init(e, device)).collect() };
        Language {
            embed: Embed { weight: param([vocabulary, width], device) },
            blocks: (0..depth).map(|_| block()).collect(),
            norms: experts.iter().map(|e| RmsNorm::init(e.width, e.adaptive, device)).collect(),
        }
    }

    /// Makes the weights ready for fast products on the CPU.
    pub(crate) fn pack(&mut self) {
        for x in self.blocks.iter_mut().flat_map(|b| &mut b.experts) {
            [&mut x.q, &mut x.k, &mut x.v].into_iter().for_each(IntoHeads::pack);
            x.o.pack();
            [&mut x.gate, &mut x.up, &mut x.down].into_iter().for_each(Linear::pack);
            [&mut x.norm1, &mut x.norm2].into_iter().for_each(RmsNorm::pack);
        }
        self.norms.iter_mut().for_each(RmsNorm::pack);
    }

    /// What `condition [B, W]` (of expert `e`) makes of that expert's norms, in `dtype`. `None` where they are learned.
    pub fn modulate(&self, e: usize, condition: Tensor<2>, dtype: DType) -> Option<Modulations> {
        let condition = condition.cast(dtype);
        let last = self.norms[e].modulate(&condition)?;
        let layers = self.blocks.iter().map(|block| block.modulate(e, &condition));
        Some(Modulations { layers: layers.collect::<Option<_>>()?, last })
    }

    /// Reads tokens: `xs[e] [B, T, W]` of each expert, in order, after those in `cache`. Gives each expert's output after
    /// its last norm (nothing at [`Depth::Cache`]), and keys and values of all tokens, cached ones included.
    pub fn forward(
        &self,
        xs: Vec<Option<Tensor<3>>>,
        at: &Attend,
        modulations: &[Option<&Modulations>],
        cache: Option<&Cache>,
        depth: Depth,
    ) -> Read {
        let mut read = Read { outputs: vec![], streams: xs, cache: Cache::default() };
        let of = |e: usize| modulations.get(e).copied().flatten();
        for (l, block) in self.blocks.iter().enumerate() {
            let cached = cache.map(|c| &c.layers[l]);
            let modulation = |e: usize| of(e).map(|m| &m.layers[l]);
            let only_cache = depth == Depth::Cache && l + 1 == self.blocks.len();
            let (streams, kv) = block.forward(read.streams, at, &modulation, cached, only_cache);
            read.streams = streams;
            read.cache.layers.push(kv);
        }
        if depth == Depth::Whole {
            let norm = |(e, x): (usize, &Option<Tensor<3>>)| {
                x.as_ref().map(|x| self.norms[e].forward(x.clone(), of(e).map(|m| &m.last), x.dtype()))
            };
            read.outputs = read.streams.iter().enumerate().map(norm).collect();
        }
        read
    }
}

/// What a forward gives.
#[derive(Debug, Clone)]
pub struct Read {
    /// By expert: `[B, T, W]` after the last norm.
    pub outputs: Vec<Option<Tensor<3>>>,
    /// By expert: `[B, T, W]` before it.
    pub streams: Vec<Option<Tensor<3>>>,
    /// Keys and values of all tokens.
    pub cache: Cache,
}

impl Embed {
    /// `tokens [B, T]` to `[B, T, W]`, times the root of W, in `dtype`.
    pub fn encode(&self, tokens: Tensor<2, Int>, dtype: DType) -> Tensor<3> {
        let table = self.weight.val();
        let ([b, t], [_, w]) = (tokens.dims(), table.dims());
        // The factor is rounded to the table's dtype, and so is the product: 45.25 in bf16 for W = 2048.
        let root = (w as f32).sqrt();
        let root = if table.dtype() == DType::BF16 { half::bf16::from_f32(root).to_f32() } else { root };
        table.select(0, tokens.reshape([b * t])).mul_scalar(root).reshape([b, t, w]).cast(dtype)
    }

    /// `x [B, T, W]` to logits `[B, T, V]`, in the wider dtype of `x` and the table.
    pub fn decode(&self, x: Tensor<3>) -> Tensor<3> {
        let table = self.weight.val();
        let dtype = wider(x.dtype(), table.dtype());
        let ([b, t, w], [v, _]) = (x.dims(), table.dims());
        let y = kernels::times_rows(x.reshape([b * t, w]).cast(dtype), table.cast(dtype));
        y.reshape([b, t, v])
    }
}

impl Expert {
    fn init(s: &settings::Expert, device: &Device) -> Self {
        let (w, lora) = (s.width, s.lora);
        let kv = || IntoHeads::init(w, [s.kv_heads, s.head_size], lora.attention, lora.scale, device);
        Expert {
            norm1: RmsNorm::init(w, s.adaptive, device),
            q: IntoHeads::init(w, [s.heads, s.head_size], lora.attention, lora.scale, device),
            k: kv(),
            v: kv(),
            o: FromHeads::init([s.heads, s.head_size], w, lora.attention, lora.scale, device),
            norm2: RmsNorm::init(w, s.adaptive, device),
            gate: Linear::init(w, s.mlp, lora.feed_forward, device),
            up: Linear::init(w, s.mlp, lora.feed_forward, device),
            down: Linear::init(s.mlp, w, lora.feed_forward, device),
        }
    }

    /// `gelu(x gate) * (x up)`, then down.
    fn feed_forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.down.forward(kernels::geglu(self.gate.forward(x.clone()), self.up.forward(x)))
    }
}

/// Residual streams of the experts.
pub(crate) type Streams = Vec<Option<Tensor<3>>>;

impl Block {
    /// What `condition [B, W]`, in the activations' dtype, makes of this layer's norms of expert `e`.
    pub(crate) fn modulate(&self, e: usize, condition: &Tensor<2>) -> Option<[Modulation; 2]> {
        let x = &self.experts[e];
        Some([x.norm1.modulate(condition)?, x.norm2.modulate(condition)?])
    }

    /// One layer. Also gives its keys and values, cached ones first.
    pub(crate) fn forward<'m>(
        &self,
        xs: Streams,
        at: &Attend,
        modulation: &dyn Fn(usize) -> Option<&'m [Modulation; 2]>,
        cached: Option<&(Tensor<4>, Tensor<4>)>,
        only_cache: bool,
    ) -> (Streams, (Tensor<4>, Tensor<4>)) {
        let (mut q, mut k, mut v) = (vec![], vec![], vec![]);
        for (e, x) in xs.iter().enumerate() {
            let Some(x) = x else { continue };
            let expert = &self.experts[e];
            let dtype = x.dtype();
            let x = expert.norm1.forward(x.clone(), modulation(e).map(|m| &m[0]), dtype);
            if !only_cache {
                q.push(expert.q.forward(x.clone()));
            }
            k.push(expert.k.forward(x.clone()));
            v.push(expert.v.forward(x));
        }
        let (k, v) = (Tensor::cat(k, 1), Tensor::cat(v, 1));
        let dtype = v.dtype();
        let k = at.rope.apply(k, dtype);
        let (k, v) = match cached {
            Some((ck, cv)) => (Tensor::cat(vec![ck.clone(), k], 1), Tensor::cat(vec![cv.clone(), v], 1)),
            None => (k, v),
        };
        let kv = (k.clone(), v.clone());
        if only_cache {
            return (xs, kv);
        }
        let q = Tensor::cat(q, 1);
        let scale = (q.dims()[3] as f64).powf(-0.5);
        let q = at.rope.apply(q, if at.query_f32 { DType::F32 } else { dtype }).mul_scalar(scale);
        let (k, v) = (unused(k, at.unused_keys), unused(v, at.unused_keys));
        let y = kernels::attention(q, k, v, at.mask.clone());
        let mut first = 0;
        let finish = |(e, x): (usize, Option<Tensor<3>>)| {
            let x = x?;
            let (expert, m) = (&self.experts[e], modulation(e));
            let tokens = x.dims()[1];
            let o = expert.o.forward(y.clone().narrow(1, first, tokens));
            first += tokens;
            let (x, unrounded) = joined(x, gated(o, m.map(|m| &m[0])));
            let y = expert.feed_forward(expert.norm2.forward(unrounded, m.map(|m| &m[1]), dtype));
            Some(kernels::add(x, gated(y, m.map(|m| &m[1])), dtype))
        };
        (xs.into_iter().enumerate().map(finish).collect(), kv)
    }
}

/// What a layer adds, times its gate where the time has one.
fn gated(y: Tensor<3>, modulation: Option<&Modulation>) -> Tensor<3> {
    match modulation {
        Some(m) => y * m.gate.clone(),
        None => y,
    }
}

/// With rows of zero after the others.
fn unused(x: Tensor<4>, more: usize) -> Tensor<4> {
    if more == 0 {
        return x;
    }
    let [b, _, k, h] = x.dims();
    let zeros = Tensor::zeros([b, more, k, h], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 1)
}
