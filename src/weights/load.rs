//! Checkpoint to model: any scheme, safetensors or Orbax, every parameter once and no other.
//!
//! Invariants: the model is the authority on what exists, the name map on what it is called; a name or shape in which
//! they differ is refused before a tensor is read. Tensors are decoded straight into the memory they stay in.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use remap::{Map, Memory, Mover, Options, Plan};
use sha2::{Digest, Sha256};

use super::anatomy::Anatomy;
use super::convert::{Progress, watched};
use super::open::Opened;
use crate::model::Pi;
use crate::model::settings::{Expert, Head, Lora, Settings, Vision};

/// How to load.
#[derive(Debug, Clone)]
pub struct Load {
    /// Naming scheme; detected where it is not told.
    pub from: Option<String>,
    /// To which dtype parameters are cast; `None` leaves them as they are.
    pub parameters: Option<DType>,
    /// In which dtype the model computes.
    pub activations: DType,
    /// alpha / rank of the attention's low-rank pairs; openpi's variants all have 1.
    pub lora_scale: f64,
    /// Threads that decode.
    pub threads: usize,
    /// Should bf16 weights be rearranged for fast products? Only for inference on the CPU.
    pub pack: bool,
    /// Should the parameters be hashed as well?
    pub digest: bool,
}

/// A model with its weights.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub pi: Pi,
    /// SHA-256 over canonical name, dtype, shape and bytes of every parameter as loaded, in the order of names: the same
    /// for a checkpoint and all its conversions. Empty where nobody asked.
    pub digest: String,
    /// Canonical names of what the checkpoint did not have.
    pub filled: Vec<String>,
}

/// Settings of the model that these tensors are.
///
/// # Errors
/// A part of a model; sizes that no tensor tells.
pub fn settings(anatomy: &Anatomy, lora_scale: f64) -> Result<Settings> {
    let family = anatomy.model.as_deref().context("these tensors are a part of a model; a whole one can be run")?;
    let action_dim = || known("the action dim", anatomy.action_dim);
    let head = match family {
        "pi0" => Head::StateToken { action_dim: action_dim()? },
        "pi05" => Head::Adaptive { action_dim: action_dim()? },
        _ => Head::Tokens,
    };
    let settings = Settings {
        vision: vision(anatomy)?,
        experts: anatomy.experts.iter().map(|e| expert(e, lora_scale)).collect::<Result<_>>()?,
        vocabulary: known("the vocabulary", anatomy.vocabulary)?,
        head,
    };
    match settings.faults() {
        faults if faults.is_empty() => Ok(settings),
        faults => bail!("the tensors contradict each other: {}", faults.join("; ")),
    }
}

/// The same where PaliGemma alone is there: what the tensors do not tell is `rest`'s.
///
/// # Errors
/// Sizes that no tensor tells; a PaliGemma that does not go with the rest.
pub fn settings_of_paligemma(anatomy: &Anatomy, rest: &Settings) -> Result<Settings> {
    let mut settings = rest.clone();
    let language = anatomy.experts.first().context("there is no language model")?;
    let lora = rest.experts[0].lora;
    settings.vision = vision(anatomy)?;
    settings.vocabulary = known("the vocabulary", anatomy.vocabulary)?;
    settings.experts[0] = Expert { lora, ..expert(language, 1.0)? };
    match settings.faults() {
        faults if faults.is_empty() => Ok(settings),
        faults => bail!("this PaliGemma does not go with the rest of the model: {}", faults.join("; ")),
    }
}

fn known(what: &str, x: Option<u64>) -> Result<usize> {
    x.map(|x| x as usize).with_context(|| {
        format!("{what} is not told by the tensors; convert the checkpoint with `pi0 convert`, which writes it down")
    })
}

fn vision(anatomy: &Anatomy) -> Result<Vision> {
    let vision = anatomy.vision.as_ref().context("there is no vision tower")?;
    Ok(Vision {
        width: vision.width as usize,
        depth: vision.depth as usize,
        mlp: vision.mlp as usize,
        heads: known("the number of SigLIP's heads", vision.heads)?,
        patch: vision.patch as usize,
        tokens: vision.tokens as usize,
    })
}

fn expert(e: &super::anatomy::Expert, scale: f64) -> Result<Expert> {
    let rank = |r: Option<u64>| r.unwrap_or(0) as usize;
    Ok(Expert {
        width: e.width as usize,
        depth: e.depth as usize,
        mlp: e.mlp as usize,
        heads: known("the number of heads", e.heads)?,
        kv_heads: known("the number of kv heads", e.kv_heads)?,
        head_size: known("the size of a head", e.head_size)?,
        adaptive: e.adaptive,
        lora: Lora {
            attention: rank(e.lora.and_then(|l| l.attention)),
            feed_forward: rank(e.lora.and_then(|l| l.feed_forward)),
            scale,
        },
    })
}

/// The model of an opened checkpoint, with its weights.
///
/// # Errors
/// All that is missing, unknown, doubled or mis-shaped, together; what the medium says.
pub fn load(opened: &Opened, how: &Load, device: &Device, progress: &dyn Progress) -> Result<Loaded> {
    let (map, heads) = (Map::pi0(), heads(opened));
    let from = opened.scheme(&map, how.from.as_deref())?;
    let options = Options { heads, lora: remap::Lora::Keep, ..Options::default() };
    let settings = settings(&Anatomy::read(&map, &opened.tensors, from, &options)?, how.lora_scale)?;
    load_as(&settings, opened, how, &|_, _| None, device, progress)
}

/// A model of these settings with an opened checkpoint's weights, and for parameters that are not in it what `missing`
/// gives by canonical name and shape: low-rank pairs that a base does not have, all but PaliGemma.
///
/// # Errors
/// As [`load`]; what `missing` does not give either is missing.
pub fn load_as(
    settings: &Settings,
    opened: &Opened,
    how: &Load,
    missing: &Missing<'_>,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Loaded> {
    let map = Map::pi0();
    let from = opened.scheme(&map, how.from.as_deref())?;
    let burn = map.scheme("burn").context("the map has a scheme burn")?;
    let options = Options {
        heads: heads(opened),
        lora: remap::Lora::Keep,
        cast: how.parameters.map(dtype_of).transpose()?,
        // Whether it is whole, `agree` says below, by the model itself.
        part: true,
        ..Options::default()
    };
    let plan = Plan::new(&map, &opened.tensors, from, burn, &options)?;
    let pi = Pi::init(settings, how.activations, device);
    let mut bytes = agree(&pi, &plan, missing)?;
    let filled: Vec<String> = bytes.keys().cloned().collect();
    let stop = AtomicBool::new(false);
    let memory = Memory::new(&plan);
    let mover = Mover::new(&plan, &*opened.source, &opened.arrays, None, remap::Settings::threads(how.threads), &stop);
    watched(&mover, progress, "reading weights", || Ok(mover.run(&mover.units(|_| true), &memory)?))?;
    for (output, slot) in plan.outputs.iter().zip(memory.bytes) {
        let data = slot.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        bytes.insert(output.tensor.name.clone(), (data, dtype_from(output.tensor.dtype)?));
    }
    let digest = if how.digest { digest(&bytes, &pi) } else { String::new() };
    let pi = pi.map(&mut Fill { path: vec![], bytes, device: device.clone() });
    let pi = if how.pack { packed(pi) } else { pi };
    Ok(Loaded { pi, digest, filled })
}

/// A model of these settings whose every parameter `give` gives.
///
/// # Errors
/// One that it does not give.
pub fn make(settings: &Settings, activations: DType, give: &Missing<'_>, device: &Device) -> Result<Pi> {
    let pi = Pi::init(settings, activations, device);
    let mut bytes = BTreeMap::new();
    for (name, shape) in pi.parameters() {
        let values = give(&name, &shape).with_context(|| format!("{name}: nothing says how it begins"))?;
        bytes.insert(name, (plain(&values), DType::F32));
    }
    Ok(pi.map(&mut Fill { path: vec![], bytes, device: device.clone() }))
}

/// Values of a parameter that a checkpoint does not have, row by row, by canonical name and shape.
pub type Missing<'a> = dyn Fn(&str, &[usize]) -> Option<Vec<f32>> + 'a;

fn plain(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn heads(opened: &Opened) -> BTreeMap<(String, char), u64> {
    opened.own_anatomy().map(|a| a.heads()).unwrap_or_default()
}

fn packed(mut pi: Pi) -> Pi {
    pi.pack();
    pi
}

fn digest(bytes: &BTreeMap<String, (Vec<u8>, DType)>, pi: &Pi) -> String {
    let shapes: BTreeMap<String, Vec<usize>> = pi.parameters().into_iter().collect();
    let mut hash = Sha256::new();
    for (name, (data, dtype)) in bytes {
        hash.update(format!("{name} {dtype:?} {:?}\n", shapes.get(name)));
        hash.update(data);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Every parameter of the model is an output of the plan in the same shape, and the other way round; or `missing` gives it.
fn agree(pi: &Pi, plan: &Plan, missing: &Missing<'_>) -> Result<BTreeMap<String, (Vec<u8>, DType)>> {
    let wanted: BTreeMap<String, Vec<usize>> = pi.parameters().into_iter().collect();
    let planned: BTreeMap<&str, Vec<usize>> = plan
        .outputs
        .iter()
        .map(|o| (o.tensor.name.as_str(), o.tensor.shape.iter().map(|n| *n as usize).collect()))
        .collect();
    let (mut faults, mut given) = (vec![], BTreeMap::new());
    for (name, shape) in &wanted {
        match planned.get(name.as_str()) {
            None => match missing(name, shape) {
                Some(values) => {
                    given.insert(name.clone(), (plain(&values), DType::F32));
                }
                None => faults.push(format!("{name}: missing; the model has it as {shape:?}")),
            },
            Some(found) if found != shape => faults.push(format!("{name}: found {found:?}, expected {shape:?}")),
            Some(_) => {}
        }
    }
    let strange = planned.keys().filter(|name| !wanted.contains_key(**name));
    faults.extend(strange.map(|name| format!("{name}: no part of a {}", pi.settings().family())));
    if faults.is_empty() { Ok(given) } else { bail!("the tensors are not this model's:\n  {}", faults.join("\n  ")) }
}

/// Puts each tensor into its parameter; `agree` has seen that every one is there.
struct Fill {
    path: Vec<String>,
    bytes: BTreeMap<String, (Vec<u8>, DType)>,
    device: Device,
}

impl ModuleMapper for Fill {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some((bytes, dtype)) = self.bytes.remove(&self.path.join(".")) else { return param };
        let data = TensorData::from_bytes_vec(bytes, param.lazy_shape(), dtype);
        Param::initialized(param.id, Tensor::from_data(data, (&self.device, dtype)))
    }
}

fn dtype_of(dtype: DType) -> Result<orbax::Dtype> {
    match dtype {
        DType::F32 => Ok(orbax::Dtype::F32),
        DType::BF16 => Ok(orbax::Dtype::Bf16),
        other => bail!("parameters are f32 or bf16, not {other:?}"),
    }
}

fn dtype_from(dtype: orbax::Dtype) -> Result<DType> {
    match dtype {
        orbax::Dtype::F32 => Ok(DType::F32),
        orbax::Dtype::Bf16 => Ok(DType::BF16),
        other => bail!("parameters are f32 or bf16, not {}; load them with a cast", other.name()),
    }
}
