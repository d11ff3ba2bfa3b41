//! Is it a whole model? Which one, what is missing, and what a stranger's name was meant to be.
//!
//! The map lists what each model has; the model that fits the tensors best is taken for the one that was meant,
//! so that a missing tensor is told by its own name instead of "not a pi0".

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Fault;
use crate::map::{Index, Kind, Map, Model, Row, Scheme};
use crate::plan::{Tensor, combinations};
use crate::resolve::Leaf;
use crate::sizes::Sizes;

/// Nearest names are searched for this many strangers; a list of thousands is a wrong folder, not a typo.
const NEAREST_FOR: usize = 32;

/// What the tensors are, taken together.
pub(crate) struct Whole {
    pub(crate) model: Option<String>,
    /// Canonical name of each parameter and its source.
    pub(crate) canonical: BTreeMap<String, usize>,
    /// Canonical names that could have been there.
    possible: BTreeSet<String>,
}

/// Canonical names of a model, each with its row and indices.
type Named = BTreeMap<String, (usize, Index)>;

/// Finds the model, and a fault for each parameter it lacks or that comes twice.
pub(crate) fn check(
    map: &Map,
    tensors: &[Tensor],
    from: &Scheme,
    leaves: &[Leaf],
    sizes: &Sizes,
    part: bool,
    faults: &mut Vec<Fault>,
) -> Whole {
    let mut canonical = BTreeMap::new();
    for leaf in leaves {
        for name in canonical_names(map, leaf) {
            if let Some(other) = canonical.insert(name, leaf.source)
                && other != leaf.source
            {
                let (name, other) = (tensors[leaf.source].name.clone(), tensors[other].name.clone());
                faults.push(Fault::Twice { name, other });
            }
        }
    }
    let lora: BTreeSet<String> = pairs(map, leaves, sizes);
    let expected = |model: &Model| {
        let mut names: Named = BTreeMap::new();
        for (r, row) in map.rows.iter().enumerate().filter(|(_, row)| row.kind != Kind::Lora) {
            for at in instances(row, model, sizes) {
                if let Some(name) = row.side("burn").and_then(|s| s.write(&at)) {
                    names.insert(name, (r, at));
                }
            }
        }
        names
    };
    let mut best: Option<(usize, &Model, Named)> = None;
    for model in &map.models {
        let names = expected(model);
        let missing = names.keys().filter(|n| !canonical.contains_key(*n)).count();
        let extra = canonical.keys().filter(|n| !names.contains_key(*n) && !lora.contains(*n)).count();
        if best.as_ref().is_none_or(|(faults, ..)| missing + extra < *faults) {
            best = Some((missing + extra, model, names));
        }
    }
    let mut possible: BTreeSet<String> = lora.clone();
    let mut model_name = None;
    if let Some((count, model, names)) = best {
        possible.extend(names.keys().cloned());
        if count == 0 || !part {
            model_name = Some(model.name.clone());
        }
        if !part {
            for (name, (row, at)) in &names {
                if !canonical.contains_key(name) {
                    faults.push(hole(from, &map.rows[*row], at, name, &format!("a whole {} has it", model.name)));
                }
            }
            for (name, source) in &canonical {
                if !names.contains_key(name) && !lora.contains(name) {
                    let nearest = nearest(name, names.keys().map(String::as_str)).map(str::to_owned);
                    let name = tensors[*source].name.clone();
                    faults.push(Fault::Unknown { name: format!("{name} (no part of a {})", model.name), nearest });
                }
            }
            for name in &lora {
                if let (false, Some((row, at))) = (canonical.contains_key(name), map.find("burn", name)) {
                    faults.push(hole(from, &map.rows[row], &at, name, "the other half of its LoRA pair is there"));
                }
            }
        }
    }
    Whole { model: model_name, canonical, possible }
}

/// A fault for each name that no row reads, with the nearest that a row does.
pub(crate) fn name_strangers(
    map: &Map,
    tensors: &[Tensor],
    from: &Scheme,
    unknown: &[usize],
    whole: &Whole,
    faults: &mut Vec<Fault>,
) {
    let known: Vec<String> = whole
        .possible
        .iter()
        .filter_map(|name| {
            let (row, at) = map.find("burn", name)?;
            from.dress(&map.rows[row].side(&from.column)?.write(&at)?)
        })
        .collect();
    for (i, source) in unknown.iter().enumerate() {
        let name = tensors[*source].name.clone();
        let near = if i < NEAREST_FOR { nearest(&name, known.iter().map(String::as_str)) } else { None };
        faults.push(Fault::Unknown { nearest: near.map(str::to_owned), name });
    }
}

/// The canonical names of the parameters that a leaf holds.
pub(crate) fn canonical_names(map: &Map, leaf: &Leaf) -> Vec<String> {
    let Some(side) = map.rows[leaf.row].side("burn") else { return vec![] };
    let split: Vec<char> = side.named().map(|(l, _)| l).filter(|l| leaf.sizes.contains_key(l)).collect();
    let pieces = split.iter().map(|l| leaf.sizes[l]).try_fold(1u64, u64::checked_mul);
    if pieces.is_none_or(|n| n > crate::plan::MAX_PIECES) {
        return vec![];
    }
    combinations(&split, &leaf.sizes, &leaf.index).iter().filter_map(|at| side.write(at)).collect()
}

/// Every place of a row in a model.
fn instances(row: &Row, model: &Model, sizes: &Sizes) -> Vec<Index> {
    let Some(side) = row.side("burn") else { return vec![] };
    let mut all = vec![Index::new()];
    for (letter, spelled) in side.named() {
        let mut next = vec![];
        for at in &all {
            let values: Vec<u64> = match letter {
                'E' => (0..model.adaptive.len() as u64)
                    .filter(|e| match row.kind {
                        Kind::Plain => model.adaptive.get(*e as usize) == Some(&false),
                        Kind::Adaptive => model.adaptive.get(*e as usize) == Some(&true),
                        Kind::Always | Kind::Lora => true,
                    })
                    .collect(),
                'T' => (0..spelled.unwrap_or(0))
                    .filter(|t| side.spelling('T', *t).is_some_and(|s| model.projections.iter().any(|p| p == s)))
                    .collect(),
                _ => {
                    let n = spelled.or_else(|| row.spelled(letter));
                    (0..n.or_else(|| sizes.get(side.zone(at), None, letter)).unwrap_or(1)).collect()
                }
            };
            next.extend(values.into_iter().map(|v| at.iter().map(|(k, x)| (*k, *x)).chain([(letter, v)]).collect()));
        }
        all = next;
    }
    all
}

/// Canonical names of all low-rank factors that must be there because one of their family is.
fn pairs(map: &Map, leaves: &[Leaf], sizes: &Sizes) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for leaf in leaves.iter().filter(|leaf| map.rows[leaf.row].kind == Kind::Lora) {
        for name in canonical_names(map, leaf) {
            let Some((stem, _)) = name.rsplit_once('.') else { continue };
            for factor in ["lora_a", "lora_b"] {
                let Some((row, at)) = map.find("burn", &format!("{stem}.{factor}")) else { continue };
                let Some(side) = map.rows[row].side("burn") else { continue };
                let layers = sizes.get(side.zone(&at), None, 'L').unwrap_or(1);
                for layer in 0..layers {
                    let mut at = at.clone();
                    at.insert('L', layer);
                    names.extend(side.write(&at));
                }
            }
        }
    }
    names
}

fn hole(from: &Scheme, row: &Row, at: &Index, canonical: &str, needed: &str) -> Fault {
    let name = row.side(&from.column).and_then(|s| s.write(at)).and_then(|n| from.dress(&n));
    Fault::Hole { name: name.unwrap_or_else(|| canonical.to_owned()), needed: needed.to_owned() }
}

/// The nearest of `known`, if it is near enough to be a slip of the pen.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = name.len() / 2 + 2;
    known.map(|k| (distance(name, k, far), k)).filter(|(d, _)| *d < far).min().map(|(_, k)| k)
}

/// Edits from `a` to `b`, or `far` where there are at least that many.
fn distance(a: &str, b: &str, far: usize) -> usize {
    if a.len().abs_diff(b.len()) >= far {
        return far;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let edit = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = edit;
        }
    }
    row[b.len()].min(far)
}
