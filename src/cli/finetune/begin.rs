//! What a run begins with: a checkpoint of any kind, PaliGemma, or chance; and which parameters it trains.
//!
//! Source: openpi 15a9616, training/weight_loaders.py. Invariant: a parameter comes from the checkpoint or, by a rule that is
//! told, from chance; none is left out and none is silently renewed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::{DType, Device};
use remap::{Map, Options};

use crate::cli::convert::default_threads;
use crate::cli::fetch::resolve;
use crate::cli::output::Mouth;
use crate::config::model;
use crate::config::train::{Train, WeightLoader};
use crate::model::{Pi, Settings};
use crate::weights::anatomy::Anatomy;
use crate::weights::companions::Kind;
use crate::weights::init::Birth;
use crate::weights::load::{self, Load};
use crate::weights::open::{Choice, Opened};

/// Weights that are known and not yet read.
pub(super) struct Begin {
    /// Sizes of the model that is trained.
    pub(super) settings: Settings,
    /// Where they are from: a path, or `chance`.
    pub(super) whence: String,
    /// Beside which a tokenizer may lie.
    pub(super) checkpoint: Option<PathBuf>,
    /// Head counts that shapes do not tell.
    pub(super) heads: BTreeMap<(String, char), u64>,
    /// What a user may not expect.
    pub(super) notices: Vec<String>,
    opened: Option<Opened>,
    birth: Birth,
    /// May everything that is missing come from chance, or low-rank pairs alone?
    all: bool,
}

impl Begin {
    /// Finds out. Reads no weight.
    pub(super) fn find(named: Option<&Path>, preset: &Train, download: bool, mouth: &Mouth) -> Result<Self> {
        let path = match (&preset.training.weight_loader, named) {
            (_, Some(path)) => Some(path.to_owned()),
            (WeightLoader::Checkpoint { params_path }, None) => Some(PathBuf::from(params_path)),
            (WeightLoader::Paligemma {}, None) => bail!(
                "--checkpoint-dir: {} begins with PaliGemma; name its pt_224.npz (kaggle.com/models/google/paligemma, \
                 jax/pt_224)",
                preset.name
            ),
            (WeightLoader::None {}, None) => None,
        };
        let opened = match &path {
            Some(path) => Some(Opened::open(&resolve(path, download, mouth)?, &Choice::default())?),
            None => None,
        };
        let mut notices = vec![];
        let (settings, heads, all) = match &opened {
            None => (model::of(&preset.model)?, BTreeMap::new(), true),
            Some(opened) => Self::read(opened, preset, &mut notices)?,
        };
        let kind = preset.model.model;
        let found = match settings.family() {
            "pi0" => Kind::Pi0,
            "pi05" => Kind::Pi05,
            _ => Kind::Pi0Fast,
        };
        if found != kind {
            bail!("--config {}: it is a {}, and these tensors are a {}", preset.name, kind.name(), found.name());
        }
        if let Some(found) = settings.action_dim().filter(|found| *found as u64 != preset.model.action_dim) {
            bail!(
                "--config {}: its actions have {} values, and these tensors' {found}; --override model.action_dim={found}",
                preset.name,
                preset.model.action_dim
            );
        }
        let whence = path.as_ref().map_or("chance".to_owned(), |path| path.display().to_string());
        let checkpoint = opened.as_ref().map(|opened| opened.path.clone());
        let birth = Birth { model: kind, heads: settings.experts[0].heads, seed: preset.training.seed };
        Ok(Begin { settings, whence, checkpoint, heads, notices, opened, birth, all })
    }

    /// The model that a checkpoint and a preset make together.
    fn read(opened: &Opened, preset: &Train, notices: &mut Vec<String>) -> Result<Sizes> {
        let map = Map::pi0();
        let from = opened.scheme(&map, None)?;
        // An npz of PaliGemma alone is a model of its own kind: a pi0-FAST, and a part of the others.
        let heads = opened.own_anatomy().map(|a| a.heads()).unwrap_or_default();
        let part = from.name == "big_vision" || matches!(preset.training.weight_loader, WeightLoader::Paligemma {});
        let options = Options { heads, part, ..Options::default() };
        let anatomy = Anatomy::read(&map, &opened.tensors, from, &options)?;
        if part && Kind::of(&anatomy).is_none_or(|kind| kind != preset.model.model) {
            // PaliGemma alone: what is not in it has the sizes of the preset's variants.
            let settings = load::settings_of_paligemma(&anatomy, &model::of(&preset.model)?)?;
            return Ok((settings, anatomy.heads(), true));
        }
        let mut settings = load::settings(&anatomy, 1.0)?;
        if let Err(contradiction) = preset.model.check(&anatomy) {
            notices.push(format!("{contradiction}; the tensors are trained as they are"));
        }
        let variants = [Some(&preset.model.paligemma_variant), preset.model.action_expert_variant.as_ref()];
        for (e, (expert, variant)) in settings.experts.iter_mut().zip(variants.into_iter().flatten()).enumerate() {
            let rank = model::rank(variant)?;
            let found = expert.lora.attention.max(expert.lora.feed_forward);
            match (rank, found) {
                (0, 0) => {}
                (0, found) => bail!(
                    "--config {}: its variant {variant} has no low-rank pairs, and these tensors have some of rank {found}: \
                     merge them first (`pi0 convert --lora merge`), or take a preset with pairs",
                    preset.name
                ),
                (rank, 0) => {
                    expert.lora.attention = rank;
                    expert.lora.feed_forward = rank;
                }
                (rank, found) if rank != found => {
                    notices.push(format!("expert {e}: its low-rank pairs are of rank {found}, {variant} says {rank}"));
                }
                _ => {}
            }
        }
        Ok((settings, anatomy.heads(), false))
    }

    /// Which parameters this model has, and their shapes.
    pub(super) fn parameters(&self, device: &Device) -> Vec<(String, Vec<usize>)> {
        Pi::init(&self.settings, DType::F32, device).parameters()
    }

    /// Reads the weights. Also gives the names of those that came from chance.
    pub(super) fn load(&self, how: &Weights, device: &Device, mouth: &Mouth) -> Result<(Pi, Vec<String>)> {
        let missing = |name: &str, shape: &[usize]| {
            let pair = name.ends_with(".lora_a") || name.ends_with(".lora_b");
            (self.all || pair).then(|| self.birth.values(name, shape)).flatten()
        };
        let Some(opened) = &self.opened else {
            let pi = load::make(&self.settings, how.activations, &missing, device)?;
            let names = pi.parameters().into_iter().map(|(name, _)| name).collect();
            return Ok((pi, names));
        };
        let how = Load {
            from: None,
            parameters: how.parameters,
            activations: how.activations,
            lora_scale: 1.0,
            threads: default_threads(),
            pack: false,
            digest: false,
        };
        let loaded = load::load_as(&self.settings, opened, &how, &missing, device, mouth)
            .with_context(|| self.whence.clone())?;
        Ok((loaded.pi, loaded.filled))
    }
}

/// Sizes, head counts that shapes do not tell, and whether everything that is missing may come from chance.
type Sizes = (Settings, BTreeMap<(String, char), u64>, bool);

/// How weights are read.
pub(super) struct Weights {
    /// A cast; `None` leaves them as they are stored.
    pub(super) parameters: Option<DType>,
    /// In what the model computes.
    pub(super) activations: DType,
}
