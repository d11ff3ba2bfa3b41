//! A message as a request, an answer as a message.
//!
//! A request is the observation as the robot's program sends it, a dictionary of dictionaries; flattened with `/` it is the
//! [`Record`] that policies read. Under [`EXTENSIONS`] it may carry what openpi's protocol does not have:
//!
//! | key | what |
//! | --- | --- |
//! | `noise` | `[horizon, A]`: what the actions begin as, model-ready |
//! | `seed` | a whole number that noise is drawn from, as `pi0 sample --seed` draws it |
//! | `deadline_ms` | how long the request may wait before it is refused |
//! | `previous` | `[n, D]`: actions of the last chunk that are still to be run, in the robot's units; the first is run now |
//! | `delay` | how many of them are run before this chunk is there |
//! | `method` | `guided` (default) or `frozen` |
//! | `schedule` | of `guided`: `exp` (default), `linear`, `ones`, `zeros` |
//! | `max_guidance_weight` | of `guided` (default 5) |
//!
//! An answer to a request that carried the key carries it too: `seed` (absent where noise was given), `queue_ms`,
//! `model_ms`, `prev_model_ms` (of the client's chunk before, from its second on), `batch`.

mod extension;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::EXTENSIONS;
use super::policy::{Kind, Refusal};
use super::tree::Tree;
use crate::data::numpy::joined;
use crate::policy::array::{Array, Values};
pub use crate::policy::chunking::{Method, Schedule};
use crate::policy::record::{Fault, Record, Value};

/// Characters of a foreign text that an error repeats.
const SHOWN: usize = 120;

/// A request, understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// The robot's own keys.
    pub observation: Record,
    /// What openpi's protocol does not have; `None` for a client that knows nothing of it.
    pub extensions: Option<Extensions>,
}

/// What openpi's protocol does not have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extensions {
    /// `[horizon, A]`.
    pub noise: Option<Array>,
    /// Where chance begins.
    pub seed: Option<u64>,
    /// How long it may wait.
    pub deadline: Option<Duration>,
    /// The last chunk, for real-time chunking.
    pub previous: Option<Previous>,
}

/// What is left of the last chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Previous {
    /// `[n, D]`, in the robot's units; the first is run now.
    pub actions: Array,
    /// How many of them are run before the new chunk is there.
    pub delay: usize,
    /// How they are kept.
    pub method: Method,
}

/// Actions, and how long they took.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What the policy gave, in openpi's order: `actions` `[H, D]` first, in the dtype that openpi's would have.
    pub outputs: Vec<(String, Tree)>,
    /// The model's own time, when the device said that it was done: openpi's `policy_timing.infer_ms`.
    pub infer_ms: f64,
    /// From which seed its noise was drawn; `None` where it was given.
    pub seed: Option<u64>,
}

/// How long a request took on its way, beside the model's own time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timing {
    /// From the observation's being read to the actions' being there: openpi's `server_timing.infer_ms`.
    pub infer_ms: f64,
    /// Of the client's request before, from its being awaited to its answer's being sent; `None` for its first.
    pub prev_total_ms: Option<f64>,
    /// How long it waited for the model.
    pub queue_ms: f64,
    /// The model's time of the client's request before; `None` for its first.
    pub prev_model_ms: Option<f64>,
    /// How many observations went through the model with it, itself counted.
    pub batch: usize,
}

impl Request {
    /// Of a message.
    ///
    /// Dictionaries in dictionaries are joined by `/`. Python's numbers become arrays without axes (int64, float64, bool),
    /// lists of them arrays as numpy makes of them, `bytes` uint8; `None` is left out. Whether the robot has such keys, and
    /// whether the numbers are numbers, is the policy's to say.
    ///
    /// # Errors
    /// What is no observation, by its key; an extension that is not known, or not what it must be.
    pub fn parse(message: Tree) -> Result<Self, Refusal> {
        let Tree::Map(members) = message else {
            let what = format!("expected a dictionary as the observation, found {message}");
            return Err(Refusal::new(Kind::Malformed, what));
        };
        let mut request = Request::default();
        let refused = |fault: Fault| Refusal::new(Kind::Observation, fault.to_string());
        for (key, value) in members {
            match value {
                Tree::Nil if key == EXTENSIONS => {}
                value if key == EXTENSIONS => {
                    request.extensions = Some(Extensions::parse(value).map_err(refused)?);
                }
                value => put(&mut request.observation, key, value).map_err(refused)?,
            }
        }
        Ok(request)
    }
}

/// An observation as a message. `images/cam_high` becomes a dictionary in the dictionary `images`, as ALOHA's program sends
/// it; every other key stays as it is, as DROID's and LIBERO's have theirs.
pub fn observation(record: &Record) -> Tree {
    let mut members: Vec<(String, Tree)> = vec![];
    for (key, value) in &record.values {
        let value = match value {
            Value::Array(array) => Tree::Array(array.clone()),
            Value::Text(text) => Tree::Text(text.clone()),
        };
        match key.strip_prefix(PICTURES).and_then(|rest| rest.strip_prefix('/')) {
            None => members.push((key.clone(), value)),
            // Keys of a record are in order, so that those of one dictionary are neighbours.
            Some(name) => match members.last_mut() {
                Some((last, Tree::Map(inner))) if last == PICTURES => inner.push((name.to_owned(), value)),
                _ => members.push((PICTURES.to_owned(), Tree::Map(vec![(name.to_owned(), value)]))),
            },
        }
    }
    Tree::Map(members)
}

/// ALOHA's dictionary of pictures.
const PICTURES: &str = "images";

impl Answer {
    /// As a message, in openpi's order: what the policy gave, `policy_timing`, `server_timing`; and for a client that asked,
    /// what openpi's protocol does not have.
    pub fn message(self, timing: &Timing, asked: bool) -> Tree {
        let number = |key: &str, value: f64| (key.to_owned(), Tree::Float(value));
        let mut members = self.outputs;
        members.push(("policy_timing".to_owned(), Tree::Map(vec![number("infer_ms", self.infer_ms)])));
        let mut server = vec![number("infer_ms", timing.infer_ms)];
        server.extend(timing.prev_total_ms.map(|ms| number("prev_total_ms", ms)));
        members.push(("server_timing".to_owned(), Tree::Map(server)));
        if asked {
            let mut more = vec![];
            // A seed that came over the wire fits; one of the server's own choice is chosen so.
            more.extend(
                self.seed.and_then(|seed| i64::try_from(seed).ok()).map(|seed| ("seed".into(), Tree::Int(seed))),
            );
            more.extend([number("queue_ms", timing.queue_ms), number("model_ms", self.infer_ms)]);
            more.extend(timing.prev_model_ms.map(|ms| number("prev_model_ms", ms)));
            more.push(("batch".to_owned(), Tree::Int(i64::try_from(timing.batch).unwrap_or(i64::MAX))));
            members.push((EXTENSIONS.to_owned(), Tree::Map(more)));
        }
        Tree::Map(members)
    }
}

/// Puts a value, flattened, under a key.
pub(super) fn put(record: &mut Record, key: String, value: Tree) -> Result<(), Fault> {
    let value = match value {
        Tree::Nil => return Ok(()),
        Tree::Map(members) => {
            return members.into_iter().try_for_each(|(name, value)| put(record, format!("{key}/{name}"), value));
        }
        Tree::Text(text) => Value::Text(text),
        value => Value::Array(array(&key, value)?),
    };
    if record.has(&key) {
        let what = "it is there twice: as a key with slashes, and as dictionaries in each other".to_owned();
        return Err(Fault::Wrong { key: shown(&key), what });
    }
    record.put(key, value);
    Ok(())
}

/// Numbers as an array.
fn array(key: &str, value: Tree) -> Result<Array, Fault> {
    let scalar = |values| Array { shape: vec![], values };
    Ok(match value {
        Tree::Array(array) => array,
        Tree::Bool(value) => scalar(Values::Bool(vec![value])),
        Tree::Int(value) => scalar(Values::I64(vec![value])),
        Tree::Float(value) => scalar(Values::F64(vec![value])),
        Tree::Bytes(bytes) => Array { shape: vec![bytes.len()], values: Values::U8(bytes) },
        Tree::List(items) => list(key, items)?,
        other => return Err(unfit(key, other.kind())),
    })
}

fn unfit(key: &str, found: String) -> Fault {
    let expected = "an array, a number or lists of numbers".to_owned();
    Fault::Shape { key: shown(key), expected, found, hint_text: String::new() }
}

/// Lists of one length in each level, as `np.asarray` takes them.
fn list(key: &str, items: Vec<Tree>) -> Result<Array, Fault> {
    let mut shape = vec![items.len()];
    let mut level = items;
    while let Some(Tree::List(first)) = level.first() {
        let length = first.len();
        shape.push(length);
        let mut next = vec![];
        for item in level {
            match item {
                Tree::List(inner) if inner.len() == length => next.extend(inner),
                _ => return Err(unfit(key, "lists of several lengths".to_owned())),
            }
        }
        level = next;
    }
    let mut all: Option<Values> = None;
    for item in level {
        let item = match item {
            Tree::List(_) => return Err(unfit(key, "lists of several lengths".to_owned())),
            Tree::Text(_) | Tree::Nil | Tree::Map(_) | Tree::Bytes(_) => {
                return Err(unfit(key, format!("{item} in a list")));
            }
            item => array(key, item)?,
        };
        if !item.shape.is_empty() {
            return Err(unfit(key, format!("{item} in a list; stack them with numpy")));
        }
        all = Some(match all {
            None => item.values,
            Some(all) => joined(all, item.values).ok_or_else(|| unfit(key, "a list of several types".to_owned()))?,
        });
    }
    Ok(Array { shape, values: all.unwrap_or(Values::F64(vec![])) })
}

/// The beginning of a foreign key, for an error, on one line.
fn shown(key: &str) -> String {
    let shown: String = key.chars().take(SHOWN).map(|c| if c.is_control() { '?' } else { c }).collect();
    if shown.len() < key.len() { shown + "…" } else { shown }
}
