//! State and actions to the model's width, and every n-th action.
//!
//! Source: openpi 15a9616, transforms.py (PadStatesAndActions, SubsampleActions). Invariant: what is wide enough already
//! stays as it is. The way back is the robot's: it takes the first of an action's values, so that the zeros fall off where
//! openpi's fall off, after the statistics.

use super::array::{Array, Values};
use super::record::{Fault, Record};
use super::step::Step;

/// Zeros behind state and actions.
#[derive(Debug, Clone)]
pub struct PadStatesAndActions {
    /// A: the model's width.
    pub model_action_dim: usize,
}

impl Step for PadStatesAndActions {
    fn name(&self) -> &'static str {
        "pad-states-and-actions"
    }

    fn describe(&self) -> String {
        format!("state and actions to {} values, with zeros", self.model_action_dim)
    }

    fn reads(&self) -> Vec<String> {
        vec!["state".to_owned(), "actions".to_owned()]
    }

    fn writes(&self) -> Vec<String> {
        self.reads()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        for key in ["state", "actions"] {
            if key == "state" || record.has(key) {
                let array = record.array_mut(key)?;
                pad_to_dim(key, array, self.model_action_dim)?;
            }
        }
        Ok(())
    }
}

/// `[.., width]` → `[.., dim]`, where it is narrower.
fn pad_to_dim(key: &str, array: &mut Array, dim: usize) -> Result<(), Fault> {
    let Some(width) = array.width() else {
        return Err(Fault::Shape {
            key: key.to_owned(),
            expected: "a vector".to_owned(),
            found: array.to_string(),
            hint_text: String::new(),
        });
    };
    if width >= dim {
        return Ok(());
    }
    let rows = array.shape[..array.shape.len() - 1].iter().product();
    fn widen<T: Copy + Default>(values: &[T], rows: usize, width: usize, dim: usize) -> Vec<T> {
        let mut out = vec![T::default(); rows * dim];
        for row in 0..rows {
            out[row * dim..row * dim + width].copy_from_slice(&values[row * width..(row + 1) * width]);
        }
        out
    }
    array.values = match &array.values {
        Values::U8(x) => Values::U8(widen(x, rows, width, dim)),
        Values::I32(x) => Values::I32(widen(x, rows, width, dim)),
        Values::I64(x) => Values::I64(widen(x, rows, width, dim)),
        Values::F32(x) => Values::F32(widen(x, rows, width, dim)),
        Values::F64(x) => Values::F64(widen(x, rows, width, dim)),
        Values::Bool(x) => Values::Bool(widen(x, rows, width, dim)),
    };
    if let Some(last) = array.shape.last_mut() {
        *last = dim;
    }
    Ok(())
}

/// Every n-th action of a chunk, from the first. It has no way back: what is left out is gone.
#[derive(Debug, Clone)]
pub struct SubsampleActions {
    /// n.
    pub stride: std::num::NonZeroUsize,
}

impl Step for SubsampleActions {
    fn name(&self) -> &'static str {
        "subsample-actions"
    }

    fn describe(&self) -> String {
        format!("one action in {}, from the first", self.stride)
    }

    fn reads(&self) -> Vec<String> {
        vec!["actions".to_owned()]
    }

    fn writes(&self) -> Vec<String> {
        self.reads()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        let array = record.array_mut("actions")?;
        let Some(steps) = array.shape.first().copied() else {
            return Err(Fault::Shape {
                key: "actions".to_owned(),
                expected: "[H, D]".to_owned(),
                found: array.to_string(),
                hint_text: String::new(),
            });
        };
        let size: usize = array.shape[1..].iter().product();
        let stride = self.stride.get();
        fn every<T: Copy>(values: &[T], size: usize, stride: usize) -> Vec<T> {
            if size == 0 {
                return vec![];
            }
            values.chunks_exact(size).step_by(stride).flatten().copied().collect()
        }
        array.values = match &array.values {
            Values::U8(x) => Values::U8(every(x, size, stride)),
            Values::I32(x) => Values::I32(every(x, size, stride)),
            Values::I64(x) => Values::I64(every(x, size, stride)),
            Values::F32(x) => Values::F32(every(x, size, stride)),
            Values::F64(x) => Values::F64(every(x, size, stride)),
            Values::Bool(x) => Values::Bool(every(x, size, stride)),
        };
        array.shape[0] = steps.div_ceil(stride);
        Ok(())
    }
}
