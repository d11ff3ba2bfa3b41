//! The model, run on a golden set's inputs, with every intermediate heard.
//!
//! What is recorded under a name is the first that had it: images and prompt are embedded more than once. Sampled actions
//! come from the way users run it (padding dropped, the last layer cut short); all else from the way JAX runs it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::set::Set;
use crate::model::fast::Next;
use crate::model::observation::{Camera, Flags, Observation, Prompt};
use crate::model::settings::Head;
use crate::model::{Padding, Pi, Taps};
use crate::sample::flow::{Steps, sample_actions};
use crate::sample::tokens::{Choice, Limits, Stop, sample_tokens};
use crate::weights::arrays::Array;

/// Intermediates by name, and their order.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// Names in the order in which they were computed.
    pub order: Vec<String>,
    /// By name.
    pub arrays: BTreeMap<String, Array>,
}

impl Recording {
    fn keep(&mut self, name: &str, data: &TensorData) {
        if !self.arrays.contains_key(name) {
            self.order.push(name.to_owned());
            self.arrays.insert(name.to_owned(), array(data));
        }
    }
}

/// A tensor's values on the host.
pub fn array(data: &TensorData) -> Array {
    let dtype = match data.dtype() {
        DType::F32 => "float32",
        DType::BF16 => "bfloat16",
        DType::Bool(_) => "bool",
        _ => "int32",
    };
    let values = match data.dtype() {
        DType::Bool(_) => data.iter::<bool>().map(|b| f32::from(u8::from(b))).collect(),
        _ => data.iter::<f32>().collect(),
    };
    Array { shape: data.shape().to_vec(), dtype: dtype.into(), values }
}

/// A host array on a device, in f32.
///
/// # Errors
/// It has another number of axes.
pub fn upload<const D: usize>(name: &str, array: &Array, device: &Device) -> Result<Tensor<D>> {
    let shape: [usize; D] =
        array.shape.clone().try_into().map_err(|shape: Vec<usize>| {
            anyhow::anyhow!("{name}: found {} axes {shape:?}, expected {D}", shape.len())
        })?;
    Ok(Tensor::from_data(TensorData::new(array.values.clone(), shape), (device, DType::F32)))
}

/// Everything the set asks for, computed by `pi`.
///
/// # Errors
/// The set is of another model, or its inputs are incomplete.
pub fn record(pi: &Pi, set: &Set) -> Result<Recording> {
    let family = pi.settings().family();
    if set.document.model != family {
        bail!("{}: recorded from a {}, but the checkpoint is a {family}", set.path.display(), set.document.model);
    }
    let mut recording = Recording::default();
    match pi.settings().head {
        Head::Tokens => tokens(pi, set, &mut recording)?,
        Head::StateToken { .. } | Head::Adaptive { .. } => flow(pi, set, &mut recording)?,
    }
    Ok(recording)
}

fn flow(pi: &Pi, set: &Set, recording: &mut Recording) -> Result<()> {
    let device = pi.device();
    let observation = observation(pi, set, "in")?;
    if set.arrays.contains_key("loss/noise") {
        let actions = upload::<3>("in/actions", set.input("in/actions")?, &device)?;
        let noise = upload::<3>("loss/noise", set.input("loss/noise")?, &device)?;
        let time = &set.input("loss/time")?.values;
        let mut hear = |name: &str, data: TensorData| recording.keep(name, &data);
        pi.compute_loss(&observation, actions, noise, time, &mut Taps::on(&mut hear));
    }
    let noise = set.arrays.get("sample/noise").or_else(|| set.arrays.get("in/noise"));
    let Some(noise) = noise else { return Ok(()) };
    let noise = upload::<3>("sample/noise", noise, &device)?;
    let mut hear = |name: &str, data: TensorData| recording.keep(name, &data);
    let mut taps = Taps::on(&mut hear);
    let prefix = pi.embed_prefix(&observation, Padding::Keep, &mut taps);
    let context = pi.read_prefix(prefix, &mut taps);
    let mut counts: Vec<usize> = set.arrays.keys().filter_map(|name| steps_of(name)).collect();
    counts.sort_unstable();
    counts.dedup();
    for num_steps in counts {
        let steps = Steps::new(pi, num_steps);
        let mut step: BTreeMap<String, usize> = BTreeMap::new();
        let mut hear = |name: &str, data: TensorData| {
            let nth = step.entry(name.to_owned()).or_default();
            recording.keep(&format!("steps{num_steps}/{nth:02}/{}", name.trim_start_matches("step/")), &data);
            *nth += 1;
        };
        let looped = steps.denoise(pi, &context, &observation.state, noise.clone(), &mut Taps::on(&mut hear));
        recording.keep(&format!("sample/loop_actions_steps{num_steps}"), &looped.into_data());
        let actions = sample_actions(pi, &observation, noise.clone(), &steps, Padding::Drop, &mut Taps::off());
        let data = actions.into_data();
        recording.keep(&format!("sample/actions_steps{num_steps}"), &data);
        if num_steps == 10 {
            recording.keep("sample/actions", &data);
        }
    }
    Ok(())
}

/// Into how many steps the actions under this name were cut.
fn steps_of(name: &str) -> Option<usize> {
    if name == "sample/actions" {
        return Some(10);
    }
    let (start, steps) = name.rsplit_once("_steps")?;
    start.starts_with("sample/").then(|| steps.parse().ok()).flatten()
}

fn tokens(pi: &Pi, set: &Set, recording: &mut Recording) -> Result<()> {
    let trained = observation(pi, set, "in")?;
    if set.arrays.keys().any(|name| name.starts_with("train/") || name.starts_with("loss")) {
        let mut hear = |name: &str, data: TensorData| recording.keep(name, &data);
        let loss = pi.compute_token_loss(&trained, &mut Taps::on(&mut hear));
        recording.keep("loss/chunked", &loss.into_data());
    }
    let prompt = if set.arrays.contains_key("infer/tokenized_prompt") { "infer" } else { "in" };
    let observed = observation(pi, set, prompt)?;
    let Some(expected) = set.arrays.get("infer/tokens") else { return Ok(()) };
    let room = set.document.max_decoding_steps.or(expected.shape.get(1).copied());
    let room = room.context("max_decoding_steps is in set.toml where infer/tokens was recorded")?;
    let mut hear = |name: &str, data: TensorData| recording.keep(name, &data);
    pi.read_prompt(&observed, Next::Reference, room, &mut Taps::on(&mut hear));
    let limits = Limits { max_decoding_steps: room, stop: Stop::AllAtOnce, next: Next::Reference };
    let mut step_logits = vec![];
    let mut hear = |name: &str, data: TensorData| {
        if name == "infer/step_logits" {
            step_logits.push(array(&data));
        }
    };
    let rows = sample_tokens(pi, &observed, limits, Choice::Greedy, &|_| None, &mut Taps::on(&mut hear), &mut || {});
    for (s, logits) in step_logits.into_iter().enumerate() {
        let name = format!("infer/step{s:02}/logits");
        recording.order.push(name.clone());
        recording.arrays.insert(name, logits);
    }
    // Again the way users run it: padding dropped.
    let rows_dropped = sample_tokens(pi, &observed, limits, Choice::Greedy, &|_| None, &mut Taps::off(), &mut || {});
    if rows != rows_dropped {
        bail!("dropping padding changed the tokens: {rows:?} became {rows_dropped:?}");
    }
    let padded = |row: &Vec<i32>| (0..room).map(|s| row.get(s).map_or(0.0, |t| *t as f32)).collect::<Vec<f32>>();
    let values: Vec<f32> = rows.iter().flat_map(padded).collect();
    recording.keep("infer/tokens", &TensorData::new(values, [rows.len(), room]));
    Ok(())
}

/// The set's observation; its prompt under `prompt/`.
///
/// # Errors
/// What is missing or does not fit together or to the model.
pub fn observation(pi: &Pi, set: &Set, prompt: &str) -> Result<Observation> {
    let device = pi.device();
    let fast = pi.settings().head == Head::Tokens;
    let names = if fast {
        ["base_0_rgb", "base_1_rgb", "wrist_0_rgb"]
    } else {
        ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]
    };
    let state = upload::<2>("in/state", set.input("in/state")?, &device)?;
    let rows = state.dims()[0];
    let camera = |name: &str| -> Result<Camera> {
        let (key, bytes) = (format!("in/image/{name}"), format!("in/image_u8/{name}"));
        let image = match set.arrays.get(&bytes) {
            Some(array) => {
                let values = array.values.iter().map(|v| v / 255.0 * 2.0 - 1.0).collect();
                upload::<4>(&bytes, &Array::new(array.shape.clone(), values), &device)?
            }
            None => upload::<4>(&key, set.input(&key)?, &device)?,
        };
        let mask = set.arrays.get(&format!("in/image_mask/{name}"));
        let mask = mask.map_or(vec![true; rows], |mask| mask.values.iter().map(|v| *v != 0.0).collect());
        Ok(Camera { name: name.to_owned(), image, mask })
    };
    let tokens = set.input(&format!("{prompt}/tokenized_prompt"))?;
    let cols = tokens.shape.get(1).copied().unwrap_or(0);
    let ints: Vec<i32> = tokens.values.iter().map(|v| *v as i32).collect();
    let flags = |name: &str| {
        let bits = |a: &Array| Flags { rows, cols, bits: a.values.iter().map(|v| *v != 0.0).collect() };
        set.arrays.get(&format!("{prompt}/{name}")).or_else(|| set.arrays.get(&format!("in/{name}"))).map(bits)
    };
    let observation = Observation {
        cameras: names.iter().map(|n| camera(n)).collect::<Result<_>>()?,
        state,
        prompt: Prompt {
            tokens: Tensor::<2, Int>::from_data(TensorData::new(ints, [rows, cols]), (&device, DType::I32)),
            mask: flags("tokenized_prompt_mask").context("tokenized_prompt_mask is not in io.safetensors")?,
            ar: flags("token_ar_mask"),
            loss: flags("token_loss_mask"),
        },
    };
    match observation.faults(pi.settings().vision.image(), pi.settings().action_dim()) {
        faults if faults.is_empty() => Ok(observation),
        faults => bail!("{}: {}", set.path.display(), faults.join("; ")),
    }
}
