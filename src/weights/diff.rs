//! Two checkpoints, tensor by tensor, whatever scheme and format each is in.
//!
//! Both are planned to the canonical names and layouts. What is stored alike on both sides is compared chunk by chunk
//! as it is decoded (`alike`); the rest goes through a scratch (`moved`): the left side's outputs are written to it, the
//! right side's are compared with it as they are moved. Outputs that share a source on either side are looked at together,
//! so no chunk is moved twice.
//!
//! Invariants: memory is bounded by the slabs of [`remap::Settings`] and [`DiffOptions::memory_bytes`]; every element
//! of every tensor that both sides have in one shape is looked at; what is not compared is in [`Diff::notes`].

mod alike;
mod compare;
mod moved;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use remap::{Fate, Letter, Lora, Map, Options, Plan, Refused, Scheme};
use serde::{Serialize, Serializer};

use super::convert::Progress;
use super::open::Opened;
use compare::Found;

/// How to compare.
#[derive(Debug, Clone)]
pub struct DiffOptions {
    /// Threads that decode, move and compare.
    pub threads: usize,
    /// Up to so many bytes at once are kept in memory; beyond, a scratch file is used.
    pub memory_bytes: u64,
    /// Where scratch files are made (and at once unlinked). It has to hold the largest array of the left side.
    pub scratch: PathBuf,
    /// Head counts by zone and letter, where neither shapes nor files tell.
    pub heads: BTreeMap<(String, Letter), u64>,
}

impl DiffOptions {
    /// For so many threads: 64 MiB in memory, scratch files in this folder.
    pub fn new(threads: usize, scratch: impl Into<PathBuf>) -> Self {
        DiffOptions { threads: threads.max(1), memory_bytes: 64 << 20, scratch: scratch.into(), heads: BTreeMap::new() }
    }
}

/// A tensor on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Described {
    /// Elements along each axis, in the canonical layout.
    pub shape: Vec<u64>,
    /// numpy's name of the element type.
    pub dtype: &'static str,
    /// The tensors of the checkpoint that it is taken from, by their names there.
    pub sources: Vec<String>,
}

/// How a tensor of the one side stands to that of the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Bit for bit.
    Same,
    /// Equal after exact widening; the element types differ.
    SameValues,
    /// Elements differ: in their bits, or across types in their widened bits (zeros of two signs do, by 0).
    Differs {
        /// Largest `|a - b|`; infinite between a NaN and a number.
        #[serde(serialize_with = "number_or_name")]
        max_abs: f64,
        /// Largest `|a - b| / max(|a|, |b|)`.
        #[serde(serialize_with = "number_or_name")]
        max_rel: f64,
        /// Index of the first that differs, counted in C order of the canonical layout; see [`index_of`].
        first: u64,
        /// How many differ.
        count: u64,
        /// How many there are.
        elements: u64,
    },
    /// The right side has none.
    OnlyLeft,
    /// The left side has none.
    OnlyRight,
    /// Different shapes; their elements are not compared.
    Shape,
}

/// One canonical tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Canonical name.
    pub name: String,
    /// The left side's.
    pub left: Option<Described>,
    /// The right side's.
    pub right: Option<Described>,
    /// What came out.
    pub verdict: Verdict,
}

/// The one or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The first that was named.
    Left,
    /// The second.
    Right,
}

/// Something of one side that no comparison covers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Note {
    /// Whose it is.
    pub side: Side,
    /// Its name there.
    pub name: String,
    /// Why it was not compared.
    pub reason: String,
}

/// What comparing two checkpoints gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// Every canonical tensor of either side, sorted by name.
    pub tensors: Vec<Difference>,
    /// The left side's model, where it is a whole one.
    pub left_model: Option<String>,
    /// The right side's.
    pub right_model: Option<String>,
    /// Arrays that were not compared: tied copies, fillers, what is no part of the chosen tree.
    pub notes: Vec<Note>,
}

/// How many tensors had which verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs)]
pub struct Tally {
    pub same: usize,
    pub same_values: usize,
    pub differs: usize,
    pub only_left: usize,
    pub only_right: usize,
    pub shape: usize,
}

impl Diff {
    /// How many tensors had which verdict.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for tensor in &self.tensors {
            *match tensor.verdict {
                Verdict::Same => &mut tally.same,
                Verdict::SameValues => &mut tally.same_values,
                Verdict::Differs { .. } => &mut tally.differs,
                Verdict::OnlyLeft => &mut tally.only_left,
                Verdict::OnlyRight => &mut tally.only_right,
                Verdict::Shape => &mut tally.shape,
            } += 1;
        }
        tally
    }

    /// Has every tensor the same values on both sides, element types aside?
    pub fn same_values(&self) -> bool {
        self.tensors.iter().all(|t| matches!(t.verdict, Verdict::Same | Verdict::SameValues))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Same => f.write_str("same"),
            Verdict::SameValues => f.write_str("same values, other type"),
            Verdict::OnlyLeft => f.write_str("only left"),
            Verdict::OnlyRight => f.write_str("only right"),
            Verdict::Shape => f.write_str("shapes differ"),
            Verdict::Differs { max_abs, max_rel, first, count, elements } => write!(
                f,
                "{count} of {elements} differ, by at most {max_abs:.3e} (relative {max_rel:.3e}), the first at {first}"
            ),
        }
    }
}

/// A flat index in C order as one index along each axis.
pub fn index_of(shape: &[u64], flat: u64) -> Vec<u64> {
    let mut rest = flat;
    let mut index: Vec<u64> = shape
        .iter()
        .rev()
        .map(|n| {
            let i = rest % (*n).max(1);
            rest /= (*n).max(1);
            i
        })
        .collect();
    index.reverse();
    index
}

/// Compares two checkpoints of the pi0 family. Progress is in decoded bytes of both sides.
///
/// # Errors
/// Names that no row of the map knows, head counts that nothing tells, broken files, no room for the scratch.
pub fn diff(
    left: &Opened,
    left_scheme: &Scheme,
    right: &Opened,
    right_scheme: &Scheme,
    options: &DiffOptions,
    progress: &dyn Progress,
) -> Result<Diff> {
    let map = Map::pi0();
    let (left_plan, right_plan) = plans(&map, (left, left_scheme), (right, right_scheme), options)?;
    planned((left, &left_plan), (right, &right_plan), options, progress)
}

/// Compares two sets of arrays of any kind, each under its own name and in its own layout.
///
/// # Errors
/// As [`diff`], names aside.
pub fn diff_as_is(left: &Opened, right: &Opened, options: &DiffOptions, progress: &dyn Progress) -> Result<Diff> {
    let plan = |side: &Opened| Plan::as_is(&side.tensors, None).with_context(|| side.path.display().to_string());
    planned((left, &plan(left)?), (right, &plan(right)?), options, progress)
}

fn planned(
    (left, left_plan): (&Opened, &Plan),
    (right, right_plan): (&Opened, &Plan),
    options: &DiffOptions,
    progress: &dyn Progress,
) -> Result<Diff> {
    let sides = [Part::new(left, left_plan), Part::new(right, right_plan)];
    let mut tensors = listed(&sides);
    let pairs = pairs(&sides, &tensors);
    let total = pairs.iter().map(|p| sides[0].bytes(p.left) + sides[1].bytes(p.right)).sum();
    progress.phase("comparing", total);
    let meter = Meter { done: AtomicU64::new(0), total, progress };
    let mut groups = groups(&sides, &pairs);
    // Largest first: what needs most room fails first.
    groups.sort_by_key(|g| (std::cmp::Reverse(g.iter().map(|i| sides[0].bytes(pairs[*i].left)).sum::<u64>()), g[0]));
    let same = alike::same(&sides, &pairs, &groups, options.threads, &meter)?;
    let rest: Vec<Vec<usize>> = groups.into_iter().zip(&same).filter(|(_, same)| !**same).map(|(g, _)| g).collect();
    let found = moved::compare_moved(&sides, &pairs, &rest, options, &meter)?;
    for (i, pair) in pairs.iter().enumerate() {
        let dtype = |side: usize, output: usize| sides[side].plan.outputs[output].tensor.dtype;
        let elements = left_plan.outputs[pair.left].tensor.len();
        tensors[pair.tensor].verdict = match found.get(&i) {
            Some(found) if found.compared != elements => {
                bail!(
                    "{}: {} of its {elements} elements came to be compared",
                    tensors[pair.tensor].name,
                    found.compared
                )
            }
            Some(Found { count, max_abs, max_rel, first, .. }) if *count > 0 => {
                Verdict::Differs { max_abs: *max_abs, max_rel: *max_rel, first: *first, count: *count, elements }
            }
            _ if dtype(0, pair.left) == dtype(1, pair.right) => Verdict::Same,
            _ => Verdict::SameValues,
        };
    }
    Ok(Diff {
        tensors,
        left_model: left_plan.model.clone(),
        right_model: right_plan.model.clone(),
        notes: [notes(Side::Left, &sides[0])?, notes(Side::Right, &sides[1])?].concat(),
    })
}

/// A checkpoint with its plan.
struct Part<'a> {
    opened: &'a Opened,
    plan: &'a Plan,
    /// Outputs by name.
    outputs: BTreeMap<&'a str, usize>,
    /// Sources of each output.
    sources: Vec<Vec<usize>>,
}

/// A tensor that both have in one shape.
struct Pair {
    /// Where it stands in the list.
    tensor: usize,
    left: usize,
    right: usize,
}

impl<'a> Part<'a> {
    fn new(opened: &'a Opened, plan: &'a Plan) -> Self {
        let outputs = plan.outputs.iter().enumerate().map(|(i, o)| (o.tensor.name.as_str(), i)).collect();
        let mut sources = vec![vec![]; plan.outputs.len()];
        for m in &plan.moves {
            let known: &mut Vec<usize> = &mut sources[m.output];
            if known.last() != Some(&m.source) {
                known.push(m.source);
            }
        }
        Part { opened, plan, outputs, sources }
    }

    fn bytes(&self, output: usize) -> u64 {
        self.plan.outputs[output].tensor.bytes()
    }

    fn describe(&self, name: &str) -> Option<Described> {
        let output = *self.outputs.get(name)?;
        let tensor = &self.plan.outputs[output].tensor;
        let sources = self.sources[output].iter().map(|s| self.opened.tensors[*s].name.clone()).collect();
        Some(Described { shape: tensor.shape.clone(), dtype: tensor.dtype.name(), sources })
    }
}

/// Progress, told every few megabytes.
struct Meter<'a> {
    done: AtomicU64,
    total: u64,
    progress: &'a dyn Progress,
}

impl Meter<'_> {
    fn add(&self, bytes: u64) {
        const STEP: u64 = 4 << 20;
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        if before / STEP != (before + bytes) / STEP || before + bytes == self.total {
            self.progress.at(before + bytes);
        }
    }
}

/// Plans both sides. Head counts that the one tells (in its metadata or by its shapes) serve the other.
fn plans(
    map: &Map,
    left: (&Opened, &Scheme),
    right: (&Opened, &Scheme),
    options: &DiffOptions,
) -> Result<(Plan, Plan)> {
    type Heads = BTreeMap<(String, Letter), u64>;
    let burn = map.scheme("burn").context("the map has no canonical scheme")?;
    let plan = |(opened, scheme): (&Opened, &Scheme), heads: &Heads| {
        let options = Options { part: true, heads: heads.clone(), lora: Lora::Keep, ..Options::default() };
        Plan::new(map, &opened.tensors, scheme, burn, &options)
    };
    let told = |opened: &Opened| -> Heads {
        let own = opened.own_anatomy().map(|anatomy| anatomy.heads()).unwrap_or_default();
        options.heads.clone().into_iter().chain(own).collect()
    };
    let found = |plan: &Result<Plan, Refused>| -> Heads {
        let Ok(plan) = plan else { return Heads::new() };
        let letters = [("img", 'N'), ("llm", 'N'), ("llm", 'K')];
        let size =
            |(zone, letter): (&str, Letter)| Some(((zone.to_owned(), letter), plan.sizes.get(zone, None, letter)?));
        letters.into_iter().filter_map(size).collect()
    };
    let (left_told, right_told) = (told(left.0), told(right.0));
    let (left_alone, right_alone) = (plan(left, &left_told), plan(right, &right_told));
    let with = |own: &Heads, other: &Heads, seen: Heads| -> Heads {
        let mut all = seen;
        all.extend(other.clone());
        all.extend(own.clone());
        all
    };
    // Where the other's heads do not fit, a side is planned by its own alone.
    let better = plan(left, &with(&left_told, &right_told, found(&right_alone)));
    let left_plan = better.or(left_alone).with_context(|| left.0.path.display().to_string())?;
    let better = plan(right, &with(&right_told, &left_told, found(&Ok(left_plan.clone()))));
    let right_plan = better.or(right_alone).with_context(|| right.0.path.display().to_string())?;
    Ok((left_plan, right_plan))
}

/// Every name of either side; those in one shape are `Same` until something is found.
fn listed(sides: &[Part<'_>; 2]) -> Vec<Difference> {
    let mut names: Vec<&str> = sides.iter().flat_map(|s| s.outputs.keys().copied()).collect();
    names.sort_unstable();
    names.dedup();
    let difference = |name: &str| {
        let (left, right) = (sides[0].describe(name), sides[1].describe(name));
        let verdict = match (&left, &right) {
            (Some(_), None) => Verdict::OnlyLeft,
            (None, _) => Verdict::OnlyRight,
            (Some(l), Some(r)) if l.shape != r.shape => Verdict::Shape,
            _ => Verdict::Same,
        };
        Difference { name: name.to_owned(), left, right, verdict }
    };
    names.into_iter().map(difference).collect()
}

fn pairs(sides: &[Part<'_>; 2], tensors: &[Difference]) -> Vec<Pair> {
    let compared = tensors.iter().enumerate().filter(|(_, t)| t.verdict == Verdict::Same);
    let pair = |(tensor, t): (usize, &Difference)| {
        let output = |side: &Part<'_>| side.outputs.get(t.name.as_str()).copied();
        Some(Pair { tensor, left: output(&sides[0])?, right: output(&sides[1])? })
    };
    compared.filter_map(pair).collect()
}

/// Pairs that share a source on either side, directly or through others.
fn groups(sides: &[Part<'_>; 2], pairs: &[Pair]) -> Vec<Vec<usize>> {
    let mut parent: Vec<usize> = (0..pairs.len()).collect();
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    for (n, side) in sides.iter().enumerate() {
        let mut first: BTreeMap<usize, usize> = BTreeMap::new();
        for (i, pair) in pairs.iter().enumerate() {
            for source in &side.sources[[pair.left, pair.right][n]] {
                let other = *first.entry(*source).or_insert(i);
                let (a, b) = (root(&mut parent, i), root(&mut parent, other));
                parent[a.max(b)] = a.min(b);
            }
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in 0..pairs.len() {
        groups.entry(root(&mut parent, i)).or_default().push(i);
    }
    groups.into_values().collect()
}

/// What of a side was not compared. A tied copy is held against the tensor that it repeats.
fn notes(side: Side, part: &Part<'_>) -> Result<Vec<Note>> {
    let Opened { tensors, arrays, source, left_out, .. } = part.opened;
    let mut notes = vec![];
    for (i, fate) in part.plan.fates.iter().enumerate() {
        let Fate::Dropped(reason) = fate else { continue };
        let mut reason = reason.clone();
        let owner = reason.strip_prefix("tied: repeats ").and_then(|own| tensors.iter().position(|t| t.name == own));
        if let Some(owner) = owner {
            let same = super::same_array(&**source, arrays[i], arrays[owner])?;
            reason += if same { ", bit for bit" } else { ", or should: their bytes differ" };
        }
        notes.push(Note { side, name: tensors[i].name.clone(), reason });
    }
    notes.extend(left_out.iter().map(|l| Note { side, name: l.name.clone(), reason: l.reason.clone() }));
    notes.sort();
    Ok(notes)
}

/// JSON has no infinity: it is written by its name.
fn number_or_name<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.serialize_str(&value.to_string()) }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
