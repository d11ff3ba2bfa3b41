//! A step of a policy, and the chain of them.
//!
//! Invariant: what `apply` did to state and actions, `undo` takes back, the same steps from the last to the first. A step
//! that changes nothing an action is made of has no way back and needs none.

use std::fmt;

use super::record::{Fault, Record};

/// One step: openpi's transform of the inputs and the one of the outputs that belongs to it, in one place.
pub trait Step: fmt::Debug + Send + Sync {
    /// Its name, in kebab-case: `delta-actions`.
    fn name(&self) -> &'static str;

    /// What it does, with its parameters, in a line for people.
    fn describe(&self) -> String;

    /// Keys that [`Step::apply`] looks at; a `*` stands for any.
    fn reads(&self) -> Vec<String> {
        vec![]
    }

    /// Keys that [`Step::apply`] puts there or changes; a `*` stands for any.
    fn writes(&self) -> Vec<String> {
        vec![]
    }

    /// Robot data → model data. `actions` are there in training and absent when sampling.
    ///
    /// # Errors
    /// What of the record it cannot take.
    fn apply(&self, record: &mut Record) -> Result<(), Fault>;

    /// Model data → robot data: `state` and `actions` as the model gave them.
    ///
    /// # Errors
    /// What of the record it cannot take.
    fn undo(&self, record: &mut Record) -> Result<(), Fault> {
        let _ = record;
        Ok(())
    }
}

/// What is wrong, and which step saw it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("step {number} ({step}): {fault}")]
pub struct StepError {
    /// Which, from 1.
    pub number: usize,
    /// Its name.
    pub step: &'static str,
    /// What is wrong.
    pub fault: Fault,
}

/// Steps in the order repack → robot → normalise → model.
#[derive(Debug, Default)]
pub struct Chain {
    /// First to last.
    pub steps: Vec<Box<dyn Step>>,
}

impl Chain {
    /// Robot data → model data.
    ///
    /// # Errors
    /// The first step that cannot, and why.
    pub fn apply(&self, record: Record) -> Result<Record, StepError> {
        self.watched(record, |_, _| {})
    }

    /// As [`Chain::apply`]; `after` sees the record after each step.
    ///
    /// # Errors
    /// The first step that cannot, and why.
    pub fn watched(&self, mut record: Record, mut after: impl FnMut(&dyn Step, &Record)) -> Result<Record, StepError> {
        for (i, step) in self.steps.iter().enumerate() {
            step.apply(&mut record).map_err(|fault| StepError { number: i + 1, step: step.name(), fault })?;
            after(step.as_ref(), &record);
        }
        Ok(record)
    }

    /// Model data → robot data, by the same steps from the last to the first.
    ///
    /// # Errors
    /// The first step, from the end, that cannot, and why.
    pub fn undo(&self, mut record: Record) -> Result<Record, StepError> {
        for (i, step) in self.steps.iter().enumerate().rev() {
            step.undo(&mut record).map_err(|fault| StepError { number: i + 1, step: step.name(), fault })?;
        }
        Ok(record)
    }
}
