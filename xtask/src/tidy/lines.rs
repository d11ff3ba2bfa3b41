//! What no line, no file and no name may be: placeholders, machine paths, `unsafe`, panics on foreign bytes, printing
//! libraries, headless files, files too long to read, rooms named for nothing.
//!
//! The rules are the tables below; the functions only walk them.

use super::source::{Source, is_word};
use super::{File, Finding};

/// A file longer than this is refused.
const MAX_LINES: usize = 600;
/// A file longer than this is named.
const MANY_LINES: usize = 450;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 8] = ["common", "helper", "helpers", "manager", "misc", "types", "util", "utils"];

/// What holds only on one machine. In halves, so that this table is not its own finding.
const MACHINE_PATHS: [&str; 6] = [
    concat!("/wo", "rk/"),
    concat!("/fa", "rm"),
    concat!("../sh", "ared"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/tm", "p/"),
];

/// A thing that code must not contain.
struct Banned {
    /// The text, in code (comments and strings do not count).
    text: &'static str,
    /// Whether test code may.
    in_tests: bool,
    /// Which files the rule is about.
    applies: fn(&File) -> bool,
    /// What to do instead.
    instead: &'static str,
}

const BANNED: [Banned; 13] = [
    Banned { text: "todo!", in_tests: false, applies: |_| true, instead: "write it, or leave it out" },
    Banned { text: "unimplemented!", in_tests: false, applies: |_| true, instead: "write it, or return an error" },
    Banned { text: "dbg!", in_tests: false, applies: |_| true, instead: "remove it" },
    Banned { text: "#[ignore", in_tests: false, applies: |_| true, instead: "skip at run time and print why" },
    Banned { text: "println!", in_tests: true, applies: is_silent, instead: "return the value; only src/cli prints" },
    Banned { text: "eprintln!", in_tests: true, applies: is_silent, instead: "return the value; only src/cli prints" },
    Banned { text: "print!", in_tests: true, applies: is_silent, instead: "return the value; only src/cli prints" },
    Banned { text: "eprint!", in_tests: true, applies: is_silent, instead: "return the value; only src/cli prints" },
    Banned { text: ".unwrap()", in_tests: true, applies: is_format, instead: "return an error: the bytes are foreign" },
    Banned { text: ".expect(", in_tests: true, applies: is_format, instead: "return an error: the bytes are foreign" },
    Banned { text: ".unwrap_err()", in_tests: true, applies: is_format, instead: "return an error" },
    Banned { text: "unsafe", in_tests: false, applies: is_safe, instead: "keep it in src/kernels or the one mmap.rs" },
    Banned { text: "panic!", in_tests: true, applies: is_format, instead: "return an error: the bytes are foreign" },
];

/// The libraries, and the program outside its one mouth.
fn is_silent(file: &File) -> bool {
    let library = file.path.starts_with("src/") || is_format(file);
    library && !file.is_test() && !file.path.starts_with("src/cli/") && file.path != "src/cli.rs"
}

/// The shipped sources of the format crates.
fn is_format(file: &File) -> bool {
    file.path.starts_with("converters/") && file.path.contains("/src/") && !file.is_test()
}

/// Files in which `unsafe` is refused.
fn is_safe(file: &File) -> bool {
    !file.path.starts_with("src/kernels/") && file.name() != "mmap.rs"
}

/// Holds one file against every rule of this page.
pub(super) fn inspect(file: &File, findings: &mut Vec<Finding>) {
    machine_paths(file, findings);
    if !file.is_rust() {
        return;
    }
    head_and_length(file, findings);
    names(file, findings);
    let source = Source::new(&file.text);
    for (line, code) in source.numbered() {
        for rule in &BANNED {
            let exempt = rule.in_tests && source.in_tests[line - 1];
            if !exempt && contains(code, rule.text) && (rule.applies)(file) {
                let text = format!("`{}` is refused here; {}", rule.text, rule.instead);
                findings.push(Finding::error(&file.path, line, text));
            }
        }
    }
}

/// At most one file maps memory; it is the second place where `unsafe` may stand.
pub(super) fn one_memory_map(files: &[File], findings: &mut Vec<Finding>) {
    for file in files.iter().filter(|file| file.name() == "mmap.rs").skip(1) {
        findings.push(Finding::error(&file.path, 1, "a second mmap.rs; there is one memory-mapping file, use it"));
    }
}

/// Whether `code` contains `what` as a word of its own: `print!` is not in `println!`, nor `unsafe` in `unsafe_code`.
fn contains(code: &str, what: &str) -> bool {
    let edge = |character: Option<char>| !character.is_some_and(is_word);
    let first_is_word = what.chars().next().is_some_and(is_word);
    let last_is_word = what.chars().next_back().is_some_and(is_word);
    code.match_indices(what).any(|(start, _)| {
        (!first_is_word || edge(code[..start].chars().next_back()))
            && (!last_is_word || edge(code[start + what.len()..].chars().next()))
    })
}

fn head_and_length(file: &File, findings: &mut Vec<Finding>) {
    let head = file.text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
    if !head.is_some_and(|line| line.starts_with("//!")) {
        findings.push(Finding::error(&file.path, 1, "no head; say in `//!` lines what the file is and its invariant"));
    }
    let count = file.text.lines().count();
    if count > MAX_LINES && !file.is_test() {
        let text = format!("{count} lines, at most {MAX_LINES}; move the tests beside it, or split it by subject");
        findings.push(Finding::error(&file.path, count, text));
    } else if count > MANY_LINES && !file.is_test() {
        let text = format!("{count} lines, about 400 is the aim; think of moving the tests beside it");
        findings.push(Finding::warning(&file.path, count, text));
    }
}

fn names(file: &File, findings: &mut Vec<Finding>) {
    for part in file.path.trim_end_matches(".rs").split('/') {
        if EMPTY_NAMES.contains(&part) {
            let text = format!("`{part}` names nothing; name the file for the thing in it");
            findings.push(Finding::error(&file.path, 1, text));
        }
    }
    for (line, code) in Source::new(&file.text).numbered() {
        let mut words = code.split(|character: char| !is_word(character)).filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            let inline = word == "mod" && code.contains('{');
            if let Some(name) = words.clone().next().filter(|name| inline && EMPTY_NAMES.contains(name)) {
                let text = format!("`mod {name}` names nothing; name the module for the thing in it");
                findings.push(Finding::error(&file.path, line, text));
            }
        }
    }
}

fn machine_paths(file: &File, findings: &mut Vec<Finding>) {
    for (index, line) in file.text.lines().enumerate() {
        for path in MACHINE_PATHS {
            // `net/home/` is a path inside something else; an absolute one starts a word.
            let absolute = |start: usize| {
                !line[..start]
                    .chars()
                    .next_back()
                    .is_some_and(|character| is_word(character) || "/.}".contains(character))
            };
            if line.match_indices(path).any(|(start, _)| absolute(start)) {
                let text = format!("`{path}` is a path of one machine; use a path in this tree, or an argument");
                findings.push(Finding::error(&file.path, index + 1, text));
            }
        }
    }
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
    fn every_banned_word_is_found_in_code_and_only_there() {
        for rule in &BANNED {
            let path = ["converters/orbax/src/tree.rs", "src/model.rs"];
            for path in path.iter().filter(|path| (rule.applies)(&file(path, ""))) {
                let planted = found(path, &format!("//! A.\nfn a() {{ b {} }}\n", rule.text));
                assert_eq!(planted.len(), 1, "{} in {path}", rule.text);
                assert!(planted[0].starts_with(&format!("{path}:2: `{}`", rule.text)), "{planted:?}");
                clean(path, &format!("//! A.\n// {0}\nconst A: &str = \"{0}\";\n", rule.text));
            }
        }
    }

    #[test]
    fn a_format_crate_may_unwrap_in_its_tests_alone() {
        let text = "//! A.\nfn a() { b().unwrap(); }\n#[cfg(test)]\nmod tests {\n fn c() { d().unwrap(); }\n}\n";
        let lines = found("converters/ocdbt/src/node.rs", text);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("converters/ocdbt/src/node.rs:2: `.unwrap()`"), "{lines:?}");
        clean("converters/ocdbt/src/node/tests.rs", text);
        clean("src/model.rs", text);
    }

    #[test]
    fn only_the_command_line_prints() {
        let text = "//! A.\nfn a() { eprintln!(); }\n";
        assert_eq!(found("src/sample.rs", text).len(), 1);
        assert_eq!(found("src/main.rs", text).len(), 1);
        assert_eq!(found("converters/remap/src/plan.rs", text).len(), 1);
        clean("src/cli/output.rs", text);
        clean("xtask/src/main.rs", text);
    }

    #[test]
    fn unsafe_code_stands_in_kernels_and_one_mmap_file() {
        let text = "//! A.\nfn a() { unsafe { b() } }\n";
        assert_eq!(found("src/model.rs", text).len(), 1);
        assert_eq!(found("src/weights/mmap_b.rs", text).len(), 1);
        clean("src/kernels/attention.rs", text);
        clean("src/weights/mmap.rs", text);
        clean("src/lib.rs", "//! A.\n#![forbid(unsafe_code)]\n");
        let mut findings = Vec::new();
        one_memory_map(&[file("a/mmap.rs", ""), file("b/mmap.rs", "")], &mut findings);
        assert_eq!(findings.len(), 1);
    }

    #[test]
    fn a_file_without_a_head_is_refused() {
        assert_eq!(found("src/model.rs", "fn a() {}\n").len(), 1);
        assert_eq!(found("src/model.rs", "").len(), 1);
        clean("src/model.rs", "#![no_main]\n//! The model.\n");
    }

    #[test]
    fn a_long_file_is_named_and_a_very_long_one_refused() {
        let text = |lines: usize| "//! A.\n".repeat(lines);
        clean("src/model.rs", &text(MANY_LINES));
        assert!(found("src/model.rs", &text(MANY_LINES + 1))[0].contains(": warning: 451 lines"));
        assert!(found("src/model.rs", &text(MAX_LINES + 1))[0].contains(":601: 601 lines, at most 600"));
        clean("src/model/tests.rs", &text(MAX_LINES + 1));
    }

    #[test]
    fn a_module_named_for_nothing_is_refused() {
        assert_eq!(found("src/utils.rs", "//! A.\n").len(), 1);
        assert_eq!(found("src/common/axis.rs", "//! A.\n").len(), 1);
        assert_eq!(found("src/model.rs", "//! A.\npub(crate) mod helpers {\n}\n").len(), 1);
        clean("src/typeset.rs", "//! A.\nmod utilities {\n}\nfn types() {}\n");
    }

    #[test]
    fn a_path_of_one_machine_is_found_in_any_text() {
        for path in MACHINE_PATHS {
            for text in [format!("see {path}x"), format!("\"{path}x\""), format!("dir={path}x")] {
                assert_eq!(found("README.md", &text).len(), 1, "{text}");
            }
        }
        clean("README.md", concat!("https://example.org/ho", "me/page net/wo", "rk/x"));
        clean("README.md", concat!("${RUNNER}/ho", "me/x"));
    }
}
