//! `pi0 inspect`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use remap::{Map, Options};
use serde::Serialize;

use super::Answer;
use super::fetch::resolve;
use super::output::{Mouth, condense, shape, size, skeleton};
use crate::policy::norm_stats;
use crate::weights::anatomy::Anatomy;
use crate::weights::open::{Choice, LeftOut, Opened, Weights};

const EXAMPLES: &str = "\
Examples:
  What is this?
    pi0 inspect checkpoints/pi0_libero/29999
    pi0 inspect model.safetensors
    pi0 inspect pt_224.npz

  Are these two the same weights, whatever their formats and schemes? (exit code 1 if not)
    pi0 inspect --diff params model.safetensors

  The training state of a step:
    pi0 inspect checkpoints/pi0_libero/29999 --item train_state

  Any OCDBT database or zarr array folder on its own:
    pi0 inspect --raw params/ocdbt.process_0
    pi0 inspect --raw params --array params.action_in_proj.kernel";

/// Tell what a checkpoint is.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 inspect --help")]
pub struct Args {
    /// Checkpoint: an Orbax folder, safetensors, an npz, or gs:// in openpi's cache
    #[arg(value_name = "PATH", required_unless_present_any = ["diff", "raw", "checkpoint_dir"])]
    pub path: Option<PathBuf>,

    /// The same, as `convert` has it
    #[arg(long, alias = "checkpoint_dir", value_name = "PATH", conflicts_with = "path")]
    pub checkpoint_dir: Option<PathBuf>,

    /// Compare two checkpoints tensor by tensor, in any two schemes and formats
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["path", "raw"])]
    pub diff: Option<Vec<PathBuf>>,

    /// Open an OCDBT database or a zarr array folder on its own
    #[arg(long, value_name = "DIR", conflicts_with = "path")]
    pub raw: Option<PathBuf>,

    /// With --raw: decode this array of the database
    #[arg(long, value_name = "NAME", requires = "raw")]
    pub array: Option<String>,

    /// Item of a step folder: params, train_state, ...
    #[arg(long)]
    pub item: Option<String>,

    /// Naming scheme; detected from the names
    #[arg(long, value_name = "SCHEME")]
    pub from: Option<String>,

    /// Fetch a gs:// path that is not in openpi's cache yet (needs the cargo feature `gcs`)
    #[arg(long)]
    pub download: bool,

    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// What a checkpoint is.
#[derive(Debug, Serialize)]
struct Description {
    path: String,
    taken: String,
    format: String,
    step: Option<u64>,
    scheme: Option<String>,
    model: Option<Anatomy>,
    /// Why it is no whole model, if it is none.
    faults: Vec<String>,
    ema: Option<bool>,
    norm_stats: Vec<StatsLine>,
    parameters: u64,
    bytes: u64,
    tensors: Vec<Line>,
    left_out: Vec<LeftOut>,
    warnings: Vec<String>,
    metadata: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct StatsLine {
    asset_id: String,
    keys: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    bytes: u64,
}

/// Runs it.
///
/// # Errors
/// What cannot be opened.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    let choice = Choice { item: args.item.clone(), weights: Weights::Ema, from: args.from.clone() };
    if let Some(pair) = &args.diff {
        let [a, b] = &pair[..] else { bail!("--diff compares two checkpoints") };
        let (a, b) = (resolve(a, args.download, mouth)?, resolve(b, args.download, mouth)?);
        return super::diff::run(&a, &b, &choice, mouth);
    }
    if let Some(dir) = &args.raw {
        return super::raw::run(dir, args.array.as_deref(), mouth);
    }
    let Some(path) = args.path.or(args.checkpoint_dir) else { bail!("name a checkpoint") };
    one(&resolve(&path, args.download, mouth)?, &choice, mouth)
}

/// Tells what one checkpoint is.
pub(super) fn one(path: &Path, choice: &Choice, mouth: &Mouth) -> Result<Answer> {
    let map = Map::pi0();
    let opened = Opened::open(path, choice)?;
    let scheme = opened.scheme(&map, choice.from.as_deref());
    let heads = opened.own_anatomy().map(|a| a.heads()).unwrap_or_default();
    let mut faults = vec![];
    let mut model = None;
    match &scheme {
        Err(error) => faults.push(format!("{error:#}")),
        Ok(scheme) => {
            match Anatomy::read(&map, &opened.tensors, scheme, &Options { heads: heads.clone(), ..Options::default() })
            {
                Ok(anatomy) => model = Some(anatomy),
                Err(refused) => {
                    faults.extend(refused.faults.iter().map(ToString::to_string));
                    let part = Options { heads, part: true, ..Options::default() };
                    model = Anatomy::read(&map, &opened.tensors, scheme, &part).ok();
                }
            }
        }
    }
    let stats = opened.assets.as_deref().map(norm_stats::read_all).transpose()?.unwrap_or_default();
    let line = |t: &remap::Tensor| Line {
        name: t.name.clone(),
        dtype: t.dtype.name().to_owned(),
        shape: t.shape.clone(),
        bytes: t.bytes(),
    };
    let description = Description {
        path: opened.path.display().to_string(),
        taken: opened.taken.clone(),
        format: opened.format.clone(),
        step: opened.step,
        scheme: scheme.as_ref().ok().map(|s| s.name.clone()),
        ema: opened.ema(),
        norm_stats: stats.iter().map(|s| StatsLine { asset_id: s.asset_id.clone(), keys: described(s) }).collect(),
        parameters: model
            .as_ref()
            .map_or_else(|| opened.tensors.iter().map(remap::Tensor::len).sum(), |m| m.parameters),
        bytes: opened.bytes(),
        model,
        faults,
        tensors: opened.tensors.iter().map(line).collect(),
        left_out: opened.left_out.clone(),
        warnings: opened.warnings.clone(),
        metadata: opened.metadata.clone(),
    };
    mouth.say(&description, || text(&description))?;
    Ok(Answer::Yes)
}

/// `state 32, actions 32`: each key and how wide it is.
fn described(stats: &norm_stats::NormStats) -> Vec<String> {
    stats.keys.iter().map(|(key, s)| format!("{key} {}", s.mean.len())).collect()
}

fn text(d: &Description) -> String {
    let mut t = String::new();
    let _ = writeln!(t, "{} · {}", d.path, d.format);
    let _ = writeln!(t, "{}", d.taken);
    let _ = writeln!(t);
    let row = |t: &mut String, key: &str, value: String| {
        let _ = writeln!(t, "{key:<12} {value}");
    };
    match &d.model {
        Some(model) if d.faults.is_empty() => row(&mut t, "model", model.to_string()),
        Some(model) => row(&mut t, "model", format!("not whole: {model}")),
        None => row(&mut t, "model", "none of the pi0 family".into()),
    }
    if let Some(scheme) = &d.scheme {
        row(&mut t, "scheme", scheme.clone());
    }
    if let Some(model) = &d.model {
        if let Some(v) = &model.vision {
            let heads = v.heads.map_or("?".into(), |h| h.to_string());
            let text = format!(
                "{} · width {} · depth {} · mlp {} · {heads} heads · patch {} · {} tokens",
                v.variant, v.width, v.depth, v.mlp, v.patch, v.tokens
            );
            row(&mut t, "vision", text);
        }
        let number = |n: Option<u64>| n.map_or("?".into(), |n| n.to_string());
        for (i, e) in model.experts.iter().enumerate() {
            let lora = e.lora.map_or(String::new(), |r| {
                format!(" · LoRA rank {} attention, {} feed-forward", number(r.attention), number(r.feed_forward))
            });
            let norm = if e.adaptive { " · adaptive norm" } else { "" };
            let text = format!(
                "{} · width {} · depth {} · mlp {} · {} heads of {} · {} kv{norm}{lora}",
                e.variant,
                e.width,
                e.depth,
                e.mlp,
                number(e.heads),
                number(e.head_size),
                number(e.kv_heads)
            );
            row(&mut t, &format!("expert {i}"), text);
        }
    }
    if let Some(step) = d.step {
        row(&mut t, "step", step.to_string());
    }
    if let Some(ema) = d.ema {
        let text = if ema {
            "yes: params is the moving average, train_state has the raw weights (--weights raw)"
        } else {
            "no: params are the raw weights"
        };
        row(&mut t, "EMA", text.into());
    }
    for stats in &d.norm_stats {
        row(&mut t, "norm stats", format!("{} · {}", stats.asset_id, stats.keys.join(", ")));
    }
    row(
        &mut t,
        "tensors",
        format!("{} · {} values · {}", d.tensors.len(), super::output::grouped(d.parameters), size(d.bytes)),
    );
    for warning in &d.warnings {
        row(&mut t, "warning", warning.clone());
    }
    for fault in &d.faults {
        row(&mut t, "fault", fault.clone());
    }
    let _ = writeln!(t);
    let mut groups: Vec<(String, Vec<&Line>)> = vec![];
    for line in &d.tensors {
        let key = format!("{} {} {}", skeleton(&line.name).0, line.dtype, shape(&line.shape));
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, members)) => members.push(line),
            None => groups.push((key, vec![line])),
        }
    }
    for (_, members) in &groups {
        let Some(first) = members.first() else { continue };
        let name = condense(members.iter().map(|l| l.name.as_str())).into_iter().next();
        let many = if members.len() > 1 { format!(" ×{}", members.len()) } else { String::new() };
        let bytes: u64 = members.iter().map(|l| l.bytes).sum();
        let _ = writeln!(
            t,
            "  {}  {} {}{many}  {}",
            name.map(|(n, _)| n).unwrap_or_default(),
            first.dtype,
            shape(&first.shape),
            size(bytes)
        );
    }
    t
}
