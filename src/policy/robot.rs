//! A robot as data: which keys its state is made of, what its actions are, where its pictures go.
//!
//! Source: openpi 15a9616, policies/{aloha,droid,libero}_policy.py and examples/ur5, whose classes differ in nothing but
//! these values. A robot's inputs are two steps: [`RobotVectors`] for state and actions, on any leading axes, so that the
//! columns of a whole dataset pass through it without a picture; [`RobotCameras`] for the rest.
//!
//! Invariant: `undo` leaves actions alone, as openpi's outputs do: the first `actions.width` values, in the robot's units.

mod adapt;
mod cameras;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use adapt::{Adapt, Map, Op};
pub use cameras::{Images, RobotCameras, Slot};

use super::array::{Array, Values};
use super::prompt::NOTICE;
use super::record::{Fault, Record, Value, nearest};
use super::step::Step;

/// Dimensions of a vector; no robot has as many.
const MAX_WIDTH: usize = 4096;

/// A robot.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Robot {
    /// Its name.
    pub name: String,
    /// The vectors that make its state, joined in this order.
    pub state: Vec<Part>,
    /// Its actions.
    pub actions: Part,
    /// Another convention of joints and grippers, in which a model may have been trained.
    pub adapt_to_pi: Option<Adapt>,
    /// Its pictures.
    #[serde(default)]
    pub images: Images,
    /// What a model sees, by the layout's name.
    pub layouts: BTreeMap<String, Vec<Slot>>,
}

/// A vector of a robot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its key.
    pub key: String,
    /// Its length.
    pub width: usize,
}

impl Robot {
    /// What contradicts itself, in sentences; none for a sound robot.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = vec![];
        let mut demand = |sound: bool, what: String| {
            if !sound {
                faults.push(what);
            }
        };
        demand(!self.state.is_empty(), "state: it has no part".to_owned());
        for part in self.state.iter().chain([&self.actions]) {
            let sound = (1..=MAX_WIDTH).contains(&part.width);
            demand(sound, format!("{}: a width of {}, expected 1 to {MAX_WIDTH}", part.key, part.width));
        }
        demand(!self.layouts.is_empty(), "layouts: there is none".to_owned());
        if let Some(adapt) = &self.adapt_to_pi {
            adapt.faults(self.state_width(), self.actions.width).into_iter().for_each(|fault| demand(false, fault));
        }
        for (name, slots) in &self.layouts {
            cameras::faults(slots).into_iter().for_each(|fault| demand(false, format!("layouts.{name}: {fault}")));
        }
        faults
    }

    /// Values of its state.
    pub fn state_width(&self) -> usize {
        self.state.iter().map(|part| part.width).fold(0, usize::saturating_add)
    }

    /// The slots of a layout.
    ///
    /// # Errors
    /// There is none of this name: the nearest.
    pub fn layout(&self, name: &str) -> Result<&[Slot], Fault> {
        self.layouts.get(name).map(Vec::as_slice).ok_or_else(|| Fault::Unknown {
            key: format!("layout {name} of {}", self.name),
            nearest: nearest(name, self.layouts.keys().map(String::as_str)),
        })
    }

    /// The step of its vectors; `adapt` into pi's own convention.
    ///
    /// # Errors
    /// `adapt`, and this robot has no such convention.
    pub fn vectors(&self, adapt: bool) -> Result<RobotVectors, Fault> {
        if adapt && self.adapt_to_pi.is_none() {
            let what = format!("{} has no [adapt_to_pi] to go by", self.name);
            return Err(Fault::Wrong { key: "adapt_to_pi".to_owned(), what });
        }
        let adapt = self.adapt_to_pi.clone().filter(|_| adapt);
        Ok(RobotVectors { robot: self.name.clone(), state: self.state.clone(), actions: self.actions.clone(), adapt })
    }

    /// The step of its pictures.
    ///
    /// # Errors
    /// There is no such layout.
    pub fn cameras(&self, layout: &str) -> Result<RobotCameras, Fault> {
        let slots = self.layout(layout)?.to_vec();
        Ok(RobotCameras { robot: self.name.clone(), layout: layout.to_owned(), images: self.images.clone(), slots })
    }
}

/// State and actions, robot ⇄ model. Leading axes are free: `[14]`, `[n, 14]`, actions `[H, 14]`, `[n, H, 14]`.
#[derive(Debug, Clone)]
pub struct RobotVectors {
    robot: String,
    state: Vec<Part>,
    actions: Part,
    adapt: Option<Adapt>,
}

impl RobotVectors {
    /// The parts joined along the last axis, in numpy's dtype for them. A part of one value may lack its axis.
    fn joined(&self, record: &mut Record) -> Result<Array, Fault> {
        let arrays: Vec<&Array> = self.state.iter().map(|part| record.array(&part.key)).collect::<Result<_, _>>()?;
        let rank = arrays.iter().map(|array| array.shape.len()).max().unwrap_or(0).max(1);
        let mut lead: Option<&[usize]> = None;
        for (part, array) in self.state.iter().zip(&arrays) {
            let whole = array.shape.len() == rank && array.width() == Some(part.width);
            let bare = part.width == 1 && array.shape.len() + 1 == rank;
            let own = if bare { &array.shape[..] } else { &array.shape[..array.shape.len().saturating_sub(1)] };
            if !(whole || bare) || lead.is_some_and(|lead| lead != own) {
                return Err(self.misfit(part, array));
            }
            lead = Some(own);
        }
        let mut shape = lead.unwrap_or_default().to_vec();
        let rows: usize = shape.iter().product();
        let width = self.state.iter().map(|part| part.width).sum();
        shape.push(width);
        if let [only] = arrays[..] {
            return Ok(Array::new(shape, only.values.clone()));
        }
        let mut values = vec![0.0; rows * width];
        let mut at = 0;
        for (part, array) in self.state.iter().zip(&arrays) {
            for (row, from) in array.values.to_f64().chunks_exact(part.width).enumerate() {
                values[row * width + at..row * width + at + part.width].copy_from_slice(from);
            }
            at += part.width;
        }
        let single = |array: &&Array| matches!(array.values, Values::F32(_) | Values::U8(_) | Values::Bool(_));
        let values = if arrays.iter().all(single) && arrays.iter().any(|a| matches!(a.values, Values::F32(_))) {
            Values::F32(values.into_iter().map(|x| x as f32).collect())
        } else {
            Values::F64(values)
        };
        Ok(Array::new(shape, values))
    }

    fn misfit(&self, part: &Part, array: &Array) -> Fault {
        let lead = if part.key == self.actions.key { "[.., H, " } else { "[.., " };
        Fault::Shape {
            key: part.key.clone(),
            expected: format!("{lead}{}], what {} has", part.width, self.robot),
            found: array.to_string(),
            hint_text: String::new(),
        }
    }

    /// A state's columns, for statistics: `state` and, where they are there, `actions`; nothing else is looked at.
    ///
    /// # Errors
    /// As [`Step::apply`].
    pub fn columns(&self, record: Record) -> Result<Record, Fault> {
        let mut record = record;
        self.apply(&mut record)?;
        Ok(record)
    }
}

impl Step for RobotVectors {
    fn name(&self) -> &'static str {
        "robot-vectors"
    }

    fn describe(&self) -> String {
        let parts: Vec<String> = self.state.iter().map(|part| format!("{} ({})", part.key, part.width)).collect();
        let adapted = self.adapt.as_ref().map(|adapt| format!("; {}", adapt.describe())).unwrap_or_default();
        format!("{}: state = {}; actions ({}){adapted}", self.robot, parts.join(" + "), self.actions.width)
    }

    fn reads(&self) -> Vec<String> {
        self.state.iter().chain([&self.actions]).map(|part| part.key.clone()).collect()
    }

    fn writes(&self) -> Vec<String> {
        vec!["state".to_owned(), "actions".to_owned()]
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        let mut state = self.joined(record)?;
        let mut actions = match record.has(&self.actions.key) {
            true => Some(record.array(&self.actions.key)?.clone()),
            false => None,
        };
        if let Some(array) = actions.as_ref().filter(|array| array.width() != Some(self.actions.width)) {
            return Err(self.misfit(&self.actions, array));
        }
        if let Some(adapt) = &self.adapt {
            state = adapt.state(&state);
            actions = actions.map(|actions| adapt.actions(&actions));
        }
        for part in self.state.iter().chain([&self.actions]) {
            record.values.remove(&part.key);
        }
        record.put_array("state", state);
        if let Some(actions) = actions {
            record.put_array("actions", actions);
        }
        Ok(())
    }

    fn undo(&self, record: &mut Record) -> Result<(), Fault> {
        let array = record.array("actions")?;
        let wide = array.width().is_some_and(|width| width >= self.actions.width);
        if !wide || array.shape.len() < 2 {
            return Err(self.misfit(&Part { key: "actions".to_owned(), ..self.actions.clone() }, array));
        }
        let mut actions = first(array, self.actions.width);
        if let Some(adapt) = &self.adapt {
            actions = adapt.undo_actions(&actions);
        }
        // What an earlier step had to say goes along.
        record.values.retain(|key, _| key == NOTICE);
        record.put(self.actions.key.clone(), Value::Array(actions));
        Ok(())
    }
}

/// `[.., w]` → `[.., width]`.
fn first(array: &Array, width: usize) -> Array {
    let whole = array.width().unwrap_or(0).max(1);
    fn cut<T: Copy>(values: &[T], whole: usize, width: usize) -> Vec<T> {
        values.chunks_exact(whole).flat_map(|row| &row[..width]).copied().collect()
    }
    let values = match &array.values {
        Values::U8(x) => Values::U8(cut(x, whole, width)),
        Values::I32(x) => Values::I32(cut(x, whole, width)),
        Values::I64(x) => Values::I64(cut(x, whole, width)),
        Values::F32(x) => Values::F32(cut(x, whole, width)),
        Values::F64(x) => Values::F64(cut(x, whole, width)),
        Values::Bool(x) => Values::Bool(cut(x, whole, width)),
    };
    let mut shape = array.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    Array::new(shape, values)
}

#[cfg(test)]
#[path = "robot/tests.rs"]
mod tests;
