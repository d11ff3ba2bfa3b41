//! What a message is made of: Python's objects, numpy's arrays among them.
//!
//! Invariant: the order of keys is kept, so that what is written again has the same bytes.

use std::fmt;

use crate::policy::array::{Array, Values};

/// An object.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Tree {
    /// `None`.
    #[default]
    Nil,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A float.
    Float(f64),
    /// A `str`.
    Text(String),
    /// `bytes`.
    Bytes(Vec<u8>),
    /// A list or a tuple.
    List(Vec<Tree>),
    /// A dictionary, in its own order.
    Map(Vec<(String, Tree)>),
    /// A numpy array; a numpy scalar is one without axes.
    Array(Array),
}

impl Tree {
    /// What stands under a key of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Tree> {
        let Tree::Map(members) = self else { return None };
        members.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// What it is, for people: `float32[14]`, `the text "go"`, `a list of 3`.
    pub fn kind(&self) -> String {
        match self {
            Tree::Nil => "None".to_owned(),
            Tree::Bool(value) => format!("the truth value {value}"),
            Tree::Int(value) => format!("the number {value}"),
            Tree::Float(value) => format!("the number {value}"),
            Tree::Text(text) => {
                let shown: String = text.chars().take(40).collect();
                format!("the text {shown:?}")
            }
            Tree::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Tree::List(items) => format!("a list of {}", items.len()),
            Tree::Map(members) => format!("a dictionary of {}", members.len()),
            Tree::Array(array) => array.to_string(),
        }
    }

    /// As a number: a plain one, or an array of one value.
    pub fn number(&self) -> Option<f64> {
        match self {
            Tree::Int(value) => Some(*value as f64),
            Tree::Float(value) => Some(*value),
            Tree::Array(array) if array.values.len() == 1 && !matches!(array.values, Values::Bool(_)) => {
                array.values.to_f64().first().copied()
            }
            _ => None,
        }
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.kind())
    }
}
