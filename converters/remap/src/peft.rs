//! openpi's low-rank pairs as a PEFT adapter: `x @ lora_A.T @ lora_B.T * alpha / r`.
//!
//! openpi keeps a pair for each head of q, k and v; PEFT has one for the whole matrix. Side by side they are one pair
//! of rank N x R whose `lora_B` is block-diagonal: exact, larger. The attention's output sums `lora_b` over the heads:
//! computed in f64 and rounded once. Alpha is written so that alpha / r is the scale that openpi applies.
//! Source: PEFT, tuners/lora (`LoraConfig`, `rank_pattern`, `alpha_pattern`).

use std::collections::BTreeMap;

use orbax::Dtype;
use serde_json::json;

use crate::lora::{Factor, Pair, Pairs};
use crate::map::{Letter, Map, Scheme};
use crate::plan::Tensor;
use crate::writer::to_bytes;

/// A PEFT adapter, ready to be written.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// `adapter_model.safetensors`.
    pub tensors: Vec<u8>,
    /// `adapter_config.json`.
    pub config: serde_json::Value,
    /// What a reader should know: expansions and roundings.
    pub notes: Vec<String>,
    /// Weights that have a pair.
    pub modules: usize,
}

impl Pairs {
    /// The pairs as an adapter for a model in `scheme`; a note for each family that PEFT can only hold in another form.
    pub fn peft(&self, map: &Map, scheme: &Scheme) -> Adapter {
        let mut tensors = vec![];
        let (mut ranks, mut alphas) = (BTreeMap::new(), BTreeMap::new());
        let (mut expanded, mut summed, mut nameless) = (0, 0, 0);
        for (stem, pair) in &self.by_stem {
            let named = map.find("burn", &format!("{stem}.weight")).and_then(|(row, at)| {
                let side = map.rows[row].side(&scheme.column)?;
                Some((scheme.dress(&side.write(&at)?)?, side.axes.clone()))
            });
            let Some((name, axes)) = named else {
                nameless += 1;
                continue;
            };
            let module = name.strip_suffix(".weight").unwrap_or(&name);
            let [out, inner] = &axes[..] else {
                nameless += 1;
                continue;
            };
            let (rank, a, b) = matrices(pair, out, inner);
            expanded += usize::from(rank != pair.a.sizes[&'R']);
            summed += usize::from(map.lora_of(stem).is_some_and(|row| row.sum.is_some()));
            let named = |factor: &str| format!("base_model.model.{module}.{factor}.weight");
            let shape = |rows: usize, total: usize| vec![rows as u64, (total / rows.max(1)) as u64];
            let to_f32 = |v: &[f64]| v.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect::<Vec<u8>>();
            let shape_a = shape(rank as usize, a.len());
            let tensor = Tensor { name: named("lora_A"), shape: shape_a, dtype: Dtype::F32 };
            tensors.push((tensor, to_f32(&a)));
            let shape_b = vec![(b.len() as u64) / rank.max(1), rank];
            let tensor = Tensor { name: named("lora_B"), shape: shape_b, dtype: Dtype::F32 };
            tensors.push((tensor, to_f32(&b)));
            ranks.insert(module.to_owned(), rank);
            alphas.insert(module.to_owned(), pair.scale * rank as f64);
        }
        let mut notes = vec![];
        if expanded > 0 {
            notes.push(format!(
                "{expanded} weights have a pair for each head; PEFT has one for the matrix: written block-diagonal, exact"
            ));
        }
        if summed > 0 {
            notes.push(format!(
                "{summed} attention outputs sum lora_b over the heads before the product: summed in f64, rounded once"
            ));
        }
        if nameless > 0 {
            notes.push(format!("{nameless} pairs have no place in the scheme {}", scheme.name));
        }
        let largest = ranks.values().copied().max().unwrap_or(0);
        let config = json!({
            "peft_type": "LORA",
            "base_model_name_or_path": null,
            "task_type": null,
            "inference_mode": true,
            "r": largest,
            "lora_alpha": largest,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "use_rslora": false,
            "target_modules": ranks.keys().collect::<Vec<_>>(),
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
        });
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        Adapter { modules: ranks.len(), tensors: to_bytes(&tensors, &metadata), config, notes }
    }
}

/// Rank, `lora_A` [rank, in] and `lora_B` [out, rank].
fn matrices(pair: &Pair, out: &[Letter], inner: &[Letter]) -> (u64, Vec<f64>, Vec<f64>) {
    // Letters that both halves have run along: one block for each of their values.
    let shared: Vec<Letter> =
        pair.a.letters.iter().copied().filter(|l| *l != 'R' && pair.b.letters.contains(l)).collect();
    let mut rank = shared;
    rank.push('R');
    let size = |l: &Letter| pair.a.sizes.get(l).or(pair.b.sizes.get(l)).copied().unwrap_or(1);
    let sizes: BTreeMap<Letter, u64> = rank.iter().chain(out).chain(inner).map(|l| (*l, size(l))).collect();
    let r = rank.iter().map(|l| sizes[l]).product();
    (r, block(&pair.a, &rank, inner, &sizes), block(&pair.b, out, &rank, &sizes))
}

/// `factor` as a matrix; where a letter runs along both rows and columns, zero off its diagonal.
fn block(factor: &Factor, rows: &[Letter], columns: &[Letter], sizes: &BTreeMap<Letter, u64>) -> Vec<f64> {
    let of = |letters: &[Letter], mut flat: u64| {
        let mut at = BTreeMap::new();
        for l in letters.iter().rev() {
            at.insert(*l, flat % sizes[l]);
            flat /= sizes[l];
        }
        at
    };
    let count = |letters: &[Letter]| letters.iter().map(|l| sizes[l]).product::<u64>();
    let mut values = Vec::with_capacity((count(rows) * count(columns)) as usize);
    for row in 0..count(rows) {
        let row = of(rows, row);
        for column in 0..count(columns) {
            let column = of(columns, column);
            let off = row.iter().any(|(l, v)| column.get(l).is_some_and(|w| w != v));
            let at = row.iter().chain(&column).map(|(l, v)| (*l, *v)).collect();
            values.push(if off { 0.0 } else { factor.at(&at) });
        }
    }
    values
}
