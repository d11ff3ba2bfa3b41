//! Joints and grippers between a robot's own convention and pi's.
//!
//! Source: openpi 15a9616, policies/aloha_policy.py (adapt_to_pi): signs of joints, and two gripper maps that are not each
//! other's inverse. The state's gripper is what ALOHA's runtime made linear, turned back into an angle; the actions' gripper
//! is an angle on either side, in two ranges. Both are lists of operations, each with its way back.
//!
//! Invariant: the signs are int64 in numpy, so whatever comes in, float64 goes out.

use serde::Deserialize;

use super::super::array::{Array, Values};

/// A convention.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapt {
    /// Of each dimension, of state and actions alike: 1, or -1 where the joint turns the other way.
    pub signs: Vec<i8>,
    /// Of the state, after the signs.
    pub state: Map,
    /// Of the actions, after the signs.
    pub actions: Map,
}

/// Operations on some dimensions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    /// Which.
    pub dims: Vec<usize>,
    /// One after the other.
    pub ops: Vec<Op>,
}

/// An operation on a value x.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// x · (max - min) + min. Back: `Normalize`.
    Unnormalize {
        /// What 0 becomes.
        min: f64,
        /// What 1 becomes.
        max: f64,
    },
    /// (x - min) / (max - min). Back: `Unnormalize`.
    Normalize {
        /// What becomes 0.
        min: f64,
        /// What becomes 1.
        max: f64,
    },
    /// x - value.
    Subtract {
        /// What is taken away.
        value: f64,
    },
    /// The opening of a gripper whose finger hangs on a crank → the crank's angle:
    /// arcsin((horn² + x² - arm²) / (2 · horn · x)), the argument clipped to [-1, 1].
    LinearToRadian {
        /// Length of the arm.
        arm_length: f64,
        /// Radius of the horn.
        horn_radius: f64,
    },
}

impl Op {
    /// Robot → model.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Op::Unnormalize { min, max } => x * (max - min) + min,
            Op::Normalize { min, max } => (x - min) / (max - min),
            Op::Subtract { value } => x - value,
            Op::LinearToRadian { arm_length: arm, horn_radius: horn } => {
                let sine = (horn * horn + x * x - arm * arm) / (2.0 * horn * x);
                // numpy's clip keeps what is no number, and so does this.
                sine.clamp(-1.0, 1.0).asin()
            }
        }
    }

    /// Model → robot.
    pub fn undo(self, x: f64) -> f64 {
        match self {
            Op::Unnormalize { min, max } => Op::Normalize { min, max }.apply(x),
            Op::Normalize { min, max } => Op::Unnormalize { min, max }.apply(x),
            Op::Subtract { value } => x + value,
            Op::LinearToRadian { arm_length: arm, horn_radius: horn } => {
                let (sine, cosine) = x.sin_cos();
                horn * sine + (arm * arm - horn * horn * cosine * cosine).max(0.0).sqrt()
            }
        }
    }

    fn fault(self) -> Option<String> {
        let sound = match self {
            Op::Unnormalize { min, max } | Op::Normalize { min, max } => {
                min.is_finite() && max.is_finite() && min != max
            }
            Op::Subtract { value } => value.is_finite(),
            Op::LinearToRadian { arm_length, horn_radius } => arm_length > 0.0 && horn_radius > 0.0,
        };
        (!sound).then(|| format!("{self:?} has no way back"))
    }
}

impl Adapt {
    pub(super) fn faults(&self, state: usize, actions: usize) -> Vec<String> {
        let mut faults = vec![];
        for (what, width) in [("state", state), ("actions", actions)] {
            if self.signs.len() != width {
                faults.push(format!("adapt_to_pi.signs: {} of them, expected {width} as in {what}", self.signs.len()));
            }
        }
        if self.signs.iter().any(|sign| sign.abs() != 1) {
            faults.push("adapt_to_pi.signs: expected 1 and -1 alone".to_owned());
        }
        for (what, map) in [("state", &self.state), ("actions", &self.actions)] {
            if let Some(dim) = map.dims.iter().find(|dim| **dim >= self.signs.len()) {
                faults.push(format!("adapt_to_pi.{what}.dims: there is no dimension {dim}; the first is 0"));
            }
            faults.extend(map.ops.iter().filter_map(|op| op.fault()).map(|f| format!("adapt_to_pi.{what}.ops: {f}")));
        }
        faults
    }

    /// The signs, then the map.
    pub(super) fn state(&self, state: &Array) -> Array {
        self.mapped(state, &self.state, |op, x| op.apply(x), false)
    }

    pub(super) fn actions(&self, actions: &Array) -> Array {
        self.mapped(actions, &self.actions, |op, x| op.apply(x), false)
    }

    /// Signs are their own way back, and they and the map touch a value one after the other: joints or grippers. openpi
    /// turns the signs first on either way, which is the same but where a gripper has a sign.
    pub(super) fn undo_actions(&self, actions: &Array) -> Array {
        self.mapped(actions, &self.actions, |op, x| op.undo(x), true)
    }

    fn mapped(&self, array: &Array, map: &Map, f: impl Fn(&Op, f64) -> f64, back: bool) -> Array {
        let mut values = array.values.to_f64();
        let turn = |row: &mut [f64]| row.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= f64::from(*sign));
        for row in values.chunks_exact_mut(self.signs.len()) {
            if !back {
                turn(row);
            }
            for dim in &map.dims {
                let ops: &mut dyn Iterator<Item = &Op> =
                    if back { &mut map.ops.iter().rev() } else { &mut map.ops.iter() };
                row[*dim] = ops.fold(row[*dim], |x, op| f(op, x));
            }
            if back {
                turn(row);
            }
        }
        Array::new(array.shape.clone(), Values::F64(values))
    }

    pub(super) fn describe(&self) -> String {
        let turned: Vec<String> =
            self.signs.iter().enumerate().filter(|(_, sign)| **sign < 0).map(|(dim, _)| dim.to_string()).collect();
        let map = |map: &Map| {
            let ops: Vec<String> = map.ops.iter().map(ToString::to_string).collect();
            format!("{:?} by {}", map.dims, ops.join(", "))
        };
        format!(
            "into pi's convention: {} turned, state {}, actions {}",
            if turned.is_empty() { "none".to_owned() } else { turned.join(", ") },
            map(&self.state),
            map(&self.actions)
        )
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Op::Unnormalize { min, max } => write!(out, "[0, 1] to [{min}, {max}]"),
            Op::Normalize { min, max } => write!(out, "[{min}, {max}] to [0, 1]"),
            Op::Subtract { value } => write!(out, "minus {value}"),
            Op::LinearToRadian { arm_length, horn_radius } => {
                write!(out, "opening to angle (arm {arm_length}, horn {horn_radius})")
            }
        }
    }
}
