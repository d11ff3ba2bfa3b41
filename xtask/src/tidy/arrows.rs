//! The arrows between rooms: who may use whom, as one table, held against the paths in the sources and the manifests.
//!
//! ```text
//! ocdbt ← orbax ← remap ← weights ←┐
//!               model, kernels ←───┴── sample ←─┬── verify ←─┐
//!               policy (no Burn) ← data ←───────┴── train, serve ←─ cli ← main
//! chance: a leaf, used by weights, data, train and cli
//! plot: a leaf, used by train and cli
//! config, device: read by cli only, handed down as values
//! ```
//!
//! Invariant: a room may use what the arrows reach, directly or through others; [`RESERVED`] then takes away what only
//! some rooms may touch although an arrow reaches it. Tests of a room follow the same arrows as the room.

use super::source::{Source, is_word};
use super::{File, Finding};

/// A room, and the rooms it may use directly.
struct Room {
    name: &'static str,
    uses: &'static [&'static str],
}

const ROOMS: [Room; 18] = [
    Room { name: "ocdbt", uses: &[] },
    Room { name: "orbax", uses: &["ocdbt"] },
    Room { name: "remap", uses: &["orbax"] },
    Room { name: "kernels", uses: &[] },
    Room { name: "model", uses: &["kernels"] },
    Room { name: "chance", uses: &[] },
    Room { name: "plot", uses: &[] },
    Room { name: "policy", uses: &[] },
    Room { name: "weights", uses: &["remap", "model", "policy", "chance"] },
    Room { name: "sample", uses: &["weights", "model"] },
    Room { name: "data", uses: &["policy", "chance"] },
    Room { name: "verify", uses: &["sample", "data"] },
    Room { name: "train", uses: &["sample", "data", "plot"] },
    Room { name: "serve", uses: &["data", "chance"] },
    Room { name: "config", uses: &["verify", "train", "serve"] },
    Room { name: "device", uses: &["kernels"] },
    Room { name: "cli", uses: &["verify", "train", "serve", "config", "device"] },
    Room { name: "main", uses: &["cli"] },
];

/// What only some rooms may use, whatever the arrows reach.
struct Reserved {
    what: &'static [&'static str],
    rooms: &'static [&'static str],
    instead: &'static str,
}

const RESERVED: [Reserved; 4] = [
    Reserved {
        what: &["ocdbt", "orbax", "remap", "safetensors"],
        rooms: &["ocdbt", "orbax", "remap", "weights", "cli"],
        instead: "only weights.rs and converters/ touch weight files: ask `weights` for the module",
    },
    Reserved {
        what: &["config", "device"],
        rooms: &["config", "device", "cli"],
        instead: "`cli` reads it and hands the value down: take it as an argument",
    },
    Reserved {
        what: &["cli"],
        rooms: &["cli", "main"],
        instead: "nothing below knows the command line: return a value or an error",
    },
    Reserved {
        what: &["burn", "burn_*", "cubecl", "cubecl_*"],
        rooms: &["kernels", "model", "weights", "sample", "data", "verify", "train", "device", "cli"],
        instead: "`policy`, `serve`, `config` and the formats know no Burn: use plain slices and vectors",
    },
];

/// The names that mean another crate wherever a path starts with them. All other rooms are modules: `config::x` without
/// `crate::` is some local `config`, not the room.
const CRATES: [&str; 8] = ["ocdbt", "orbax", "remap", "safetensors", "burn", "burn_*", "cubecl", "cubecl_*"];

/// The packages of the workspace that stand above all rooms and that no room may depend on.
const ROOFS: [&str; 2] = ["pi0-burn", "xtask"];

/// Crates that only the root package may name in its manifest.
const BURN: [&str; 2] = ["burn", "cubecl"];

/// Holds one file, a source or a manifest, against the arrows.
pub(super) fn inspect(file: &File, findings: &mut Vec<Finding>) {
    if file.name() == "Cargo.toml" {
        manifest(file, findings);
    } else if let Some(room) = room_of(&file.path) {
        source(file, room, findings);
    }
}

/// The room that a source file belongs to; `None` for `lib.rs`, the tour, and for all that is not shipped.
fn room_of(path: &str) -> Option<&'static str> {
    let name = if let Some(inside) = path.strip_prefix("src/") {
        inside.split('/').next()?.trim_end_matches(".rs")
    } else {
        let (name, inside) = path.strip_prefix("converters/")?.split_once('/')?;
        inside.starts_with("src/").then_some(name)?
    };
    ROOMS.iter().map(|room| room.name).find(|room| *room == name)
}

/// Whether the arrows lead from `from` to `to`.
fn reaches(from: &str, to: &str) -> bool {
    from == to || ROOMS.iter().any(|room| room.name == from && room.uses.iter().any(|next| reaches(next, to)))
}

/// Whether `what` is in the list; a name of the list that ends in `*` stands for all that begin so.
fn named(list: &[&str], what: &str) -> bool {
    list.iter().any(|name| name.strip_suffix('*').map_or(*name == what, |start| what.starts_with(start)))
}

/// Why `room` must not use `what`; `None` if it may, or if no rule is about it.
fn refusal(room: &str, what: &str) -> Option<String> {
    let reserved = RESERVED.iter().find(|reserved| named(reserved.what, what));
    if let Some(reserved) = reserved.filter(|reserved| !reserved.rooms.contains(&room)) {
        return Some(reserved.instead.to_owned());
    }
    let known = ROOMS.iter().any(|other| other.name == what);
    if known && !reaches(room, what) {
        return Some(if reaches(what, room) {
            format!("the arrow points the other way: `{what}` uses `{room}`")
        } else {
            "no arrow joins them: let the room that uses both pass the value".to_owned()
        });
    }
    None
}

fn source(file: &File, room: &'static str, findings: &mut Vec<Finding>) {
    let root = file.path.starts_with("src/");
    for (line, name) in used_names(&file.text, module_depth(&file.path)) {
        // A format crate's own modules may carry any name; in the toolkit `crate::x` is the room x.
        let what = match name {
            Used::OwnCrate(name) if root => name,
            Used::Other(name) if named(&CRATES, &name) => name,
            Used::OwnCrate(_) | Used::Other(_) => continue,
        };
        if let Some(why) = refusal(room, &what) {
            findings.push(Finding::error(&file.path, line, format!("`{room}` uses `{what}`; {why}")));
        }
    }
}

/// How many `super` lead from a file's module to the crate root.
fn module_depth(path: &str) -> usize {
    let inside = path.split_once("src/").map_or(path, |(_, inside)| inside);
    inside.split('/').filter(|part| *part != "mod.rs").count()
}

/// The first name of a path.
#[derive(Debug, PartialEq, Eq)]
enum Used {
    /// `crate::name`, or as many `super` as lead to the crate root.
    OwnCrate(String),
    /// `name::`, or `use name`: another crate, as far as a scanner can tell.
    Other(String),
}

/// Every first name of every path in the code, with its line; `crate::{a, b::c}` gives `a` and `b`.
fn used_names(text: &str, depth: usize) -> Vec<(usize, Used)> {
    let words = words(text);
    let word = |index: usize| words.get(index).map_or("", |(_, word)| word.as_str());
    let mut used = Vec::new();
    // How deep in the `{…}` of a path such as `a::{b::c, d}`: nothing starts in there.
    let mut depth_in_group = 0;
    for (index, (line, name)) in words.iter().enumerate() {
        let continues = index > 0 && word(index - 1) == "::";
        match name.as_str() {
            "{" if continues || depth_in_group > 0 => depth_in_group += 1,
            "}" if depth_in_group > 0 => depth_in_group -= 1,
            _ => {}
        }
        if continues
            || depth_in_group > 0
            || !name.starts_with(|character: char| character.is_alphabetic() || character == '_')
        {
            continue;
        }
        let mut here = index;
        let mut supers = 0;
        while word(here) == "super" && word(here + 1) == "::" {
            (supers, here) = (supers + 1, here + 2);
        }
        let own = (word(index) == "crate" || word(index) == "pi0_burn") && word(index + 1) == "::";
        if own || (supers > 0 && supers >= depth) {
            let first = if own { index + 2 } else { here };
            used.extend(group(&words, first).into_iter().map(|(line, name)| (line, Used::OwnCrate(name))));
        } else if supers == 0 && (word(index + 1) == "::" || (index > 0 && word(index - 1) == "use")) {
            used.push((*line, Used::Other(name.clone())));
        }
    }
    used
}

/// The names at `first`: one, or the first name of each member of a `{…}` group.
fn group(words: &[(usize, String)], first: usize) -> Vec<(usize, String)> {
    let Some((line, word)) = words.get(first) else { return Vec::new() };
    if word != "{" {
        return vec![(*line, word.clone())];
    }
    let (mut names, mut depth, mut expected) = (Vec::new(), 0, true);
    for (line, word) in &words[first..] {
        match word.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => expected = true,
            name if depth == 1 && expected => {
                names.push((*line, name.to_owned()));
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Words, `::` and other single characters of the code, each with its line.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words: Vec<(usize, String)> = Vec::new();
    for (line, code) in Source::new(text).numbered() {
        let mut rest = code.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if is_word(first) {
                rest.find(|character| !is_word(character)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            words.push((line, rest[..length].to_owned()));
            rest = rest[length..].trim_start();
        }
    }
    words
}

fn manifest(file: &File, findings: &mut Vec<Finding>) {
    let Some(package) = file.path.strip_suffix("/Cargo.toml") else { return };
    let Some(format) = package.strip_prefix("converters/").and_then(|path| path.split('/').next()) else { return };
    for (line, dependency) in dependencies(&file.text) {
        let why = if ROOFS.contains(&dependency) {
            Some("formats stand below it: move what you need down here".to_owned())
        } else if BURN.iter().any(|name| dependency.starts_with(name)) {
            Some("formats know no Burn: keep it in src/".to_owned())
        } else {
            // A crate beneath this one (its fuzz targets) may use the crate itself.
            refusal(format, dependency)
        };
        if let Some(why) = why {
            let text = format!("`{format}` depends on `{dependency}`; {why}");
            findings.push(Finding::error(&file.path, line, text));
        }
    }
}

/// The names a manifest depends on, in any of its dependency tables, with their lines.
pub(super) fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            let header = header.split(']').next().unwrap_or(header);
            let (table, name) = match header.rsplit_once("dependencies") {
                Some((_, name)) => (true, name.trim_start_matches('.')),
                None => (false, ""),
            };
            inside = table && name.is_empty();
            if table && !name.is_empty() {
                found.push((index + 1, name));
            }
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let end = line.find(|character: char| !is_word(character) && character != '-').unwrap_or(line.len());
            found.push((index + 1, &line[..end]));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        inspect(&file(path, text), &mut findings);
        findings.iter().map(ToString::to_string).collect()
    }

    fn clean(path: &str, text: &str) {
        assert_eq!(found(path, text), Vec::<String>::new());
    }

    #[test]
    fn the_arrows_have_no_circle() {
        for a in &ROOMS {
            for b in a.uses {
                assert!(ROOMS.iter().any(|room| room.name == *b), "{b} is no room");
                assert!(!reaches(b, a.name), "{} and {b} use each other", a.name);
            }
        }
    }

    #[test]
    fn an_arrow_that_points_back_is_found_however_it_is_written() {
        for text in [
            "use crate::policy::Step;",
            "use crate::{kernels::Fused, policy};",
            "use crate::{\n  policy::{Step, Undo},\n};",
            "use super::policy;",
            "fn a() -> crate::policy::Step {}",
            "use crate :: policy;",
            "use pi0_burn::policy;",
        ] {
            assert_eq!(found("src/model.rs", text).len(), 1, "{text}");
        }
        assert_eq!(found("src/model/head.rs", "use super::super::policy::Step;").len(), 1);
        assert_eq!(
            found("src/model.rs", "\nuse crate::sample;"),
            ["src/model.rs:2: `model` uses `sample`; the arrow points the other way: `sample` uses `model`"]
        );
    }

    #[test]
    fn what_the_arrows_reach_is_allowed() {
        clean(
            "src/model.rs",
            "use crate::kernels::Fused;\nuse crate::model::Norm;\nuse super::head;\n// crate::policy",
        );
        clean("src/model/head.rs", "use super::policy_head;\nuse super::data::Own;\nlet a = \"crate::policy\";");
        clean("src/train/loss.rs", "use crate::{model, policy, sample};");
        clean("src/lib.rs", "pub mod cli;\nuse crate::policy;");
        clean("src/train.rs", "mod config;\nuse config::Schedule;\nlet a = device::local();");
        clean("src/policy.rs", "use std::path::Path;\nuse serde::de;");
        clean("converters/orbax/src/tree.rs", "use ocdbt::Database;\nuse crate::policy::Own;");
        clean("tests/convert.rs", "use pi0_burn::cli;");
    }

    #[test]
    fn weight_files_are_touched_by_weights_and_converters_alone() {
        for name in ["orbax", "remap", "safetensors"] {
            let text = format!("use {name}::Open;");
            assert_eq!(found("src/train.rs", &text).len(), 1, "{name}");
            assert_eq!(found("src/sample/flow.rs", &format!("let a = {name}::open();")).len(), 1, "{name}");
            clean("src/weights.rs", &text);
            clean("src/cli/inspect.rs", &text);
        }
    }

    #[test]
    fn configuration_and_device_are_read_by_the_command_line_alone() {
        assert_eq!(found("src/model.rs", "use crate::device::Device;").len(), 1);
        assert_eq!(found("src/train.rs", "use crate::config;").len(), 1);
        assert_eq!(found("src/serve.rs", "use crate::cli::output;").len(), 1);
        clean("src/cli/sample.rs", "use crate::config;\nuse crate::device;");
        clean("src/main.rs", "use pi0_burn::cli;");
    }

    #[test]
    fn policy_and_the_formats_know_no_burn() {
        for text in ["use burn::tensor::Tensor;", "use burn_ndarray::NdArray;", "fn a(b: burn::Tensor) {}"] {
            assert_eq!(found("src/policy/image.rs", text).len(), 1, "{text}");
            assert_eq!(found("converters/remap/src/run.rs", text).len(), 1, "{text}");
            clean("src/model/norm.rs", text);
        }
        clean("src/policy.rs", "let burned = burner::new();");
    }

    #[test]
    fn a_manifest_of_a_format_names_only_what_is_below_it() {
        let path = "converters/orbax/Cargo.toml";
        assert_eq!(found(path, "[dependencies]\nremap.workspace = true\n").len(), 1);
        assert_eq!(found(path, "[dev-dependencies]\nremap = { path = \"../remap\" }\n").len(), 1);
        assert_eq!(found(path, "[dependencies]\nburn-tensor = \"0.22\"\n").len(), 1);
        assert_eq!(found(path, "[target.'cfg(unix)'.dependencies.cubecl]\n").len(), 1);
        assert_eq!(found(path, "[dependencies.pi0-burn]\nworkspace = true\n").len(), 1);
        clean(path, "[package]\nname = \"burn\"\n[dependencies]\n# remap\nocdbt.workspace = true\nserde = \"1\"\n");
        clean("converters/ocdbt/fuzz/Cargo.toml", "[dependencies]\nocdbt = { path = \"..\" }\n");
        clean("Cargo.toml", "[dependencies]\nburn = \"0.22\"\nremap.workspace = true\n");
    }
}
