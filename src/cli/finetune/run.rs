//! The steps of a run.
//!
//! Invariants: what a run leaves follows from its configuration, data and seed alone, however often it was stopped; a step
//! that is no number ends it and is never saved.
//! Source: openpi 15a9616, scripts/train.py (`main`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::keeping::{Keeping, Own};
use super::plan::Plan;
use crate::cli::output::Mouth;
use crate::data::loader::{Batch, Loader, Settings};
use crate::policy::array::Values;
use crate::policy::record::Value;
use crate::train::journal::{Example, Image, Journal, Line};
use crate::train::snapshot;
use crate::train::state::State;
use crate::weights::convert::Progress as _;
use crate::weights::state::{self, Folder};

/// Batches that are made before they are needed.
const PREFETCH: usize = 2;
/// Examples of the first batch that the report shows.
const SHOWN: usize = 8;

/// What a run came to.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Done {
    folder: String,
    /// Steps that were made, all runs of it together.
    steps: u64,
    /// Of `num_train_steps`.
    of: u64,
    /// Did a signal end it?
    stopped: bool,
    first_loss: Option<f32>,
    last_loss: Option<f32>,
    checkpoint: Option<String>,
    samples_per_s: f64,
    /// Share of the time in which it waited for data, 0 to 1.
    data_wait: f64,
    notices: Vec<String>,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, what: String| writeln!(f, "{name:<10} {what}");
        let stopped = if self.stopped { ", stopped by a signal; --resume goes on" } else { "" };
        row("trained", format!("{} of {} steps{stopped}", self.steps, self.of))?;
        if let (Some(first), Some(last)) = (self.first_loss, self.last_loss) {
            row("loss", format!("{first:.4} at first, {last:.4} at last"))?;
        }
        row("pace", format!("{:.2} samples/s, {:.0} % waiting for data", self.samples_per_s, self.data_wait * 100.0))?;
        if let Some(checkpoint) = &self.checkpoint {
            row("saved", checkpoint.clone())?;
        }
        for notice in &self.notices {
            row("note", notice.clone())?;
        }
        row("report", format!("{}/report.html", self.folder))
    }
}

/// What is measured between two lines.
#[derive(Default)]
struct Since {
    steps: u64,
    loss: f64,
    grad_norm: f64,
    waited: Duration,
    began: Option<Instant>,
}

/// Runs the plan to its end, or to a signal.
pub(super) fn run(plan: Plan, mouth: &Mouth) -> Result<Done> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends it at once: what is on the disk is whole at any moment.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let folder = Folder::open(&plan.folder, plan.start)?;
    let (mut state, before, mut notices) = begin(&plan, &folder, mouth)?;
    let (training, total) = (&plan.preset.training, plan.preset.training.num_train_steps);
    let first = state.step();
    let mut keeping = Keeping::new(&plan, &state)?;
    remap::write_whole(&folder.path().join("config.toml"), plan.preset.echo()?.as_bytes())?;
    // A run that was killed before its first save has lines too: they are cut off.
    let resumed = (plan.start == state::Begin::Resume).then_some(first);
    let mut journal = Journal::open(folder.path(), plan.header(), resumed, SystemTime::now())?;
    let mut loader = Loader::new(
        plan.data.sources.clone(),
        &Settings {
            seed: training.seed,
            shuffle: true,
            batch_size: usize::try_from(training.batch_size)?,
            num_workers: usize::try_from(training.num_workers)?,
            prefetch: PREFETCH,
            first_step: first,
        },
    )?;
    let accumulation = usize::try_from(plan.preset.finetune.gradient_accumulation)?;
    let clock = Instant::now();
    let seconds = |clock: Instant| before + clock.elapsed().as_secs_f64();
    let mut since = Since::default();
    let mut done = Done {
        folder: folder.path().display().to_string(),
        steps: first,
        of: total,
        stopped: false,
        first_loss: None,
        last_loss: None,
        checkpoint: folder.latest()?.map(|step| folder.step(step).display().to_string()),
        samples_per_s: 0.0,
        data_wait: 0.0,
        notices: vec![],
    };
    let mut waited = Duration::ZERO;
    mouth.count("training", total);
    // Asked once a step, so that a step after which it was heard is a step that is saved.
    let mut stopped = false;
    while state.step() < total && !stopped {
        let step = state.step();
        since.began.get_or_insert_with(Instant::now);
        let batch = loader.next()?;
        since.waited += batch.waited;
        waited += batch.waited;
        if journal.wants_pictures() {
            journal.pictures(&pictures(&batch, &plan), SystemTime::now())?;
        }
        for notice in batch.examples.iter().flat_map(|e| &e.notices) {
            if notices.len() < 20 && !notices.contains(notice) {
                notices.push(notice.clone());
            }
        }
        let rows = plan.making.rows(&batch.examples, step).with_context(|| format!("step {step}"))?;
        let rate = training.lr_schedule.rate(step);
        let part = |range, device: &burn::tensor::Device| rows.upload(range, device);
        let outcome = match state.learn_in_parts(rows.rows, accumulation, &part, rate) {
            Ok(outcome) => outcome,
            Err(not_finite) => bail!("{not_finite}. {}", blame(&batch, &plan, &done)),
        };
        done.first_loss.get_or_insert(outcome.loss);
        done.last_loss = Some(outcome.loss);
        since.steps += 1;
        since.loss += f64::from(outcome.loss);
        since.grad_norm += outcome.grad_norm;
        let made = state.step();
        mouth.at(made);
        stopped = stop.load(Ordering::Relaxed);
        if made.is_multiple_of(training.log_interval) || made == total || made == first + 1 || stopped {
            let line = line(&state, &since, rate, training.batch_size, seconds(clock));
            journal.line(&line, SystemTime::now())?;
            mouth.note(&line.progress(total));
            since = Since::default();
        }
        // openpi's rule: by the number of the step that was made, never the first one, and always the last.
        if (step.is_multiple_of(training.save_interval) && step > first) || made == total || stopped {
            if !state.is_finite() {
                bail!(
                    "step {step}: it made weights that are no numbers, and is not saved. {}",
                    blame(&batch, &plan, &done)
                );
            }
            let saved = keeping.save(folder.path(), &state, &Own::of(&plan, seconds(clock))?, mouth)?;
            folder.tidy(plan.keep)?;
            journal.checkpoint(step, SystemTime::now())?;
            done.checkpoint = Some(saved.display().to_string());
            mouth.count("training", total);
            mouth.at(made);
        }
    }
    journal.close(SystemTime::now())?;
    let spent = clock.elapsed().as_secs_f64().max(1e-9);
    done.stopped = state.step() < total;
    done.steps = state.step();
    done.samples_per_s = ((state.step() - first) * training.batch_size) as f64 / spent;
    done.data_wait = waited.as_secs_f64() / spent;
    done.notices = notices;
    Ok(done)
}

/// What a step that came to nothing was made of, and where the run can be taken up.
fn blame(batch: &Batch, plan: &Plan, done: &Done) -> String {
    let datasets = plan.data.told.datasets.iter().enumerate().map(|(i, d)| format!("{i} is {}", d.name));
    format!(
        "The batch was (dataset, frame) {:?}, where {}. The last good checkpoint: {}",
        batch.indices,
        datasets.collect::<Vec<_>>().join(", "),
        done.checkpoint.as_deref().unwrap_or("none")
    )
}

/// The state before the first step, or as it was saved; and the seconds that it took until then.
fn begin(plan: &Plan, folder: &Folder, mouth: &Mouth) -> Result<(State, f64, Vec<String>)> {
    let mut notices = plan.told.notices().to_vec();
    let (pi, filled) = plan.begin.load(&plan.weights, &plan.devices[0], mouth)?;
    let latest = folder.latest()?;
    if !filled.is_empty() && latest.is_none() {
        notices.push(format!("{} tensors that {} does not have begin by chance", filled.len(), plan.begin.whence));
    }
    let mut state = State::new(pi, plan.rule, plan.frozen, &|name| plan.trainable.contains(name));
    let mut before = 0.0;
    if let Some(step) = latest {
        let saved = state::open(&folder.step(step))?;
        match &saved.run {
            Some(own) => {
                let own: Own = serde_json::from_value(own.clone())
                    .with_context(|| format!("{}: what the run says of itself", saved.folder.display()))?;
                own.agrees(&Own::of(plan, 0.0)?)?;
                before = own.seconds;
            }
            None => notices.push(format!(
                "{}: openpi wrote it; the order of data and all chance are this program's own from here on",
                saved.folder.display()
            )),
        }
        mouth.phase("reading the saved state", 0);
        state = snapshot::restore(state, &saved)?;
    } else if plan.start == state::Begin::Resume {
        notices.push(format!("{}: there is no step to resume from; it begins anew", folder.path().display()));
    }
    state.spread(&plan.devices[1..]);
    Ok((state, before, notices))
}

fn line(state: &State, since: &Since, rate: f32, batch_size: u64, seconds: f64) -> Line {
    let spent = since.began.map_or(0.0, |began| began.elapsed().as_secs_f64()).max(1e-9);
    let steps = since.steps.max(1) as f64;
    Line {
        step: state.step(),
        loss: (since.loss / steps) as f32,
        grad_norm: (since.grad_norm / steps) as f32,
        param_norm: state.param_norm() as f32,
        learning_rate: rate,
        samples_per_s: (since.steps * batch_size) as f64 / spent,
        seconds,
        data_wait: (since.waited.as_secs_f64() / spent).min(1.0),
        samples: state.step() * batch_size,
    }
}

/// The first examples of a batch, as the report shows them: before they are augmented.
fn pictures(batch: &Batch, plan: &Plan) -> Vec<Example> {
    let one = |(example, (dataset, frame)): (&crate::data::loader::Example, &(usize, usize))| {
        let image = |slot: &String| {
            let Some(Value::Array(array)) = example.record.get(&format!("image/{slot}")) else { return None };
            let (Values::U8(pixels), [height, width, 3]) = (&array.values, &array.shape[..]) else { return None };
            Some(Image { camera: slot.clone(), size: [*height, *width], pixels: pixels.clone() })
        };
        Example {
            prompt: plan.data.prompt(&example.record),
            dataset: plan.data.told.datasets.get(*dataset).map(|d| d.name.clone()).unwrap_or_default(),
            frame: *frame as u64,
            images: plan.data.slots.iter().filter_map(image).collect(),
        }
    };
    batch.examples.iter().zip(&batch.indices).take(SHOWN).map(one).collect()
}
