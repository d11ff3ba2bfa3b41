//! Names and shapes in, moves out: everything that can be refused is refused here, before a byte is read.
//!
//! Invariant: in a plan, every source tensor has a fate, every element of every output is written exactly once,
//! and the model is whole (unless the caller asked for a part).

use std::collections::BTreeMap;

use orbax::Dtype;
use serde::Serialize;

use crate::build::Builder;
use crate::error::{Fault, Refused};
use crate::map::{Index, Letter, Map, Scheme};
use crate::resolve;
use crate::sizes::Sizes;
use crate::whole;

/// Outputs that one source tensor may be split into: layers times two, with room to spare.
pub(crate) const MAX_PIECES: u64 = 4096;

/// A tensor without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Full name in its scheme.
    pub name: String,
    /// Elements along each axis.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: Dtype,
}

impl Tensor {
    /// Elements.
    pub fn len(&self) -> u64 {
        self.shape.iter().product()
    }

    /// No elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the dense array.
    pub fn bytes(&self) -> u64 {
        self.len() * self.dtype.size() as u64
    }
}

/// What becomes of low-rank pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lora {
    /// They stay tensors of their own.
    #[default]
    Keep,
    /// They go into their weights; the mover adds the product.
    Merge,
    /// They are left out.
    Drop,
}

/// Under which name a tied tensor is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tie {
    /// The alias (`lm_head`) where the scheme has one: what its own writer stores.
    #[default]
    Alias,
    /// The tensor's own name (`embed_tokens`).
    Own,
    /// Both.
    Both,
}

/// What a caller can choose.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Element type of floating-point outputs; `None` keeps each as it is.
    pub cast: Option<Dtype>,
    /// Head counts by zone and letter, where shapes do not tell.
    pub heads: BTreeMap<(String, Letter), u64>,
    /// Low-rank pairs.
    pub lora: Lora,
    /// Tied tensors.
    pub tie: Tie,
    /// Write the tensors that strict loaders want and nothing reads?
    pub zeros: bool,
    /// A part of a model is enough?
    pub part: bool,
}

/// An axis of a move, seen from the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    /// Which letter it is.
    pub letter: Letter,
    /// Its size in the source.
    pub len: u64,
    /// What the move takes of it.
    pub at: At,
}

/// What a move takes of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// All of it; in the output neighbours lie this many elements apart.
    All(u64),
    /// One index.
    One(u64),
}

/// A block of a source tensor that goes to one place of one output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Source tensor.
    pub source: usize,
    /// Output.
    pub output: usize,
    /// For each axis of the source array its letters, slowest first.
    pub axes: Vec<Vec<Axis>>,
    /// First element in the output.
    pub offset: u64,
}

impl Move {
    /// Elements that it moves.
    pub fn len(&self) -> u64 {
        self.axes.iter().flatten().map(|a| if matches!(a.at, At::All(_)) { a.len } else { 1 }).product()
    }

    /// Moves nothing?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Name, shape and type.
    pub tensor: Tensor,
    /// Where its elements come from.
    pub from: From,
}

/// Where an output's elements come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Source tensors.
    Moves,
    /// Nowhere: zeros that a strict loader wants.
    Zeros,
}

/// What becomes of a source tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes to these outputs.
    Moved(Vec<String>),
    /// It goes nowhere, for this reason.
    Dropped(String),
    /// It is added into these outputs.
    Merged(Vec<String>),
}

/// What will be read, moved and written.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sorted by name.
    pub outputs: Vec<Output>,
    /// In the order of their sources.
    pub moves: Vec<Move>,
    /// One for each source tensor.
    pub fates: Vec<Fate>,
    /// What the shapes tell.
    pub sizes: Sizes,
    /// Which whole model it is; `None` where a part was enough and none fits.
    pub model: Option<String>,
    /// Canonical names of the parameters, each with the source tensor that has it.
    pub canonical: BTreeMap<String, usize>,
}

impl Plan {
    /// Plans the way of `tensors` from one scheme to another, or says everything that is wrong with them.
    pub fn new(map: &Map, tensors: &[Tensor], from: &Scheme, to: &Scheme, options: &Options) -> Result<Plan, Refused> {
        let mut faults = vec![];
        let mut fates: Vec<Fate> = vec![Fate::Moved(vec![]); tensors.len()];
        let mut leaves = vec![];
        let mut unknown = vec![];
        let own = resolve::ties(map, tensors, from);
        for (source, tensor) in tensors.iter().enumerate() {
            let stripped = from.strip(&tensor.name);
            let known = stripped.as_deref().and_then(|name| {
                if map.zeros.iter().any(|z| z.column == from.column && z.name == name) {
                    return Some(Err("no part of the model: loaders want it and nothing reads it".to_owned()));
                }
                match own.get(&source) {
                    Some(resolve::Own::Alias(canonical)) => map.find("burn", canonical).map(Ok),
                    Some(resolve::Own::Repeats(first)) => Some(Err(format!("tied: repeats {first}"))),
                    None => map.find(&from.column, name).map(Ok),
                }
            });
            match known {
                Some(Ok((row, index))) => leaves.push((source, row, index)),
                Some(Err(reason)) => fates[source] = Fate::Dropped(reason),
                None => unknown.push(source),
            }
        }
        let mut sizes = Sizes::default();
        let leaves = resolve::resolve(map, tensors, from, to, leaves, options, &mut sizes, &mut faults);
        let whole = whole::check(map, tensors, from, &leaves, &sizes, options.part, &mut faults);
        whole::name_strangers(map, tensors, from, &unknown, &whole, &mut faults);

        let mut builder = Builder {
            map,
            tensors,
            from,
            to,
            options,
            sizes: &sizes,
            canonical: &whole.canonical,
            outputs: BTreeMap::new(),
            moves: vec![],
        };
        for leaf in &leaves {
            let lora = map.rows[leaf.row].kind == crate::map::Kind::Lora;
            match options.lora {
                Lora::Drop if lora => fates[leaf.source] = Fate::Dropped("left out on request (LoRA)".into()),
                Lora::Merge if lora => fates[leaf.source] = Fate::Merged(vec![]),
                _ => builder.push(leaf, &mut faults),
            }
        }
        let (outputs, moves) = builder.finish(&mut faults);
        for m in &moves {
            if let Fate::Moved(to) = &mut fates[m.source] {
                let name = &outputs[m.output].tensor.name;
                if to.last() != Some(name) {
                    to.push(name.clone());
                }
            }
        }
        if !faults.is_empty() {
            faults.sort();
            faults.dedup();
            return Err(Refused { faults });
        }
        Ok(Plan { outputs, moves, fates, sizes, model: whole.model, canonical: whole.canonical })
    }
}

impl Plan {
    /// The way of tensors that no map knows: each to itself.
    ///
    /// # Errors
    /// Two of one name.
    pub fn as_is(tensors: &[Tensor], cast: Option<Dtype>) -> Result<Plan, Refused> {
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|i| &tensors[*i].name);
        let mut faults = vec![];
        for pair in order.windows(2) {
            if let [a, b] = pair
                && tensors[*a].name == tensors[*b].name
            {
                faults.push(Fault::Twice { name: tensors[*a].name.clone(), other: tensors[*b].name.clone() });
            }
        }
        if !faults.is_empty() {
            return Err(Refused { faults });
        }
        let (mut outputs, mut moves) = (vec![], vec![]);
        for (output, source) in order.iter().enumerate() {
            let tensor = &tensors[*source];
            let dtype = cast.filter(|_| tensor.dtype.is_float()).unwrap_or(tensor.dtype);
            outputs.push(Output { tensor: Tensor { dtype, ..tensor.clone() }, from: From::Moves });
            let mut stride = 1;
            let mut axes = vec![];
            for len in tensor.shape.iter().rev() {
                axes.push(vec![Axis { letter: 'X', len: *len, at: At::All(stride) }]);
                stride *= len;
            }
            axes.reverse();
            moves.push(Move { source: *source, output, axes, offset: 0 });
        }
        moves.sort_by_key(|m| m.source);
        let fates = tensors.iter().map(|t| Fate::Moved(vec![t.name.clone()])).collect();
        let (sizes, canonical) = (Sizes::default(), BTreeMap::new());
        Ok(Plan { outputs, moves, fates, sizes, model: None, canonical })
    }
}

/// Every assignment of `letters`, on top of `base`.
pub(crate) fn combinations(letters: &[Letter], sizes: &BTreeMap<Letter, u64>, base: &Index) -> Vec<Index> {
    letters.iter().fold(vec![base.clone()], |all, letter| {
        let with = |at: &Index| {
            (0..sizes[letter])
                .map(|value| at.iter().map(|(k, v)| (*k, *v)).chain([(*letter, value)]).collect())
                .collect::<Vec<Index>>()
        };
        all.iter().flat_map(with).collect()
    })
}

/// Elements between neighbours along each letter of a dense array in C order.
pub(crate) fn strides(axes: &[Vec<Letter>], sizes: &BTreeMap<Letter, u64>) -> BTreeMap<Letter, u64> {
    let mut stride = 1;
    let mut all = BTreeMap::new();
    for letter in axes.iter().rev().flat_map(|group| group.iter().rev()) {
        all.insert(*letter, stride);
        stride *= sizes[letter];
    }
    all
}
