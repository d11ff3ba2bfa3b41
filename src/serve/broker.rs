//! One action at a time, from chunks.
//!
//! Source: openpi 15a9616, packages/openpi-client, action_chunk_broker.py (`ActionChunkBroker`). Invariant: as there, every
//! array of a reply is cut along its first axis, and what is no array is handed out whole, each time. An array without axes
//! is no array here: numpy's scalars are such.

use super::tree::Tree;
use crate::policy::array::{Array, Values};

/// Asks a policy for a chunk, and hands its steps out one by one.
///
/// # Examples
///
/// ```
/// use pi0_burn::policy::array::Array;
/// use pi0_burn::serve::broker::{ActionChunkBroker, BrokerError};
/// use pi0_burn::serve::tree::Tree;
///
/// let chunk = Tree::Map(vec![("actions".to_owned(), Tree::Array(Array::f32([2, 1], vec![0.5, 0.25])))]);
/// let mut broker = ActionChunkBroker::new(|_: &Tree| Ok::<_, BrokerError>(chunk.clone()), 2);
/// let action = broker.infer(&Tree::Map(vec![]))?;
/// assert_eq!(action.get("actions"), Some(&Tree::Array(Array::f32([1], vec![0.5]))));
/// # Ok::<(), BrokerError>(())
/// ```
#[derive(Debug)]
pub struct ActionChunkBroker<F> {
    policy: F,
    action_horizon: usize,
    chunk: Option<Tree>,
    step: usize,
}

/// A reply without the step that is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {array} has no step {step}; is the action horizon longer than the policy's chunks?")]
pub struct BrokerError {
    /// The array, by its key.
    pub key: String,
    /// What it is: `float32[10, 7]`.
    pub array: String,
    /// Which step, from 0.
    pub step: usize,
}

impl<F, E> ActionChunkBroker<F>
where
    F: FnMut(&Tree) -> Result<Tree, E>,
    E: From<BrokerError>,
{
    /// Over a policy; `action_horizon` steps of a chunk are run before it is asked again.
    pub fn new(policy: F, action_horizon: usize) -> Self {
        ActionChunkBroker { policy, action_horizon, chunk: None, step: 0 }
    }

    /// The next step. The policy sees the observation only where a new chunk is needed.
    ///
    /// # Errors
    /// The policy's own; an array of its reply without such a step.
    pub fn infer(&mut self, observation: &Tree) -> Result<Tree, E> {
        let chunk = match self.chunk.take() {
            Some(chunk) => chunk,
            None => {
                self.step = 0;
                (self.policy)(observation)?
            }
        };
        let step = step(&chunk, "", self.step);
        self.chunk = Some(chunk);
        let step = step?;
        self.step += 1;
        if self.step >= self.action_horizon {
            self.chunk = None;
        }
        Ok(step)
    }

    /// Forgets the chunk: an episode begins.
    pub fn reset(&mut self) {
        self.chunk = None;
        self.step = 0;
    }
}

/// A tree whose arrays are their rows at `at`.
fn step(tree: &Tree, key: &str, at: usize) -> Result<Tree, BrokerError> {
    Ok(match tree {
        Tree::Array(array) if !array.shape.is_empty() => Tree::Array(row(array, at).ok_or_else(|| BrokerError {
            key: if key.is_empty() { "the reply".to_owned() } else { key.to_owned() },
            array: array.to_string(),
            step: at,
        })?),
        Tree::List(items) => {
            let items = items.iter().enumerate().map(|(i, item)| step(item, &format!("{key}[{i}]"), at));
            Tree::List(items.collect::<Result<_, _>>()?)
        }
        Tree::Map(members) => {
            let member = |(name, value): &(String, Tree)| {
                let key = if key.is_empty() { name.clone() } else { format!("{key}/{name}") };
                Ok((name.clone(), step(value, &key, at)?))
            };
            Tree::Map(members.iter().map(member).collect::<Result<_, _>>()?)
        }
        other => other.clone(),
    })
}

fn row(array: &Array, at: usize) -> Option<Array> {
    fn cut<T: Clone>(values: &[T], at: usize, width: usize) -> Option<Vec<T>> {
        let start = at.checked_mul(width)?;
        values.get(start..start.checked_add(width)?).map(<[T]>::to_vec)
    }
    let (rows, shape) = array.shape.split_first()?;
    if at >= *rows {
        return None;
    }
    let width = shape.iter().product();
    let values = match &array.values {
        Values::U8(x) => Values::U8(cut(x, at, width)?),
        Values::I32(x) => Values::I32(cut(x, at, width)?),
        Values::I64(x) => Values::I64(cut(x, at, width)?),
        Values::F32(x) => Values::F32(cut(x, at, width)?),
        Values::F64(x) => Values::F64(cut(x, at, width)?),
        Values::Bool(x) => Values::Bool(cut(x, at, width)?),
    };
    Some(Array { shape: shape.to_vec(), values })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::serve::wire::{Limits, decode};

    fn list<'a>(tree: &'a Tree, key: &str) -> &'a [Tree] {
        match tree.get(key) {
            Some(Tree::List(items)) => items,
            other => panic!("{key}: {other:?}"),
        }
    }

    #[test]
    fn steps_are_those_that_openpis_broker_handed_out() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/protocol/broker.bin");
        let recorded = decode(&std::fs::read(path).unwrap(), &Limits::default()).unwrap();
        let replies = list(&recorded, "replies");
        let asked = std::cell::Cell::new(0);
        let policy = |_: &Tree| {
            asked.set(asked.get() + 1);
            Ok::<_, BrokerError>(replies[asked.get() - 1].clone())
        };
        let horizon = recorded.get("action_horizon").and_then(Tree::number).unwrap() as usize;
        let mut broker = ActionChunkBroker::new(policy, horizon);
        let events = list(&recorded, "events");
        assert_eq!(events.len(), 9);
        for event in events {
            if let Tree::Text(_) = event {
                broker.reset();
                continue;
            }
            assert_eq!(Some(&broker.infer(&Tree::default()).unwrap()), event.get("step"));
            assert_eq!(Some(asked.get() as f64), event.get("asked").and_then(Tree::number));
        }
    }

    #[test]
    fn a_chunk_that_is_too_short_is_named() {
        let chunk = Tree::Map(vec![("actions".to_owned(), Tree::Array(Array::f32([1, 2], vec![0.0; 2])))]);
        let mut broker = ActionChunkBroker::new(|_: &Tree| Ok::<_, BrokerError>(chunk.clone()), 2);
        broker.infer(&Tree::default()).unwrap();
        let words = broker.infer(&Tree::default()).unwrap_err().to_string();
        assert_eq!(
            words,
            "actions: float32[1, 2] has no step 1; is the action horizon longer than the policy's chunks?"
        );
    }
}
