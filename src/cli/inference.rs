//! One observation through a policy's steps to what the network reads, and the network's answer back to the robot's actions:
//! what `sample` and `serve` share, so that both give the same bits.
//!
//! Source: openpi 15a9616, policies/policy.py (`Policy.infer`). Invariant: nothing here computes; what goes in and out of
//! the network is told.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::observation::{self, Rows, Wanted};
use super::policy::take_notices;
use crate::policy::array::Array;
use crate::policy::record::{Record, Value};
use crate::policy::step::{Chain, Step};

/// An observation on its way: what the steps made of it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) name: String,
    /// What the robot was told.
    pub(super) prompt: String,
    /// Model-ready.
    pub(super) record: Record,
    /// The same, held against the model.
    pub(super) rows: Rows,
    /// What steps have left for people.
    pub(super) notices: Vec<String>,
    pub(super) transforms_ms: f64,
}

impl Seen {
    /// Through all steps, and held against the model.
    ///
    /// # Errors
    /// The step that cannot take it; everything in which it does not fit the model.
    pub(super) fn of(name: String, record: Record, chain: &Chain, wanted: &Wanted) -> Result<Self> {
        let began = Instant::now();
        let mut prompt = String::new();
        let look = |_: &dyn Step, record: &Record| {
            if let Ok(text) = record.text("prompt") {
                text.clone_into(&mut prompt);
            }
        };
        let mut record = chain.watched(record, look).with_context(|| name.clone())?;
        let notices = take_notices(&mut record);
        let keys = record.values.iter().map(|(key, value)| Ok((key.clone(), plain(key, value)?)));
        let keys: BTreeMap<String, Array> = keys.collect::<Result<_>>()?;
        let rows = observation::fit(keys, wanted, &name)?;
        Ok(Seen { name, prompt, record, rows, notices, transforms_ms: milliseconds(began) })
    }

    /// The network's `actions` as the steps' way back takes them: f32 of `[H, A]`, or pi0-FAST's tokens in i32. The state
    /// goes back with them, in f32, as JAX has it.
    ///
    /// # Errors
    /// There is no state.
    pub(super) fn answer(&self, actions: Array) -> Result<Record> {
        let state = self.record.array("state")?;
        let mut answer = Record::default();
        answer.put_array("state", Array::f32(state.shape.clone(), state.values.to_f32()));
        answer.put_array("actions", actions);
        Ok(answer)
    }
}

/// As an observation's file would have it.
fn plain(key: &str, value: &Value) -> Result<Array> {
    let Value::Array(array) = value else { bail!("{key}: a text, which no model reads; no step took it") };
    Ok(array.clone())
}

/// Milliseconds since.
pub(super) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
