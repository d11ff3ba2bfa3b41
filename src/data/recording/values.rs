//! A pile of pickled nodes → the records `inputs` and `outputs`.
//!
//! Invariants: what is made is paid for from a [`Budget`] that the file's size sets, so that one array named a million
//! times is refused; a dtype that [`Values`] lacks is widened to one that holds each of its values exactly.

#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::pickle::{Id, Node, Pile};
use super::{Recording, RecordingFault as Fault, shown};
use crate::data::numpy::{Dtype, joined};
use crate::policy::array::{Array, Values};
use crate::policy::record::Value;

/// Dictionaries in dictionaries and lists in lists at most; axes too.
pub(super) const MAX_DEPTH: usize = 32;
/// Bytes that we hold for a byte of the file: int8 becomes int32, and one picture may stand under several cameras.
const BYTES_PER_BYTE: u64 = 16;
/// And for any file.
const BYTES_AT_LEAST: u64 = 1 << 16;
/// What a key takes beside its own bytes.
const KEY_BYTES: u64 = 32;
/// What an item of a list takes: its id, then its value.
const ITEM_BYTES: u64 = 16;

/// Bytes that may still be held.
struct Budget {
    left: u64,
    all: u64,
}

impl Budget {
    fn of(file_bytes: usize) -> Self {
        let all = (file_bytes as u64).saturating_mul(BYTES_PER_BYTE).saturating_add(BYTES_AT_LEAST);
        Budget { left: all, all }
    }

    fn pay(&mut self, bytes: u64) -> Result<(), Fault> {
        let max = self.all;
        self.left = self.left.checked_sub(bytes).ok_or(Fault::Bounds { what: "bytes of values", max })?;
        Ok(())
    }
}

/// The two records; `file_bytes` sets what they may take.
pub(super) fn recording(pile: &Pile<'_>, file_bytes: usize) -> Result<Recording, Fault> {
    let mut budget = Budget::of(file_bytes);
    let root = unboxed(pile, pile.root)?;
    let Node::Dict(_) = pile.get(root) else { return Err(Fault::NoDict) };
    let mut recording = Recording::default();
    let mut open = vec![(String::new(), root, 0_usize)];
    while let Some((prefix, id, depth)) = open.pop() {
        let Node::Dict(pairs) = pile.get(id) else { continue };
        for (key, value) in pairs {
            let Node::Text(key) = pile.get(*key) else {
                return Err(unfit(&prefix, "a key that is no text"));
            };
            budget.pay((prefix.len() as u64).saturating_add(key.len() as u64).saturating_add(KEY_BYTES))?;
            let key = if prefix.is_empty() { (*key).to_owned() } else { format!("{prefix}/{key}") };
            let value = unboxed(pile, *value)?;
            if let Node::Dict(_) = pile.get(value) {
                if depth >= MAX_DEPTH {
                    return Err(unfit(&key, "dictionaries too deep in each other"));
                }
                open.push((key, value, depth.saturating_add(1)));
                continue;
            }
            let (record, name) = match key.split_once('/') {
                Some(("inputs", name)) => (&mut recording.inputs, name),
                Some(("outputs", name)) => (&mut recording.outputs, name),
                _ => return Err(Fault::Key { key: shown(&key) }),
            };
            if let Some(value) = read(pile, value, &key, &mut budget)? {
                record.put(name, value);
            }
        }
    }
    if recording.inputs.values.is_empty() {
        return Err(Fault::NoInputs);
    }
    Ok(recording)
}

fn unfit(key: &str, what: impl Into<String>) -> Fault {
    Fault::Unfit { key: shown(key), what: what.into() }
}

/// What stands in an object array without an axis, or in one within one.
fn unboxed(pile: &Pile<'_>, mut id: Id) -> Result<Id, Fault> {
    for _ in 0..MAX_DEPTH {
        let Node::Array { shape, dtype, data, .. } = pile.get(id) else { return Ok(id) };
        let (Node::Tuple(shape), Node::Dtype(Dtype { kind: 'O', .. })) = (pile.get(*shape), pile.get(*dtype)) else {
            return Ok(id);
        };
        match (shape.as_slice(), pile.get(*data)) {
            ([], Node::List(items)) if items.len() == 1 => id = items.first().copied().unwrap_or(id),
            _ => return Ok(id),
        }
    }
    Err(unfit("the dictionary", "object arrays too deep in each other"))
}

/// A value; `None` for Python's.
fn read(pile: &Pile<'_>, id: Id, key: &str, budget: &mut Budget) -> Result<Option<Value>, Fault> {
    Ok(Some(match pile.get(id) {
        Node::None => return Ok(None),
        Node::Text(text) => {
            budget.pay(text.len() as u64)?;
            Value::Text((*text).to_owned())
        }
        Node::Bytes(_) | Node::Latin(_) => {
            let bytes = bytes(pile, id, key, budget)?;
            Value::Array(Array { shape: vec![bytes.len()], values: Values::U8(bytes) })
        }
        Node::List(_) | Node::Tuple(_) => Value::Array(sequence(pile, id, key, budget)?),
        Node::Array { dtype, .. } if matches!(pile.get(*dtype), Node::Dtype(Dtype { kind: 'U', .. })) => {
            Value::Text(text(pile, id, key, budget)?)
        }
        _ => Value::Array(number(pile, id, key, budget)?),
    }))
}

/// Numbers, in an array or alone.
fn number(pile: &Pile<'_>, id: Id, key: &str, budget: &mut Budget) -> Result<Array, Fault> {
    let scalar = |values| Ok(Array { shape: vec![], values });
    match pile.get(id) {
        Node::Bool(x) => scalar(Values::Bool(vec![*x])),
        Node::Int(x) => scalar(Values::I64(vec![*x])),
        Node::Float(x) => scalar(Values::F64(vec![*x])),
        Node::Array { .. } => array(pile, id, key, budget),
        Node::Text(_) => Err(unfit(key, "texts in a list")),
        _ => Err(unfit(key, "something that is neither a number, an array nor a text")),
    }
}

/// Bytes of an array, copied.
fn bytes(pile: &Pile<'_>, id: Id, key: &str, budget: &mut Budget) -> Result<Vec<u8>, Fault> {
    match pile.get(id) {
        Node::Bytes(bytes) => {
            budget.pay(bytes.len() as u64)?;
            Ok(bytes.to_vec())
        }
        Node::Latin(text) => {
            budget.pay(text.len() as u64)?;
            let bytes = text.chars().map(|c| u8::try_from(u32::from(c)));
            bytes.collect::<Result<_, _>>().map_err(|_| unfit(key, "bytes that are not latin1"))
        }
        _ => Err(unfit(key, "an array whose data are no bytes")),
    }
}

/// Shape, dtype and data of an array, which fit each other.
fn parts(pile: &Pile<'_>, id: Id, key: &str, budget: &mut Budget) -> Result<(Vec<usize>, Dtype, bool, Vec<u8>), Fault> {
    let Node::Array { shape, dtype, fortran, data } = pile.get(id) else { return Err(unfit(key, "no array")) };
    let (Node::Tuple(axes), Node::Dtype(dtype)) = (pile.get(*shape), pile.get(*dtype)) else {
        return Err(unfit(key, "an array without a shape or a dtype"));
    };
    if dtype.kind == 'O' {
        return Err(unfit(key, "an array of Python objects; record arrays of numbers"));
    }
    if axes.len() > MAX_DEPTH {
        return Err(unfit(key, "an array of too many axes"));
    }
    let axis = |id: &Id| match pile.get(*id) {
        Node::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    };
    let shape: Option<Vec<usize>> = axes.iter().map(axis).collect();
    let shape = shape.ok_or_else(|| unfit(key, "an array with an axis that is no length"))?;
    // Also where an axis is empty: whoever multiplies the others must not overflow.
    let product = shape.iter().try_fold(1_usize, |n, axis| n.checked_mul((*axis).max(1)));
    product.ok_or_else(|| unfit(key, "a shape beyond any memory"))?;
    let data = bytes(pile, *data, key, budget)?;
    let expected = shape.iter().product::<usize>().checked_mul(dtype.size);
    if expected != Some(data.len()) {
        return Err(unfit(key, format!("{} bytes of data for the shape {shape:?}", data.len())));
    }
    Ok((shape, *dtype, *fortran, data))
}

/// An array of texts has no place in a record; one text has.
fn text(pile: &Pile<'_>, id: Id, key: &str, budget: &mut Budget) -> Result<String, Fault> {
    let (shape, dtype, _, data) = parts(pile, id, key, budget)?;
    if !shape.is_empty() {
        return Err(unfit(key, format!("an array of texts of shape {shape:?}; record one text")));
    }
    let text = dtype.text(&data);
    text.ok_or_else(|| unfit(key, "a text with a character that Unicode lacks"))
}

fn array(pile: &Pile<'_>, id: Id, key: &str, budget: &mut Budget) -> Result<Array, Fault> {
    let (shape, dtype, fortran, data) = parts(pile, id, key, budget)?;
    let count = (data.len() as u64).checked_div(dtype.size as u64).unwrap_or(0);
    budget.pay(count.saturating_mul(dtype.held_bytes() as u64))?;
    let values = dtype.values(data.into()).map_err(|misfit| unfit(key, misfit.to_string()))?;
    let values = if fortran { in_c_order(values, &shape) } else { values };
    Ok(Array { shape, values })
}

fn in_c_order(values: Values, shape: &[usize]) -> Values {
    match values {
        Values::U8(x) => Values::U8(turned(&x, shape)),
        Values::I32(x) => Values::I32(turned(&x, shape)),
        Values::I64(x) => Values::I64(turned(&x, shape)),
        Values::F32(x) => Values::F32(turned(&x, shape)),
        Values::F64(x) => Values::F64(turned(&x, shape)),
        Values::Bool(x) => Values::Bool(turned(&x, shape)),
    }
}

/// The first axis moved fastest in `values`; in the result the last does.
fn turned<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    let place = |index: usize| {
        // index → its coordinates, last axis first → their place with the first axis fastest.
        let mut rest = index;
        let mut stride = values.len();
        let mut place = 0_usize;
        for axis in shape.iter().rev() {
            stride = stride.checked_div(*axis).unwrap_or(0);
            place = place.saturating_add(rest.checked_rem(*axis).unwrap_or(0).saturating_mul(stride));
            rest = rest.checked_div(*axis).unwrap_or(0);
        }
        place
    };
    (0..values.len()).filter_map(|index| values.get(place(index)).copied()).collect()
}

/// Lists of one length in each level, as `np.asarray` takes them.
fn sequence(pile: &Pile<'_>, id: Id, key: &str, budget: &mut Budget) -> Result<Array, Fault> {
    let items = |id: Id| match pile.get(id) {
        Node::List(items) | Node::Tuple(items) => Some(items),
        _ => None,
    };
    let (mut shape, mut level) = (vec![], vec![id]);
    while let Some(length) = level.first().and_then(|id| items(*id)).map(Vec::len) {
        if shape.len() >= MAX_DEPTH {
            return Err(unfit(key, "lists too deep in each other"));
        }
        budget.pay((level.len() as u64).saturating_mul(length as u64).saturating_mul(ITEM_BYTES))?;
        let mut next = vec![];
        for id in &level {
            match items(*id) {
                Some(items) if items.len() == length => next.extend_from_slice(items),
                _ => return Err(unfit(key, "lists of several lengths")),
            }
        }
        shape.push(length);
        level = next;
    }
    let mut all: Option<Values> = None;
    for id in level {
        let item = number(pile, id, key, budget)?;
        if !item.shape.is_empty() {
            return Err(unfit(key, "arrays in a list"));
        }
        all = Some(match all {
            None => item.values,
            Some(all) => joined(all, item.values).ok_or_else(|| unfit(key, "a list of several types"))?,
        });
    }
    Ok(Array { shape, values: all.unwrap_or(Values::F64(vec![])) })
}
