//! A tree → the bytes that Python's packer writes of the same objects.

use super::form::{BYTES, F64, FALSE, Family, LIST, MAP, NIL, TEXT, TRUE, put_whole};
use super::{ARRAY, DATA, DTYPE, SHAPE};
use crate::data::numpy;
use crate::policy::array::Array;
use crate::serve::tree::Tree;

/// What markers and names take beside the bytes of an array, about.
const BESIDE: usize = 64;

pub(super) fn message(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::with_capacity(about(tree));
    put(tree, &mut out);
    out
}

/// Bytes of its message, about: pictures are not moved while others are appended.
fn about(tree: &Tree) -> usize {
    let own = match tree {
        Tree::Nil | Tree::Bool(_) | Tree::Int(_) | Tree::Float(_) => 0,
        Tree::Text(text) => text.len(),
        Tree::Bytes(bytes) => bytes.len(),
        Tree::List(items) => items.iter().map(about).fold(0, usize::saturating_add),
        Tree::Map(members) => {
            members.iter().map(|(key, value)| key.len().saturating_add(about(value))).fold(0, usize::saturating_add)
        }
        Tree::Array(array) => array.values.bytes().saturating_add(BESIDE),
    };
    own.saturating_add(9)
}

fn put(tree: &Tree, out: &mut Vec<u8>) {
    match tree {
        Tree::Nil => out.push(NIL),
        Tree::Bool(value) => out.push(if *value { TRUE } else { FALSE }),
        Tree::Int(value) => put_whole(*value, out),
        Tree::Float(value) => {
            out.push(F64);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Tree::Text(text) => put_bytes(&TEXT, text.as_bytes(), out),
        Tree::Bytes(bytes) => put_bytes(&BYTES, bytes, out),
        Tree::List(items) => {
            put_head(&LIST, items.len(), out);
            items.iter().for_each(|item| put(item, out));
        }
        Tree::Map(members) => {
            put_head(&MAP, members.len(), out);
            for (key, value) in members {
                put_bytes(&TEXT, key.as_bytes(), out);
                put(value, out);
            }
        }
        Tree::Array(array) => put_array(array, out),
    }
}

fn put_array(array: &Array, out: &mut Vec<u8>) {
    put_head(&MAP, 4, out);
    put_bytes(&BYTES, ARRAY.as_bytes(), out);
    out.push(TRUE);
    put_bytes(&BYTES, DATA.as_bytes(), out);
    put_head(&BYTES, array.values.bytes(), out);
    numpy::put(&array.values, out);
    put_bytes(&BYTES, DTYPE.as_bytes(), out);
    put_bytes(&TEXT, numpy::name(&array.values).as_bytes(), out);
    put_bytes(&BYTES, SHAPE.as_bytes(), out);
    put_head(&LIST, array.shape.len(), out);
    for axis in &array.shape {
        put_whole(i64::try_from(*axis).unwrap_or(i64::MAX), out);
    }
}

fn put_bytes(family: &Family, bytes: &[u8], out: &mut Vec<u8>) {
    put_head(family, bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn put_head(family: &Family, length: usize, out: &mut Vec<u8>) {
    let put = u32::try_from(length).ok().and_then(|length| family.put(u64::from(length), out));
    assert!(put.is_some(), "a value of {length} bytes or members: msgpack has no form for it");
}
