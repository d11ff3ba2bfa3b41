//! What openpi's protocol does not have, both ways: a dictionary ⇄ [`Extensions`].
//!
//! Invariant: nothing is passed over. A member that is not known, or that has no meaning beside the others, is refused by
//! its key: a client that misspelt `seed` would otherwise run with another chance than it thinks.

use std::time::Duration;

use super::{Extensions, Method, Previous, Schedule, array, shown};
use crate::policy::array::Array;
use crate::policy::record::{Fault, nearest};
use crate::serve::EXTENSIONS;
use crate::serve::tree::Tree;

const NOISE: &str = "noise";
const SEED: &str = "seed";
const DEADLINE_MS: &str = "deadline_ms";
const PREVIOUS: &str = "previous";
const DELAY: &str = "delay";
const METHOD: &str = "method";
const SCHEDULE: &str = "schedule";
const MAX_GUIDANCE_WEIGHT: &str = "max_guidance_weight";

const KNOWN: [&str; 8] = [NOISE, SEED, DEADLINE_MS, PREVIOUS, DELAY, METHOD, SCHEDULE, MAX_GUIDANCE_WEIGHT];

const GUIDED: &str = "guided";
const FROZEN: &str = "frozen";
const SCHEDULES: [(&str, Schedule); 4] =
    [("exp", Schedule::Exp), ("linear", Schedule::Linear), ("ones", Schedule::Ones), ("zeros", Schedule::Zeros)];

/// Of guided chunks, where nothing is said.
const DEFAULT_MAX_GUIDANCE_WEIGHT: f32 = 5.0;

/// Steps that are pulled harder overshoot: a bound of 1000 throws tiny models' actions to hundreds.
const MAX_MAX_GUIDANCE_WEIGHT: f32 = 100.0;

impl Method {
    /// Guided, as where nothing is said.
    pub const DEFAULT: Method =
        Method::Guided { schedule: Schedule::Exp, max_guidance_weight: DEFAULT_MAX_GUIDANCE_WEIGHT };
}

impl Schedule {
    /// As the wire names it.
    pub fn name(self) -> &'static str {
        SCHEDULES.iter().find(|(_, schedule)| *schedule == self).map_or("", |(name, _)| name)
    }
}

/// The members, each taken out once.
struct Members(Vec<(String, Tree)>);

impl Members {
    /// `None` where it is absent, and for Python's `None`.
    fn take(&mut self, key: &str) -> Option<Tree> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.swap_remove(at).1).filter(|value| *value != Tree::Nil)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, Fault> {
        match self.take(key) {
            None => Ok(None),
            Some(Tree::Text(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, "a text", &other)),
        }
    }

    /// A whole number from 0.
    fn whole(&mut self, key: &str) -> Result<Option<u64>, Fault> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let whole = match &value {
            Tree::Int(whole) => Some(*whole),
            Tree::Array(array) if array.shape.is_empty() => array.integers().and_then(|all| all.first().copied()),
            _ => None,
        };
        let whole = whole.and_then(|whole| u64::try_from(whole).ok());
        whole.map(Some).ok_or_else(|| wrong(key, "a whole number from 0", &value))
    }

    /// A number above 0.
    fn positive(&mut self, key: &str) -> Result<Option<f64>, Fault> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = value.number().filter(|number| *number > 0.0 && number.is_finite());
        number.map(Some).ok_or_else(|| wrong(key, "a number above 0", &value))
    }

    /// Numbers `[rows, columns]`, none of both 0.
    fn rows(&mut self, key: &str, expected: &str) -> Result<Option<Array>, Fault> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let kind = value.kind();
        let array = array(&path(key), value)?;
        let sound = array.shape.len() == 2 && !array.values.is_empty() && array.floats().is_some();
        if sound { Ok(Some(array)) } else { Err(misfit(key, expected, kind)) }
    }
}

fn path(key: &str) -> String {
    format!("{EXTENSIONS}/{}", shown(key))
}

fn misfit(key: &str, expected: &str, found: String) -> Fault {
    Fault::Shape { key: path(key), expected: expected.to_owned(), found, hint_text: String::new() }
}

fn wrong(key: &str, expected: &str, found: &Tree) -> Fault {
    misfit(key, expected, found.kind())
}

fn sentence(key: &str, what: impl Into<String>) -> Fault {
    Fault::Wrong { key: path(key), what: what.into() }
}

fn unknown(key: &str, word: &str, known: impl IntoIterator<Item = &'static str>) -> Fault {
    sentence(key, format!("nothing knows {:?}; {}", shown(word), nearest(&shown(word), known)))
}

impl Extensions {
    /// Of the dictionary under the key.
    ///
    /// # Errors
    /// A member that is not known, with the nearest; one that is not what it must be, or that the others contradict.
    pub fn parse(tree: Tree) -> Result<Self, Fault> {
        let Tree::Map(members) = tree else {
            let (key, expected) = (EXTENSIONS.to_owned(), format!("a dictionary of {}", KNOWN.join(", ")));
            return Err(Fault::Shape { key, expected, found: tree.kind(), hint_text: String::new() });
        };
        if let Some((key, _)) = members.iter().find(|(key, _)| !KNOWN.contains(&key.as_str())) {
            return Err(Fault::Unknown { key: path(key), nearest: nearest(&shown(key), KNOWN) });
        }
        // A robot's loop may send the same members with its first request, when there is no chunk before.
        let first = members.iter().any(|(key, value)| key == PREVIOUS && *value == Tree::Nil);
        let mut members = Members(members);
        let noise = members.rows(NOISE, "numbers [horizon, action dims]")?;
        let seed = members.whole(SEED)?;
        if noise.is_some() && seed.is_some() {
            return Err(sentence(SEED, "it is given beside `noise`, which leaves nothing to chance; leave one out"));
        }
        let deadline = match members.positive(DEADLINE_MS)? {
            None => None,
            Some(ms) => Some(
                Duration::try_from_secs_f64(ms / 1000.0)
                    .map_err(|_| sentence(DEADLINE_MS, "it is beyond any clock"))?,
            ),
        };
        let actions = members.rows(PREVIOUS, "numbers [actions, robot's dims]")?;
        let previous = match actions {
            Some(actions) => Some(previous(actions, &mut members)?),
            None if first => None,
            None => match members.0.iter().find(|(_, value)| *value != Tree::Nil) {
                None => None,
                Some((key, _)) => return Err(sentence(key, format!("it is about `{PREVIOUS}`, which is missing"))),
            },
        };
        Ok(Extensions { noise, seed, deadline, previous })
    }

    /// The dictionary. What is not said is left out, so that an empty one asks for nothing but the answer's own.
    ///
    /// # Errors
    /// A seed of more than 63 bits, which the wire does not carry.
    pub fn tree(&self) -> Result<Tree, Fault> {
        let mut members: Vec<(String, Tree)> = vec![];
        let mut put = |key: &str, value: Tree| members.push((key.to_owned(), value));
        if let Some(noise) = &self.noise {
            put(NOISE, Tree::Array(noise.clone()));
        }
        if let Some(seed) = self.seed {
            let seed = i64::try_from(seed);
            put(SEED, Tree::Int(seed.map_err(|_| sentence(SEED, "it has more than 63 bits, which the wire lacks"))?));
        }
        if let Some(deadline) = self.deadline {
            put(DEADLINE_MS, Tree::Float(deadline.as_secs_f64() * 1000.0));
        }
        if let Some(Previous { actions, delay, method }) = &self.previous {
            put(PREVIOUS, Tree::Array(actions.clone()));
            put(DELAY, Tree::Int(i64::try_from(*delay).unwrap_or(i64::MAX)));
            match method {
                Method::Frozen => put(METHOD, Tree::Text(FROZEN.to_owned())),
                Method::Guided { schedule, max_guidance_weight } => {
                    put(METHOD, Tree::Text(GUIDED.to_owned()));
                    put(SCHEDULE, Tree::Text(schedule.name().to_owned()));
                    put(MAX_GUIDANCE_WEIGHT, Tree::Float(f64::from(*max_guidance_weight)));
                }
            }
        }
        Ok(Tree::Map(members))
    }

    /// A message with these beside it, in place of what it had.
    ///
    /// # Errors
    /// The message is no dictionary; as [`Extensions::tree`].
    pub fn beside(&self, message: Tree) -> Result<Tree, Fault> {
        let Tree::Map(mut members) = message else {
            let what = format!("expected a dictionary beside it, found {message}");
            return Err(Fault::Wrong { key: EXTENSIONS.to_owned(), what });
        };
        members.retain(|(key, _)| key != EXTENSIONS);
        members.push((EXTENSIONS.to_owned(), self.tree()?));
        Ok(Tree::Map(members))
    }
}

fn previous(actions: Array, members: &mut Members) -> Result<Previous, Fault> {
    let rows = actions.shape.first().copied().unwrap_or_default();
    let delay = members.whole(DELAY)?;
    let delay =
        delay.ok_or_else(|| sentence(DELAY, format!("it is missing; how many of `{PREVIOUS}` are run meanwhile?")))?;
    let delay = usize::try_from(delay).ok().filter(|delay| *delay <= rows);
    let delay =
        delay.ok_or_else(|| sentence(DELAY, format!("expected at most {rows}, the actions of `{PREVIOUS}`")))?;
    let method = members.text(METHOD)?.unwrap_or_else(|| GUIDED.to_owned());
    let schedule = members.text(SCHEDULE)?;
    let weight = members.positive(MAX_GUIDANCE_WEIGHT)?;
    let method = match method.as_str() {
        FROZEN => match (schedule, weight) {
            (None, None) => Method::Frozen,
            (Some(_), _) => return Err(sentence(SCHEDULE, format!("`{FROZEN}` has none"))),
            (None, Some(_)) => return Err(sentence(MAX_GUIDANCE_WEIGHT, format!("`{FROZEN}` has none"))),
        },
        GUIDED => {
            let name = schedule.as_deref().unwrap_or(Schedule::Exp.name());
            let known = SCHEDULES.iter().find(|(known, _)| *known == name);
            let (_, schedule) = known.ok_or_else(|| unknown(SCHEDULE, name, SCHEDULES.map(|(name, _)| name)))?;
            let weight = weight.map_or(DEFAULT_MAX_GUIDANCE_WEIGHT, |weight| weight as f32);
            if weight > MAX_MAX_GUIDANCE_WEIGHT {
                let what = format!("{weight}, expected at most {MAX_MAX_GUIDANCE_WEIGHT}: more throws actions far off");
                return Err(sentence(MAX_GUIDANCE_WEIGHT, what));
            }
            Method::Guided { schedule: *schedule, max_guidance_weight: weight }
        }
        other => return Err(unknown(METHOD, other, [GUIDED, FROZEN])),
    };
    Ok(Previous { actions, delay, method })
}
