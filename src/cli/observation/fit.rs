//! Arrays held against a model: all that does not fit, told at once.
//!
//! Invariant: what comes out has the model's cameras, sides and widths, one number of rows, finite numbers, and tokens
//! that the embedding has.

use std::fmt;

use super::document::Keys;
use super::{Images, Noise, Rows, Wanted};
use crate::model::observation::Flags;
use crate::model::settings::Head;
use crate::policy::array::{Array, Values};

/// Keys that stand alone.
const KNOWN: [&str; 7] =
    ["state", "tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask", "token_loss_mask", "noise", "actions"];
/// How far outside of [-1, 1] a pixel may lie: resizing rounds.
const SLACK: f32 = 1e-3;

/// What is wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// The key.
    pub key: String,
    /// What is there.
    pub found: String,
    /// What should be.
    pub expected: String,
    /// What to do, or nothing.
    pub hint: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, expected {}", self.key, self.found, self.expected)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

/// An observation that does not fit its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Where it came from.
    pub from: String,
    /// Everything that is wrong with it.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: it does not fit the model", self.from)?;
        self.faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for Error {}

struct Fit<'a> {
    wanted: &'a Wanted,
    keys: Keys,
    faults: Vec<Fault>,
    /// The first key that has rows, and how many.
    rows: Option<(String, usize)>,
}

/// Holds all of it against the model.
pub(super) fn fit(keys: Keys, wanted: &Wanted) -> Result<Rows, Vec<Fault>> {
    let mut fit = Fit { wanted, keys, faults: vec![], rows: None };
    fit.strangers();
    let prompt = fit.prompt();
    let state = fit.state();
    let images = fit.images();
    // pi0-FAST begins with none; recorded sets have it for all models alike.
    let noise = fit.keys.remove("noise").filter(|_| wanted.head != Head::Tokens).and_then(|array| {
        match self::noise(array, wanted) {
            Ok(noise) => Some(noise),
            Err(fault) => {
                fit.faults.push(fault);
                None
            }
        }
    });
    let rows = fit.rows.as_ref().map_or(1, |(_, rows)| *rows);
    if rows == 0 {
        fit.fault("tokenized_prompt", "no row", "at least one", "");
    }
    let (true, Some((prompt_length, tokens, mask, ar, loss))) = (fit.faults.is_empty(), prompt) else {
        return Err(fit.faults);
    };
    let side = wanted.image;
    // A camera without an image is black, as openpi's policies have it; nobody sees it.
    let images = images.into_iter().map(|(name, pixels, mask)| Images {
        name,
        pixels: pixels.unwrap_or_else(|| vec![-1.0; rows * side * side * 3]),
        mask: mask.unwrap_or_else(|| vec![true; rows]),
    });
    let width = wanted.action_dim().unwrap_or(1);
    let state = state.unwrap_or_else(|| vec![0.0; rows * width]);
    Ok(Rows { rows, side, images: images.collect(), state, prompt_length, tokens, mask, ar, loss, noise })
}

/// Noise `[rows, horizon, A]`, or `[horizon, A]` for one row.
pub(super) fn noise(array: Array, wanted: &Wanted) -> Result<Noise, Fault> {
    let fault =
        |found: String, expected: String, hint: &str| Fault { key: "noise".into(), found, expected, hint: hint.into() };
    let Some(dim) = wanted.action_dim() else {
        return Err(fault("an array".into(), "none".into(), "pi0-FAST begins with no noise: leave it out"));
    };
    let (rows, horizon, width) = match array.shape[..] {
        [horizon, width] => (1, horizon, width),
        [rows, horizon, width] => (rows, horizon, width),
        _ => return Err(fault(spell(&array.shape), format!("[rows, horizon, {dim}]"), "")),
    };
    if width != dim || rows == 0 || horizon == 0 {
        let hint = "the last axis is the model's action dim";
        return Err(fault(spell(&array.shape), format!("[rows, horizon, {dim}]"), hint));
    }
    let Some(values) = array.floats() else {
        return Err(fault(array.values.kind().into(), "floats".into(), ""));
    };
    match values.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(fault(format!("{} at {at}", values[at]), "finite numbers".into(), "")),
        None => Ok(Noise { rows, horizon, dim, values }),
    }
}

type Cameras = Vec<(String, Option<Vec<f32>>, Option<Vec<bool>>)>;
type PromptRows = (usize, Vec<i32>, Flags, Option<Flags>, Option<Flags>);

impl Fit<'_> {
    fn fault(&mut self, key: &str, found: impl Into<String>, expected: impl Into<String>, hint: impl Into<String>) {
        let fault = Fault { key: key.to_owned(), found: found.into(), expected: expected.into(), hint: hint.into() };
        self.faults.push(fault);
    }

    /// Keys that mean nothing are refused: a misspelt one would otherwise be a default.
    fn strangers(&mut self) {
        let names = &self.wanted.cameras;
        let known = KNOWN.iter().map(|key| (*key).to_owned()).chain(
            ["image", "image_u8", "image_mask"]
                .iter()
                .flat_map(|kind| names.iter().map(move |name| format!("{kind}/{name}"))),
        );
        let known: Vec<String> = known.collect();
        let strange: Vec<String> = self.keys.keys().filter(|key| !known.contains(key)).cloned().collect();
        for key in strange {
            self.keys.remove(&key);
            let hint = match remap::nearest(&key, known.iter().map(String::as_str)) {
                _ if key == "prompt" => "text is not tokenized here: give its tokens as tokenized_prompt".into(),
                Some(near) => format!("the nearest known key is {near}"),
                None if key.starts_with("image") => format!("the cameras are {}", names.join(", ")),
                None => format!("keys are {}, image/<camera>, image_mask/<camera>", KNOWN.join(", ")),
            };
            self.fault(&key, "a key that no part of an observation has", "none", hint);
        }
    }

    /// An array of so many axes a row, with or without the axis of rows; its shape without it.
    fn take(&mut self, key: &str, axes: usize) -> Option<(Array, Vec<usize>)> {
        let array = self.keys.remove(key)?;
        let (rows, shape) = match array.shape.len().checked_sub(axes) {
            Some(0) => (1, array.shape.clone()),
            Some(1) => (array.shape[0], array.shape[1..].to_vec()),
            _ => {
                let (one, more) = (axes, axes + 1);
                self.fault(
                    key,
                    format!("shape {}", spell(&array.shape)),
                    format!("{one} axes for one row, {more} for several"),
                    "",
                );
                return None;
            }
        };
        match &self.rows {
            None => self.rows = Some((key.to_owned(), rows)),
            Some((first, expected)) if *expected != rows => {
                let expected = format!("{expected}, as {first} has");
                self.fault(key, format!("{rows} rows"), expected, "");
                return None;
            }
            Some(_) => {}
        }
        Some((array, shape))
    }

    fn kind(&mut self, key: &str, array: &Array, expected: &str) {
        self.fault(key, array.values.kind(), expected, "");
    }

    fn floats(&mut self, key: &str, array: &Array) -> Option<Vec<f32>> {
        let Some(values) = array.floats() else {
            self.kind(key, array, "numbers");
            return None;
        };
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            self.fault(key, format!("{} at {at}", values[at]), "finite numbers", "");
            return None;
        }
        Some(values)
    }

    fn flags(&mut self, key: &str, array: &Array) -> Option<Vec<bool>> {
        let flags = array.flags();
        if flags.is_none() {
            self.kind(key, array, "booleans, or nothing but 0 and 1");
        }
        flags
    }

    fn prompt(&mut self) -> Option<PromptRows> {
        let key = "tokenized_prompt";
        if !self.keys.contains_key(key) {
            let hint = "an observation is model-ready: the prompt's tokens, padded or not";
            self.fault(key, "nothing", "tokens", hint);
        }
        let (array, shape) = self.take(key, 1)?;
        let length = shape[0];
        if length == 0 {
            self.fault(key, "no token", "at least one", "");
            return None;
        }
        let vocabulary = self.wanted.vocabulary;
        let Some(numbers) = array.integers() else {
            self.kind(key, &array, "whole numbers");
            return None;
        };
        if let Some(at) = numbers.iter().position(|t| *t < 0 || *t >= vocabulary as i64) {
            let (row, column) = (at / length, at % length);
            let found = format!("{} at [{row}, {column}]", numbers[at]);
            self.fault(key, found, format!("tokens from 0 to {}", vocabulary - 1), "the embedding has no other rows");
        }
        let rows = numbers.len() / length;
        let mask = |fit: &mut Self, key: &str| {
            let (array, shape) = fit.take(key, 1)?;
            if shape[0] != length {
                let expected = format!("{length}, as tokenized_prompt has");
                fit.fault(key, format!("{} values a row", shape[0]), expected, "");
                return None;
            }
            Some(Flags { rows, cols: length, bits: fit.flags(key, &array)? })
        };
        let valid = mask(self, "tokenized_prompt_mask").unwrap_or(Flags::all(rows, length, true));
        let ar = mask(self, "token_ar_mask");
        let loss = mask(self, "token_loss_mask");
        let padded = self.wanted.prompt_length.unwrap_or(length);
        if length > padded {
            let hint = "leave --prompt-length out, or shorten the prompt";
            self.fault(key, format!("{length} tokens a row"), format!("at most {padded}"), hint);
            return None;
        }
        let widen = |flags: Flags| Flags::build(rows, padded, |row, col| col < length && flags.get(row, col));
        let token = |i: usize| (i % padded < length).then(|| numbers[i / padded * length + i % padded] as i32);
        let tokens = (0..rows * padded).map(|i| token(i).unwrap_or(0)).collect();
        // Only pi0-FAST reads these.
        let own = |flags: Option<Flags>| flags.filter(|_| self.wanted.head == Head::Tokens).map(widen);
        Some((padded, tokens, widen(valid), own(ar), own(loss)))
    }

    fn state(&mut self) -> Option<Vec<f32>> {
        let (key, dim) = ("state", self.wanted.action_dim());
        if !self.keys.contains_key(key) && matches!(self.wanted.head, Head::StateToken { .. }) {
            let expected = format!("{} numbers a row", dim.unwrap_or(0));
            self.fault(key, "nothing", expected, "pi0 reads the normalised state, padded with zeros");
        }
        let (array, shape) = self.take(key, 1)?;
        if let Some(dim) = dim.filter(|dim| shape[0] != *dim) {
            let hint = "the model's action dim; pad a shorter state with zeros";
            self.fault(key, format!("{} values a row", shape[0]), dim.to_string(), hint);
        }
        self.floats(key, &array)
    }

    fn images(&mut self) -> Cameras {
        let rows = self.rows.as_ref().map_or(1, |(_, rows)| *rows);
        let mut all = vec![];
        let wanted = self.wanted;
        for name in &wanted.cameras {
            let key = format!("image_mask/{name}");
            let mask = match self.keys.get(&key).is_some_and(|array| array.shape.is_empty()) {
                // One word for all rows.
                true => self.keys.remove(&key).and_then(|array| self.flags(&key, &array)).map(|bit| bit.repeat(rows)),
                false => self.take(&key, 0).and_then(|(array, _)| self.flags(&key, &array)),
            };
            let masked = mask.as_ref().is_some_and(|mask| !mask.contains(&true));
            let pixels = self.image(name, masked);
            all.push((name.clone(), pixels, mask));
        }
        all
    }

    fn image(&mut self, name: &str, masked: bool) -> Option<Vec<f32>> {
        let [key, bytes] = ["image", "image_u8"].map(|kind| format!("{kind}/{name}"));
        let key = if self.keys.contains_key(&key) { key } else { bytes };
        let side = self.wanted.image;
        if !self.keys.contains_key(&key) {
            if !masked {
                let hint = format!("a camera that is not there is masked: image_mask/{name} false");
                self.fault(&format!("image/{name}"), "nothing", format!("{side}x{side} pixels"), hint);
            }
            return None;
        }
        let (array, shape) = self.take(&key, 3)?;
        if shape != [side, side, 3] {
            let hint = if shape.first() == Some(&3) {
                "colours are the last axis"
            } else {
                "resize with padding, as openpi does"
            };
            self.fault(&key, format!("shape {}", spell(&shape)), format!("[{side}, {side}, 3]"), hint);
            return None;
        }
        match &array.values {
            // As openpi: each operation rounded to f32.
            Values::U8(bytes) => Some(bytes.iter().map(|x| f32::from(*x) / 255.0 * 2.0 - 1.0).collect()),
            Values::F32(_) | Values::F64(_) if key.starts_with("image/") => {
                let values = self.floats(&key, &array)?;
                let outside = values.iter().position(|x| x.abs() > 1.0 + SLACK);
                if let Some(at) = outside {
                    self.fault(&key, format!("{} at {at}", values[at]), "floats in [-1, 1], or bytes", "");
                }
                Some(values)
            }
            _ => {
                let expected = if key.starts_with("image/") { "bytes, or floats in [-1, 1]" } else { "bytes" };
                self.kind(&key, &array, expected);
                None
            }
        }
    }
}

fn spell(shape: &[usize]) -> String {
    format!("{shape:?}")
}
