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
use remap::{Fate, Lora, Map, Mover, Options, Pairs, Plan, Settings, Tensor, Tie, Writer};

use super::anatomy::Anatomy;
use super::companions::{Preset, Request as CompanionRequest, companions};
use super::decide::{
    Target, commonest_float, contradictions, decide_lora, lora_word, metadata, name_merged, names_lora,
    pairs_stay_together, parameters, target_of, target_scheme, ties_agree, told_heads,
};
use super::jax;
use super::open::{Choice, Opened};
use super::report::{Report, TargetLine};
use super::stage::{Stage, may_replace};
use crate::policy::norm_stats;

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
    /// The tokenizer that the user says belongs to it.
    pub tokenizer_id: Option<String>,
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
    let moments = request.choice.weights.is_optimizer();
    let part = request.filter.is_some() || moments;
    let reading = Options { heads: heads.clone(), part, ..Options::default() };
    // Refused here, a hole is told of the whole checkpoint; a filter only narrows what is written.
    let whole = Anatomy::read(&map, &opened.tensors, &from, &Options { part: moments, ..reading.clone() })?;
    let preset = request.config_name.as_deref().map(Preset::named).transpose()?;
    contradictions(request, preset, &whole)?;
    let all = opened.tensors.clone();
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
    if planned_lora == Lora::Merge && request.filter.is_some() {
        pairs_stay_together(&map, &all, &from, &reading, &plan)?;
    }
    name_merged(&mut plan);
    let written =
        if planned_lora == Lora::Keep { whole.clone() } else { whole.without_lora(parameters(&map, &plan, &to)) };

    // A part of a model gets no config: it would promise a whole one.
    let written = if part { Anatomy { model: None, ..written } } else { written };
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
            let prefix = vec![jax::name("params")];
            let branch = jax::Branch { mover: &mover, plan: &plan, prefix, value: request.value };
            let item = jax::Item { branches: vec![branch], scalars: vec![], empty: vec![] };
            let stamp = jax::Stamp { time_ns: request.time_ns, hashes: request.hashes };
            let hashes = watched(&mover, progress, "converting", || {
                jax::write(&item, &stage.path().join("params"), &stamp, request.threads)
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
        watched(self.mover, self.progress, "converting", || {
            Ok(self.mover.run(&self.mover.units(|_| true), &writer)?)
        })?;
        let hashes = if self.request.hashes {
            self.progress.phase("hashing", 0);
            writer.hashes(self.request.threads)?.into_iter().map(Some).collect()
        } else {
            vec![None; count]
        };
        self.progress.phase("syncing", 0);
        Ok((writer.publish()?, hashes))
    }
}

/// Runs `work` while another thread tells how far the mover is.
pub(super) fn watched<T>(
    mover: &Mover<'_>,
    progress: &dyn Progress,
    what: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    progress.phase(what, mover.units(|_| true).iter().map(|u| u.bytes).sum());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                progress.at(mover.done.load(Ordering::Relaxed));
                std::thread::park_timeout(std::time::Duration::from_millis(100));
            }
        });
        let result = work();
        over.store(true, Ordering::Relaxed);
        watch.thread().unpark();
        result
    })
}

pub(super) fn put(stage: &Path, target: &Path, name: &Path, bytes: &[u8]) -> Result<PathBuf> {
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
