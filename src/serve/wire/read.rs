//! A message's bytes → a tree.
//!
//! Invariants: bytes are copied once, when they become an array or a text; a list or a dictionary is refused before it is
//! begun where fewer bytes are left than it claims members.

use std::borrow::Cow;
use std::collections::HashSet;

use super::form::{BYTES, F32, F64, FALSE, Family, LIST, MAP, NEGATIVE, NIL, Place, SIGNED, TEXT, TRUE, WHOLE};
use super::{ARRAY, DATA, DTYPE, Fault, Limits, SCALAR, SHAPE, WireError, shown};
use crate::data::numpy::Dtype;
use crate::policy::array::{Array, Values};
use crate::serve::tree::Tree;

/// A value; bytes are not copied before it is known whether an array is made of them.
enum Part<'a> {
    Bytes(&'a [u8]),
    Tree(Tree),
}

/// A step from a value to one within.
enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

struct Reader<'a, 'l> {
    rest: &'a [u8],
    path: Vec<Step<'a>>,
    arrays: usize,
    values: usize,
    limits: &'l Limits,
}

pub(super) fn message(bytes: &[u8], limits: &Limits) -> Result<Tree, WireError> {
    let mut reader = Reader { rest: bytes, path: vec![], arrays: 0, values: 0, limits };
    let read = |reader: &mut Reader<'_, '_>| {
        within("bytes", bytes.len(), limits.message_bytes)?;
        let tree = reader.value()?.into_tree();
        match reader.rest.len() {
            0 => Ok(tree),
            bytes => Err(Fault::Trailing { bytes }),
        }
    };
    // On the way up nothing is taken off the path of a fault.
    read(&mut reader).map_err(|fault| WireError { key: reader.key(), fault })
}

fn within(what: &'static str, found: usize, max: usize) -> Result<(), Fault> {
    if found <= max { Ok(()) } else { Err(Fault::Limit { what, found: found as u64, max: max as u64 }) }
}

impl Part<'_> {
    fn into_tree(self) -> Tree {
        match self {
            Part::Bytes(bytes) => Tree::Bytes(bytes.to_vec()),
            Part::Tree(tree) => tree,
        }
    }

    fn kind(&self) -> String {
        match self {
            Part::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Part::Tree(tree) => tree.kind(),
        }
    }
}

impl<'a> Reader<'a, '_> {
    fn key(&self) -> String {
        let mut key = String::new();
        for step in &self.path {
            match step {
                Step::Key(name) => {
                    if !key.is_empty() {
                        key.push('/');
                    }
                    key.push_str(&shown(name));
                }
                Step::Item(at) => key.push_str(&format!("[{at}]")),
            }
        }
        key
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Fault> {
        let cut = Fault::Cut { wanted: count, found: self.rest.len() as u64 };
        let split = usize::try_from(count).ok().and_then(|count| self.rest.split_at_checked(count));
        let (taken, rest) = split.ok_or(cut)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Bytes of a fixed number.
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let taken = self.take(N as u64)?;
        Ok(*taken.first_chunk().unwrap_or(&[0; N]))
    }

    fn marker(&mut self) -> Result<u8, Fault> {
        Ok(u8::from_be_bytes(self.bytes()?))
    }

    /// The number that a marker of the family carries; `None` for a marker of another one.
    fn number(&mut self, family: &Family, marker: u8) -> Result<Option<u64>, Fault> {
        Ok(match family.of(marker) {
            None => None,
            Some(Place::Here(number)) => Some(number),
            Some(Place::Behind(width)) => {
                Some(self.take(width as u64)?.iter().fold(0, |all, byte| (all << 8) | u64::from(*byte)))
            }
        })
    }

    /// A whole number below 0, or any in the forms of those.
    fn signed(&mut self, marker: u8) -> Result<Option<i64>, Fault> {
        if marker >= NEGATIVE {
            return Ok(Some(i64::from(marker.cast_signed())));
        }
        let Some((_, width)) = SIGNED.iter().find(|(known, _)| *known == marker) else { return Ok(None) };
        Ok(Some(match width {
            1 => i64::from(i8::from_be_bytes(self.bytes()?)),
            2 => i64::from(i16::from_be_bytes(self.bytes()?)),
            4 => i64::from(i32::from_be_bytes(self.bytes()?)),
            _ => i64::from_be_bytes(self.bytes()?),
        }))
    }

    fn text(&mut self, bytes: u64) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.take(bytes)?).map_err(|_| Fault::Utf8)
    }

    fn value(&mut self) -> Result<Part<'a>, Fault> {
        let marker = self.marker()?;
        Ok(Part::Tree(match marker {
            NIL => Tree::Nil,
            FALSE => Tree::Bool(false),
            TRUE => Tree::Bool(true),
            F32 => Tree::Float(f64::from(f32::from_be_bytes(self.bytes()?))),
            F64 => Tree::Float(f64::from_be_bytes(self.bytes()?)),
            marker => {
                if let Some(value) = self.number(&WHOLE, marker)? {
                    Tree::Int(i64::try_from(value).map_err(|_| Fault::Bits { value })?)
                } else if let Some(value) = self.signed(marker)? {
                    Tree::Int(value)
                } else if let Some(length) = self.number(&TEXT, marker)? {
                    Tree::Text(self.text(length)?.to_owned())
                } else if let Some(length) = self.number(&BYTES, marker)? {
                    return Ok(Part::Bytes(self.take(length)?));
                } else if let Some(length) = self.number(&LIST, marker)? {
                    Tree::List(self.list(length)?)
                } else if let Some(length) = self.number(&MAP, marker)? {
                    self.map(length)?
                } else {
                    return Err(Fault::Form { marker });
                }
            }
        }))
    }

    /// How many members a list or a dictionary has, each of so many bytes at least. They are counted before they are read,
    /// so that claims within claims make no more room than the limit.
    fn members(&mut self, claimed: u64, bytes: u64) -> Result<usize, Fault> {
        let found = self.rest.len() as u64;
        let wanted = claimed.saturating_mul(bytes);
        let count = usize::try_from(claimed).ok().filter(|_| wanted <= found).ok_or(Fault::Cut { wanted, found })?;
        self.values = self.values.saturating_add(count);
        within("values", self.values, self.limits.values)?;
        within("dictionaries and lists in each other", self.path.len().saturating_add(1), self.limits.depth)?;
        Ok(count)
    }

    fn list(&mut self, claimed: u64) -> Result<Vec<Tree>, Fault> {
        let count = self.members(claimed, 1)?;
        let mut items = Vec::with_capacity(count);
        for at in 0..count {
            self.path.push(Step::Item(at));
            items.push(self.value()?.into_tree());
            self.path.pop();
        }
        Ok(items)
    }

    /// A dictionary, or what numpy's objects are packed as.
    fn map(&mut self, claimed: u64) -> Result<Tree, Fault> {
        let count = self.members(claimed, 2)?;
        let mut members = Vec::with_capacity(count);
        let mut keys = HashSet::with_capacity(count);
        for _ in 0..count {
            let key = self.member_key()?;
            self.path.push(Step::Key(key));
            if !keys.insert(key) {
                return Err(Fault::Twice);
            }
            members.push((key, self.value()?));
            self.path.pop();
        }
        let all = |names: &[&str]| names.iter().all(|name| keys.contains(name));
        if all(&[ARRAY]) {
            return self.array(members);
        }
        if all(&[SCALAR]) {
            return self.scalar(members);
        }
        if all(&["nd", "type", DATA]) {
            return Err(Fault::Foreign);
        }
        Ok(Tree::Map(members.into_iter().map(|(key, value)| (key.to_owned(), value.into_tree())).collect()))
    }

    fn member_key(&mut self) -> Result<&'a str, Fault> {
        let marker = self.marker()?;
        let length = match self.number(&TEXT, marker)? {
            Some(length) => Some(length),
            None => self.number(&BYTES, marker)?,
        };
        let Some(length) = length else {
            return Err(Fault::Key { found: format!("a value that begins with {marker:#04x}") });
        };
        let text = self.text(length)?;
        match within("bytes", text.len(), self.limits.key_bytes) {
            Ok(()) => Ok(text),
            Err(fault) => {
                self.path.push(Step::Key(text));
                Err(fault)
            }
        }
    }

    /// One of numpy's objects; they are few.
    fn spend(&mut self) -> Result<(), Fault> {
        self.arrays = self.arrays.saturating_add(1);
        within("arrays", self.arrays, self.limits.arrays)
    }

    fn array(&mut self, mut members: Vec<(&str, Part<'_>)>) -> Result<Tree, Fault> {
        self.spend()?;
        let dtype = dtype(&mut members)?;
        let axes = match take(&mut members, SHAPE)? {
            Part::Tree(Tree::List(axes)) => axes,
            other => return Err(kind(SHAPE, "a list of lengths", &other)),
        };
        within("axes", axes.len(), self.limits.axes)?;
        let axis = |axis: Tree| match axis {
            Tree::Int(length) if length >= 0 => Ok(length.cast_unsigned()),
            other => Err(kind(SHAPE, "a list of lengths", &Part::Tree(other))),
        };
        let shape: Vec<u64> = axes.into_iter().map(axis).collect::<Result<_, _>>()?;
        let data = match take(&mut members, DATA)? {
            Part::Bytes(data) => data,
            other => return Err(kind(DATA, "bytes", &other)),
        };
        let product = |least: u64| {
            let bytes = |all: u128, axis: &u64| all.checked_mul(u128::from((*axis).max(least)));
            shape.iter().try_fold(dtype.size as u128, bytes).unwrap_or(u128::MAX)
        };
        // Also where an axis is empty: whoever makes room by the others must not be led astray.
        let (wanted, bound) = (product(0), product(1));
        if wanted != data.len() as u128 || bound > self.limits.message_bytes as u128 {
            let wanted = if wanted == data.len() as u128 { bound } else { wanted };
            return Err(Fault::Size { shape, dtype: spelt(dtype), wanted, found: data.len() });
        }
        if dtype.kind == 'U' {
            if !shape.is_empty() {
                return Err(Fault::Array { what: format!("an array of texts of shape {shape:?}, expected one text") });
            }
            let text = dtype.text(data);
            let what = "a text with a character that Unicode lacks";
            return text.map(Tree::Text).ok_or_else(|| Fault::Array { what: what.to_owned() });
        }
        let values = dtype.values(Cow::Borrowed(data)).map_err(|misfit| Fault::Array { what: misfit.to_string() })?;
        // The product of the axes is no more than the message's bytes, so each of them is a usize.
        let shape = shape.into_iter().map(|axis| usize::try_from(axis).unwrap_or(usize::MAX)).collect();
        Ok(Tree::Array(Array { shape, values }))
    }

    fn scalar(&mut self, mut members: Vec<(&str, Part<'_>)>) -> Result<Tree, Fault> {
        self.spend()?;
        let dtype = dtype(&mut members)?;
        let data = take(&mut members, DATA)?;
        let values = match (dtype.kind, &data) {
            ('U', Part::Tree(Tree::Text(text))) => return Ok(Tree::Text(text.clone())),
            ('b', Part::Tree(Tree::Bool(value))) => Values::Bool(vec![*value]),
            ('i' | 'u', Part::Tree(Tree::Int(value))) => whole(dtype, *value).ok_or_else(|| Fault::Array {
                what: format!("the number {value}, which {} does not hold", spelt(dtype)),
            })?,
            // Python's float of a narrower one is that one again.
            ('f', Part::Tree(Tree::Float(value))) if dtype.size == 8 => Values::F64(vec![*value]),
            ('f', Part::Tree(Tree::Float(value))) => Values::F32(vec![*value as f32]),
            _ => return Err(kind(DATA, "a value of its dtype", &data)),
        };
        Ok(Tree::Array(Array { shape: vec![], values }))
    }
}

/// A whole number in the dtype that holds those of `dtype`, if it is one of them.
fn whole(dtype: Dtype, value: i64) -> Option<Values> {
    let bits = u32::try_from(dtype.size).ok()?.checked_mul(8)?;
    let unsigned = dtype.kind == 'u';
    // Of i64 the highest bits must be nothing but the sign.
    let spare = 64_u32.checked_sub(bits)?;
    let fits = if unsigned {
        value >= 0 && (bits == 64 || value.checked_shr(bits)? == 0)
    } else {
        value.checked_shl(spare)?.checked_shr(spare)? == value
    };
    fits.then_some(())?;
    Some(match (unsigned, dtype.size) {
        (true, 1) => Values::U8(vec![u8::try_from(value).ok()?]),
        (true, 2) | (false, 1 | 2 | 4) => Values::I32(vec![i32::try_from(value).ok()?]),
        _ => Values::I64(vec![value]),
    })
}

fn take<'p>(members: &mut Vec<(&str, Part<'p>)>, member: &'static str) -> Result<Part<'p>, Fault> {
    let at = members.iter().position(|(name, _)| *name == member).ok_or(Fault::Member { member })?;
    Ok(members.swap_remove(at).1)
}

fn kind(member: &'static str, expected: &'static str, found: &Part<'_>) -> Fault {
    Fault::Kind { member, expected, found: found.kind() }
}

fn dtype(members: &mut Vec<(&str, Part<'_>)>) -> Result<Dtype, Fault> {
    match take(members, DTYPE)? {
        Part::Tree(Tree::Text(name)) => {
            let dtype = Dtype::ordered(&name).filter(|dtype| dtype.kind != 'O');
            dtype.ok_or_else(|| Fault::Dtype { dtype: shown(&name) })
        }
        other => Err(kind(DTYPE, "a text", &other)),
    }
}

/// `float32`.
fn spelt(dtype: Dtype) -> String {
    let bits = dtype.size.saturating_mul(8);
    match dtype.kind {
        'b' => "bool".to_owned(),
        'i' => format!("int{bits}"),
        'u' => format!("uint{bits}"),
        'f' => format!("float{bits}"),
        _ => format!("texts of {} bytes", dtype.size),
    }
}
