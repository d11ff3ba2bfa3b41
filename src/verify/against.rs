//! Two checkpoints without a golden set: one of them, run on a random observation, becomes the set for the other.
//!
//! The random numbers are a hash of (seed, name, index): the same on every machine and device.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;

use super::record::Recording;
use super::set::{Document, Set, Tolerance};
use super::view::is_input;
use crate::model::Pi;
use crate::model::settings::Head;
use crate::weights::arrays::Array;

const HORIZON: usize = 10;
const PROMPT: usize = 12;
/// Of them, the last ones are padding in the second row.
const PADDING: usize = 3;
const ROWS: usize = 2;
const DECODED: usize = 4;

/// A set with random inputs for `pi` and nothing recorded yet: two rows, one with a masked camera and a padded prompt.
///
/// # Errors
/// None today; inputs that a model cannot have would be.
pub fn observed(pi: &Pi, seed: u64, tolerance: f64) -> Result<Set> {
    let settings = pi.settings();
    let fast = settings.head == Head::Tokens;
    let side = settings.vision.image();
    let a = settings.action_dim().unwrap_or(8);
    let uniform = |name: &str, shape: &[usize]| {
        let n = shape.iter().product();
        Array::new(shape.to_vec(), (0..n).map(|i| unit(seed, name, i) * 2.0 - 1.0).collect())
    };
    let mut arrays = BTreeMap::new();
    let cameras = if fast {
        ["base_0_rgb", "base_1_rgb", "wrist_0_rgb"]
    } else {
        ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]
    };
    for (c, camera) in cameras.iter().enumerate() {
        let key = format!("in/image/{camera}");
        arrays.insert(key.clone(), uniform(&key, &[ROWS, side, side, 3]));
        // FAST's reference decoder shifts what it sees behind a masked image; both runs would, but nothing is learnt by it.
        let seen = |row: usize| f32::from(u8::from(fast || !(row == 1 && c == 2)));
        arrays.insert(format!("in/image_mask/{camera}"), Array::new(vec![ROWS], (0..ROWS).map(seen).collect()));
    }
    arrays.insert("in/state".into(), uniform("state", &[ROWS, a]));
    let words = (0..ROWS * PROMPT).map(|i| 2.0 + (unit(seed, "prompt", i) * (settings.vocabulary - 3) as f32).floor());
    arrays.insert("in/tokenized_prompt".into(), Array::new(vec![ROWS, PROMPT], words.collect()));
    let flags = |f: &dyn Fn(usize, usize) -> bool| {
        let bits = (0..ROWS * PROMPT).map(|i| f32::from(u8::from(f(i / PROMPT, i % PROMPT))));
        Array::new(vec![ROWS, PROMPT], bits.collect())
    };
    arrays.insert("in/tokenized_prompt_mask".into(), flags(&|row, t| row == 0 || t < PROMPT - PADDING));
    if fast {
        arrays.insert("in/token_ar_mask".into(), flags(&|_, t| t >= PROMPT / 2));
        arrays.insert(
            "in/token_loss_mask".into(),
            flags(&|row, t| t >= PROMPT / 2 && (row == 0 || t < PROMPT - PADDING)),
        );
        arrays.insert("infer/tokens".into(), Array::new(vec![ROWS, DECODED], vec![0.0; ROWS * DECODED]));
        arrays.insert("loss".into(), Array::new(vec![ROWS], vec![0.0; ROWS]));
    } else {
        for name in ["in/actions", "loss/noise", "sample/noise"] {
            arrays.insert(name.into(), uniform(name, &[ROWS, HORIZON, a]));
        }
        arrays.insert("loss/time".into(), Array::new(vec![ROWS], vec![0.3, 0.9]));
        arrays.insert("sample/actions".into(), Array::new(vec![ROWS, HORIZON, a], vec![0.0; ROWS * HORIZON * a]));
    }
    let tolerance =
        Tolerance { relative: Some(tolerance), actions: None, error_ratio: None, cosine: None, tap: vec![] };
    let document = Document {
        model: settings.family().into(),
        mode: "f32".into(),
        weights: None,
        action_horizon: Some(HORIZON),
        prompt_length: Some(PROMPT),
        action_dim: Some(a),
        reference: None,
        max_decoding_steps: fast.then_some(DECODED),
        recorded: BTreeMap::new(),
        tolerance,
    };
    Ok(Set { path: PathBuf::from("random observation"), document, arrays, reference: None })
}

/// The same set with what a model computed as its recording.
pub fn recorded(mut set: Set, recording: Recording) -> Set {
    set.arrays.retain(|name, _| is_input(name));
    set.arrays.extend(recording.arrays);
    set
}

/// In [0, 1): a hash of its place.
fn unit(seed: u64, name: &str, index: usize) -> f32 {
    let start = name.bytes().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |h, b| mix(h ^ u64::from(b)));
    (mix(start.wrapping_add(index as u64)) >> 40) as f32 / (1u64 << 24) as f32
}

/// SplitMix64's finaliser.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
