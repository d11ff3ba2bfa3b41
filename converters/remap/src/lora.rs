//! `w + scale * a @ b`, in f64, rounded once.
//!
//! The product is an einsum over the letters of the three tensors: what `a` and `b` share with `w` stays, `R` is
//! summed. openpi's einsum for the attention's output sums `b` over the heads *before* the product
//! (`BTNH,NHL->BTL` then `BTL,NLD->BTD`): the map says `sum N`. Its feed-forward leaves alpha / rank out: the map
//! says `scaled` where it counts.
//! Source: openpi 15a9616, models/lora.py.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use orbax::{Dtype, Source};

use crate::block::{Block, Region, regions};
use crate::cast::{cast, to_f64};
use crate::error::{Error, Fault, Refused, Result};
use crate::map::{Kind, Letter, Map, Scheme};
use crate::plan::{Lora, Move, Options, Plan, Tensor, strides};
use crate::run::{Mover, Settings, Sink};

/// A dense f64 tensor with named axes.
#[derive(Debug, Clone)]
pub(crate) struct Factor {
    pub(crate) values: Vec<f64>,
    pub(crate) letters: Vec<Letter>,
    pub(crate) sizes: BTreeMap<Letter, u64>,
    stride: BTreeMap<Letter, u64>,
}

/// The pair of one canonical weight.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) a: Factor,
    /// Summed over the heads already, where the map says so.
    pub(crate) b: Factor,
    pub(crate) scale: f64,
}

/// All pairs of a checkpoint, by canonical stem.
#[derive(Debug, Clone, Default)]
pub struct Pairs {
    pub(crate) by_stem: BTreeMap<String, Arc<Pair>>,
}

impl Pairs {
    /// Reads every low-rank pair of `tensors` into memory. `alpha` is openpi's; its default is the rank.
    ///
    /// # Errors
    /// Halves that do not fit each other, and what reading says.
    pub fn read(
        map: &Map,
        tensors: &[Tensor],
        from: &Scheme,
        source: &dyn Source,
        arrays: &[usize],
        alpha: Option<f64>,
    ) -> Result<Self> {
        let lora = |t: &Tensor| {
            let found = from.strip(&t.name).and_then(|name| map.find(&from.column, &name));
            found.is_some_and(|(row, _)| map.rows[row].kind == Kind::Lora)
        };
        let kept: Vec<usize> = (0..tensors.len()).filter(|i| lora(&tensors[*i])).collect();
        if kept.is_empty() {
            return Ok(Pairs::default());
        }
        let some: Vec<Tensor> = kept.iter().map(|i| tensors[*i].clone()).collect();
        let some_arrays: Vec<usize> = kept.iter().map(|i| arrays[*i]).collect();
        let Some(burn) = map.scheme("burn") else { return Ok(Pairs::default()) };
        let options = Options { part: true, lora: Lora::Keep, ..Options::default() };
        let plan = Plan::new(map, &some, from, burn, &options)?;
        let memory = Memory::new(&plan);
        let stop = AtomicBool::new(false);
        let mover = Mover::new(&plan, source, &some_arrays, None, Settings::threads(1), &stop);
        mover.run(&mover.units(|_| true), &memory)?;
        let mut factors: BTreeMap<String, Factor> = BTreeMap::new();
        for (output, bytes) in plan.outputs.iter().zip(memory.bytes) {
            let tensor = &output.tensor;
            let bytes = bytes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            let axes = map.find("burn", &tensor.name).and_then(|(row, _)| map.rows[row].side("burn"));
            let (Some(side), Some(values)) = (axes, to_f64(tensor.dtype, &bytes)) else {
                let fault = Fault::Dtype { name: tensor.name.clone(), found: tensor.dtype.name().to_owned() };
                return Err(Refused { faults: vec![fault] }.into());
            };
            let sizes: BTreeMap<Letter, u64> = side.letters().zip(tensor.shape.iter().copied()).collect();
            let stride = strides(&side.axes, &sizes);
            factors.insert(tensor.name.clone(), Factor { values, letters: side.letters().collect(), sizes, stride });
        }
        let mut by_stem = BTreeMap::new();
        let mut faults = vec![];
        for (name, a) in &factors {
            let Some(stem) = name.strip_suffix(".lora_a") else { continue };
            let (Some(b), Some(row)) = (factors.get(&format!("{stem}.lora_b")), map.lora_of(stem)) else {
                faults.push(Fault::Hole { name: format!("{stem}.lora_b"), needed: format!("{name} is there") });
                continue;
            };
            let rank = a.sizes.get(&'R').copied().unwrap_or(1);
            for (letter, size) in &a.sizes {
                if b.sizes.get(letter).is_some_and(|other| other != size) {
                    faults.push(Fault::Shape {
                        name: format!("{stem}.lora_b"),
                        expected: format!("{letter} = {size}, as lora_a has it"),
                        found: format!("{letter} = {}", b.sizes[letter]),
                    });
                }
            }
            let scale = if row.scaled { alpha.map_or(1.0, |alpha| alpha / rank as f64) } else { 1.0 };
            let b = row.sum.map_or_else(|| b.clone(), |letter| b.sum_over(letter));
            by_stem.insert(stem.to_owned(), Arc::new(Pair { a: a.clone(), b, scale }));
        }
        if faults.is_empty() { Ok(Pairs { by_stem }) } else { Err(Refused { faults }.into()) }
    }

    /// No pairs?
    pub fn is_empty(&self) -> bool {
        self.by_stem.is_empty()
    }

    /// Pairs.
    pub fn len(&self) -> usize {
        self.by_stem.len()
    }

    /// The pairs as what is added to the weights of `plan`'s tensors.
    ///
    /// # Errors
    /// As planning.
    pub fn deltas(&self, map: &Map, tensors: &[Tensor], from: &Scheme, plan_options: &Options) -> Result<Deltas> {
        let Some(burn) = map.scheme("burn") else { return Ok(Deltas::default()) };
        let plan = Plan::new(map, tensors, from, burn, plan_options)?;
        let mut of: BTreeMap<usize, Delta> = BTreeMap::new();
        for m in plan.moves {
            let stem = plan.outputs[m.output].tensor.name.strip_suffix(".weight").map(str::to_owned);
            if let Some(pair) = stem.and_then(|stem| self.by_stem.get(&stem)) {
                of.entry(m.source).or_default().parts.push((m, Arc::clone(pair)));
            }
        }
        Ok(Deltas { of })
    }
}

/// What is added to each source tensor.
#[derive(Debug, Clone, Default)]
pub struct Deltas {
    of: BTreeMap<usize, Delta>,
}

impl Deltas {
    /// What is added to tensor `source`.
    pub(crate) fn of(&self, source: usize) -> Option<&Delta> {
        self.of.get(&source)
    }

    /// Has tensor `source` something added to it?
    pub fn touches(&self, source: usize) -> bool {
        self.of.contains_key(&source)
    }
}

/// What is added to one source tensor: a pair for each canonical weight that it holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Delta {
    parts: Vec<(Move, Arc<Pair>)>,
}

impl Delta {
    /// Writes `block + delta` as `to` into `out`, laid out as the block; gives how many elements were rounded.
    pub(crate) fn add(&self, block: &Block<'_>, from: Dtype, to: Dtype, out: &mut Vec<u8>) -> Result<u64> {
        let refused = || {
            let fault = Fault::Dtype { name: "a weight with LoRA".into(), found: from.name().to_owned() };
            Error::from(Refused { faults: vec![fault] })
        };
        let elements = block.bytes.len() / from.size();
        out.clear();
        out.resize(elements * to.size(), 0);
        let mut rounded = 0;
        let (mut sum, mut piece) = (vec![], vec![]);
        for (m, pair) in &self.parts {
            for region in regions(block, m) {
                let mut failed = false;
                pair.rows(&region, &mut sum, |at, step, sum| {
                    // Along the row the block's neighbours are `step` apart.
                    let row: Vec<u8> = (0..sum.len())
                        .flat_map(|i| {
                            let at = (at as usize + i * step as usize) * from.size();
                            block.bytes[at..at + from.size()].iter().copied()
                        })
                        .collect();
                    let Some(base) = to_f64(from, &row) else {
                        failed = true;
                        return;
                    };
                    let bytes: Vec<u8> = sum.iter().zip(&base).flat_map(|(d, w)| (w + d).to_le_bytes()).collect();
                    match cast(Dtype::F64, to, &bytes, &mut piece) {
                        Some(changed) => rounded += changed,
                        None => failed = true,
                    }
                    for (i, value) in piece.chunks_exact(to.size()).enumerate() {
                        let at = (at as usize + i * step as usize) * to.size();
                        out[at..at + to.size()].copy_from_slice(value);
                    }
                });
                if failed {
                    return Err(refused());
                }
            }
        }
        Ok(rounded)
    }
}

impl Pair {
    /// Calls `row(first element of the block, step, values)` for rows that together are the region.
    fn rows(&self, region: &Region, sum: &mut Vec<f64>, mut row: impl FnMut(u64, u64, &[f64])) {
        let mut spans: Vec<_> = region.spans.iter().filter(|s| s.len > 0).collect();
        if spans.len() < region.spans.len() {
            return;
        }
        spans.sort_by_key(|s| std::cmp::Reverse(s.source));
        let rank = self.a.sizes.get(&'R').copied().unwrap_or(1);
        let Some((last, outer)) = spans.split_last() else { return };
        let step = |f: &Factor, l: Letter| f.stride.get(&l).copied().unwrap_or(0);
        let (a_last, b_last) = (step(&self.a, last.letter) as usize, step(&self.b, last.letter) as usize);
        let (a_rank, b_rank) = (step(&self.a, 'R') as usize, step(&self.b, 'R') as usize);
        let n = last.len as usize;
        let count: u64 = outer.iter().map(|s| s.len).product();
        for k in 0..count {
            let (mut rest, mut at) = (k, region.source);
            let (mut a, mut b) = (last.start * a_last as u64, last.start * b_last as u64);
            for s in outer.iter().rev() {
                let i = rest % s.len;
                rest /= s.len;
                at += i * s.source;
                a += (s.start + i) * step(&self.a, s.letter);
                b += (s.start + i) * step(&self.b, s.letter);
            }
            sum.clear();
            sum.resize(n, 0.0);
            for r in 0..rank as usize {
                let (a, b) = (a as usize + r * a_rank, b as usize + r * b_rank);
                match (a_last, b_last) {
                    (0, 1) => {
                        let x = self.a.values[a] * self.scale;
                        sum.iter_mut().zip(&self.b.values[b..b + n]).for_each(|(s, y)| *s += x * y);
                    }
                    _ => {
                        for (i, s) in sum.iter_mut().enumerate() {
                            *s += self.a.values[a + i * a_last] * self.scale * self.b.values[b + i * b_last];
                        }
                    }
                }
            }
            row(at, last.source, sum);
        }
    }
}

impl Factor {
    /// Summed over one of its axes.
    pub(crate) fn sum_over(&self, letter: Letter) -> Factor {
        let letters: Vec<Letter> = self.letters.iter().copied().filter(|l| *l != letter).collect();
        let sizes: BTreeMap<Letter, u64> =
            self.sizes.iter().filter(|(l, _)| **l != letter).map(|(l, n)| (*l, *n)).collect();
        let axes: Vec<Vec<Letter>> = letters.iter().map(|l| vec![*l]).collect();
        let stride = strides(&axes, &sizes);
        let mut values = vec![0.0; sizes.values().product::<u64>() as usize];
        for (flat, value) in self.values.iter().enumerate() {
            let to: u64 = letters.iter().map(|l| flat as u64 / self.stride[l] % self.sizes[l] * stride[l]).sum();
            values[to as usize] += value;
        }
        Factor { values, letters, sizes, stride }
    }

    /// The element at these indices; letters it lacks are ignored.
    pub(crate) fn at(&self, index: &BTreeMap<Letter, u64>) -> f64 {
        let flat: u64 = self.letters.iter().map(|l| index.get(l).copied().unwrap_or(0) * self.stride[l]).sum();
        self.values.get(flat as usize).copied().unwrap_or(0.0)
    }
}

/// Outputs in memory: for what is small.
pub struct Memory {
    /// Each output's bytes.
    pub bytes: Vec<std::sync::Mutex<Vec<u8>>>,
}

impl Memory {
    /// Room for every output of a plan.
    pub fn new(plan: &Plan) -> Self {
        let zeros = |o: &crate::plan::Output| std::sync::Mutex::new(vec![0; o.tensor.bytes() as usize]);
        Memory { bytes: plan.outputs.iter().map(zeros).collect() }
    }
}

impl Sink for Memory {
    fn write(&self, output: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut out = self.bytes[output].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = offset as usize;
        out[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}
