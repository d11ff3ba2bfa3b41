//! What is not trained: openpi's rule for low-rank pairs, LeRobot's two switches, and patterns of one's own.
//!
//! Source: openpi 15a9616, models/pi0_config.py and models/pi0_fast.py (`get_freeze_filter`), shared/nnx_utils.py
//! (`PathRegex`); LeRobot 0.4.4, policies/pi0/modeling_pi0.py (`freeze_vision_encoder`, `train_expert_only`).
//! Invariant: a function of names alone: it asks neither weights nor variants.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use regex::Regex;
use serde::Deserialize;
use thiserror::Error;

use crate::policy::record::nearest;
use crate::weights::names;

/// The words, in the order of [`Rule`].
const WORDS: [&str; 3] = ["lora", "freeze_vision", "expert_only"];

/// Whatever one of these rules names is not trained; none is "all is trained".
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "Words")]
pub struct Freeze {
    /// In the order in which they were given.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// `lora`: of the experts that have low-rank pairs, all but these. The embedding and the final norm go with their
    /// expert; SigLIP and the projections are trained.
    Lora,
    /// `freeze_vision`: SigLIP, but for the projection to the language model's width.
    FreezeVision,
    /// `expert_only`: all of PaliGemma, its own low-rank pairs too; the action expert and the projections are trained.
    ExpertOnly,
    /// A regular expression that matches a whole canonical name, or the whole JAX path of the leaf in which it lies.
    Pattern(String),
}

/// What is wrong with what shall be frozen.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FreezeError {
    /// No rule.
    #[error(
        "{word}: no such rule; {nearest}. Besides none, lora, freeze_vision and expert_only there are patterns of names, such as `img\\..*`"
    )]
    Unknown {
        /// The word.
        word: String,
        /// What it may have meant.
        nearest: String,
    },
    /// No regular expression.
    #[error("{pattern}: no regular expression: {reason}")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What its reader says.
        reason: String,
    },
    /// It would freeze nothing.
    #[error("{pattern}: no parameter has a name that it matches whole; names are such as {example}, or openpi's {jax}")]
    Unmatched {
        /// As it was given.
        pattern: String,
        /// A name of the model.
        example: String,
        /// The same as openpi has it.
        jax: String,
    },
    /// `lora` without pairs.
    #[error(
        "lora: the model has no low-rank pairs, so nothing would be frozen; its variants end in _lora where it has"
    )]
    NoPairs,
    /// Nothing to train.
    #[error("{freeze}: all {count} parameters would be frozen, and none trained")]
    Everything {
        /// The rules.
        freeze: String,
        /// Parameters of the model.
        count: usize,
    },
}

/// As it stands in a file: a rule or a list of them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a rule (none, lora, freeze_vision, expert_only, a pattern) or a list of them")]
enum Words {
    One(String),
    Several(Vec<String>),
}

impl TryFrom<Words> for Freeze {
    type Error = FreezeError;

    fn try_from(words: Words) -> Result<Self, FreezeError> {
        match words {
            Words::One(word) => word.parse(),
            Words::Several(words) => Ok(Freeze { rules: words.iter().map(|w| w.parse()).collect::<Result<_, _>>()? }),
        }
    }
}

impl FromStr for Freeze {
    type Err = FreezeError;

    fn from_str(word: &str) -> Result<Self, FreezeError> {
        Ok(Freeze { rules: if word == "none" { vec![] } else { vec![word.parse()?] } })
    }
}

impl FromStr for Rule {
    type Err = FreezeError;

    fn from_str(word: &str) -> Result<Self, FreezeError> {
        match word {
            "lora" => Ok(Rule::Lora),
            "freeze_vision" => Ok(Rule::FreezeVision),
            "expert_only" => Ok(Rule::ExpertOnly),
            // No parameter has so plain a name: a misspelt word, not a pattern.
            _ if word.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) => {
                let nearest = nearest(word, WORDS.into_iter().chain(["none"]));
                Err(FreezeError::Unknown { word: word.to_owned(), nearest })
            }
            _ => whole(word).map(|_| Rule::Pattern(word.to_owned())),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Lora => WORDS[0],
            Rule::FreezeVision => WORDS[1],
            Rule::ExpertOnly => WORDS[2],
            Rule::Pattern(pattern) => pattern,
        })
    }
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.rules.iter().map(Rule::to_string).collect();
        f.write_str(if words.is_empty() { "none".into() } else { words.join(", ") }.as_str())
    }
}

impl Freeze {
    /// Is this rule among them?
    pub fn has(&self, rule: &Rule) -> bool {
        self.rules.contains(rule)
    }

    /// Which of a model's parameters, by their canonical names, are frozen.
    ///
    /// # Errors
    /// A pattern that cannot be read or that matches nothing; `lora` where there are no pairs; nothing left to train.
    pub fn frozen<'a>(&self, names: &[&'a str]) -> Result<BTreeSet<&'a str>, FreezeError> {
        let mut frozen = BTreeSet::new();
        for rule in &self.rules {
            match rule {
                Rule::Lora => {
                    let paired: BTreeSet<usize> =
                        names.iter().filter(|n| is_pair(n)).filter_map(|n| expert(n)).collect();
                    if paired.is_empty() {
                        return Err(FreezeError::NoPairs);
                    }
                    let of_them = |name: &&&str| expert(name).is_some_and(|e| paired.contains(&e)) && !is_pair(name);
                    frozen.extend(names.iter().filter(of_them));
                }
                Rule::FreezeVision => {
                    frozen.extend(names.iter().filter(|n| n.starts_with("img.") && !n.starts_with("img.head.")));
                }
                Rule::ExpertOnly => {
                    frozen.extend(names.iter().filter(|n| n.starts_with("img.") || expert(n) == Some(0)));
                }
                Rule::Pattern(pattern) => {
                    let regex = whole(pattern)?;
                    let hit = |n: &&&str| regex.is_match(n) || names::jax(n).is_some_and(|path| regex.is_match(&path));
                    let hits: Vec<&str> = names.iter().filter(hit).copied().collect();
                    if hits.is_empty() {
                        let example = names.first().copied().unwrap_or_default();
                        let jax = names::jax(example).unwrap_or_default();
                        let (pattern, example) = (pattern.clone(), example.to_owned());
                        return Err(FreezeError::Unmatched { pattern, example, jax });
                    }
                    frozen.extend(hits);
                }
            }
        }
        if !names.is_empty() && frozen.len() == names.len() {
            return Err(FreezeError::Everything { freeze: self.to_string(), count: names.len() });
        }
        Ok(frozen)
    }
}

/// The expert that a parameter of `llm` belongs to: 0 is PaliGemma's, and the embedding is its.
fn expert(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("llm.")?;
    if rest.starts_with("embed.") {
        return Some(0);
    }
    let rest = match rest.strip_prefix("norms.") {
        Some(rest) => rest,
        None => rest.split_once(".experts.")?.1,
    };
    rest.split('.').next()?.parse().ok()
}

fn is_pair(name: &str) -> bool {
    name.ends_with(".lora_a") || name.ends_with(".lora_b")
}

/// A pattern matches a whole name or not at all, as openpi's `PathRegex`.
fn whole(pattern: &str) -> Result<Regex, FreezeError> {
    // First by itself: `a)|(b` is none, though within brackets it would be one.
    Regex::new(pattern).and_then(|_| Regex::new(&format!("^(?:{pattern})$"))).map_err(|error| FreezeError::Pattern {
        pattern: pattern.to_owned(),
        reason: error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 12] = [
        "img.patch.weight",
        "img.blocks.0.norm1.gamma",
        "img.norm.beta",
        "img.head.weight",
        "llm.embed.weight",
        "llm.norms.0.scale",
        "llm.norms.1.scale",
        "llm.blocks.0.experts.0.q.weight",
        "llm.blocks.0.experts.0.q.lora_a",
        "llm.blocks.0.experts.1.q.weight",
        "llm.blocks.0.experts.1.down.lora_b",
        "action_in_proj.weight",
    ];

    fn freeze(rules: &[&str]) -> Freeze {
        Freeze { rules: rules.iter().map(|r| r.parse().expect("a rule")).collect() }
    }

    fn frozen(rules: &[&str]) -> Vec<&'static str> {
        freeze(rules).frozen(&NAMES).expect("names").into_iter().collect()
    }

    #[test]
    fn without_rules_all_is_trained() {
        assert!("none".parse::<Freeze>().expect("a word").frozen(&NAMES).expect("names").is_empty());
        assert_eq!(Freeze::default().to_string(), "none");
    }

    #[test]
    fn lerobots_switches_freeze_what_they_freeze_there() {
        assert_eq!(frozen(&["freeze_vision"]), ["img.blocks.0.norm1.gamma", "img.norm.beta", "img.patch.weight"]);
        let expert_only = frozen(&["expert_only"]);
        assert_eq!(expert_only.len(), 8);
        assert!(expert_only.contains(&"img.head.weight") && expert_only.contains(&"llm.embed.weight"));
        assert!(expert_only.contains(&"llm.blocks.0.experts.0.q.lora_a"));
        assert!(!expert_only.contains(&"llm.norms.1.scale"));
    }

    #[test]
    fn pairs_freeze_the_experts_that_have_them() {
        let both = frozen(&["lora"]);
        assert_eq!(both.len(), 5);
        let one: Vec<&str> = NAMES.into_iter().filter(|n| !n.ends_with("lora_b")).collect();
        let one = freeze(&["lora"]).frozen(&one).expect("names");
        assert_eq!(
            one.into_iter().collect::<Vec<_>>(),
            ["llm.blocks.0.experts.0.q.weight", "llm.embed.weight", "llm.norms.0.scale"]
        );
        let none: Vec<&str> = NAMES.into_iter().filter(|n| !n.contains("lora")).collect();
        assert_eq!(freeze(&["lora"]).frozen(&none), Err(FreezeError::NoPairs));
    }

    #[test]
    fn rules_add_up() {
        assert_eq!(frozen(&["lora", "freeze_vision"]).len(), 8);
    }

    #[test]
    fn a_pattern_matches_a_whole_name_or_a_whole_jax_path() {
        assert_eq!(frozen(&["action_.*"]), ["action_in_proj.weight"]);
        assert_eq!(frozen(&[r"PaliGemma/img/head/(kernel|bias)"]), ["img.head.weight"]);
        assert_eq!(frozen(&[".*llm.*_1.*"]).len(), 3);
        let Err(FreezeError::Unmatched { pattern, .. }) = freeze(&["img.patch"]).frozen(&NAMES) else {
            panic!("half a name matched")
        };
        assert_eq!(pattern, "img.patch");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let unknown = "loar".parse::<Freeze>().unwrap_err();
        assert!(unknown.to_string().contains("the nearest is lora"), "{unknown}");
        assert!(matches!("img.(".parse::<Freeze>(), Err(FreezeError::Pattern { .. })));
        assert!(matches!("a)|(b.".parse::<Freeze>(), Err(FreezeError::Pattern { .. })));
        assert!(matches!(freeze(&[".*"]).frozen(&NAMES), Err(FreezeError::Everything { count: 12, .. })));
    }
}
