//! The step where words become tokens, as `explain` runs it: the real one where its vocabularies are found.
//!
//! Invariant: a step that is not run says so, and why; what a user named is used or refused.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use crate::cli::output::Mouth;
use crate::cli::tokenizer;
use crate::cli::tokenizing::{Wanted, tokenizing};
use crate::config::train::Train;
use crate::policy::array::Values;
use crate::policy::chain::{Data, Statistics};
use crate::policy::record::{Fault, Record, Value};
use crate::policy::step::Step;
use crate::policy::tokenizer::Tokenizer;
use crate::weights::companions::Kind;

/// What is made of words; the masks of what is learned are of pi0-FAST alone.
const WRITES: [&str; 4] = ["tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask", "token_loss_mask"];

/// Where the vocabularies may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places<'a> {
    pub(super) tokenizer: Option<&'a Path>,
    pub(super) fast_tokenizer: Option<&'a Path>,
    pub(super) checkpoint: Option<&'a Path>,
}

/// The step, and the vocabulary where it is the real one.
pub(super) type Found = (Box<dyn Step>, Option<Arc<Tokenizer>>);

/// The step of a preset. Vocabularies that nobody named are looked for only if the step is `run`.
///
/// # Errors
/// A vocabulary that was named and is none, or is not of this model.
pub(super) fn step(
    places: Places<'_>,
    preset: &Train,
    data: &Data,
    statistics: &Statistics,
    run: bool,
    mouth: &Mouth,
) -> Result<Found> {
    let named = places.tokenizer.is_some() || places.fast_tokenizer.is_some();
    if !(run || named) {
        return Ok((Box::new(Untokenized::of(preset, "")), None));
    }
    let path = match tokenizer::find(places.tokenizer, places.checkpoint, false, mouth) {
        Ok(path) => path,
        Err(error) if named => return Err(error),
        Err(_) => return Ok((Box::new(Untokenized::of(preset, " (no tokenizer was found; see --tokenizer)")), None)),
    };
    let tokenizer = Arc::new(Tokenizer::open(&path)?);
    let Places { fast_tokenizer, checkpoint, .. } = places;
    let wanted = Wanted { fast_tokenizer, checkpoint, ..Wanted::default() };
    match tokenizing(&wanted, preset, data, statistics, &tokenizer) {
        Ok(made) => Ok((made.step, Some(tokenizer))),
        // A codec is fetched or fitted apart from all else; without it the rest can be told.
        Err(error) if fast_tokenizer.is_none() && preset.model.model == Kind::Pi0Fast => {
            let why = format!("{error:#}");
            let why = why.split(['\n', ';']).next().unwrap_or_default();
            Ok((Box::new(Untokenized::of(preset, &format!(" ({why}; see --fast-tokenizer)"))), None))
        }
        Err(error) => Err(error),
    }
}

/// What words became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Tokens before the padding.
    pub count: usize,
    /// Tokens with it.
    pub of: usize,
    /// Those of the prompt as text again.
    pub prompt: String,
    /// Those of the actions, which a model that speaks in tokens learns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actions: Option<usize>,
}

impl Tokens {
    /// Of a record that has some.
    pub(super) fn of(record: &Record, tokenizer: &Tokenizer) -> Option<Self> {
        let ids = whole(record, "tokenized_prompt")?;
        let mask = whole(record, "tokenized_prompt_mask")?;
        let causal = whole(record, "token_ar_mask");
        let count = mask.iter().filter(|there| **there != 0).count();
        let prefix = causal.as_ref().map_or(count, |row| row.iter().take(count).filter(|x| **x == 0).count());
        let prompt: Vec<u32> = ids.iter().take(prefix).filter(|id| **id != tokenizer.bos()).copied().collect();
        let actions = causal.map(|_| count - prefix);
        Some(Tokens { count, of: ids.len(), prompt: tokenizer.decode(&prompt), actions })
    }
}

fn whole(record: &Record, key: &str) -> Option<Vec<u32>> {
    let Some(Value::Array(array)) = record.get(key) else { return None };
    match &array.values {
        Values::I32(values) => values.iter().map(|id| u32::try_from(*id).ok()).collect(),
        Values::Bool(values) => Some(values.iter().map(|flag| u32::from(*flag)).collect()),
        _ => None,
    }
}

/// Stands where the prompt becomes tokens, in a chain that is told and not sampled from.
#[derive(Debug)]
struct Untokenized {
    name: &'static str,
    what: String,
    why: String,
    reads: Vec<&'static str>,
    writes: &'static [&'static str],
}

impl Untokenized {
    fn of(preset: &Train, why: &str) -> Self {
        let length = preset.model.max_token_len;
        let fast = preset.model.model == Kind::Pi0Fast;
        let state = preset.model.discrete_state_input;
        let what = match (fast, state) {
            (true, _) => format!(
                "prompt, state and actions become {length} tokens, by the action tokenizer {}",
                preset.model.action_tokenizer.as_deref().unwrap_or("fast")
            ),
            (false, true) => format!("prompt and state become {length} tokens"),
            (false, false) => format!("prompt becomes {length} tokens"),
        };
        let name = if fast { "tokenize-fast" } else { "tokenize-prompt" };
        let reads = match (fast, state) {
            (true, _) => vec!["prompt", "state", "actions"],
            (false, true) => vec!["prompt", "state"],
            (false, false) => vec!["prompt"],
        };
        let writes = if fast { &WRITES[..] } else { &WRITES[..2] };
        Untokenized { name, what, why: why.to_owned(), reads, writes }
    }
}

impl Step for Untokenized {
    fn name(&self) -> &'static str {
        self.name
    }

    fn describe(&self) -> String {
        format!("{}; not run here{}: the prompt is shown as text", self.what, self.why)
    }

    fn reads(&self) -> Vec<String> {
        self.reads.iter().map(|key| (*key).to_owned()).collect()
    }

    fn writes(&self) -> Vec<String> {
        self.writes.iter().map(|key| (*key).to_owned()).collect()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        record.text("prompt").map(|_| ())
    }
}
