//! A batch as the model takes it: pictures augmented, noise and time drawn, cut into parts.
//!
//! Invariants: row r of step s is the same whatever the batch is cut into and on however many devices: its chance is a
//! function of (seed, s, r). Sources: openpi 15a9616, models/model.py (`Observation.from_dict`, `preprocess_observation`),
//! models/pi0.py (`compute_loss`).

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::augment::{self, Augment, Pictures};
use super::backward::{Input, Target};
use crate::chance::Stream;
use crate::data::loader::Example;
use crate::model::observation::{Camera, Flags, Observation, Prompt};
use crate::policy::array::Array;
use crate::policy::record::{Fault, Record};

/// What examples are and what is made of them.
#[derive(Debug, Clone)]
pub struct Making {
    /// Names of the pictures, in the order in which the model reads them.
    pub slots: Vec<String>,
    /// Side of a picture, pixels.
    pub image: usize,
    /// A; `None` for pi0-FAST, which reads state and actions as text.
    pub action_dim: Option<usize>,
    /// What is done to pictures.
    pub augment: Augment,
    /// Parameters of the Beta distribution of time.
    pub time: (f64, f64),
    /// Do steps behind an episode's end not count?
    pub mask_padded_steps: bool,
    /// Only so many of the action's dims count; the others were added to fill the model's width.
    pub mask_dims_from: Option<usize>,
    /// Where chance begins.
    pub seed: u64,
}

/// Why examples make no batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// An example is not as it should be.
    #[error("example {row} of the batch: {fault}")]
    Example {
        /// Which.
        row: usize,
        /// What is wrong.
        fault: Fault,
    },
    /// Pictures that do not fit.
    #[error(transparent)]
    Pictures(#[from] augment::Misfit),
    /// Nothing would be learned.
    #[error("no step of the batch counts: all of its actions lie behind their episodes' ends")]
    Nothing,
}

/// A batch on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// B.
    pub rows: usize,
    side: usize,
    cameras: Vec<(String, Vec<f32>, Vec<bool>)>,
    state: Vec<f32>,
    tokens: Vec<i32>,
    mask: Flags,
    ar: Option<Flags>,
    loss: Option<Flags>,
    flow: Option<FlowRows>,
}

#[derive(Debug, Clone, PartialEq)]
struct FlowRows {
    horizon: usize,
    dim: usize,
    actions: Vec<f32>,
    noise: Vec<f32>,
    time: Vec<f32>,
    weights: Option<Vec<f32>>,
}

impl Making {
    /// Makes the batch of a step.
    ///
    /// # Errors
    /// Examples that are not of this model.
    pub fn rows(&self, examples: &[Example], step: u64) -> Result<Rows, BatchError> {
        let each = |f: &dyn Fn(&Record) -> Result<Vec<f32>, Fault>| -> Result<Vec<f32>, BatchError> {
            let mut all = vec![];
            for (row, example) in examples.iter().enumerate() {
                all.extend(f(&example.record).map_err(|fault| BatchError::Example { row, fault })?);
            }
            Ok(all)
        };
        let (rows, side) = (examples.len(), self.image);
        let mut cameras = vec![];
        for slot in &self.slots {
            let pixels = each(&|record| picture(record, slot, side))?;
            let mask = each(&|record| Ok(vec![f32::from(u8::from(flag(record, &format!("image_mask/{slot}"))?))]))?;
            cameras.push((slot.clone(), pixels, mask.into_iter().map(|x| x != 0.0).collect()));
        }
        let mut pictures: Vec<Pictures<'_>> =
            cameras.iter_mut().map(|(camera, values, _)| Pictures { camera, values }).collect();
        augment::augment_rows(self.augment, (self.seed, step), 0, (side, side), &mut pictures)?;

        let width = self.action_dim.unwrap_or(1);
        let state = match self.action_dim {
            Some(_) => each(&|record| floats(record, "state", width))?,
            None => vec![0.0; rows],
        };
        let length =
            examples.first().and_then(|e| e.record.array("tokenized_prompt").ok()).map_or(0, |a| a.values.len());
        let ints = |key: &'static str| each(&move |record| floats(record, key, length));
        let tokens = ints("tokenized_prompt")?.into_iter().map(|x| x as i32).collect();
        let flags = |key: &'static str| -> Result<Flags, BatchError> {
            Ok(Flags { rows, cols: length, bits: ints(key)?.into_iter().map(|x| x != 0.0).collect() })
        };
        let mask = flags("tokenized_prompt_mask")?;
        let (ar, loss, flow) = match self.action_dim {
            None => (Some(flags("token_ar_mask")?), Some(flags("token_loss_mask")?), None),
            Some(dim) => (None, None, Some(self.flow(examples, step, dim)?)),
        };
        Ok(Rows { rows, side, cameras, state, tokens, mask, ar, loss, flow })
    }

    fn flow(&self, examples: &[Example], step: u64, dim: usize) -> Result<FlowRows, BatchError> {
        let horizon = examples.first().map_or(0, |e| e.padded.len());
        let mut flow = FlowRows { horizon, dim, actions: vec![], noise: vec![], time: vec![], weights: None };
        for (row, example) in examples.iter().enumerate() {
            let actions = floats(&example.record, "actions", horizon * dim);
            flow.actions.extend(actions.map_err(|fault| BatchError::Example { row, fault })?);
            flow.noise.extend(Stream::new(self.seed, &format!("train/{step}/noise"), row).normals(horizon * dim));
            let time = beta(&mut Stream::new(self.seed, &format!("train/{step}/time"), row), self.time);
            // openpi's bounds: never wholly without noise, seldom nothing but noise.
            flow.time.push((time * 0.999 + 0.001) as f32);
        }
        if self.mask_padded_steps || self.mask_dims_from.is_some_and(|from| from < dim) {
            let dims = self.mask_dims_from.unwrap_or(dim).min(dim);
            let steps = |e: &Example| e.padded.iter().map(|p| !(self.mask_padded_steps && *p)).collect::<Vec<bool>>();
            let counts: Vec<bool> = examples.iter().flat_map(steps).collect();
            let values = counts.iter().filter(|c| **c).count() * dims;
            if values == 0 {
                return Err(BatchError::Nothing);
            }
            let one = (1.0 / values as f64) as f32;
            let weight = |at: usize| if counts[at / dim] && at % dim < dims { one } else { 0.0 };
            flow.weights = Some((0..counts.len() * dim).map(weight).collect());
        }
        Ok(flow)
    }
}

impl Rows {
    /// Some of the rows, on a device.
    pub fn upload(&self, part: Range<usize>, device: &Device) -> Input {
        let (b, all, side) = (part.len(), self.rows, self.side);
        let cut = |values: &[f32]| {
            let each = values.len() / all.max(1);
            values[part.start * each..part.end * each].to_vec()
        };
        let up = |values: &[f32], shape: [usize; 3]| {
            Tensor::<3>::from_data(TensorData::new(cut(values), shape), (device, DType::F32))
        };
        let flags = |f: &Flags| Flags::build(b, f.cols, |row, col| f.get(part.start + row, col));
        let camera = |(name, pixels, mask): &(String, Vec<f32>, Vec<bool>)| {
            let data = TensorData::new(cut(pixels), [b, side, side, 3]);
            let image = Tensor::from_data(data, (device, DType::F32));
            Camera { name: name.clone(), image, mask: mask[part.clone()].to_vec() }
        };
        let length = self.mask.cols;
        let tokens = TensorData::new(self.tokens[part.start * length..part.end * length].to_vec(), [b, length]);
        let width = self.state.len() / all.max(1);
        let observation = Observation {
            cameras: self.cameras.iter().map(camera).collect(),
            state: Tensor::from_data(TensorData::new(cut(&self.state), [b, width]), (device, DType::F32)),
            prompt: Prompt {
                tokens: Tensor::<2, Int>::from_data(tokens, (device, DType::I32)),
                mask: flags(&self.mask),
                ar: self.ar.as_ref().map(flags),
                loss: self.loss.as_ref().map(flags),
            },
        };
        let target = match &self.flow {
            None => Target::Tokens,
            Some(FlowRows { horizon, dim, actions, noise, time, weights }) => {
                let shape = [b, *horizon, *dim];
                Target::Flow {
                    actions: up(actions, shape),
                    noise: up(noise, shape),
                    time: time[part.clone()].to_vec(),
                    weights: weights.as_ref().map(|w| up(w, shape)),
                }
            }
        };
        Input { observation, target, share: b as f64 / all as f64 }
    }
}

fn wrong(key: &str, expected: String, found: String) -> Fault {
    Fault::Shape { key: key.to_owned(), expected, found, hint_text: String::new() }
}

/// A picture as the model sees it: bytes 0 to 255 become -1 to 1.
fn picture(record: &Record, slot: &str, side: usize) -> Result<Vec<f32>, Fault> {
    let key = format!("image/{slot}");
    let array = record.array(&key)?;
    if array.shape != [side, side, 3] {
        return Err(wrong(&key, format!("[{side}, {side}, 3]"), format!("{:?}", array.shape)));
    }
    let bytes = array.values.dtype() == "uint8";
    let scale = |x: f32| if bytes { x / 255.0 * 2.0 - 1.0 } else { x };
    Ok(array.values.to_f32().into_iter().map(scale).collect())
}

fn flag(record: &Record, key: &str) -> Result<bool, Fault> {
    let found = record.array(key)?.flags().filter(|flags| flags.len() == 1);
    found.map(|flags| flags[0]).ok_or_else(|| wrong(key, "one truth value".into(), "something else".into()))
}

fn floats(record: &Record, key: &str, count: usize) -> Result<Vec<f32>, Fault> {
    let array: &Array = record.array(key)?;
    if array.values.len() != count {
        return Err(wrong(key, format!("{count} values"), format!("{:?}", array.shape)));
    }
    Ok(array.values.to_f32())
}

/// A value of Beta(alpha, beta): as a power where beta is 1, else by two gammas.
pub(super) fn beta(stream: &mut Stream, (alpha, beta): (f64, f64)) -> f64 {
    if beta == 1.0 {
        // P(x < t) = t^alpha; 1 - u is never 0.
        return libm::pow(1.0 - stream.unit(), 1.0 / alpha);
    }
    let (x, y) = (gamma(stream, alpha), gamma(stream, beta));
    if x + y > 0.0 { x / (x + y) } else { 0.5 }
}

/// A value of Gamma(shape, 1) (Marsaglia and Tsang, A simple method for generating gamma variables, 2000).
fn gamma(stream: &mut Stream, shape: f64) -> f64 {
    if shape < 1.0 {
        let more = gamma(stream, shape + 1.0);
        return more * libm::pow(1.0 - stream.unit(), 1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = f64::from(stream.normals(1)[0]);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && libm::log(1.0 - stream.unit()) < 0.5 * x * x + d - d * v + d * libm::log(v) {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments((alpha, b): (f64, f64)) -> (f64, f64) {
        let draws: Vec<f64> = (0..40_000).map(|row| beta(&mut Stream::new(3, "time", row), (alpha, b))).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        (mean, draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64)
    }

    #[test]
    fn times_are_of_the_beta_distribution() {
        for (alpha, b) in [(1.5, 1.0), (1.0, 1.0), (2.0, 3.0), (0.5, 0.7)] {
            let (mean, variance) = moments((alpha, b));
            let sum = alpha + b;
            let expected = (alpha / sum, alpha * b / (sum * sum * (sum + 1.0)));
            assert!((mean - expected.0).abs() < 0.005, "Beta({alpha}, {b}): mean {mean}, expected {}", expected.0);
            assert!((variance - expected.1).abs() < 0.002, "Beta({alpha}, {b}): {variance}, expected {}", expected.1);
        }
    }
}
