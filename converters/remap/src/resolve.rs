//! From names and shapes to letters and sizes.
//!
//! Axes of one letter tell its size; an axis of several is solved from what the others told, from what the caller
//! told, or from the table of known widths. Invariant: a leaf that leaves here has a size for every letter.

use std::collections::BTreeMap;

use crate::error::Fault;
use crate::map::{Index, Letter, Map, Scheme};
use crate::plan::{Options, Tensor};
use crate::sizes::{Scope, Sizes};

/// A source tensor and the row it belongs to.
pub(crate) struct Leaf {
    pub(crate) source: usize,
    pub(crate) row: usize,
    /// Indices that stand in the name.
    pub(crate) index: Index,
    /// Sizes of the letters of its axes.
    pub(crate) sizes: BTreeMap<Letter, u64>,
}

/// Whose name a tied name is.
pub(crate) enum Own {
    /// Stands alone under its alias: it is the tensor with this canonical name.
    Alias(String),
    /// Its owner is there too.
    Repeats(String),
}

/// Tied names among the sources: alone, an alias is the tensor; beside its owner, it repeats it.
pub(crate) fn ties(map: &Map, tensors: &[Tensor], from: &Scheme) -> BTreeMap<usize, Own> {
    let mut owners = BTreeMap::new();
    for tie in map.tied.iter().filter(|t| t.column == from.column) {
        let find = |column: &str| tensors.iter().position(|t| from.strip(&t.name).as_deref() == Some(column));
        let Some(alias) = find(&tie.name) else { continue };
        let own = map.find("burn", &tie.canonical).and_then(|(row, at)| map.rows[row].side(&from.column)?.write(&at));
        let own = own.and_then(|own| find(&own));
        let own = match own {
            Some(own) => Own::Repeats(tensors[own].name.clone()),
            None => Own::Alias(tie.canonical.clone()),
        };
        owners.insert(alias, own);
    }
    owners
}

/// Reads the size of every letter of every leaf. Leaves that do not fit are faults and left out.
#[allow(clippy::too_many_arguments)]
pub(crate) fn resolve(
    map: &Map,
    tensors: &[Tensor],
    from: &Scheme,
    to: &Scheme,
    found: Vec<(usize, usize, Index)>,
    options: &Options,
    sizes: &mut Sizes,
    faults: &mut Vec<Fault>,
) -> Vec<Leaf> {
    for ((zone, letter), size) in &options.heads {
        let scope = Scope { zone: zone.clone(), by: None, letter: *letter };
        if let Err(fault) = sizes.record(scope, *size, "--heads") {
            faults.push(fault);
        }
    }
    // Letters that stand in names: as many as the largest says.
    let mut last: BTreeMap<Scope, (u64, usize)> = BTreeMap::new();
    for (source, row, index) in &found {
        for (letter, value) in index {
            if let (None, Some(scope)) =
                (map.rows[*row].spelled(*letter), Sizes::scope(map, &map.rows[*row], index, *letter))
            {
                let entry = last.entry(scope).or_insert((0, *source));
                if *value >= entry.0 {
                    *entry = (*value, *source);
                }
            }
        }
    }
    for (scope, (value, source)) in last {
        if let Err(fault) = sizes.record(scope, value.saturating_add(1), &tensors[source].name) {
            faults.push(fault);
        }
    }
    // Axes of one letter, then what follows from them for axes of several.
    let mut leaves = vec![];
    for (source, row, index) in found {
        let Some(side) = map.rows[row].side(&from.column) else { continue };
        let tensor = &tensors[source];
        if side.axes.len() != tensor.shape.len()
            || side.axes.iter().zip(&tensor.shape).any(|(group, len)| group.is_empty() && *len != 1)
        {
            faults.push(Fault::Shape {
                name: tensor.name.clone(),
                expected: format!("axes {}", spell(&side.axes)),
                found: format!("{:?}", tensor.shape),
            });
            continue;
        }
        let mut leaf = Leaf { source, row, index, sizes: BTreeMap::new() };
        let mut fits = true;
        for (group, len) in side.axes.iter().zip(&tensor.shape) {
            if let [letter] = group[..] {
                fits &= put(map, &mut leaf, letter, *len, tensor, sizes, faults);
            }
        }
        if fits {
            leaves.push(leaf);
        }
    }
    // Merged axes: solve what is solvable, then ask the table of known widths, then solve again.
    for round in 0..3 {
        if round == 1 {
            for heads in &map.heads {
                if sizes.widths(&heads.zone, heads.letter).any(|width| width == heads.width) {
                    for (letter, count) in &heads.counts {
                        let scope = Scope { zone: heads.zone.clone(), by: None, letter: *letter };
                        if sizes.of(&scope).is_none() {
                            let _ = sizes.record(scope, *count, "the table of known widths");
                        }
                    }
                }
            }
        }
        for leaf in &mut leaves {
            solve_groups(map, tensors, from, leaf, sizes, faults);
        }
    }
    leaves.retain_mut(|leaf| {
        let Some(side) = map.rows[leaf.row].side(&from.column) else { return false };
        for (group, len) in side.axes.iter().zip(&tensors[leaf.source].shape) {
            let missing: Vec<Letter> = group.iter().copied().filter(|l| !leaf.sizes.contains_key(l)).collect();
            if missing.is_empty() {
                continue;
            }
            // The same merged axis on the other side: one axis in all but name.
            let kept = map.rows[leaf.row].side(&to.column).is_some_and(|other| other.axes.contains(group));
            if kept {
                for letter in group {
                    leaf.sizes.insert(*letter, if Some(letter) == group.first() { *len } else { 1 });
                }
            } else {
                let missing = missing.iter().map(char::to_string).collect::<Vec<_>>().join(" or ");
                faults.push(Fault::Heads { name: tensors[leaf.source].name.clone(), missing });
                return false;
            }
        }
        true
    });
    leaves
}

fn put(
    map: &Map,
    leaf: &mut Leaf,
    letter: Letter,
    size: u64,
    tensor: &Tensor,
    sizes: &mut Sizes,
    faults: &mut Vec<Fault>,
) -> bool {
    leaf.sizes.insert(letter, size);
    let Some(scope) = Sizes::scope(map, &map.rows[leaf.row], &leaf.index, letter) else { return true };
    match sizes.record(scope, size, &tensor.name) {
        Ok(()) => true,
        Err(fault) => {
            faults.push(fault);
            false
        }
    }
}

/// A merged axis with one unknown letter tells it by division.
fn solve_groups(
    map: &Map,
    tensors: &[Tensor],
    from: &Scheme,
    leaf: &mut Leaf,
    sizes: &mut Sizes,
    faults: &mut Vec<Fault>,
) {
    let row = &map.rows[leaf.row];
    let Some(side) = row.side(&from.column) else { return };
    let tensor = &tensors[leaf.source];
    for (group, len) in side.axes.iter().zip(&tensor.shape) {
        if group.len() < 2 || group.iter().all(|l| leaf.sizes.contains_key(l)) {
            continue;
        }
        let known = |l: &Letter| Sizes::scope(map, row, &leaf.index, *l).and_then(|scope| sizes.of(&scope));
        let unknown: Vec<Letter> = group.iter().copied().filter(|l| known(l).is_none()).collect();
        let product = group.iter().filter_map(known).try_fold(1u64, u64::checked_mul).unwrap_or(u64::MAX);
        let fits = product != 0 && len % product == 0 && (!unknown.is_empty() || *len == product);
        if unknown.len() > 1 {
            continue;
        }
        if !fits {
            let spelled: Vec<String> = group.iter().filter_map(|l| Some(format!("{l} = {}", known(l)?))).collect();
            let fault = Fault::Shape {
                name: tensor.name.clone(),
                expected: format!("an axis of {} with {}", spell(std::slice::from_ref(group)), spelled.join(", ")),
                found: format!("{len}"),
            };
            if !faults.contains(&fault) {
                faults.push(fault);
            }
            continue;
        }
        let solved: Vec<(Letter, u64)> = group.iter().map(|l| (*l, known(l).unwrap_or(len / product))).collect();
        for (letter, size) in solved {
            put(map, leaf, letter, size, tensor, sizes, faults);
        }
    }
}

/// `[L, [N, H]]` as `L (N H)`.
pub(crate) fn spell(axes: &[Vec<Letter>]) -> String {
    let group = |g: &Vec<Letter>| match g[..] {
        [] => "1".to_owned(),
        [letter] => letter.to_string(),
        _ => format!("({})", g.iter().map(char::to_string).collect::<Vec<_>>().join(" ")),
    };
    axes.iter().map(group).collect::<Vec<_>>().join(" ")
}
