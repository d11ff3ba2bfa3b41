//! Outputs and the moves that fill them, collected leaf by leaf.
//!
//! Invariant: what [`Builder::finish`] gives has no output that is written twice or in part: each is a fault.

use std::collections::BTreeMap;

use orbax::Dtype;

use crate::error::Fault;
use crate::map::{Index, Letter, Map, Row, Scheme};
use crate::plan::{At, Axis, From, Lora, MAX_PIECES, Move, Options, Output, Tensor, Tie, combinations, strides};
use crate::resolve::Leaf;
use crate::sizes::Sizes;

/// An output in the making.
pub(crate) struct Draft {
    shape: Vec<u64>,
    dtype: Dtype,
    from: From,
    /// Elements that moves write.
    filled: u64,
    /// First element of each move, and its source.
    starts: BTreeMap<u64, usize>,
}

/// Collects outputs and the moves that fill them.
pub(crate) struct Builder<'a> {
    pub(crate) map: &'a Map,
    pub(crate) tensors: &'a [Tensor],
    pub(crate) from: &'a Scheme,
    pub(crate) to: &'a Scheme,
    pub(crate) options: &'a Options,
    pub(crate) sizes: &'a Sizes,
    pub(crate) canonical: &'a BTreeMap<String, usize>,
    pub(crate) outputs: BTreeMap<String, Draft>,
    pub(crate) moves: Vec<(String, Move)>,
}

impl Builder<'_> {
    pub(crate) fn push(&mut self, leaf: &Leaf, faults: &mut Vec<Fault>) {
        let tensor = &self.tensors[leaf.source];
        let row = &self.map.rows[leaf.row];
        let nameless = || Fault::Nameless { name: tensor.name.clone(), scheme: self.to.name.clone() };
        let Some(side) = row.side(&self.to.column) else { return faults.push(nameless()) };
        let size = self.sizes_of(row, leaf);
        // Letters of the target's name that are axes of the source: one move for each of their values.
        let split: Vec<Letter> = side.named().map(|(l, _)| l).filter(|l| leaf.sizes.contains_key(l)).collect();
        let pieces = split.iter().map(|l| leaf.sizes[l]).try_fold(1u64, u64::checked_mul).unwrap_or(u64::MAX);
        if pieces > MAX_PIECES {
            faults.push(Fault::Shape {
                name: tensor.name.clone(),
                expected: format!("at most {MAX_PIECES} tensors out of one"),
                found: format!("{:?}", tensor.shape),
            });
            return;
        }
        for at in combinations(&split, &leaf.sizes, &leaf.index) {
            let Some(name) = side.write(&at).and_then(|name| self.to.dress(&name)) else {
                faults.push(nameless());
                return;
            };
            let shape: Vec<u64> = side.axes.iter().map(|g| g.iter().map(|l| size[l]).product()).collect();
            let strides = strides(&side.axes, &size);
            let offset = strides.iter().filter_map(|(l, s)| leaf.index.get(l).map(|v| v * s)).sum();
            let axes = self.axes_of(row, leaf, &strides, &at);
            let m = Move { source: leaf.source, output: 0, axes, offset };
            let canonical = row.side("burn").and_then(|s| s.write(&at));
            let dtype = self.merged_dtype(tensor.dtype, canonical.as_deref());
            for name in self.tied_names(name, canonical.as_deref()) {
                self.place(name, &shape, dtype, m.clone(), faults);
            }
        }
    }

    /// All letters' sizes: the leaf's own, and for those in its name how many the target has.
    fn sizes_of(&self, row: &Row, leaf: &Leaf) -> BTreeMap<Letter, u64> {
        let mut size = leaf.sizes.clone();
        for letter in leaf.index.keys() {
            let scoped = || Sizes::scope(self.map, row, &leaf.index, *letter).and_then(|s| self.sizes.of(&s));
            if let Some(n) = row.spelled(*letter).or_else(scoped) {
                size.insert(*letter, n);
            }
        }
        size
    }

    fn axes_of(&self, row: &Row, leaf: &Leaf, strides: &BTreeMap<Letter, u64>, at: &Index) -> Vec<Vec<Axis>> {
        let axes = row.side(&self.from.column).map(|side| side.axes.as_slice()).unwrap_or_default();
        axes.iter()
            .map(|group| {
                let axis = |letter: &Letter| Axis {
                    letter: *letter,
                    len: leaf.sizes[letter],
                    at: match strides.get(letter) {
                        Some(stride) => At::All(*stride),
                        None => At::One(at.get(letter).copied().unwrap_or(0)),
                    },
                };
                group.iter().map(axis).collect()
            })
            .collect()
    }

    fn tied_names(&self, own: String, canonical: Option<&str>) -> Vec<String> {
        let tie = self.map.tied.iter().find(|t| t.column == self.to.column && Some(t.canonical.as_str()) == canonical);
        match tie.and_then(|t| self.to.dress(&t.name)) {
            None => vec![own],
            Some(alias) => match self.options.tie {
                Tie::Alias => vec![alias],
                Tie::Own => vec![own],
                Tie::Both => vec![own, alias],
            },
        }
    }

    /// The type of a weight that its low-rank pair is added to: one that holds both (openpi freezes in bf16).
    fn merged_dtype(&self, own: Dtype, canonical: Option<&str>) -> Dtype {
        if self.options.lora != Lora::Merge {
            return own;
        }
        let pair = canonical.and_then(|name| name.strip_suffix(".weight")).and_then(|stem| {
            let half = |factor: &str| self.canonical.get(&format!("{stem}.{factor}"));
            Some([*half("lora_a")?, *half("lora_b")?])
        });
        let types = pair.into_iter().flatten().map(|source| self.tensors[source].dtype);
        types.fold(own, |widest, dtype| wider(widest, dtype).unwrap_or(widest))
    }

    fn place(&mut self, name: String, shape: &[u64], dtype: Dtype, m: Move, faults: &mut Vec<Fault>) {
        let tensor = &self.tensors[m.source];
        let draft = self.outputs.entry(name.clone()).or_insert_with(|| Draft {
            shape: shape.to_vec(),
            dtype,
            from: From::Moves,
            filled: 0,
            starts: BTreeMap::new(),
        });
        if draft.shape != shape {
            faults.push(Fault::Shape {
                name: tensor.name.clone(),
                expected: format!("{:?} for {name}", draft.shape),
                found: format!("{shape:?}"),
            });
            return;
        }
        if let Some(other) = draft.starts.insert(m.offset, m.source) {
            faults.push(Fault::Twice { name: tensor.name.clone(), other: self.tensors[other].name.clone() });
            return;
        }
        draft.filled += m.len();
        // Stacked layers of several types: the one that holds them all.
        match wider(draft.dtype, dtype) {
            Some(dtype) => draft.dtype = dtype,
            None => faults.push(Fault::Dtype { name: tensor.name.clone(), found: tensor.dtype.name().to_owned() }),
        }
        self.moves.push((name, m));
    }

    pub(crate) fn finish(mut self, faults: &mut Vec<Fault>) -> (Vec<Output>, Vec<Move>) {
        if self.options.zeros {
            self.add_zeros();
        }
        let mut outputs = vec![];
        for (name, draft) in &self.outputs {
            let dtype = match self.options.cast {
                Some(cast) if draft.dtype.is_float() => cast,
                _ => draft.dtype,
            };
            let tensor = Tensor { name: name.clone(), shape: draft.shape.clone(), dtype };
            if draft.from == From::Moves && draft.filled != tensor.len() {
                faults.push(Fault::Hole {
                    name: name.clone(),
                    needed: format!("its sources give {} of its {} elements", draft.filled, tensor.len()),
                });
            }
            outputs.push(Output { tensor, from: draft.from });
        }
        let at: BTreeMap<&str, usize> = outputs.iter().enumerate().map(|(i, o)| (o.tensor.name.as_str(), i)).collect();
        let moves = self.moves.into_iter().map(|(name, m)| Move { output: at[name.as_str()], ..m }).collect();
        (outputs, moves)
    }

    fn add_zeros(&mut self) {
        for zeros in self.map.zeros.iter().filter(|z| z.column == self.to.column) {
            let size = |(letter, by): &(Letter, Option<u64>)| self.sizes.get("llm", *by, *letter);
            let (Some(shape), Some(name)) =
                (zeros.axes.iter().map(size).collect::<Option<Vec<u64>>>(), self.to.dress(&zeros.name))
            else {
                continue;
            };
            let dtype = self.outputs.values().map(|d| d.dtype).find(|d| d.is_float()).unwrap_or(Dtype::F32);
            let draft = Draft { shape, dtype, from: From::Zeros, filled: 0, starts: BTreeMap::new() };
            self.outputs.insert(name, draft);
        }
    }
}

/// The narrower of the types that hold both exactly; `None` if there is none.
fn wider(a: Dtype, b: Dtype) -> Option<Dtype> {
    use Dtype::{Bf16, F16, F32, F64};
    match (a, b) {
        _ if a == b => Some(a),
        (F64, F16 | Bf16 | F32) | (F16 | Bf16 | F32, F64) => Some(F64),
        (F32, F16 | Bf16) | (F16 | Bf16, F32) | (F16, Bf16) | (Bf16, F16) => Some(F32),
        _ => None,
    }
}
