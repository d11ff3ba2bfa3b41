//! pi0-FAST: actions as text, one token after another.
//!
//! The reference's habits are kept and named: training counts positions through padding, inference does not; a prompt's
//! trailing padding is rolled to its front; a decoded token skips one position ([`Next::Reference`]).
//! Source: openpi 15a9616, models/pi0_fast.py and models/gemma_fast.py. Letters: B batch, S tokens, V vocabulary.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::cache::Cache;
use super::language::{Attend, Depth, Read};
use super::mask::{Mask, Positions};
use super::observation::{Flags, Observation};
use super::pi::{Padding, Pi, Prefix};
use super::rope::Rope;
use super::tap::Taps;

/// Where the next token stands, and what it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Next {
    /// As openpi decodes: token s stands at `prompt + s + 1`, so that one position is skipped, and sees the last
    /// `prompt + s + 1` slots, whatever is masked among them.
    #[default]
    Reference,
    /// Token s stands at `prompt + s` and sees all valid tokens. Not what the published models were served with.
    Fixed,
}

/// A prompt that has been read, and what was decoded since.
#[derive(Debug, Clone)]
pub struct Decoding {
    /// Keys and values so far.
    pub cache: Cache,
    /// `[B, V]`: of the next token.
    pub logits: Tensor<2>,
    /// Valid tokens of each row's prompt.
    prompt: Vec<usize>,
    /// `[B, S]`: which slots of the prompt are valid.
    mask: Flags,
    next: Next,
    decoded: usize,
}

impl Pi {
    /// Images and prompt as tokens, the prompt's autoregressive part behind its mask.
    pub fn embed_inputs(&self, observation: &Observation, padding: Padding, taps: &mut Taps<'_>) -> Prefix {
        let inputs = self.embed(observation, padding, taps);
        taps.note(format_args!("embed_inputs/tokens"), &inputs.tokens);
        taps.note_host("embed_inputs/mask", || inputs.mask.data());
        taps.note_host("embed_inputs/ar", || {
            let ar: Vec<i32> = inputs.ar.bits.iter().map(|b| i32::from(*b)).collect();
            TensorData::new(ar, [inputs.ar.rows, inputs.ar.cols])
        });
        inputs
    }

    /// Cross entropy of each next token where `token_loss_mask` counts it, its mean per row: `[B]`, f32.
    ///
    /// # Panics
    /// The prompt has no `token_loss_mask`.
    pub fn compute_token_loss(&self, observation: &Observation, taps: &mut Taps<'_>) -> Tensor<1> {
        let inputs = self.embed_inputs(observation, Padding::Keep, taps);
        let [b, s, w] = inputs.tokens.dims();
        let at = self.attend_to_all_but_last(&inputs, taps);
        let read = self.read(inputs.tokens.slice([0..b, 0..s - 1, 0..w]), &at, None);
        note_read("train", &read, taps);
        taps.note_host("train/kv_idx", || counts(&read.cache, &vec![s - 1; b]));
        self.cross_entropy(outputs(&read), observation, taps)
    }

    /// Where inputs stand in training: every token but the last is read, positions count through padding.
    pub(crate) fn attend_to_all_but_last(&self, inputs: &Prefix, taps: &mut Taps<'_>) -> Attend {
        let mask = Mask::blocks(&inputs.mask, &inputs.ar);
        taps.note_host("attn_mask", || mask.data());
        let [b, s, _] = inputs.tokens.dims();
        self.attend_fast(&Positions::counting(b, s - 1), &mask.first(s - 1), 0)
    }

    /// Of the model's output `[B, S - 1, W]` after its last norm: how well each row told its next tokens, `[B]`, f32.
    ///
    /// # Panics
    /// The prompt has no `token_loss_mask`.
    pub(crate) fn cross_entropy(&self, out: Tensor<3>, observation: &Observation, taps: &mut Taps<'_>) -> Tensor<1> {
        let [b, read, _] = out.dims();
        let [_, t] = observation.prompt.tokens.dims();
        let logits = self.llm.embed.decode(out.narrow(1, read + 1 - t, t - 1));
        taps.note(format_args!("train/logits"), &logits);
        let targets = observation.prompt.tokens.clone().narrow(1, 1, t - 1).unsqueeze_dim::<3>(2);
        let picked = log_softmax_of(logits, targets);
        let counted = observation.prompt.loss.as_ref().expect("training pi0-FAST takes a token_loss_mask");
        let counted: Vec<f32> = (0..b)
            .flat_map(|r| counted.row(r)[1..].iter().map(|bit| f32::from(u8::from(*bit))).collect::<Vec<_>>())
            .collect();
        let counted = Tensor::<2>::from_data(TensorData::new(counted, [b, t - 1]), (&self.device(), DType::F32));
        let total = counted.clone().sum_dim(1).clamp_min(1.0);
        let loss = ((picked * counted).sum_dim(1).neg() / total).squeeze_dim::<1>(1);
        taps.note(format_args!("loss"), &loss);
        loss
    }

    /// Reads images and prompt, and gives the logits of the first token to decode. `room` is how many tokens may follow
    /// in the reference's cache: it only weighs on queries that see nothing.
    pub fn read_prompt(&self, observation: &Observation, next: Next, room: usize, taps: &mut Taps<'_>) -> Decoding {
        let listening = taps.listening();
        // A masked image between valid tokens shifts what the reference's decoder sees, so it must stay.
        let interior = observation.cameras.iter().any(|c| c.mask.contains(&false));
        let keep = listening || (next == Next::Reference && interior);
        let inputs = self.embed_inputs(observation, if keep { Padding::Keep } else { Padding::Drop }, taps);
        let mask = Mask::blocks(&inputs.mask, &inputs.ar);
        let (tokens, mask, valid) = align(inputs, &mask);
        taps.note(format_args!("infer/aligned_tokens"), &tokens);
        taps.note_host("infer/aligned_mask", || valid.data());
        taps.note_host("infer/aligned_attn_mask", || mask.data());
        let room = if listening { room } else { 0 };
        let at = self.attend_fast(&Positions::counted(&valid, |_| 0), &mask.with_unseen_keys(room), room);
        let read = self.read(tokens, &at, None);
        let [b, s, _] = outputs(&read).dims();
        if listening {
            let cache = Cache { layers: read.cache.layers.iter().map(|(k, v)| (pad(k, room), pad(v, room))).collect() };
            taps.note(format_args!("infer/prefill_kv_k"), &cache.keys());
            taps.note(format_args!("infer/prefill_kv_v"), &cache.values());
            taps.note_host("infer/prefill_kv_idx", || counts(&cache, &vec![s; b]));
        }
        let logits = self.llm.embed.decode(outputs(&read).narrow(1, s - 1, 1));
        taps.note(format_args!("infer/prefill_last_logits"), &logits);
        let prompt = (0..b).map(|row| valid.count(row)).collect();
        Decoding { cache: read.cache, logits: logits.squeeze_dim(1), prompt, mask: valid, next, decoded: 0 }
    }

    /// Reads one decoded token of each row, `tokens [B]`, and gives the logits of the next.
    pub fn read_token(&self, decoding: &mut Decoding, tokens: &[i32]) {
        let (b, s) = (tokens.len(), decoding.decoded);
        let data = TensorData::new(tokens.to_vec(), [b, 1]);
        let words = Tensor::<2, Int>::from_data(data, (&self.device(), DType::I32));
        let x = self.llm.embed.encode(words, self.activations());
        let skipped = usize::from(decoding.next == Next::Reference);
        let at = decoding.prompt.iter().map(|prompt| (prompt + s + skipped) as i32).collect();
        let positions = Positions { rows: b, cols: 1, at };
        let slots = decoding.mask.cols;
        let mask = Mask::build([b, 1, slots + s + 1], |row, _, key| match decoding.next {
            Next::Reference => key >= slots - decoding.prompt[row],
            Next::Fixed => key >= slots || decoding.mask.get(row, key),
        });
        let at = self.attend_fast(&positions, &mask, 0);
        let read = self.read(x, &at, Some(&decoding.cache));
        decoding.logits = self.llm.embed.decode(outputs(&read)).squeeze_dim(1);
        decoding.cache = read.cache;
        decoding.decoded += 1;
    }

    fn read(&self, tokens: Tensor<3>, at: &Attend, cache: Option<&Cache>) -> Read {
        self.llm.forward(vec![Some(tokens)], at, &[], cache, Depth::Whole)
    }

    fn attend_fast(&self, positions: &Positions, mask: &Mask, unused_keys: usize) -> Attend {
        let device = self.device();
        Attend {
            rope: Rope::new(positions, self.settings().experts[0].head_size, &device),
            mask: mask.upload(&device),
            query_f32: true,
            unused_keys,
        }
    }
}

/// `log softmax(logits)` at `targets [B, T, 1]`, f32 `[B, T]`. Logits in bf16 are reduced as XLA reduces them: difference,
/// sum and logarithm are rounded, exponentials and the result are not.
fn log_softmax_of(logits: Tensor<3>, targets: Tensor<3, Int>) -> Tensor<2> {
    let dtype = logits.dtype();
    let z = logits.clone() - logits.max_dim(2);
    let sum = z.clone().cast(DType::F32).exp().sum_dim(2).cast(dtype);
    let log = sum.cast(DType::F32).log().cast(dtype);
    (z.gather(2, targets).cast(DType::F32) - log.cast(DType::F32)).squeeze_dim::<2>(2)
}

fn outputs(read: &Read) -> Tensor<3> {
    read.outputs[0].clone().expect("the only expert ran")
}

fn note_read(at: &str, read: &Read, taps: &mut Taps<'_>) {
    if let (Some(Some(stream)), true) = (read.streams.first(), taps.listening()) {
        taps.note(format_args!("{at}/kv_k"), &read.cache.keys());
        taps.note(format_args!("{at}/kv_v"), &read.cache.values());
        taps.note(format_args!("{at}/encoded"), stream);
        taps.note(format_args!("{at}/pre_logits"), &outputs(read));
    }
}

/// Filled slots of each layer and row, as the reference's cache counts them.
fn counts(cache: &Cache, rows: &[usize]) -> TensorData {
    let values: Vec<i32> = cache.layers.iter().flat_map(|_| rows.iter().map(|n| *n as i32)).collect();
    TensorData::new(values, [cache.layers.len(), rows.len()])
}

fn pad(x: &Tensor<4>, more: usize) -> Tensor<4> {
    let [b, _, k, h] = x.dims();
    Tensor::cat(vec![x.clone(), Tensor::zeros([b, more, k, h], (&x.device(), x.dtype()))], 1)
}

/// Rolls each row so that its trailing padding comes first.
fn align(inputs: Prefix, mask: &Mask) -> (Tensor<3>, Mask, Flags) {
    let [b, s, _] = inputs.tokens.dims();
    let last = |row: usize| inputs.mask.row(row).iter().rposition(|bit| *bit).map_or(0, |at| at + 1);
    // Slot c of a row holds what stood at (c + last) mod s.
    let from = |row: usize, slot: usize| (slot + last(row)) % s;
    let rows: Vec<usize> = (0..b).map(last).collect();
    let tokens = if rows.iter().all(|n| *n == s) {
        inputs.tokens
    } else {
        let roll = |row: usize| {
            let x = inputs.tokens.clone().narrow(0, row, 1);
            let n = rows[row];
            if n == 0 || n == s {
                return x;
            }
            Tensor::cat(vec![x.clone().narrow(1, n, s - n), x.narrow(1, 0, n)], 1)
        };
        Tensor::cat((0..b).map(roll).collect(), 0)
    };
    let valid = Flags::build(b, s, |row, slot| inputs.mask.get(row, from(row, slot)));
    let mask = Mask::build([b, s, s], |row, q, k| mask.bits[(row * s + from(row, q)) * s + from(row, k)]);
    (tokens, mask, valid)
}
