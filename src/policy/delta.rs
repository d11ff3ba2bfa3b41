//! Absolute actions ⇄ actions relative to the state that the chunk begins in, on the dimensions of a mask.
//!
//! Source: openpi 15a9616, transforms.py (DeltaActions, AbsoluteActions, make_bool_mask).
//! Letters: H steps of a chunk, D values of an action. Invariant: the actions keep their dtype, as numpy's `-=` does: the
//! difference is taken in f64 where the state or the actions are, and then rounded to what the actions are.

use super::array::{Array, Values};
use super::record::{Fault, Record};
use super::step::Step;

/// openpi's short form of a mask: `n` dimensions that are masked, `-n` that are not. `[6, -1]` are six joints and a gripper.
pub fn make_bool_mask(dims: &[i64]) -> Vec<bool> {
    dims.iter()
        .flat_map(|dim| std::iter::repeat_n(*dim > 0, usize::try_from(dim.unsigned_abs()).unwrap_or(0)))
        .collect()
}

/// In which directions the step goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// Absolute → delta on the way in, delta → absolute on the way out.
    Both,
    /// The data are deltas already; only what the model gives is made absolute.
    Out,
}

/// Actions minus state, on the dimensions of a mask.
#[derive(Debug, Clone)]
pub struct DeltaActions {
    /// Which of the first dimensions; those after its end stay as they are.
    pub mask: Vec<bool>,
    /// Which way.
    pub ways: Ways,
}

impl Step for DeltaActions {
    fn name(&self) -> &'static str {
        "delta-actions"
    }

    fn describe(&self) -> String {
        let what = match self.ways {
            Ways::Both => "actions relative to state",
            Ways::Out => "nothing on the way in; what the model gives is made absolute by the state",
        };
        format!("{what}, on dimensions {} of {}", ranges(&self.mask), self.mask.len())
    }

    fn reads(&self) -> Vec<String> {
        if self.ways == Ways::Out { vec![] } else { vec!["state".to_owned(), "actions".to_owned()] }
    }

    fn writes(&self) -> Vec<String> {
        if self.ways == Ways::Out { vec![] } else { vec!["actions".to_owned()] }
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        if self.ways == Ways::Out { Ok(()) } else { self.shift(record, -1.0) }
    }

    fn undo(&self, record: &mut Record) -> Result<(), Fault> {
        self.shift(record, 1.0)
    }
}

impl DeltaActions {
    /// actions[.., h, d] += sign · state[.., d] where the mask says so.
    fn shift(&self, record: &mut Record, sign: f64) -> Result<(), Fault> {
        if !record.has("actions") {
            return Ok(());
        }
        let dims = self.mask.len();
        let state = record.array("state")?;
        if state.width().is_none_or(|width| width < dims) {
            return Err(too_narrow("state", state, dims));
        }
        let (lead, width) = (state.shape[..state.shape.len() - 1].to_vec(), state.shape[state.shape.len() - 1]);
        let offsets = state.values.to_f64();
        let actions = record.array_mut("actions")?;
        let rank = actions.shape.len();
        if rank < 2 || actions.shape[rank - 1] < dims {
            return Err(too_narrow("actions", actions, dims));
        }
        // One state for all, or one for each chunk.
        if !lead.is_empty() && lead != actions.shape[..rank - 2] {
            return Err(Fault::Shape {
                key: "actions".to_owned(),
                expected: format!("[.., H, D] with as many leading axes as the state's {lead:?}"),
                found: actions.to_string(),
                hint_text: String::new(),
            });
        }
        let (steps, deep) = (actions.shape[rank - 2], actions.shape[rank - 1]);
        let offset = |chunk: usize, d: usize| {
            let row = if lead.is_empty() { 0 } else { chunk };
            sign * offsets[row * width + d]
        };
        let masked = self.mask.iter().enumerate().filter(|(_, masked)| **masked).map(|(d, _)| d).collect::<Vec<_>>();
        match &mut actions.values {
            // Of two f32 the f64 sum, rounded, is the f32 sum.
            Values::F32(x) => shift(x, steps, deep, &masked, |x, chunk, d| (f64::from(x) + offset(chunk, d)) as f32),
            Values::F64(x) => shift(x, steps, deep, &masked, |x, chunk, d| x + offset(chunk, d)),
            _ => {
                return Err(Fault::Shape {
                    key: "actions".to_owned(),
                    expected: "float32 or float64".to_owned(),
                    found: actions.to_string(),
                    hint_text: "whole numbers cannot hold a difference to the state".to_owned(),
                });
            }
        }
        Ok(())
    }
}

fn shift<T: Copy>(values: &mut [T], steps: usize, deep: usize, masked: &[usize], f: impl Fn(T, usize, usize) -> T) {
    if steps * deep == 0 {
        return;
    }
    for (chunk, values) in values.chunks_exact_mut(steps * deep).enumerate() {
        for step in values.chunks_exact_mut(deep) {
            for d in masked {
                step[*d] = f(step[*d], chunk, *d);
            }
        }
    }
}

fn too_narrow(key: &str, array: &Array, dims: usize) -> Fault {
    Fault::Shape {
        key: key.to_owned(),
        expected: match key {
            "state" => format!("at least {dims} values, as many as the mask has"),
            _ => format!("[.., H, D] with D of at least {dims}, as many as the mask has"),
        },
        found: array.to_string(),
        hint_text: String::new(),
    }
}

/// `[true, true, false, true]` as `0-1, 3`.
fn ranges(mask: &[bool]) -> String {
    let mut parts = vec![];
    let mut at = 0;
    while at < mask.len() {
        let end = mask[at..].iter().position(|m| *m != mask[at]).map_or(mask.len(), |n| at + n);
        if mask[at] {
            parts.push(if end - at == 1 { at.to_string() } else { format!("{at}-{}", end - 1) });
        }
        at = end;
    }
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_chunks_has_each_its_own_state() {
        let step = DeltaActions { mask: make_bool_mask(&[1, -1]), ways: Ways::Both };
        let mut record = Record::default();
        record.put_array("state", Array::f64([2, 2], vec![1.0, 5.0, 10.0, 5.0]));
        record.put_array("actions", Array::f32([2, 2, 2], vec![1.5, 7.0, 2.5, 7.0, 11.0, 7.0, 12.0, 7.0]));
        let before = record.clone();
        step.apply(&mut record).unwrap();
        let expected = vec![0.5, 7.0, 1.5, 7.0, 1.0, 7.0, 2.0, 7.0];
        assert_eq!(record.array("actions").unwrap().values, Values::F32(expected));
        step.undo(&mut record).unwrap();
        assert_eq!(record, before);
    }

    #[test]
    fn what_the_mask_does_not_fit_is_refused() {
        let step = DeltaActions { mask: make_bool_mask(&[6, -1]), ways: Ways::Both };
        let mut record = Record::default();
        record.put_array("actions", Array::f32([2, 7], vec![0.0; 14]));
        assert!(step.apply(&mut record).unwrap_err().to_string().starts_with("state: it is missing"));
        record.put_array("state", Array::f32([6], vec![0.0; 6]));
        assert!(step.apply(&mut record).unwrap_err().to_string().contains("at least 7 values"));
        record.put_array("state", Array::f32([3, 7], vec![0.0; 21]));
        assert!(step.apply(&mut record).unwrap_err().to_string().contains("leading axes"));
    }

    #[test]
    fn dimensions_are_told_as_ranges() {
        assert_eq!(ranges(&make_bool_mask(&[6, -1, 6, -1])), "0-5, 7-12");
        assert_eq!(ranges(&make_bool_mask(&[-2, 1])), "2");
        assert_eq!(ranges(&[]), "none");
    }
}
