//! A record: what a step reads and writes. openpi's nested dictionary, flattened: `images/cam_high`, `state`, `prompt`.
//!
//! Invariant: keys are openpi's, joined by `/`; a missing key is a [`Fault`] that names the nearest there is.

use std::collections::BTreeMap;

use super::array::Array;

/// What stands under a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Numbers, pictures, flags.
    Array(Array),
    /// A prompt, a task.
    Text(String),
}

/// Arrays and texts by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// By key.
    pub values: BTreeMap<String, Value>,
}

/// What is wrong with a record, seen by one step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// A key that the step needs is not there.
    #[error("{key}: it is missing{}", hint(nearest))]
    Missing {
        /// The key.
        key: String,
        /// What is there that is spelt most like it, or else all that is there.
        nearest: String,
    },
    /// A key that no step knows, where strangers are refused.
    #[error("{key}: nothing knows it{}", hint(nearest))]
    Unknown {
        /// The key.
        key: String,
        /// What is known that is spelt most like it, or else all that is known.
        nearest: String,
    },
    /// A shape, width or dtype that the step cannot take.
    #[error("{key}: expected {expected}, found {found}{}", hint(hint_text))]
    Shape {
        /// The key.
        key: String,
        /// What the step takes.
        expected: String,
        /// What is there.
        found: String,
        /// What to do; empty for none.
        hint_text: String,
    },
    /// Anything else, in a sentence.
    #[error("{key}: {what}")]
    Wrong {
        /// The key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

fn hint(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; {text}") }
}

/// The sentence that helps someone who misspelt `key`: the nearest of `known`, or else all of them.
pub fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    if known.is_empty() {
        return "there is none at all".to_owned();
    }
    known.sort_by_key(|name| (strsim::osa_distance(key, name), *name));
    let best = known[0];
    // Half the letters changed is no misspelling.
    if strsim::osa_distance(key, best) * 2 <= key.chars().count().max(4) {
        return format!("the nearest is {best}");
    }
    known.sort_unstable();
    format!("there are {}", known.join(", "))
}

impl Record {
    /// What stands under a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Is there something under this key?
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Puts a value under a key.
    pub fn put(&mut self, key: impl Into<String>, value: Value) {
        self.values.insert(key.into(), value);
    }

    /// Puts an array under a key.
    pub fn put_array(&mut self, key: impl Into<String>, array: Array) {
        self.put(key, Value::Array(array));
    }

    /// Puts a text under a key.
    pub fn put_text(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.put(key, Value::Text(text.into()));
    }

    fn missing(&self, key: &str) -> Fault {
        Fault::Missing { key: key.to_owned(), nearest: nearest(key, self.values.keys().map(String::as_str)) }
    }

    /// The array under a key.
    ///
    /// # Errors
    /// There is none, or it is a text.
    pub fn array(&self, key: &str) -> Result<&Array, Fault> {
        match self.get(key) {
            Some(Value::Array(array)) => Ok(array),
            Some(Value::Text(text)) => Err(expected_array(key, text)),
            None => Err(self.missing(key)),
        }
    }

    /// The array under a key, to be changed.
    ///
    /// # Errors
    /// There is none, or it is a text.
    pub fn array_mut(&mut self, key: &str) -> Result<&mut Array, Fault> {
        if !self.has(key) {
            return Err(self.missing(key));
        }
        match self.values.get_mut(key) {
            Some(Value::Array(array)) => Ok(array),
            Some(Value::Text(text)) => Err(expected_array(key, text)),
            None => Err(Fault::Missing { key: key.to_owned(), nearest: String::new() }),
        }
    }

    /// The text under a key.
    ///
    /// # Errors
    /// There is none, or it is an array.
    pub fn text(&self, key: &str) -> Result<&str, Fault> {
        match self.get(key) {
            Some(Value::Text(text)) => Ok(text),
            Some(Value::Array(array)) => Err(Fault::Shape {
                key: key.to_owned(),
                expected: "a text".to_owned(),
                found: array.to_string(),
                hint_text: String::new(),
            }),
            None => Err(self.missing(key)),
        }
    }

    /// Takes a value out.
    ///
    /// # Errors
    /// There is none.
    pub fn take(&mut self, key: &str) -> Result<Value, Fault> {
        match self.values.remove(key) {
            Some(value) => Ok(value),
            None => Err(self.missing(key)),
        }
    }
}

fn expected_array(key: &str, text: &str) -> Fault {
    Fault::Shape {
        key: key.to_owned(),
        expected: "an array".to_owned(),
        found: format!("the text {text:?}"),
        hint_text: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_key_names_the_nearest_there_is() {
        let mut record = Record::default();
        record.put_array("observation/state", Array::f32([1], vec![0.0]));
        record.put_text("prompt", "pick up the cube");
        let fault = record.array("observation/sate").unwrap_err();
        assert_eq!(fault.to_string(), "observation/sate: it is missing; the nearest is observation/state");
        let fault = record.array("images/cam_high").unwrap_err();
        assert_eq!(fault.to_string(), "images/cam_high: it is missing; there are observation/state, prompt");
        assert!(record.array("prompt").unwrap_err().to_string().contains("expected an array"));
        assert!(record.text("observation/state").unwrap_err().to_string().contains("float32[1]"));
    }
}
