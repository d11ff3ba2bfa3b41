//! From any checkpoint to any scheme: open, plan, refuse or run, publish, account.
//!
//! Invariants: nothing is written before the plan stands; the same input gives the same bytes (no time, no path, no
//! chance in them); what an interrupted run leaves is hidden and cleared by the next.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use orbax::Dtype;
use remap::{Fate, From, Lora, Map, Mover, Options, Pairs, Plan, Scheme, Settings, Tensor, Tie, Writer};

use super::anatomy::Anatomy;
use super::companions::{Preset, Request as CompanionRequest, companions};
use super::jax;
use super::norm_stats::{self, NormStats};
use super::open::{Choice, Opened};
use super::report::{Report, TargetLine};
use super::stage::{Stage, may_replace};

/// Copies arrays under their own names, whatever they are.
pub const AS_IS: &str = "as-is";

/// Everything a user can ask of a conversion.
#[derive(Debug, Clone)]
pub struct Request {
    /// Checkpoint folder or file.
    pub checkpoint: PathBuf,
    /// Which part of it.
    pub choice: Choice,
    /// File or folder to make; may be absent for a dry run.
    pub output: Option<PathBuf>,
    /// Target scheme.
    pub to: String,
    /// Element type of floating-point tensors; `None` keeps each.
    pub cast: Option<Dtype>,
    /// What becomes of low-rank pairs; `None`: kept where the scheme has names for them, else merged.
    pub lora: Option<Lora>,
    /// openpi's alpha, where it is not the rank.
    pub lora_alpha: Option<f64>,
    /// Name of tied tensors; `None`: what the target's own loader wants.
    pub tie: Option<Tie>,
    /// Write unread fillers? `None`: where the target's strict loader wants them.
    pub zeros: Option<bool>,
    /// Head counts by zone and letter, where shapes do not tell.
    pub heads: BTreeMap<(String, char), u64>,
    /// Only tensors whose source name matches.
    pub filter: Option<regex::Regex>,
    /// Cut the output into files of at most so many bytes.
    pub max_shard_bytes: Option<u64>,
    /// Plan and report only.
    pub dry_run: bool,
    /// Replace what stands under the output's name.
    pub overwrite: bool,
    /// Threads.
    pub threads: usize,
    /// Hash every tensor of the output, read back from the file.
    pub hashes: bool,
    /// openpi's name of the config.
    pub config_name: Option<String>,
    /// Whether the user says it is a pi0.5.
    pub pi05: Option<bool>,
    /// Steps of an action chunk: no tensor tells.
    pub action_horizon: Option<u64>,
    /// Whose norm stats go where there is room for one.
    pub asset_id: Option<String>,
    /// End JAX paths in `value`, as NNX saves them.
    pub value: bool,
    /// Commit time of an Orbax folder, nanoseconds since the epoch.
    pub time_ns: u64,
}

/// Somebody who wants to know how far it is. Called from several threads.
pub trait Progress: Sync {
    /// A part of the work begins: what, and how many bytes it has.
    fn phase(&self, what: &str, bytes: u64);
    /// So many bytes of it are done.
    fn at(&self, bytes: u64);
}

/// Nobody.
impl Progress for () {
    fn phase(&self, _: &str, _: u64) {}
    fn at(&self, _: u64) {}
}

/// Where the output goes.
enum Target {
    /// One file (or its shards), with what belongs to it in its metadata.
    File(PathBuf),
    /// A folder: the weights under this name, and its companions.
    Folder(PathBuf, &'static str),
    /// An Orbax step folder: `params` and `assets`.
    Step(PathBuf),
}

/// Converts. `stop` ends it early and leaves nothing.
///
/// # Errors
/// All that is wrong with the checkpoint or the request, before anything is written; then what the system says.
pub fn convert(request: &Request, progress: &dyn Progress, stop: &AtomicBool) -> Result<Report> {
    let started = Instant::now();
    let map = Map::pi0();
    let mut opened = Opened::open(&request.checkpoint, &request.choice)?;
    let heads = told_heads(request, &opened);
    if request.to == AS_IS {
        if let Some(filter) = &request.filter {
            opened.filter(filter);
        }
        return as_is(request, &opened, progress, stop, started);
    }
    let from = opened.scheme(&map, request.choice.from.as_deref())?.clone();
    let to = target_scheme(&map, &request.to)?.clone();
    let moments = matches!(request.choice.weights, super::open::Weights::Mu | super::open::Weights::Nu);
    let part = request.filter.is_some() || moments;
    let reading = Options { heads: heads.clone(), part, ..Options::default() };
    // Refused here, a hole is told of the whole checkpoint; a filter only narrows what is written.
    let whole = Anatomy::read(&map, &opened.tensors, &from, &Options { part: moments, ..reading.clone() })?;
    let preset = request.config_name.as_deref().map(Preset::named).transpose()?;
    contradictions(request, preset, &whole)?;
    if let Some(filter) = &request.filter {
        opened.filter(filter);
        if opened.tensors.is_empty() {
            bail!("--filter {filter} matches none of the {} tensors", opened.left_out.len());
        }
    }
    ties_agree(&map, &opened, &from)?;

    let lora = decide_lora(request, &map, &to, &whole);
    let as_adapter = lora == Lora::Keep && whole.has_lora() && !names_lora(&map, &to);
    let planned_lora = if as_adapter { Lora::Drop } else { lora };
    let strict_loader = matches!(to.name.as_str(), "openpi-torch" | "lerobot");
    let options = Options {
        cast: request.cast,
        heads: whole.heads().into_iter().chain(heads).collect(),
        lora: planned_lora,
        tie: request.tie.unwrap_or(match to.name.as_str() {
            "lerobot" => Tie::Both,
            _ => Tie::Alias,
        }),
        zeros: request.zeros.unwrap_or(strict_loader && !part),
        part,
    };
    let mut plan = Plan::new(&map, &opened.tensors, &from, &to, &options)?;
    name_merged(&mut plan);
    let written =
        if planned_lora == Lora::Keep { whole.clone() } else { whole.without_lora(parameters(&map, &plan, &to)) };

    let target = target_of(request, &to, as_adapter)?;
    let stats = opened.assets.as_deref().map(norm_stats::read_all).transpose()?.unwrap_or_default();
    let companion_request = CompanionRequest {
        anatomy: &written,
        dtype: commonest_float(&plan),
        preset,
        action_horizon: request.action_horizon,
        stats: &stats,
        asset_id: request.asset_id.as_deref(),
    };
    let kind = if matches!(target, Some(Target::Step(_))) { "jax" } else { to.name.as_str() };
    let beside = companions(kind, &companion_request)?;
    let needs_pairs = whole.has_lora() && (as_adapter || lora == Lora::Merge);

    let target_line = TargetLine {
        path: request.output.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        files: vec![],
        scheme: to.name.clone(),
        bytes: plan.outputs.iter().map(|o| o.tensor.bytes()).sum(),
        written: false,
        lora: lora_word(lora, &whole).into(),
    };
    let mut report = Report::planned(&opened, &from.name, whole.clone(), &plan, target_line);
    report.notes.extend(beside.notes.iter().cloned());
    if stats.is_empty() {
        report.notes.push("no norm_stats.json found beside the checkpoint: none is carried along".into());
    }
    if request.dry_run {
        return Ok(report);
    }
    let Some(target) = target else { bail!("--output is missing: name the file or folder to make") };

    let mut adapter = None;
    let mut deltas = None;
    if needs_pairs {
        let pairs = Pairs::read(&map, &opened.tensors, &from, &*opened.source, &opened.arrays, request.lora_alpha)?;
        if as_adapter {
            let made = pairs.peft(&map, &to);
            report.notes.extend(made.notes.iter().cloned());
            adapter = Some(made);
        } else {
            deltas = Some(pairs.deltas(&map, &opened.tensors, &from, &options)?);
        }
    }
    let settings = Settings::threads(if matches!(target, Target::Step(_)) { 1 } else { request.threads });
    let mover = Mover::new(&plan, &*opened.source, &opened.arrays, deltas.as_ref(), settings, stop);
    let metadata =
        metadata(request, &opened, &from, &to, &written, &target, &stats, &beside.files, report.target.lora.as_str());
    let run = Run { request, plan: &plan, mover: &mover, progress, metadata: &metadata };
    let (files, hashes) = match &target {
        Target::File(path) => run.file(path)?,
        Target::Folder(path, name) => {
            let stage = Stage::open(path, request.overwrite)?;
            let (files, hashes) = run.file(&stage.path().join(name))?;
            let mut files: Vec<PathBuf> = files.iter().filter_map(|f| f.file_name().map(|n| path.join(n))).collect();
            for (name, bytes) in &beside.files {
                files.push(put(stage.path(), path, name, bytes)?);
            }
            if let Some(adapter) = &adapter {
                let config = serde_json::to_vec_pretty(&adapter.config)?;
                files.push(put(stage.path(), path, Path::new("adapter/adapter_config.json"), &config)?);
                files.push(put(stage.path(), path, Path::new("adapter/adapter_model.safetensors"), &adapter.tensors)?);
            }
            stage.publish()?;
            (files, hashes)
        }
        Target::Step(path) => {
            let stage = Stage::open(path, request.overwrite)?;
            let wrap = jax::Wrap { value: request.value, time_ns: request.time_ns, hashes: request.hashes };
            let hashes = run.watched("converting", || {
                jax::write(&mover, &plan, &stage.path().join("params"), &wrap, request.threads)
            })?;
            let mut files = vec![path.join("params")];
            for (name, bytes) in &beside.files {
                files.push(put(stage.path(), path, name, bytes)?);
            }
            stage.publish()?;
            (files, hashes)
        }
    };
    account(&mut report, &mover, files, hashes, started);
    if adapter.is_some() {
        for line in &mut report.tensors {
            if line.fate == Fate::Dropped("left out on request (LoRA)".into()) {
                line.fate = Fate::Moved(vec!["adapter/adapter_model.safetensors".into()]);
                report.totals.dropped -= 1;
                report.totals.moved += 1;
            }
        }
    }
    Ok(report)
}

/// A plan about to be run, and who watches.
struct Run<'a> {
    request: &'a Request,
    plan: &'a Plan,
    mover: &'a Mover<'a>,
    progress: &'a dyn Progress,
    metadata: &'a BTreeMap<String, String>,
}

impl Run<'_> {
    /// Writes the weights as safetensors under `path`.
    fn file(&self, path: &Path) -> Result<(Vec<PathBuf>, Vec<Option<String>>)> {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        let tensors: Vec<Tensor> = self.plan.outputs.iter().map(|o| o.tensor.clone()).collect();
        let count = tensors.len();
        let writer = Writer::create(path, tensors, self.metadata, self.request.max_shard_bytes)?;
        self.watched("converting", || Ok(self.mover.run(&self.mover.units(|_| true), &writer)?))?;
        let hashes = if self.request.hashes {
            self.progress.phase("hashing", 0);
            writer.hashes(self.request.threads)?.into_iter().map(Some).collect()
        } else {
            vec![None; count]
        };
        self.progress.phase("syncing", 0);
        Ok((writer.publish()?, hashes))
    }

    /// Runs `work` while another thread tells how far it is.
    fn watched<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let total = self.mover.units(|_| true).iter().map(|u| u.bytes).sum();
        self.progress.phase(what, total);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    self.progress.at(self.mover.done.load(Ordering::Relaxed));
                    std::thread::park_timeout(std::time::Duration::from_millis(100));
                }
            });
            let result = work();
            over.store(true, Ordering::Relaxed);
            watch.thread().unpark();
            result
        })
    }
}

fn target_scheme<'a>(map: &'a Map, name: &str) -> Result<&'a Scheme> {
    let names: Vec<&str> = map.schemes.iter().map(|s| s.name.as_str()).collect();
    map.scheme(name).with_context(|| format!("--to {name}: no such scheme; there are {}, {AS_IS}", names.join(", ")))
}

/// Head counts that the user or the file itself tells.
fn told_heads(request: &Request, opened: &Opened) -> BTreeMap<(String, char), u64> {
    let own = opened.own_anatomy().map(|a| a.heads()).unwrap_or_default();
    own.into_iter().chain(request.heads.clone()).collect()
}

/// What the user says of the model is held against what its tensors say.
fn contradictions(request: &Request, preset: Option<&Preset>, anatomy: &Anatomy) -> Result<()> {
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
    if let Some(preset) = preset {
        preset.check(anatomy).map_err(|what| anyhow::anyhow!("--config-name contradicts the tensors: {what}"))?;
    }
    Ok(())
}

fn names_lora(map: &Map, scheme: &Scheme) -> bool {
    map.rows.iter().any(|row| row.kind == remap::Kind::Lora && row.side(&scheme.column).is_some())
}

fn decide_lora(request: &Request, map: &Map, to: &Scheme, anatomy: &Anatomy) -> Lora {
    match request.lora {
        _ if !anatomy.has_lora() => Lora::Keep,
        Some(lora) => lora,
        None if names_lora(map, to) => Lora::Keep,
        None => Lora::Merge,
    }
}

fn lora_word(lora: Lora, anatomy: &Anatomy) -> &'static str {
    match lora {
        _ if !anatomy.has_lora() => "none",
        Lora::Keep => "keep",
        Lora::Merge => "merge",
        Lora::Drop => "drop",
    }
}

/// Says of each merged pair which outputs it went into.
fn name_merged(plan: &mut Plan) {
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
fn parameters(map: &Map, plan: &Plan, to: &Scheme) -> u64 {
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

fn commonest_float(plan: &Plan) -> Dtype {
    let mut elements: BTreeMap<Dtype, u64> = BTreeMap::new();
    for output in plan.outputs.iter().filter(|o| o.tensor.dtype.is_float()) {
        *elements.entry(output.tensor.dtype).or_default() += output.tensor.len();
    }
    elements.into_iter().max_by_key(|(_, n)| *n).map_or(Dtype::F32, |(dtype, _)| dtype)
}

fn target_of(request: &Request, to: &Scheme, as_adapter: bool) -> Result<Option<Target>> {
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
fn ties_agree(map: &Map, opened: &Opened, from: &Scheme) -> Result<()> {
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
fn metadata(
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

fn put(stage: &Path, target: &Path, name: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let path = stage.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    remap::write_whole(&path, bytes)?;
    Ok(target.join(name))
}

fn account(report: &mut Report, mover: &Mover<'_>, files: Vec<PathBuf>, hashes: Vec<Option<String>>, started: Instant) {
    report.target.written = true;
    report.target.files = files.iter().map(|f| f.display().to_string()).collect();
    for ((line, changed), hash) in report.outputs.iter_mut().zip(&mover.tally.changed).zip(hashes) {
        line.changed = changed.load(Ordering::Relaxed);
        line.sha256 = hash;
    }
    report.totals.changed = report.outputs.iter().map(|o| o.changed).sum();
    report.totals.rounded = mover.tally.rounded.load(Ordering::Relaxed);
    report.totals.seconds = started.elapsed().as_secs_f64();
}

/// Copies arrays under their own names: what the map does not know (optimizer states, other models).
fn as_is(
    request: &Request,
    opened: &Opened,
    progress: &dyn Progress,
    stop: &AtomicBool,
    started: Instant,
) -> Result<Report> {
    let plan = Plan::as_is(&opened.tensors, request.cast)?;
    let Some(output) = &request.output else { bail!("--output is missing: name the file to make") };
    if output.extension().is_none_or(|e| e != "safetensors") {
        bail!("--to {AS_IS} writes one safetensors file; {} does not end in .safetensors", output.display());
    }
    may_replace(output, request.overwrite)?;
    let anatomy = Anatomy {
        model: None,
        parameters: plan.outputs.iter().map(|o| o.tensor.len()).sum(),
        action_dim: None,
        vocabulary: None,
        vision: None,
        experts: vec![],
    };
    let target = TargetLine {
        path: output.display().to_string(),
        files: vec![],
        scheme: AS_IS.into(),
        bytes: plan.outputs.iter().map(|o| o.tensor.bytes()).sum(),
        written: false,
        lora: "none".into(),
    };
    let mut report = Report::planned(opened, AS_IS, anatomy, &plan, target);
    if request.dry_run {
        return Ok(report);
    }
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("pi0.scheme".to_owned(), AS_IS.to_owned()),
        ("pi0.from".to_owned(), opened.format.clone()),
    ]);
    let mover = Mover::new(&plan, &*opened.source, &opened.arrays, None, Settings::threads(request.threads), stop);
    let run = Run { request, plan: &plan, mover: &mover, progress, metadata: &metadata };
    let (files, hashes) = run.file(output)?;
    account(&mut report, &mover, files, hashes, started);
    Ok(report)
}
