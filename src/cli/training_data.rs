//! What a model is trained on, by a preset: datasets with the policy's steps, or made-up examples; and where each part of
//! them came from.
//!
//! Source: openpi 15a9616, training/config.py (`DataConfigFactory.create`) and training/data_loader.py. Invariant: the chain
//! is the one that sampling, statistics and `pi0 explain` run; all that can be refused is refused before a frame is read.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::motion::demand;
use super::output::Mouth;
use super::tokenizing::{Wanted, tokenizing};
use super::{prepare, statistics, tokenizer};
use crate::config::train::Train;
use crate::data::lerobot::{Dataset, Kind as Feature};
use crate::data::loader::{Fake, Frames, Source, fake};
use crate::policy::chain::{self, Data, Origin, Statistics, Widths, chain};
use crate::policy::norm_stats::NormStats;
use crate::policy::record::Record;
use crate::policy::tokenizer::Tokenizer;
use crate::weights::companions::Kind;

/// Where LeRobot leaves a frame's sentence.
const TASK: &str = "task";
/// Where openpi leaves it.
const PROMPT: &str = "prompt";

/// A dataset's folder, and how often it is drawn from beside others: `DIR` or `DIR=0.7`.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighted {
    /// The folder.
    pub folder: PathBuf,
    /// Its share; without one, its frames.
    pub weight: Option<f64>,
}

impl FromStr for Weighted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = Weighted { folder: PathBuf::from(text), weight: None };
        let Some((folder, weight)) = text.rsplit_once('=').filter(|_| !whole.folder.exists()) else { return Ok(whole) };
        match weight.parse::<f64>() {
            Ok(weight) if weight > 0.0 && weight.is_finite() => {
                Ok(Weighted { folder: PathBuf::from(folder), weight: Some(weight) })
            }
            Ok(_) => Err(format!("a weight of {weight}, expected a number above 0")),
            Err(_) => Ok(whole),
        }
    }
}

/// Which data, and what they are read by.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(id = "training_data")]
#[command(next_help_heading = "What it learns from")]
pub struct Args {
    /// A LeRobot dataset (v2.0, v2.1, v3.0); several are drawn from by their weights, or else by their frames
    #[arg(long, value_name = "DIR[=WEIGHT]")]
    pub dataset: Vec<Weighted>,

    /// Frames that `pi0 prepare --cache` made of the dataset; those beside it are taken by themselves
    #[arg(long, value_name = "DIR", requires = "dataset")]
    pub cache: Option<PathBuf>,

    /// Norm stats: a norm_stats.json, or a folder of assets; where the preset has them if left out
    #[arg(long, value_name = "PATH")]
    pub norm_stats: Option<PathBuf>,

    /// Whose statistics of the assets; the preset's asset id if left out
    #[arg(long, value_name = "ID")]
    pub asset_id: Option<String>,

    /// PaliGemma's tokenizer (.model or tokenizer.json); looked for beside the checkpoint and in openpi's cache
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,

    /// pi0-FAST: folder of the FAST codec; looked for beside the checkpoint and in Hugging Face's cache
    #[arg(long, value_name = "DIR")]
    pub fast_tokenizer: Option<PathBuf>,
}

/// What no preset says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network<'a> {
    /// Rows and columns of a picture.
    pub image: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// What training begins with; a tokenizer and a codec may lie beside it.
    pub checkpoint: Option<&'a Path>,
}

/// Where the parts came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Told {
    /// What is drawn from.
    pub datasets: Vec<ToldDataset>,
    /// Whose statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asset_id: Option<String>,
    /// The file of the statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_stats: Option<String>,
    /// `mean and std` or `q01 and q99`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalized_by: Option<&'static str>,
    /// The file of the vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The folder of the FAST codec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_tokenizer: Option<String>,
    /// What a user may not expect.
    pub notices: Vec<String>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ToldDataset {
    /// Its folder, or `fake`.
    pub name: String,
    /// Episodes; none of made-up data.
    pub episodes: usize,
    /// Examples.
    pub frames: usize,
    /// Its share of the whole, 0 to 1.
    pub share: f64,
    /// The folder of its prepared frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepared: Option<String>,
}

/// What a model is trained on.
#[derive(Debug)]
pub struct TrainingData {
    /// For [`crate::data::loader::Loader`].
    pub sources: Vec<Source>,
    /// Names of the pictures in the order in which the model reads them.
    pub slots: Vec<String>,
    /// What state and actions are normalised by, to be kept beside the weights; none of made-up data.
    pub norm_stats: Option<NormStats>,
    /// The vocabulary; none of made-up data.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Where it all came from.
    pub told: Told,
}

impl TrainingData {
    /// What an example's tokens say, for people; nothing of made-up data.
    pub fn prompt(&self, record: &Record) -> String {
        let list = |key: &str| record.array(key).ok().and_then(|array| array.integers());
        let mask = record.array("tokenized_prompt_mask").ok().and_then(|array| array.flags());
        let (Some(tokenizer), Some(tokens), Some(mask)) = (&self.tokenizer, list("tokenized_prompt"), mask) else {
            return String::new();
        };
        let said = tokens.iter().zip(mask).filter(|(_, seen)| *seen);
        tokenizer.decode(&said.filter_map(|(id, _)| u32::try_from(*id).ok()).collect::<Vec<u32>>())
    }
}

/// Puts it together. Reads no frame.
///
/// # Errors
/// Datasets that cannot be read or lack what the preset reads; statistics, a tokenizer or a codec that are missing or do
/// not fit; prepared frames of another size.
pub fn open(args: &Args, preset: &Train, network: Network<'_>, seed: u64, mouth: &Mouth) -> Result<TrainingData> {
    let mut preset = preset.clone();
    if let Some(id) = &args.asset_id {
        preset.source.asset_id = Some(id.clone());
    }
    let Some(data) = preset.data.clone() else { return made_up(args, &preset, network, seed) };
    if args.dataset.is_empty() {
        let repo_id = preset.source.repo_id.as_deref().unwrap_or("a dataset");
        bail!(
            "--dataset: {} learns from {repo_id}, and there is no folder of it; name one with --dataset",
            preset.name
        );
    }
    ensure!(
        args.cache.is_none() || args.dataset.len() == 1,
        "--cache: it is of one dataset, and there are {}; prepared frames beside a dataset are taken by themselves",
        args.dataset.len()
    );
    let datasets: Vec<(Dataset, Option<PathBuf>)> =
        args.dataset.iter().map(|dataset| prepared(&dataset.folder, args.cache.as_deref())).collect::<Result<_>>()?;
    for (dataset, _) in &datasets {
        fits(dataset, &preset, &data).with_context(|| dataset.dir().display().to_string())?;
    }

    let mut told = Told { asset_id: preset.source.asset_id.clone(), ..Told::default() };
    told.normalized_by = Some(if data.use_quantile_norm { "q01 and q99" } else { "mean and std" });
    let named = statistics::Told { norm_stats: args.norm_stats.as_deref(), checkpoint_dir: None };
    let found = statistics::find(&preset, named)?;
    told.norm_stats = found.from.as_ref().map(|path| path.display().to_string());

    let path = tokenizer::find(args.tokenizer.as_deref(), network.checkpoint, false, mouth)?;
    let tokenizer = Arc::new(Tokenizer::open(&path)?);
    ensure!(
        tokenizer.len() <= network.vocabulary,
        "{}: {} pieces, and the model's embedding has {} rows: it is another model's tokenizer",
        path.display(),
        tokenizer.len(),
        network.vocabulary
    );
    told.tokenizer = Some(path.display().to_string());

    let weights = weights(&args.dataset, &datasets)?;
    let sum: f64 = weights.iter().sum();
    let mut sources = vec![];
    for ((dataset, films), weight) in datasets.into_iter().zip(weights) {
        let within = || dataset.dir().display().to_string();
        told.notices.extend(notice(&dataset, films.as_deref(), network.image).with_context(within)?);
        let wanted = Wanted {
            fast_tokenizer: args.fast_tokenizer.as_deref(),
            checkpoint: network.checkpoint,
            ..Wanted::default()
        };
        let made = tokenizing(&wanted, &preset, &data, &found.statistics, &tokenizer)?;
        told.fast_tokenizer = made.codec.map(|folder| folder.display().to_string());
        let origin = Origin::Dataset { tasks: dataset.tasks().clone() };
        let widths = Widths { image: (network.image, network.image), action_dim: preset.padded_to() };
        let chain = match chain(&data, &origin, &found.statistics, widths, Some(made.step)) {
            Err(error @ chain::Error::NoStatistics { .. }) => bail!(
                "{error}. `pi0 norm-stats --config {} --dataset {}` computes them; --norm-stats names others",
                preset.name,
                within()
            ),
            other => other?,
        };
        told.datasets.push(ToldDataset {
            name: within(),
            episodes: dataset.episodes().len(),
            frames: dataset.frames(),
            share: weight / sum,
            prepared: films.map(|films| films.display().to_string()),
        });
        let (keys, horizon) = (&preset.source.action_sequence_keys, preset.model.action_horizon as usize);
        sources.push(Source { examples: Arc::new(Frames::new(dataset, keys, horizon, chain)), weight });
    }
    let norm_stats = match found.statistics {
        Statistics::Given(stats) => Some(stats),
        Statistics::Missing { .. } | Statistics::Skipped => None,
    };
    Ok(TrainingData { sources, slots: preset.slots()?, norm_stats, tokenizer: Some(tokenizer), told })
}

/// Examples from chance.
fn made_up(args: &Args, preset: &Train, network: Network<'_>, seed: u64) -> Result<TrainingData> {
    let strange = [
        ("--dataset", !args.dataset.is_empty()),
        ("--norm-stats", args.norm_stats.is_some()),
        ("--tokenizer", args.tokenizer.is_some()),
        ("--fast-tokenizer", args.fast_tokenizer.is_some()),
    ];
    if let Some((name, _)) = strange.iter().find(|(_, told)| *told) {
        bail!("{name}: the data of {} are made up; name a preset that has a robot, or leave it out", preset.name);
    }
    let (model, slots) = (&preset.model, preset.slots()?);
    let inputs = fake::Inputs {
        slots: slots.clone(),
        image: (network.image, network.image),
        action_dim: model.action_dim as usize,
        action_horizon: model.action_horizon as usize,
        max_token_len: model.max_token_len as usize,
        vocabulary: network.vocabulary,
        answers: model.model == Kind::Pi0Fast,
    };
    let fake = Fake::new(inputs, seed);
    let told =
        ToldDataset { name: "fake".to_owned(), episodes: 0, frames: fake.num_samples, share: 1.0, prepared: None };
    Ok(TrainingData {
        sources: vec![Source { examples: Arc::new(fake), weight: 1.0 }],
        slots,
        norm_stats: None,
        tokenizer: None,
        told: Told { datasets: vec![told], ..Told::default() },
    })
}

/// A dataset, with the frames that were prepared of it.
fn prepared(folder: &Path, cache: Option<&Path>) -> Result<(Dataset, Option<PathBuf>)> {
    let dataset = Dataset::open(folder)?;
    if let Some(cache) = cache {
        ensure!(cache.is_dir(), "--cache {}: there is no such folder; `pi0 prepare --cache` makes it", cache.display());
    }
    let films = cache.map(Path::to_owned).or_else(|| Dataset::prepared_beside(folder));
    Ok(match films {
        Some(films) => (dataset.with_prepared(&films), Some(films)),
        None => (dataset, None),
    })
}

/// What there is to say of a dataset's pictures; prepared ones of another size are refused.
fn notice(dataset: &Dataset, films: Option<&Path>, image: usize) -> Result<Option<String>> {
    let videos = dataset.info().features.values().any(|feature| matches!(feature.kind, Feature::Video { .. }));
    let folder = dataset.dir().display();
    let way = format!("`pi0 prepare {folder} --size {image}` decodes and resizes them once");
    let Some(films) = films else {
        let slow = "its videos are decoded anew for every frame, which may take longer than the model's step";
        return Ok(videos.then(|| format!("{folder}: {slow}; {way}")));
    };
    let found = dataset.look_at_prepared(image, prepare::HOW)?;
    let (some, of) = (found.films, found.of);
    Ok((some < of).then(|| {
        format!(
            "{}: of {of} episodes and cameras {some} are prepared; the others are decoded anew; {way}",
            films.display()
        )
    }))
}

/// Of all datasets, or of none.
fn weights(told: &[Weighted], datasets: &[(Dataset, Option<PathBuf>)]) -> Result<Vec<f64>> {
    let frames = || datasets.iter().map(|(dataset, _)| dataset.frames() as f64).collect();
    let weights: Vec<f64> = told.iter().filter_map(|dataset| dataset.weight).collect();
    match weights.len() {
        0 => Ok(frames()),
        n if n == told.len() => Ok(weights),
        _ => {
            let bare = told.iter().find(|dataset| dataset.weight.is_none());
            let bare = bare.map(|dataset| dataset.folder.display().to_string()).unwrap_or_default();
            bail!("--dataset {bare}: it has no weight, and others have one; say {bare}=WEIGHT, or none of them")
        }
    }
}

/// Has the dataset all that the preset reads?
///
/// # Errors
/// The first that it lacks: the nearest that it has, and what to do.
pub(super) fn fits(dataset: &Dataset, preset: &Train, data: &Data) -> Result<()> {
    let chunks = &preset.source.action_sequence_keys;
    for key in chunks {
        demand(dataset, preset, key, "chunks of actions")?;
    }
    let made = |key: &str| {
        let padding = key.strip_suffix("_is_pad").is_some_and(|key| chunks.iter().any(|chunk| chunk == key));
        key == TASK || padding || key == PROMPT && data.prompt_from_task
    };
    for (new, old) in data.repack.iter().flatten().filter(|(_, old)| !made(old)) {
        if old == PROMPT && !dataset.info().features.contains_key(old) {
            bail!(
                "{old}: {} reads its {new} here, and the dataset has no such feature; prompt_from_task = true in a preset \
                 of your own takes the dataset's tasks for it, a [data.repack] without it leaves the words to default_prompt",
                preset.name
            );
        }
        demand(dataset, preset, old, new)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_stands_behind_the_last_equals_sign_unless_it_is_the_folders_name() {
        let parsed = |text: &str| text.parse::<Weighted>();
        let weighted = |folder: &str, weight| Ok(Weighted { folder: PathBuf::from(folder), weight });
        assert_eq!(parsed("data/a"), weighted("data/a", None));
        assert_eq!(parsed("data/a=0.7"), weighted("data/a", Some(0.7)));
        assert_eq!(parsed("data/a=b=2"), weighted("data/a=b", Some(2.0)));
        assert_eq!(parsed("data/a=b"), weighted("data/a=b", None));
        for wrong in ["a=0", "a=-1", "a=nan", "a=inf"] {
            assert!(parsed(wrong).unwrap_err().contains("expected a number above 0"), "{wrong}");
        }
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("lr=0.5");
        std::fs::create_dir(&named).unwrap();
        assert_eq!(parsed(named.to_str().unwrap()), weighted(named.to_str().unwrap(), None));
    }
}
