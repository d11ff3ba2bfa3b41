//! `--override key.path=value`: a field of openpi's TrainConfig under openpi's own name, put into a preset's text before
//! this is read.
//!
//! Source: openpi 15a9616, training/config.py, training/optimizer.py, training/weight_loaders.py, models/pi0_config.py and
//! models/pi0_fast.py; spelling as tyro has it. Invariant: what is wrong with the outcome is found by the same reader as
//! what is wrong with a file.

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

use super::value::{Kind, is_none, unquoted};
use crate::policy::record::nearest;

/// A preset's text with values put in.
#[derive(Debug, Clone, PartialEq)]
pub struct Overridden {
    /// As the file could have been.
    pub text: String,
    /// Of fields that mean nothing here, or that took others along: what happens instead.
    pub notices: Vec<String>,
}

/// A field: openpi's name, its place in a preset's file, what it takes.
struct Field {
    name: &'static str,
    place: &'static str,
    kind: Kind,
    /// May there be none?
    optional: bool,
}

const fn must(name: &'static str, place: &'static str, kind: Kind) -> Field {
    Field { name, place, kind, optional: false }
}

const fn may(name: &'static str, place: &'static str, kind: Kind) -> Field {
    Field { name, place, kind, optional: true }
}

const VARIANTS: Kind = Kind::Choice(&["dummy", "gemma_300m", "gemma_300m_lora", "gemma_2b", "gemma_2b_lora"]);
const DTYPES: Kind = Kind::Choice(&["bfloat16", "float32"]);
const TOKENIZERS: Kind = Kind::Choice(&["fast", "fast_specialist", "binning", "fsq"]);

/// Fields that are one key of a file.
const FIELDS: [Field; 70] = [
    must("model.action_dim", "model.action_dim", Kind::Count),
    must("model.action_horizon", "model.action_horizon", Kind::Count),
    must("model.max_token_len", "model.max_token_len", Kind::Count),
    must("model.paligemma_variant", "model.paligemma_variant", VARIANTS),
    must("model.action_expert_variant", "model.action_expert_variant", VARIANTS),
    must("model.discrete_state_input", "model.discrete_state_input", Kind::Bool),
    must("model.dtype", "finetune.dtype", DTYPES),
    must("model.fast_model_tokenizer", "model.action_tokenizer", TOKENIZERS),
    must("model.action_tokenizer", "model.action_tokenizer", TOKENIZERS),
    may("model.fast_model_tokenizer_kwargs.fast_tokenizer_path", "model.action_tokenizer_path", Kind::Text),
    may("model.action_tokenizer_path", "model.action_tokenizer_path", Kind::Text),
    must("weight_loader.params_path", "train.weight_loader.params_path", Kind::Text),
    must("lr_schedule.warmup_steps", "train.lr_schedule.warmup_steps", Kind::Count),
    must("lr_schedule.peak_lr", "train.lr_schedule.peak_lr", Kind::Number),
    must("lr_schedule.decay_steps", "train.lr_schedule.decay_steps", Kind::Count),
    must("lr_schedule.decay_lr", "train.lr_schedule.decay_lr", Kind::Number),
    must("lr_schedule.timescale", "train.lr_schedule.timescale", Kind::Number),
    must("optimizer.b1", "train.optimizer.b1", Kind::Number),
    must("optimizer.b2", "train.optimizer.b2", Kind::Number),
    must("optimizer.eps", "train.optimizer.eps", Kind::Number),
    must("optimizer.weight_decay", "train.optimizer.weight_decay", Kind::Number),
    must("optimizer.clip_gradient_norm", "train.optimizer.clip_gradient_norm", Kind::Number),
    must("optimizer.lr", "train.optimizer.lr", Kind::Number),
    must("optimizer.momentum", "train.optimizer.momentum", Kind::Number),
    must("optimizer.nesterov", "train.optimizer.nesterov", Kind::Bool),
    may("ema_decay", "train.ema_decay", Kind::Number),
    may("data.repo_id", "data.repo_id", Kind::Text),
    may("data.assets.asset_id", "data.asset_id", Kind::Text),
    may("data.assets.assets_dir", "data.assets_dir", Kind::Text),
    may("data.asset_id", "data.asset_id", Kind::Text),
    may("data.assets_dir", "data.assets_dir", Kind::Text),
    may("data.default_prompt", "data.default_prompt", Kind::Text),
    must("data.adapt_to_pi", "data.adapt_to_pi", Kind::Bool),
    must("data.action_sequence_keys", "data.action_sequence_keys", Kind::Texts),
    must("data.base_config.action_sequence_keys", "data.action_sequence_keys", Kind::Texts),
    must("data.base_config.prompt_from_task", "data.prompt_from_task", Kind::Bool),
    must("data.prompt_from_task", "data.prompt_from_task", Kind::Bool),
    must("data.base_config.use_quantile_norm", "data.use_quantile_norm", Kind::Bool),
    must("data.use_quantile_norm", "data.use_quantile_norm", Kind::Bool),
    must("data.rlds_data_dir", "data.rlds.data_dir", Kind::Text),
    must("data.datasets", "data.rlds.datasets", Kind::Any),
    may("data.robot", "data.robot", Kind::Text),
    may("data.layout", "data.layout", Kind::Text),
    may("data.delta_action_mask", "data.delta_action_mask", Kind::Any),
    may("data.delta_ways", "data.delta_ways", Kind::Choice(&["both", "out"])),
    may("data.repack", "data.repack", Kind::Any),
    must("batch_size", "train.batch_size", Kind::Count),
    must("num_workers", "train.num_workers", Kind::Count),
    must("num_train_steps", "train.num_train_steps", Kind::Count),
    must("log_interval", "train.log_interval", Kind::Count),
    must("save_interval", "train.save_interval", Kind::Count),
    may("keep_period", "train.keep_period", Kind::Count),
    must("overwrite", "train.overwrite", Kind::Bool),
    must("resume", "train.resume", Kind::Bool),
    must("seed", "train.seed", Kind::Count),
    may("exp_name", "train.exp_name", Kind::Text),
    must("assets_base_dir", "train.assets_base_dir", Kind::Text),
    must("checkpoint_base_dir", "train.checkpoint_base_dir", Kind::Text),
    may("policy_metadata", "train.policy_metadata", Kind::Any),
    must("project_name", "train.project_name", Kind::Text),
    must("wandb_enabled", "train.wandb_enabled", Kind::Bool),
    must("fsdp_devices", "train.fsdp_devices", Kind::Count),
    may("pytorch_weight_path", "train.pytorch_weight_path", Kind::Text),
    must("loss.mask_padded_steps", "finetune.loss.mask_padded_steps", Kind::Bool),
    must("loss.mask_padded_dims", "finetune.loss.mask_padded_dims", Kind::Bool),
    must("time.alpha", "finetune.time.alpha", Kind::Number),
    must("time.beta", "finetune.time.beta", Kind::Number),
    must("augment", "finetune.augment", Kind::Choice(&["openpi", "off", "fixed"])),
    must("gradient_accumulation", "finetune.gradient_accumulation", Kind::Count),
    must("max_to_keep", "finetune.max_to_keep", Kind::Count),
];

/// Fields that are more than a key, or less.
const SPECIAL: [&str; 13] = [
    "model.pi05",
    "model.pytorch_compile_mode",
    "weight_loader",
    "weight_loader.kind",
    "lr_schedule",
    "lr_schedule.kind",
    "optimizer",
    "optimizer.kind",
    "freeze",
    "freeze_filter",
    "data.use_delta_joint_actions",
    "data.extra_delta_transform",
    "data.action_space",
];
/// Of openpi's PyTorch trainer, which has no counterpart here.
const PRECISION: &str = "pytorch_training_precision";

/// A table with a `kind`: where it stands, the kind, openpi's class, and the class's defaults.
const CLASSES: [(&str, &str, &str, &str); 7] = [
    ("weight_loader", "none", "NoOpWeightLoader", ""),
    ("weight_loader", "checkpoint", "CheckpointWeightLoader", ""),
    ("weight_loader", "paligemma", "PaliGemmaWeightLoader", ""),
    (
        "lr_schedule",
        "cosine_decay",
        "CosineDecaySchedule",
        "warmup_steps = 1_000\npeak_lr = 2.5e-5\ndecay_steps = 30_000\ndecay_lr = 2.5e-6",
    ),
    ("lr_schedule", "rsqrt_decay", "RsqrtDecaySchedule", "warmup_steps = 1_000\npeak_lr = 5e-5\ntimescale = 10_000.0"),
    ("optimizer", "adamw", "AdamW", "b1 = 0.9\nb2 = 0.95\neps = 1e-8\nweight_decay = 1e-10\nclip_gradient_norm = 1.0"),
    ("optimizer", "sgd", "SGD", "lr = 5e-5\nmomentum = 0.9\nnesterov = false"),
];

/// `key=value` in two: what a `--override` is.
///
/// # Errors
/// There is no `=`.
pub fn pair(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').with_context(|| {
        format!("{text}: expected key=value, such as batch_size=8 or lr_schedule.peak_lr=1e-4, found no =")
    })?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// Puts values into a preset's text. Of two for one field the last one counts; what replaces a whole table (a schedule,
/// an optimizer, a weight loader, the model) comes before what changes a key of it, in whatever order they are given.
///
/// # Errors
/// The text is no TOML; a field that does not exist: the nearest; a value that is not of the field's type.
pub fn apply(text: &str, overrides: &[(String, String)]) -> Result<Overridden> {
    let mut editing = Editing { document: text.parse()?, notices: vec![] };
    let named: Vec<(String, &str)> =
        overrides.iter().map(|(key, value)| Ok((canonical(key)?, value.as_str()))).collect::<Result<_>>()?;
    for first in [true, false] {
        for (key, value) in named.iter().filter(|(key, _)| replaces(key) == first) {
            editing.set(key, value).with_context(|| key.clone())?;
        }
    }
    Ok(Overridden { text: toml::to_string(&editing.document)?, notices: editing.notices })
}

/// Every name there is, sorted.
pub fn names() -> Vec<&'static str> {
    let fields = FIELDS.iter().map(|field| field.name);
    let mut all: Vec<&str> = fields.chain(SPECIAL).chain([PRECISION]).collect();
    all.sort_unstable();
    all
}

fn field(name: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.name == name)
}

fn replaces(key: &str) -> bool {
    key == "model.pi05" || key == "data.robot" || key == "data.repo_id" || class_table(key).is_some()
}

/// The table that is replaced by a kind's: `lr_schedule` and `lr_schedule.kind`.
fn class_table(key: &str) -> Option<&str> {
    let table = key.strip_suffix(".kind").unwrap_or(key);
    CLASSES.iter().any(|class| class.0 == table).then_some(table)
}

/// openpi's name, however it was spelt: `--lr-schedule.peak-lr`, `train.batch_size`, `finetune.augment`.
fn canonical(key: &str) -> Result<String> {
    let key = key.trim().trim_start_matches("--");
    // A robot's or a dataset's key is its own; only ours have one spelling.
    for open in ["data.repack.", "policy_metadata.", "policy-metadata."] {
        if let Some(rest) = key.strip_prefix(open) {
            ensure!(!rest.is_empty(), "{key}: it ends where a name was expected");
            return Ok(format!("{}{rest}", open.replace('-', "_")));
        }
    }
    let name = key.replace('-', "_");
    let bare = ["train.", "finetune."].iter().find_map(|room| name.strip_prefix(room)).unwrap_or(&name).to_owned();
    ensure!(bare != "name", "name: it is the preset's, and cannot be another; exp_name tells runs apart");
    if names().contains(&bare.as_str()) {
        return Ok(bare);
    }
    // `peak_lr` alone is no field, but nobody can mean another.
    let last: Vec<&str> = names().into_iter().filter(|known| known.rsplit('.').next() == Some(bare.as_str())).collect();
    match last.as_slice() {
        [one] => bail!("{key}: no such field; it is {one}"),
        _ => bail!("{key}: no such field; {}", near(&bare)),
    }
}

/// The nearest name; of a table that there is, the nearest in it.
fn near(name: &str) -> String {
    let all = names();
    if let Some((table, key)) = name.split_once('.') {
        let inside: Vec<&str> = all
            .iter()
            .filter_map(|known| known.strip_prefix(table)?.strip_prefix('.'))
            .filter(|k| *k != "kind")
            .collect();
        if !inside.is_empty() {
            return format!("in {table} {}", nearest(key, inside));
        }
    }
    nearest(name, all)
}

/// A preset that is being changed.
struct Editing {
    document: Table,
    notices: Vec<String>,
}

impl Editing {
    fn set(&mut self, key: &str, text: &str) -> Result<()> {
        if let Some(table) = class_table(key) {
            return self.class(table, unquoted(text.trim()));
        }
        if let Some(robot_key) = key.strip_prefix("data.repack.") {
            let repack = self.table("data")?.entry("repack").or_insert_with(|| Value::Table(Table::new()));
            let repack = repack.as_table_mut().context("data.repack: it is no table in the preset")?;
            repack.insert(robot_key.to_owned(), Kind::Text.read(text)?);
            return Ok(());
        }
        if let Some(rest) = key.strip_prefix("policy_metadata.") {
            return self.put(&format!("train.policy_metadata.{rest}"), Kind::Any.read(text)?);
        }
        match key {
            "model.pi05" => self.pi05(Kind::Bool.read(text)? == Value::Boolean(true)),
            "freeze" | "freeze_filter" => self.freeze(text),
            "data.use_delta_joint_actions" => self.delta("aloha", &[6, -1, 6, -1], text),
            "data.extra_delta_transform" => self.delta("libero", &[6, -1], text),
            "data.action_space" => self.action_space(text),
            "data.repo_id" => self.repo_id(text),
            "model.pytorch_compile_mode" => self.without_meaning(key, "nothing is compiled here"),
            PRECISION => {
                DTYPES.read(text)?;
                self.without_meaning(
                    key,
                    "it is of openpi's PyTorch trainer; here model.dtype says in what is computed",
                )
            }
            _ => self.plain(key, text),
        }
    }

    /// A field that is one key.
    fn plain(&mut self, key: &str, text: &str) -> Result<()> {
        let field = field(key).with_context(|| format!("no such field; {}", near(key)))?;
        if field.place.starts_with("data.rlds.") {
            ensure!(self.table("data")?.contains_key("rlds"), "of presets on DROID in RLDS form alone");
        }
        self.of_its_kind(field)?;
        if field.optional && is_none(text) {
            return self.remove(field.place);
        }
        ensure!(!is_none(text), "there must be one; None is for {}", optional_names().join(", "));
        let value = field.kind.read(text)?;
        let notice = match (field.name, &value) {
            ("wandb_enabled", Value::Boolean(true)) => {
                Some("nothing is sent to Weights & Biases; metrics lie in the run's folder, for TensorBoard too")
            }
            ("project_name", _) => Some("it names a project at Weights & Biases, where nothing is sent"),
            ("fsdp_devices", Value::Integer(n)) if *n > 1 => {
                Some("weights are not shared out among devices; every device holds them all")
            }
            ("pytorch_weight_path", _) => {
                Some("it is not read; weight_loader.params_path takes openpi's PyTorch weights as well")
            }
            _ => None,
        };
        self.notices.extend(notice.map(|notice| format!("{key}: {notice}")));
        self.put(field.place, value)
    }

    /// A key of a schedule, optimizer or loader is a key of the kind that the preset has.
    fn of_its_kind(&mut self, field: &Field) -> Result<()> {
        let Some((table, key)) = field.name.split_once('.') else { return Ok(()) };
        if class_table(table).is_none() {
            return Ok(());
        }
        let found = self.kind_of(table);
        if key == "params_path" {
            // Nothing else has a path.
            return if found == "checkpoint" { Ok(()) } else { self.class(table, "checkpoint") };
        }
        let has = |class: &&(&str, &str, &str, &str)| class.0 == table && class.3.contains(&format!("{key} ="));
        let of: Vec<&str> = CLASSES.iter().filter(has).map(|class| class.1).collect();
        ensure!(
            of.contains(&found.as_str()),
            "of {table}={} alone, and this preset's is {found}; set {table}={} too",
            of.join(" and "),
            of.first().copied().unwrap_or_default()
        );
        Ok(())
    }

    fn kind_of(&self, table: &str) -> String {
        let kind = || self.document.get("train")?.get(table)?.get("kind")?.as_str();
        kind().unwrap_or_default().to_owned()
    }

    /// Replaces a table by a class's defaults, unless it is of that class already.
    fn class(&mut self, table: &str, word: &str) -> Result<()> {
        let plain = |word: &str| word.replace(['_', '-'], "").to_lowercase();
        let ours = || CLASSES.iter().filter(|class| class.0 == table);
        let Some(class) = ours().find(|class| [plain(class.1), plain(class.2)].contains(&plain(word))) else {
            let kinds: Vec<&str> = ours().map(|class| class.1).collect();
            bail!("expected {}, found {word}", kinds.join(" or "));
        };
        if self.kind_of(table) == class.1 {
            return Ok(());
        }
        let mut fresh: Table = class.3.parse()?;
        fresh.insert("kind".into(), Value::String(class.1.to_owned()));
        self.table("train")?.insert(table.to_owned(), Value::Table(fresh));
        Ok(())
    }

    /// pi0 ⇄ pi0.5. openpi normalises by the model; all else stays as the preset has it, there as here.
    fn pi05(&mut self, pi05: bool) -> Result<()> {
        let model = self.table("model")?;
        let found = model.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        ensure!(found != "pi0_fast", "of a pi0 or a pi0.5 alone, and this preset's model is a pi0_fast");
        let kind = if pi05 { "pi05" } else { "pi0" };
        if found == kind {
            return Ok(());
        }
        model.insert("type".into(), Value::String(kind.into()));
        let tokens = model.get("max_token_len").and_then(Value::as_integer).unwrap_or_default();
        if !pi05 {
            model.remove("discrete_state_input");
        }
        self.table("data")?.insert("use_quantile_norm".into(), Value::Boolean(pi05));
        self.notices.push(if pi05 {
            format!(
                "model.pi05: as in openpi, model.max_token_len stays {tokens} and model.discrete_state_input False; a pi0.5 is made with 200 and True"
            )
        } else {
            format!("model.pi05: as in openpi, model.max_token_len stays {tokens}; a pi0 is made with 48")
        });
        Ok(())
    }

    fn freeze(&mut self, text: &str) -> Result<()> {
        let value = match text.trim().starts_with('[') {
            true => Kind::Texts.read(text)?,
            // A pattern may have commas; alone it needs no list.
            false if is_none(text) => Value::String("none".into()),
            false => Value::String(unquoted(text.trim()).to_owned()),
        };
        self.put("train.freeze", value)
    }

    fn delta(&mut self, robot: &str, mask: &[i64], text: &str) -> Result<()> {
        let on = Kind::Bool.read(text)? == Value::Boolean(true);
        let data = self.table("data")?;
        let found = data.get("robot").and_then(Value::as_str).unwrap_or("none");
        ensure!(
            found == robot,
            "of the robot {robot} alone, and this preset's is {found}; data.delta_action_mask and data.delta_ways are for all"
        );
        set_delta(data, on.then_some(mask));
        Ok(())
    }

    fn action_space(&mut self, text: &str) -> Result<()> {
        let word = text.trim().to_lowercase();
        let word = word.strip_prefix("droidactionspace.").unwrap_or(&word);
        let value = Kind::Choice(&["joint_position", "joint_velocity"]).read(word)?;
        let data = self.table("data")?;
        let rlds = data.get_mut("rlds").and_then(Value::as_table_mut);
        rlds.context("of presets on DROID in RLDS form alone")?.insert("action_space".into(), value);
        // As openpi's data config: positions are made relative, velocities are so already.
        set_delta(data, (unquoted(word) == "joint_position").then_some(&[7, -1]));
        Ok(())
    }

    /// Another dataset has other statistics, unless the preset says whose it takes.
    fn repo_id(&mut self, text: &str) -> Result<()> {
        let data = self.table("data")?;
        let text_of = |data: &Table, key: &str| data.get(key).and_then(Value::as_str).map(str::to_owned);
        let (old, asset) = (text_of(data, "repo_id"), text_of(data, "asset_id"));
        if old.is_some() && old == asset && !data.contains_key("assets_dir") {
            data.remove("asset_id");
        }
        self.plain("data.repo_id", text)
    }

    fn without_meaning(&mut self, key: &str, instead: &str) -> Result<()> {
        self.notices.push(format!("{key}: it has no meaning here: {instead}"));
        Ok(())
    }

    fn table(&mut self, name: &str) -> Result<&mut Table> {
        let entry = self.document.entry(name).or_insert_with(|| Value::Table(Table::new()));
        entry.as_table_mut().with_context(|| format!("[{name}] is no table in the preset"))
    }

    fn put(&mut self, place: &str, value: Value) -> Result<()> {
        let (path, key) = place.rsplit_once('.').unwrap_or(("", place));
        let mut at = &mut self.document;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            let entry = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
            at = entry.as_table_mut().with_context(|| format!("{part} is no table, so {key} cannot be in it"))?;
        }
        at.insert(key.to_owned(), value);
        Ok(())
    }

    fn remove(&mut self, place: &str) -> Result<()> {
        let (path, key) = place.rsplit_once('.').unwrap_or(("", place));
        let mut at = &mut self.document;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            match at.get_mut(part).and_then(Value::as_table_mut) {
                Some(table) => at = table,
                None => return Ok(()),
            }
        }
        at.remove(key);
        Ok(())
    }
}

/// Of TrainConfig itself; a dataset's and a tokenizer's are many.
fn optional_names() -> Vec<&'static str> {
    let own = |field: &&Field| field.optional && !field.name.contains('.');
    FIELDS.iter().filter(own).map(|field| field.name).collect()
}

fn set_delta(data: &mut Table, mask: Option<&[i64]>) {
    match mask {
        Some(mask) => {
            data.insert("delta_action_mask".into(), Value::Array(mask.iter().map(|n| Value::Integer(*n)).collect()));
            data.insert("delta_ways".into(), Value::String("both".into()));
        }
        None => {
            data.remove("delta_action_mask");
            data.remove("delta_ways");
        }
    }
}

#[cfg(test)]
#[path = "overrides_tests.rs"]
mod tests;
