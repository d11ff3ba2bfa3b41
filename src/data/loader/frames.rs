//! The frames of a LeRobot dataset as examples: the chunk of actions beside each, through a policy's steps.
//!
//! Source: openpi 15a9616, training/data_loader.py (`create_torch_dataset`, `transform_dataset`). Invariant: the steps are
//! those that sampling and `pi0 explain` run. One short cut: LeRobot gives pictures as floats, of which a policy makes the
//! same bytes again; here they stay bytes.

use super::{Example, ExampleError, Examples};
use crate::data::lerobot::{Dataset, Deltas};
use crate::policy::array::Values;
use crate::policy::prompt::NOTICE;
use crate::policy::record::{Fault, Record, Value};
use crate::policy::step::Chain;

/// Where a chunk of actions stands for a model.
const ACTIONS: &str = "actions";

/// A dataset through a chain.
#[derive(Debug)]
pub struct Frames {
    name: String,
    dataset: Dataset,
    chain: Chain,
    deltas: Deltas,
    action_horizon: usize,
}

/// The moments of a chunk: `action_horizon` frames from a frame on, of every key that chunks are made of.
pub fn chunks(dataset: &Dataset, action_sequence_keys: &[String], action_horizon: usize) -> Deltas {
    let fps = dataset.info().fps;
    let moments: Vec<f64> = (0..action_horizon).map(|t| t as f64 / fps).collect();
    action_sequence_keys.iter().map(|key| (key.clone(), moments.clone())).collect()
}

impl Frames {
    /// Of a dataset whose frames `chain` takes, prompts as tokens.
    pub fn new(dataset: Dataset, action_sequence_keys: &[String], action_horizon: usize, chain: Chain) -> Self {
        let deltas = chunks(&dataset, action_sequence_keys, action_horizon);
        Frames { name: dataset.dir().display().to_string(), dataset, chain, deltas, action_horizon }
    }

    /// The dataset.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Which steps of the chunk lie outside the episode.
    fn padded(&self, record: &Record) -> Vec<bool> {
        let mut padded = vec![false; self.action_horizon];
        for key in self.deltas.keys() {
            let Some(Value::Array(pad)) = record.get(&format!("{key}_is_pad")) else { continue };
            let Values::Bool(pad) = &pad.values else { continue };
            padded.iter_mut().zip(pad).for_each(|(all, one)| *all |= one);
        }
        padded
    }
}

impl Examples for Frames {
    fn len(&self) -> usize {
        self.dataset.frames()
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn example(&self, index: usize) -> Result<Example, ExampleError> {
        let record = self.dataset.frame_with(index, &self.deltas)?;
        let padded = self.padded(&record);
        let mut record = self.chain.apply(record)?;
        let notices = match record.values.remove(NOTICE) {
            Some(Value::Text(text)) => text.lines().map(str::to_owned).collect(),
            _ => vec![],
        };
        // A chain that samples needs none, so it does not miss them.
        let actions = record.array(ACTIONS)?;
        let (horizon, found) = (self.action_horizon, actions.to_string());
        match actions.shape[..] {
            [steps, _] if steps == horizon => Ok(Example { record, padded, notices }),
            _ => {
                let (key, expected) = (ACTIONS.to_owned(), format!("chunks [{horizon}, dimensions]"));
                Err(Fault::Shape { key, expected, found, hint_text: String::new() }.into())
            }
        }
    }

    fn which(&self, index: usize) -> String {
        match self.dataset.locate(index) {
            Ok((episode, at)) => format!("frame {index} (episode {}, frame {at} of it)", episode.index),
            Err(_) => format!("frame {index}"),
        }
    }
}
