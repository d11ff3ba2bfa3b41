//! The trials of a device: the suites of parity, training and chunking, `pi0 verify` over the golden sets, `pi0 sample`
//! against the clock.
//!
//! A trial gives an item for each thing it tried, and never stops the others.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::child::{Ended, Ground, Programs};
use super::report::{Chunks, Item, Verdict};
use crate::check::Tally;

/// What the suites read the device from.
const DEVICE_VARIABLE: &str = "PI0_TEST_DEVICE";
/// Below the root: where golden sets are.
const GOLDEN: &str = "golden";
/// What makes a folder a golden set.
const SET: &str = "set.toml";
/// The key of a set's weights: a path relative to the set, or a name of procedural weights behind this word.
const WEIGHTS: &str = "weights";
const PROCEDURAL: &str = "procedural:";
/// How the names of small procedural weights begin.
const TINY: &str = "tiny_";
/// What the suites read the folder of the golden sets from: it may have been built in another place.
const GOLDEN_VARIABLE: &str = "PI0_TEST_GOLDEN";
/// The key of the milliseconds of each warm chunk in what `pi0 sample --json` prints.
const CHUNK_MS: &str = "chunk_ms";

/// A golden set that names its weights.
#[derive(Debug, PartialEq)]
pub(super) struct Set {
    /// Its folder, relative to `golden/`.
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) weights: Weights,
}

/// What a set was recorded with.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Weights {
    /// A checkpoint in the tree.
    Stored(PathBuf),
    /// What `cargo xtask synth` writes for this model.
    Procedural { model: String, tiny: bool },
}

impl Weights {
    /// As a set's file names them.
    fn named(text: &str, folder: &Path) -> Self {
        match text.strip_prefix(PROCEDURAL) {
            None => Self::Stored(folder.join(text)),
            Some(name) => match name.strip_prefix(TINY) {
                None => Self::Procedural { model: name.to_owned(), tiny: false },
                Some(model) => Self::Procedural { model: model.to_owned(), tiny: true },
            },
        }
    }
}

/// All sets below `golden/` that name weights, in order of their names.
pub(super) fn sets(root: &Path) -> Result<Vec<Set>> {
    let golden = root.join(GOLDEN);
    let mut found = Vec::new();
    let mut folders = vec![golden.clone()];
    while let Some(folder) = folders.pop() {
        let cannot = || format!("cannot read {}", folder.display());
        for entry in std::fs::read_dir(&folder).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            // A link is not followed: a set lies in the tree.
            if entry.file_type().with_context(cannot)?.is_dir() {
                folders.push(entry.path());
            }
        }
        let set = folder.join(SET);
        if !set.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&set).with_context(|| format!("cannot read {}", set.display()))?;
        let table: toml::Table = text.parse().with_context(|| format!("{} is no TOML", set.display()))?;
        if let Some(weights) = table.get(WEIGHTS).and_then(toml::Value::as_str) {
            let name = folder.strip_prefix(&golden).unwrap_or(&folder).display().to_string();
            found.push(Set { name, weights: Weights::named(weights, &folder), folder });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Runs a suite of tests on a device: tests/NAME.rs.
pub(super) fn suite(ground: &Ground, program: &Path, name: &str, device: &str) -> Vec<Item> {
    let mut environment = ground.environment.to_vec();
    environment.push((DEVICE_VARIABLE, device.into()));
    environment.push((GOLDEN_VARIABLE, ground.root.join(GOLDEN).into()));
    let ground = Ground { environment: &environment, ..*ground };
    let file = format!("tests/{name}.rs");
    vec![match ground.run(name, program, &[]) {
        Err(error) => Item::failed(&file, format!("{error:#}")),
        Ok(ended) => counted(&file, &ended),
    }]
}

/// What a test program's closing line and exit status say. No test at all is no success.
fn counted(name: &str, ended: &Ended) -> Item {
    let mut tally = Tally::default();
    ended.output.lines().for_each(|line| tally.read(line));
    let (passed, failed) = (tally.passed, tally.failed);
    let mut says = format!("{passed} passed, {failed} failed");
    let verdict = if ended.status.success() && passed > 0 { Verdict::Passed } else { Verdict::Failed };
    if !ended.status.success() {
        let names = ended.output.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
        let names: Vec<&str> = names.collect();
        says += &format!(" ({}): {} {}", ended.status, names.join(", "), ended.last_words);
    }
    Item::new(name, verdict, says)
}

/// Runs `pi0 verify` over every set. `checkpoint` gives the path of a set's weights, or why there is none.
pub(super) fn verify(
    ground: &Ground,
    programs: &Programs,
    device: &str,
    sets: &[Set],
    mut checkpoint: impl FnMut(&Weights) -> Result<PathBuf, Box<Item>>,
) -> Vec<Item> {
    if sets.is_empty() {
        let says = format!("no {SET} below {GOLDEN}/ names `{WEIGHTS}`");
        return vec![Item::new(format!("{GOLDEN}/"), Verdict::Skipped, says)];
    }
    let one = |set: &Set| {
        let weights = match checkpoint(&set.weights) {
            Ok(weights) => weights,
            Err(item) => return Item { name: set.name.clone(), ..*item },
        };
        let mut arguments = words(&["verify", "--json", "--device", device]);
        arguments.extend(["--checkpoint".into(), weights.into()]);
        arguments.extend(["--golden".into(), set.folder.clone().into()]);
        match ground.run(&format!("verify-{}", file_name(&set.name)), &programs.pi0, &arguments) {
            Err(error) => Item::failed(&set.name, format!("{error:#}")),
            Ok(ended) => verified(&set.name, &ended),
        }
    };
    sets.iter().map(one).collect()
}

/// What the exit code of `verify` says: 0 the same, 1 not the same, anything else could not.
fn verified(name: &str, ended: &Ended) -> Item {
    let mut item = match ended.status.code() {
        Some(0) => Item::new(name, Verdict::Passed, format!("computes what was recorded, in {:.1} s", ended.wall_s)),
        Some(1) => Item::failed(name, "departs from what was recorded: the JSON beside this names the first tap"),
        _ => Item::failed(name, reason(ended)),
    };
    item.output = ended.json();
    item
}

/// What to time, and how.
pub(super) struct Timing<'a> {
    /// Checkpoints, each with its name in the report.
    pub(super) checkpoints: &'a [(String, PathBuf)],
    /// Precision modes, each tried with each checkpoint.
    pub(super) dtypes: &'a [String],
    /// Warm chunks of each.
    pub(super) runs: u32,
    /// More arguments for `pi0 sample`.
    pub(super) more: &'a [OsString],
}

/// Times chunks of every checkpoint in every mode.
pub(super) fn sample(ground: &Ground, programs: &Programs, device: &str, timing: &Timing) -> Vec<Item> {
    if timing.checkpoints.is_empty() {
        let says = "no checkpoint: name one with --checkpoint, or make one with --synthetic pi0";
        return vec![Item::new("checkpoints", Verdict::Skipped, says)];
    }
    let one = |name: &str, path: &Path, dtype: &str| {
        let name = format!("{name}, {dtype}");
        let mut arguments = words(&["sample", "--json", "--device", device, "--dtype", dtype]);
        arguments.extend(words(&["--random-observation", "--seed", "0", "--runs", &timing.runs.to_string()]));
        arguments.extend(["--checkpoint".into(), path.into()]);
        arguments.extend_from_slice(timing.more);
        match ground.run(&format!("sample-{}", file_name(&name)), &programs.pi0, &arguments) {
            Err(error) => Item::failed(name, format!("{error:#}")),
            Ok(ended) => sampled(&name, &ended),
        }
    };
    let all =
        timing.checkpoints.iter().flat_map(|checkpoint| timing.dtypes.iter().map(move |dtype| (checkpoint, dtype)));
    all.map(|((name, path), dtype)| one(name, path, dtype)).collect()
}

fn sampled(name: &str, ended: &Ended) -> Item {
    if !ended.status.success() {
        return Item::failed(name, reason(ended));
    }
    let output = ended.json();
    let chunks = output.as_ref().and_then(|output| Chunks::of(&times(output)?));
    let mut item = match &chunks {
        Some(chunks) => {
            let Chunks { count, p50_ms, p99_ms, .. } = chunks;
            Item::new(name, Verdict::Passed, format!("{count} chunks: p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms"))
        }
        None => Item::failed(name, format!("`pi0 sample --json` prints no list of numbers `{CHUNK_MS}`")),
    };
    (item.output, item.chunks) = (output, chunks);
    item
}

/// The milliseconds of the chunks; `None` unless all of them are numbers.
fn times(output: &Value) -> Option<Vec<f64>> {
    output.get(CHUNK_MS)?.as_array()?.iter().map(Value::as_f64).collect()
}

/// Why a program could not: what it printed as JSON, else its last words.
fn reason(ended: &Ended) -> String {
    let told = ended.json().and_then(|output| Some(output.get("error")?.as_str()?.to_owned()));
    let why = told.filter(|why| !why.is_empty()).unwrap_or_else(|| ended.last_words.clone());
    format!("{}: {why}", ended.status)
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// A name of a set or checkpoint as part of a file's name.
fn file_name(name: &str) -> String {
    name.chars().map(|character| if character.is_alphanumeric() { character } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::child::script;
    use super::*;
    use std::time::Duration;

    /// Runs a trial with two scripts in place of the programs.
    fn tried(pi0: &str, parity: &str, trial: impl Fn(&Ground, &Programs) -> Vec<Item>) -> Vec<Item> {
        let folder = tempfile::tempdir().unwrap();
        let programs = Programs {
            pi0: script(folder.path().join("pi0"), pi0),
            parity: script(folder.path().join("parity"), parity),
            training: folder.path().join("training"),
            chunking: folder.path().join("chunking"),
        };
        let limit = Duration::from_secs(60);
        trial(&Ground { root: folder.path(), logs: folder.path(), environment: &[], limit }, &programs)
    }

    #[test]
    fn only_sets_that_name_their_weights_are_verified() {
        let root = tempfile::tempdir().unwrap();
        for (folder, text) in [
            ("b/f32", "weights = \"../w\"\n"),
            ("a", "weights = \"procedural:tiny_pi0_fast\"\n"),
            ("c", "weights = \"procedural:pi05\"\n"),
            ("convert", "x = 1\n"),
        ] {
            let folder = root.path().join("golden").join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("set.toml"), text).unwrap();
        }
        let found = sets(root.path()).unwrap();
        assert_eq!(found.iter().map(|set| set.name.as_str()).collect::<Vec<_>>(), ["a", "b/f32", "c"]);
        assert_eq!(found[0].weights, Weights::Procedural { model: "pi0_fast".into(), tiny: true });
        assert_eq!(found[1].weights, Weights::Stored(root.path().join("golden/b/f32/../w")));
        assert_eq!(found[2].weights, Weights::Procedural { model: "pi05".into(), tiny: false });
        std::fs::write(root.path().join("golden/a/set.toml"), "weights =").unwrap();
        assert!(format!("{:#}", sets(root.path()).unwrap_err()).contains("is no TOML"));
    }

    #[test]
    fn the_suite_is_told_its_device_and_its_counts_are_read() {
        let text =
            "test \"$PI0_TEST_DEVICE\" = cuda:1 || exit 9\necho 'test result: ok. 7 passed; 0 failed; 0 ignored'";
        let items = tried("", text, |ground, programs| suite(ground, &programs.parity, "parity", "cuda:1"));
        assert_eq!((items[0].verdict, items[0].says.as_str()), (Verdict::Passed, "7 passed, 0 failed"));

        let text = "echo 'test it_holds ... FAILED'\necho 'test result: FAILED. 1 passed; 1 failed;'\nexit 101";
        let items = tried("", text, |ground, programs| suite(ground, &programs.parity, "parity", "cuda:0"));
        assert_eq!(items[0].verdict, Verdict::Failed);
        assert!(items[0].says.starts_with("1 passed, 1 failed (exit status: 101): it_holds"), "{}", items[0].says);

        let items = tried("", "echo 'test result: ok. 0 passed; 0 failed;'", |ground, programs| {
            suite(ground, &programs.parity, "parity", "cuda:0")
        });
        assert_eq!(items[0].verdict, Verdict::Failed, "nothing tested is no success");
    }

    #[test]
    fn verify_is_asked_for_every_set_and_its_exit_code_decides() {
        let text = "case \"$*\" in\n*one*) echo '{\"a\": 1}';;\n*two*) exit 1;;\n*) echo '{\"error\": \"no weights\"}'; exit 2;;\nesac";
        let weights = Weights::Procedural { model: "pi0".into(), tiny: false };
        let set = |name: &str| Set { name: name.into(), folder: name.into(), weights: weights.clone() };
        let sets = [set("one"), set("two"), set("three")];
        let there = |_: &Weights| Ok(PathBuf::from("w"));
        let items = tried(text, "", |ground, programs| verify(ground, programs, "cpu", &sets, there));
        assert_eq!(
            items.iter().map(|item| item.verdict).collect::<Vec<_>>(),
            [Verdict::Passed, Verdict::Failed, Verdict::Failed]
        );
        assert_eq!(items[0].output, Some(serde_json::json!({"a": 1})));
        assert_eq!(items[2].says, "exit status: 2: no weights");
        let none = tried(text, "", |ground, programs| verify(ground, programs, "cpu", &[], there));
        assert_eq!(none[0].verdict, Verdict::Skipped);
        let absent = |_: &Weights| Err(Box::new(Item::new("", Verdict::Skipped, "12 GB")));
        let items = tried(text, "", |ground, programs| verify(ground, programs, "cpu", &sets, absent));
        assert_eq!((items[1].name.as_str(), items[1].says.as_str()), ("two", "12 GB"));
    }

    #[test]
    fn chunks_are_timed_and_a_sample_without_times_is_a_failure() {
        let checkpoints = [("tiny".to_owned(), PathBuf::from("w"))];
        let of = |text: &str| {
            let (more, dtypes) = (words(&["--num-steps", "4"]), ["f32".to_owned(), "serve-bf16".to_owned()]);
            let timing = Timing { checkpoints: &checkpoints, dtypes: &dtypes, runs: 3, more: &more };
            let mut items = tried(text, "", |ground, programs| sample(ground, programs, "cpu", &timing));
            assert_eq!(
                items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(),
                ["tiny, f32", "tiny, serve-bf16"]
            );
            items.remove(0)
        };
        let item = of(
            "test \"$*\" = 'sample --json --device cpu --dtype f32 --random-observation --seed 0 --runs 3 --checkpoint w \
                       --num-steps 4' || exit 9\necho '{\"chunk_ms\": [2.0, 1.0, 4.0]}'",
        );
        assert_eq!(item.says, "3 chunks: p50 2.00 ms, p99 4.00 ms");
        assert_eq!(of("echo '{\"chunk_ms\": [1, \"x\"]}'").verdict, Verdict::Failed);
        assert_eq!(of("echo '{}'").verdict, Verdict::Failed);
        assert_eq!(of("echo oh >&2; exit 2").says, "exit status: 2: oh");
    }
}
