//! What a request comes to: the target, what happens to low-rank pairs, what the file says of itself. Whatever
//! contradicts the tensors is refused here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use orbax::Dtype;
use remap::{Fate, From, Lora, Map, Options, Plan, Scheme, Tensor};

use super::anatomy::Anatomy;
use super::companions::Preset;
use super::convert::{AS_IS, Request};
use super::open::Opened;
use super::stage::may_replace;
use crate::policy::norm_stats::NormStats;

/// Pieces of every published PaliGemma tokenizer: Gemma's, 1024 places and 128 segments.
const PALIGEMMA_PIECES: u64 = 257_152;

/// Where the output goes.
pub(super) enum Target {
    /// One file (or its shards), with what belongs to it in its metadata.
    File(PathBuf),
    /// A folder: the weights under this name, and its companions.
    Folder(PathBuf, &'static str),
    /// An Orbax step folder: `params` and `assets`.
    Step(PathBuf),
}

pub(super) fn target_scheme<'a>(map: &'a Map, name: &str) -> Result<&'a Scheme> {
    let names: Vec<&str> = map.schemes.iter().map(|s| s.name.as_str()).collect();
    map.scheme(name).with_context(|| format!("--to {name}: no such scheme; there are {}, {AS_IS}", names.join(", ")))
}

/// Head counts that the user or the file itself tells.
pub(super) fn told_heads(request: &Request, opened: &Opened) -> BTreeMap<(String, char), u64> {
    let own = opened.own_anatomy().map(|a| a.heads()).unwrap_or_default();
    own.into_iter().chain(request.heads.clone()).collect()
}

/// What the user says of the model is held against what its tensors say.
pub(super) fn contradictions(request: &Request, preset: Option<&Preset>, anatomy: &Anatomy) -> Result<()> {
    if let Some(told) = request.pi05 {
        let is = anatomy.model.as_deref() == Some("pi05");
        if told != is {
            let flag = if told { "--pi05-enabled" } else { "--no-pi05-enabled" };
            bail!(
                "{flag} contradicts the tensors: they are a {}",
                anatomy.model.as_deref().unwrap_or("part of a model")
            );
        }
    }
    if let (Some(id), Some(rows)) = (&request.tokenizer_id, anatomy.vocabulary)
        && id.starts_with("google/paligemma-")
        && rows != PALIGEMMA_PIECES
    {
        bail!(
            "--tokenizer-id {id} contradicts the tensors: it has {PALIGEMMA_PIECES} pieces, the embedding has {rows} rows"
        );
    }
    if let Some(preset) = preset {
        preset.check(anatomy).map_err(|what| anyhow::anyhow!("--config-name contradicts the tensors: {what}"))?;
    }
    Ok(())
}

pub(super) fn names_lora(map: &Map, scheme: &Scheme) -> bool {
    map.rows.iter().any(|row| row.kind == remap::Kind::Lora && row.side(&scheme.column).is_some())
}

pub(super) fn decide_lora(request: &Request, map: &Map, to: &Scheme, anatomy: &Anatomy) -> Lora {
    match request.lora {
        _ if !anatomy.has_lora() => Lora::Keep,
        Some(lora) => lora,
        None if names_lora(map, to) => Lora::Keep,
        None => Lora::Merge,
    }
}

pub(super) fn lora_word(lora: Lora, anatomy: &Anatomy) -> &'static str {
    match lora {
        _ if !anatomy.has_lora() => "none",
        Lora::Keep => "keep",
        Lora::Merge => "merge",
        Lora::Drop => "drop",
    }
}

/// A weight that is merged needs its pair: a filter that parts them would write it unmerged.
pub(super) fn pairs_stay_together(
    map: &Map,
    all: &[Tensor],
    from: &Scheme,
    reading: &Options,
    plan: &Plan,
) -> Result<()> {
    let Some(burn) = map.scheme("burn") else { return Ok(()) };
    let whole = Plan::new(map, all, from, burn, reading)?;
    for name in plan.canonical.keys() {
        let Some(stem) = name.strip_suffix(".weight") else { continue };
        for factor in ["lora_a", "lora_b"] {
            let pair = format!("{stem}.{factor}");
            if let (Some(source), false) = (whole.canonical.get(&pair), plan.canonical.contains_key(&pair)) {
                bail!(
                    "--filter keeps {name} and leaves out {}, which has to be merged into it; widen the filter, or say \
                     --lora drop",
                    all[*source].name
                );
            }
        }
    }
    Ok(())
}

/// Says of each merged pair which outputs it went into.
pub(super) fn name_merged(plan: &mut Plan) {
    let mut into: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (name, source) in &plan.canonical {
        if let (Some((stem, _)), Fate::Merged(_)) = (name.rsplit_once('.'), &plan.fates[*source]) {
            let weight = plan.canonical.get(&format!("{stem}.weight"));
            if let Some(Fate::Moved(outputs)) = weight.map(|w| &plan.fates[*w]) {
                into.entry(*source).or_default().extend(outputs.iter().cloned());
            }
        }
    }
    for (source, mut outputs) in into {
        outputs.sort();
        outputs.dedup();
        plan.fates[source] = Fate::Merged(outputs);
    }
}

/// Values of the model: tied copies count once, fillers not at all.
pub(super) fn parameters(map: &Map, plan: &Plan, to: &Scheme) -> u64 {
    let tied =
        |name: &str| map.tied.iter().any(|t| t.column == to.column && to.dress(&t.name).as_deref() == Some(name));
    let own = |canonical: &str| {
        let (row, at) = map.find("burn", canonical)?;
        to.dress(&map.rows[row].side(&to.column)?.write(&at)?)
    };
    let repeats = |name: &str| {
        tied(name)
            && map
                .tied
                .iter()
                .filter(|t| t.column == to.column)
                .any(|t| own(&t.canonical).is_some_and(|own| plan.outputs.iter().any(|o| o.tensor.name == own)))
    };
    let counted = plan.outputs.iter().filter(|o| o.from == From::Moves && !repeats(&o.tensor.name));
    counted.map(|o| o.tensor.len()).sum()
}

pub(super) fn commonest_float(plan: &Plan) -> Dtype {
    let mut elements: BTreeMap<Dtype, u64> = BTreeMap::new();
    for output in plan.outputs.iter().filter(|o| o.tensor.dtype.is_float()) {
        *elements.entry(output.tensor.dtype).or_default() += output.tensor.len();
    }
    elements.into_iter().max_by_key(|(_, n)| *n).map_or(Dtype::F32, |(dtype, _)| dtype)
}

pub(super) fn target_of(request: &Request, to: &Scheme, as_adapter: bool) -> Result<Option<Target>> {
    let Some(output) = &request.output else { return Ok(None) };
    let is_file = output.extension().is_some_and(|e| e == "safetensors");
    let target = match to.name.as_str() {
        _ if is_file && as_adapter => bail!(
            "--lora keep into the scheme {} writes an adapter beside the weights: name a folder, not the file {}",
            to.name,
            output.display()
        ),
        "lerobot" if is_file => bail!(
            "--to lerobot makes a folder that LeRobot's from_pretrained accepts: name a folder, not the file {}",
            output.display()
        ),
        _ if is_file => Target::File(output.clone()),
        "jax" => Target::Step(output.clone()),
        "giga" => Target::Folder(output.clone(), "diffusion_pytorch_model.safetensors"),
        _ => Target::Folder(output.clone(), "model.safetensors"),
    };
    match &target {
        Target::File(path) => {
            may_replace(path, request.overwrite)?;
            if path.is_dir() {
                bail!("{} is a folder; a file of that name cannot be made", path.display());
            }
            if request.max_shard_bytes.is_some() {
                may_replace(&remap::index_path(path), request.overwrite)?;
            }
        }
        Target::Folder(path, _) => may_replace(path, request.overwrite)?,
        Target::Step(path) => {
            if request.max_shard_bytes.is_some() {
                bail!("--max-shard-size cuts safetensors; an Orbax folder has its own chunks");
            }
            may_replace(path, request.overwrite)?;
        }
    }
    Ok(Some(target))
}

/// A tied tensor that is there under both names must be the same under both.
pub(super) fn ties_agree(map: &Map, opened: &Opened, from: &Scheme) -> Result<()> {
    let find = |name: &str| opened.tensors.iter().position(|t| from.strip(&t.name).as_deref() == Some(name));
    for tie in map.tied.iter().filter(|t| t.column == from.column) {
        let own = map.find("burn", &tie.canonical).and_then(|(row, at)| map.rows[row].side(&from.column)?.write(&at));
        let (Some(alias), Some(own)) = (find(&tie.name), own.and_then(|own| find(&own))) else { continue };
        if !super::same_array(&*opened.source, opened.arrays[alias], opened.arrays[own])? {
            bail!(
                "{} and {} should be one tensor under two names, and differ; drop the one that was not trained",
                opened.tensors[alias].name,
                opened.tensors[own].name
            );
        }
    }
    Ok(())
}

/// What a file says of itself. Sorted, and the same for the same input wherever and whenever it is made.
#[allow(clippy::too_many_arguments)]
pub(super) fn metadata(
    request: &Request,
    opened: &Opened,
    from: &Scheme,
    to: &Scheme,
    written: &Anatomy,
    target: &Target,
    stats: &[NormStats],
    beside: &[(PathBuf, Vec<u8>)],
    lora: &str,
) -> BTreeMap<String, String> {
    let mut m = BTreeMap::new();
    let mut tell = |key: &str, value: String| m.insert(key.to_owned(), value);
    tell("format", "pt".into());
    tell("pi0.writer", concat!("pi0-burn ", env!("CARGO_PKG_VERSION")).into());
    tell("pi0.scheme", to.name.clone());
    tell("pi0.from", format!("{} · {}", opened.format, from.name));
    if let Some(step) = opened.step {
        tell("pi0.step", step.to_string());
    }
    tell("pi0.weights", format!("{:?}", request.choice.weights).to_lowercase());
    tell("pi0.lora", lora.to_owned());
    tell("pi0.precision", request.cast.map_or("as stored", Dtype::name).to_owned());
    tell("pi0.anatomy", serde_json::to_string(written).unwrap_or_default());
    if matches!(target, Target::File(_)) {
        for (path, bytes) in beside.iter().filter(|(p, _)| p.as_os_str() == "config.json") {
            let _ = path;
            tell("pi0.config", String::from_utf8_lossy(bytes).into_owned());
        }
        for s in stats {
            tell(&format!("pi0.norm_stats/{}", s.asset_id), String::from_utf8_lossy(&s.text).into_owned());
        }
    }
    m
}
