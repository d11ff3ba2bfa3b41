//! What the tree owes the reader: a map of the rooms in the README, a tour in `lib.rs`, a reason for every dependency,
//! a lock file in which nothing downloads a compiler, a build of the formats that does not drag Burn along, and a default
//! build that does not drag a GPU along.

use std::path::Path;
use std::process::Command;

use super::{File, Finding};

/// Where the pieces stand.
const README: &str = "README.md";
const TOUR: &str = "src/lib.rs";
const MANIFEST: &str = "Cargo.toml";
const LOCK: &str = "Cargo.lock";

/// A build of the program, and what must not be in it.
struct Build {
    /// Arguments of `cargo tree` that choose it.
    choice: &'static [&'static str],
    called: &'static str,
    /// Beginnings of the names of crates.
    without: &'static [&'static str],
    /// Why, and what to do instead.
    instead: &'static str,
}

const BUILDS: [Build; 2] = [
    Build {
        choice: &["--no-default-features"],
        called: "the build without default features",
        without: &["burn", "cubecl"],
        instead: "`convert` and `inspect` build without Burn: put it behind a default feature",
    },
    Build {
        choice: &[],
        called: "the default build",
        without: &["cubecl-core", "cubecl-cuda", "cubecl-llvm", "cudarc", "wgpu"],
        instead: "it builds without a GPU's crates: put it behind the feature `cuda` or `wgpu`",
    },
];

/// How cargo lists the crates of a build.
const TREE: [&str; 10] = ["tree", "--locked", "-p", "pi0-burn", "-e", "normal", "--prefix", "none", "--format", "{p}"];

/// A crate that downloads a compiler when it is built, and what stands in for what needs it.
const DOWNLOADER: &str = "name = \"tracel-llvm-bundler\"";
const STAND_IN: &str = "vendor/cubecl-llvm stands in for the crate that needs it: give both one version";

/// Holds the whole tree against the rules of this page.
pub(super) fn inspect(files: &[File], findings: &mut Vec<Finding>) {
    map_of_rooms(files, findings);
    tour(files, findings);
    reasons(files, findings);
    let Some(lock) = text_of(files, LOCK) else {
        findings.push(Finding::error(LOCK, 1, "missing; run `cargo generate-lockfile` and commit it"));
        return;
    };
    if let Some(index) = lock.lines().position(|line| line == DOWNLOADER) {
        findings.push(Finding::error(LOCK, index + 1, format!("a crate that downloads LLVM is locked; {STAND_IN}")));
    }
}

fn text_of<'a>(files: &'a [File], path: &str) -> Option<&'a str> {
    files.iter().find(|file| file.path == path).map(|file| file.text.as_str())
}

/// Every top-level folder stands in the README's map as `name/`.
fn map_of_rooms(files: &[File], findings: &mut Vec<Finding>) {
    let Some(readme) = text_of(files, README) else {
        findings.push(Finding::error(README, 1, "missing; write it, with a map of the rooms"));
        return;
    };
    let mut rooms: Vec<&str> = files.iter().filter_map(|file| Some(file.path.split_once('/')?.0)).collect();
    rooms.dedup();
    for room in rooms.into_iter().filter(|room| !room.starts_with('.')) {
        let named = readme.match_indices(&format!("{room}/")).any(|(start, _)| {
            let before = readme[..start].chars().next_back();
            !before.is_some_and(|character| character.is_alphanumeric() || "_-/.".contains(character))
        });
        if !named {
            let text = format!("the folder `{room}/` is not in the map of the rooms; say in one line what is in it");
            findings.push(Finding::error(README, 1, text));
        }
    }
}

/// Every module directly under `src/` stands in the `//!` lines of `lib.rs`, in backquotes.
fn tour(files: &[File], findings: &mut Vec<Finding>) {
    let Some(lib) = text_of(files, TOUR) else { return };
    let tour: String = lib.lines().filter(|line| line.starts_with("//!")).collect();
    let mut modules: Vec<&str> = files
        .iter()
        .filter(|file| file.is_rust())
        .filter_map(|file| file.path.strip_prefix("src/")?.split('/').next())
        .map(|name| name.trim_end_matches(".rs"))
        .filter(|name| !matches!(*name, "lib" | "main" | "bin"))
        .collect();
    modules.dedup();
    for module in modules {
        if !tour.contains(&format!("`{module}`")) {
            let text = format!("the tour does not name `{module}`; add its line, with its invariant, in reading order");
            findings.push(Finding::error(TOUR, 1, text));
        }
    }
}

/// Every shared dependency says on its own line why it is there; our own crates explain themselves.
fn reasons(files: &[File], findings: &mut Vec<Finding>) {
    let Some(manifest) = text_of(files, MANIFEST) else { return };
    let mut inside = false;
    for (index, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            inside = line == "[workspace.dependencies]";
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| inside && !line.starts_with('#')) else { continue };
        let reason = value.rsplit_once('#').is_some_and(|(_, reason)| !reason.trim().is_empty());
        if !reason && !value.contains("path =") {
            let text = format!("`{}` has no reason; say in a comment on its line what it is for", name.trim());
            findings.push(Finding::error(MANIFEST, index + 1, text));
        }
    }
}

/// Asks cargo what the program's builds are made of.
pub(super) fn builds(root: &Path) -> Vec<Finding> {
    BUILDS.iter().flat_map(|build| made_of(root, build)).collect()
}

fn made_of(root: &Path, build: &Build) -> Vec<Finding> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    match Command::new(cargo).args(TREE).args(build.choice).current_dir(root).output() {
        Ok(out) if out.status.success() => heavy(&String::from_utf8_lossy(&out.stdout), build),
        Ok(out) => {
            let error = String::from_utf8_lossy(&out.stderr);
            let error = error.lines().next().unwrap_or("no message").to_owned();
            let command = TREE.iter().chain(build.choice).copied().collect::<Vec<_>>().join(" ");
            vec![Finding::error(MANIFEST, 1, format!("cargo tree failed: {error}; run `cargo {command}`"))]
        }
        Err(error) => vec![Finding::error(MANIFEST, 1, format!("cannot run cargo tree: {error}"))],
    }
}

/// The crates of a `cargo tree` listing that the build must not hold.
fn heavy(listing: &str, build: &Build) -> Vec<Finding> {
    let mut crates: Vec<&str> = listing.lines().filter_map(|line| line.split_whitespace().next()).collect();
    crates.sort_unstable();
    crates.dedup();
    let heavy = crates.into_iter().filter(|name| build.without.iter().any(|heavy| name.starts_with(heavy)));
    heavy
        .map(|name| Finding::error(MANIFEST, 1, format!("`{name}` is in {}; {}", build.called, build.instead)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    const MAP: &str = "## Rooms\n\nsrc/  the toolkit\n- `xtask/` housekeeping\n";

    /// The findings about `path` in a tree that is otherwise in order.
    fn found(path: &str, text: &str, others: &[File]) -> Vec<String> {
        let mut files = vec![file(path, text)];
        for (path, text) in [(README, MAP), (TOUR, "//! - [`model`]: the network\n"), (MANIFEST, ""), (LOCK, "")] {
            if !files.iter().any(|file| file.path == path) {
                files.push(file(path, text));
            }
        }
        files.extend(others.iter().map(|other| file(&other.path, &other.text)));
        let mut findings = Vec::new();
        inspect(&files, &mut findings);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_folder_that_the_map_does_not_name_is_refused() {
        let missing = found("configs/model/pi0.toml", "", &[]);
        assert_eq!(missing.len(), 1);
        assert!(missing[0].starts_with("README.md:1: the folder `configs/`"), "{missing:?}");
        // `a/src/` names another folder.
        assert_eq!(found(README, "see a/src/\n", &[]).len(), 1);
        assert!(found(".ci/run", "", &[file("xtask/src/main.rs", "")]).is_empty());
    }

    #[test]
    fn a_tree_without_readme_or_lock_is_refused() {
        let mut findings = Vec::new();
        inspect(&[file("Cargo.toml", "")], &mut findings);
        assert_eq!(findings.iter().map(|finding| finding.path.as_str()).collect::<Vec<_>>(), [README, LOCK]);
    }

    #[test]
    fn a_module_that_the_tour_passes_by_is_refused() {
        for path in ["src/sample.rs", "src/sample/flow.rs"] {
            let missing = found(path, "", &[]);
            assert_eq!(missing.len(), 1);
            assert!(missing[0].contains("the tour does not name `sample`"), "{missing:?}");
        }
        assert!(found("src/model/head.rs", "", &[file("src/model.rs", ""), file("src/main.rs", "")]).is_empty());
        // A comment that is not the tour does not count.
        assert_eq!(found(TOUR, "// `model`\n", &[file("src/model.rs", "")]).len(), 1);
    }

    #[test]
    fn a_dependency_without_a_reason_is_refused() {
        let manifest = "[workspace.dependencies]\n# Formats.\nocdbt = { path = \"a\" }\nhalf = \"2\" # bf16\n\
                        zip = \"9\"\nregex = \"1\" #\n\
                        [package]\nname = \"b\"\n";
        let lines = found(MANIFEST, manifest, &[]);
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].starts_with("Cargo.toml:5: `zip`") && lines[1].starts_with("Cargo.toml:6: `regex`"),
            "{lines:?}"
        );
    }

    #[test]
    fn burn_in_the_build_without_default_features_is_refused() {
        let listing = "pi0-burn v0.1.0 (/a/burn)\nburn-tensor v0.22.0\ncubecl v0.9.0\nburn-tensor v0.22.0 (*)\n";
        assert_eq!(heavy(listing, &BUILDS[0]).len(), 2);
        assert!(heavy("pi0-burn v0.1.0\nzstd v0.13.3\n", &BUILDS[0]).is_empty());
    }

    #[test]
    fn a_gpu_in_the_default_build_is_refused() {
        let listing = "pi0-burn v0.1.0 (/a/burn)\nburn-flex v0.22.1\ncubecl-common v0.11.3\n";
        assert!(heavy(listing, &BUILDS[1]).is_empty());
        let with = heavy(&format!("{listing}cubecl-llvm v0.11.3 (/a/vendor)\nwgpu-core v1.0.0\n"), &BUILDS[1]);
        assert_eq!(with.len(), 2);
        assert!(with[0].text.starts_with("`cubecl-llvm` is in the default build; "), "{with:?}");
    }

    #[test]
    fn a_crate_that_downloads_a_compiler_is_refused() {
        let lock = "[[package]]\nname = \"tracel-llvm-bundler\"\nversion = \"23.1.0-4\"\n";
        let lines = found(LOCK, lock, &[]);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("Cargo.lock:2: a crate that downloads LLVM"), "{lines:?}");
        assert!(found(LOCK, "[[package]]\nname = \"cubecl-llvm\"\n", &[]).is_empty());
    }
}
