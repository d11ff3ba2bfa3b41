//! `pi0 sample --config`: a robot's observation in, the robot's actions out, through the policy's own steps; of a dataset's
//! frames beside what was recorded.
//!
//! Source: openpi 15a9616, policies/policy.py (`Policy.infer`). Invariant: what happens between observation and actions is
//! what openpi's policy does, step by step, in the same dtypes; all that can be refused is refused before a weight is read.

mod report;

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;

use super::chunk::Chunk;
use super::chunk::{Kept, may_write};
use super::report::Source;
use super::scenes::{Episode, Scenes};
use super::{Args, plot, runs, weights};
use crate::cli::Answer;
use crate::cli::episode::{self, Compared, html, metrics, svg};
use crate::cli::inference::{Seen, milliseconds};
use crate::cli::network;
use crate::cli::observation::{self, Noise, Wanted};
use crate::cli::output::Mouth;
use crate::cli::policy::Policy;
use crate::model::settings::Head;
use crate::model::{Pi, Settings};
use crate::policy::array::{Array, Values};
use crate::policy::fast::Grammar;
use crate::policy::record::{Record, Value};
use crate::weights::anatomy::Anatomy;
use crate::weights::open::Opened;
use report::{Inferred, Report};

/// The checkpoint, understood, and where it is to run.
pub(super) struct Network {
    pub(super) opened: Opened,
    pub(super) scheme: String,
    pub(super) anatomy: Anatomy,
    pub(super) settings: Settings,
    pub(super) device: Device,
}

/// Runs it. The answer is no where an action is not finite.
///
/// # Errors
/// A preset, observation, dataset, checkpoint or file that cannot be used, with what is wrong with it.
pub(super) fn run(args: &Args, kept: Option<Kept>, network: &Network, mouth: &Mouth) -> Result<Answer> {
    refuse(args)?;
    let Network { opened, anatomy, settings, device, .. } = network;
    let policy = Policy::new(&args.policy, args.download, opened, anatomy, settings, mouth)?;
    let scenes = Scenes::find(args, &policy)?;
    let wanted = Wanted { cameras: policy.slots()?, ..Wanted::by(settings, None) };
    // The first is looked at before weights are read: most mistakes show there.
    let first = see(&scenes, 0, &policy, &wanted)?;
    let horizon = args.action_horizon.map_or(policy.preset.model.action_horizon, |n| n) as usize;
    let grammar = args.decoding.grammar(&policy, horizon)?;
    let given = args.noise.as_deref().map(|path| observation::noise(path, &wanted)).transpose()?;
    if let Some(noise) = &given {
        ensure!(scenes.len() == 1, "--noise: it is of one observation, and there are {}; use --seed", scenes.len());
        ensure!(noise.rows == 1, "--noise: {} rows, expected one", noise.rows);
    }
    let (pi, load_ms) = network::read(&weights(args), opened, device, mouth)?;
    let mut report = Report::new(args, network, &policy, &scenes, load_ms);
    report.source = Source::of(opened, network.scheme.clone());
    mouth.count("sampling", scenes.len() as u64);
    let mut next = Some(first);
    for i in 0..scenes.len() {
        let seen = match next.take() {
            Some(first) => first,
            None => see(&scenes, i, &policy, &wanted)?,
        };
        let frame = match &scenes {
            Scenes::Episode(episode) => Some(episode.frames[i]),
            Scenes::Kept(_) => None,
        };
        let noise = || match &given {
            Some(noise) => noise.clone(),
            None => {
                let seed = args.seed.unwrap_or(0).wrapping_add(frame.unwrap_or(i) as u64);
                observation::random_noise(seed, 1, horizon, wanted.action_dim().unwrap_or(0))
            }
        };
        let inferred = infer(args, &pi, &policy, seen, frame, &noise, grammar.as_ref())?;
        report.inferred.push(inferred);
        crate::weights::convert::Progress::at(mouth, i as u64 + 1);
    }
    if let Scenes::Episode(episode) = &scenes {
        report.notices(&episode.notices);
        compare(args, &policy, episode, &mut report)?;
    } else if let Some(path) = &args.plot {
        draw(path, &mut report)?;
    }
    if let (Some(kept), Some(path)) = (kept, &args.output) {
        remap::write_whole(path, &kept.of_robot(&report.actions())?)?;
        report.written.push(path.display().to_string());
    }
    let finite = report.finite();
    mouth.say(&report, || report.to_string())?;
    Ok(if finite { Answer::Yes } else { Answer::No })
}

/// Flags that mean nothing here.
fn refuse(args: &Args) -> Result<()> {
    let strange = [
        ("--batch", args.batch.is_some(), "each observation is sampled on its own, as on a robot"),
        ("--prompt-length", args.prompt_length.is_some(), "the preset says to how many tokens prompts are padded"),
    ];
    if let Some((name, _, why)) = strange.iter().find(|(_, told, _)| *told) {
        bail!("{name}: with --config {why}; leave it out");
    }
    if let Some(path) = &args.html {
        ensure!(path.extension().is_some_and(|e| e == "html"), "--html {}: a report is a .html", path.display());
        may_write(path, args.overwrite)?;
    }
    Ok(())
}

fn see(scenes: &Scenes, i: usize, policy: &Policy, wanted: &Wanted) -> Result<Seen> {
    let (name, record) = scenes.get(i)?;
    Seen::of(name, record, &policy.chain, wanted)
}

fn infer(
    args: &Args,
    pi: &Pi,
    policy: &Policy,
    seen: Seen,
    frame: Option<usize>,
    noise: &dyn Fn() -> Noise,
    grammar: Option<&Grammar>,
) -> Result<Inferred> {
    let flow = pi.settings().head != Head::Tokens;
    let sampled = match flow {
        true => runs::flow(pi, &seen.rows, &noise(), args.num_steps.map_or(10, usize::from), args.repeat)?,
        false => runs::tokens(pi, &seen.rows, &args.decoding.with(args.seed.unwrap_or(0), grammar), args.repeat)?,
    };
    let began = Instant::now();
    let mut tokens = None;
    let answer = match sampled.chunk {
        Chunk::Actions { shape: [_, horizon, dim], values } => Array::f32([horizon, dim], values.values),
        Chunk::Tokens { tokens: mut rows, .. } => {
            let row = rows.pop().unwrap_or_default();
            tokens = Some(row.clone());
            Array::new([row.len()], Values::I32(row))
        }
    };
    let answer = seen.answer(answer)?;
    let (actions, more) = policy.undo(answer).with_context(|| match flow {
        true => seen.name.clone(),
        false => format!(
            "{}: what the model answered; --constrained keeps it from giving such answers, --on-malformed says what else \
             to do with them",
            seen.name
        ),
    })?;
    let width = actions.width().unwrap_or(1).max(1);
    let transforms_ms = seen.transforms_ms + milliseconds(began);
    Ok(Inferred {
        name: seen.name,
        frame,
        prompt: seen.prompt,
        prompt_tokens: seen.rows.mask.count(0),
        notices: seen.notices.into_iter().chain(more).collect(),
        transforms_ms,
        runs: sampled.runs,
        tokens,
        actions: actions.values.to_f64().chunks(width).map(<[f64]>::to_vec).collect(),
        images: pictures(&seen.record),
    })
}

/// What the model saw, for the report: slot, rows and columns, bytes.
fn pictures(record: &Record) -> Vec<(String, [usize; 2], Vec<u8>)> {
    let picture = |(key, value): (&String, &Value)| {
        let slot = key.strip_prefix("image/")?;
        let Value::Array(array) = value else { return None };
        let masked = record.array(&format!("image_mask/{slot}")).is_ok_and(|mask| mask.values.to_f64() == [0.0]);
        match (&array.shape[..], &array.values) {
            ([h, w, 3], Values::U8(bytes)) if !masked => Some((slot.to_owned(), [*h, *w], bytes.clone())),
            _ => None,
        }
    };
    record.values.iter().filter_map(picture).collect()
}

/// An image file's bytes.
fn png(size: [usize; 2], pixels: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, size[1] as u32, size[0] as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}

/// Predicted beside recorded.
fn compare(args: &Args, policy: &Policy, episode: &Episode, report: &mut Report) -> Result<()> {
    let (recorded, joints) = episode.recorded(&policy.data)?;
    let mut chunks = vec![];
    for (i, inferred) in report.inferred.iter().enumerate() {
        let shown = if i == 0 && args.html.is_some() { &inferred.images[..] } else { &[] };
        let images = shown.iter().map(|(name, size, pixels)| Ok((name.clone(), png(*size, pixels)?)));
        chunks.push(episode::Chunk {
            frame: inferred.frame.unwrap_or(0),
            actions: inferred.actions.clone(),
            images: images.collect::<Result<_>>()?,
            prompt: inferred.prompt.clone(),
            infer_ms: inferred.infer_ms(),
        });
    }
    let dataset = args.scenes.dataset.as_deref().unwrap_or(std::path::Path::new("")).display();
    let compared = Compared {
        title: format!("{dataset}, episode {}", episode.index),
        subtitle: format!("{} · {} · {}", policy.preset.name, args.dtype.name(), args.checkpoint.display()),
        fps: episode.fps(),
        joints,
        recorded,
        first_frame: 0,
        chunks,
    };
    let measured = metrics::measure(&compared)?;
    if let Some(path) = &args.plot {
        remap::write_whole(path, svg::panels(&compared, &measured)?.as_bytes())?;
        report.written.push(path.display().to_string());
    }
    if let Some(path) = &args.html {
        remap::write_whole(path, html::page(&compared, &measured)?.as_bytes())?;
        report.written.push(path.display().to_string());
    }
    report.metrics = Some(measured);
    Ok(())
}

/// Without a recording: each observation's chunk as a row.
fn draw(path: &std::path::Path, report: &mut Report) -> Result<()> {
    let all = report.actions();
    let [n, horizon, dim] = all.shape;
    let values = all.values.iter().map(|x| *x as f32).collect();
    remap::write_whole(path, plot::svg(&Chunk::actions([n, horizon, dim], values))?.as_bytes())?;
    report.written.push(path.display().to_string());
    Ok(())
}
