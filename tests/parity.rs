//! The model computes what JAX computed: every recorded intermediate of every golden set, in order.

#![cfg(feature = "model")]

use std::path::{Path, PathBuf};

use pi0_burn::device::{Precision, device, packs};
use pi0_burn::verify::compare::{Line, compare};
use pi0_burn::verify::record::record;
use pi0_burn::verify::set::Set;
use pi0_burn::weights::load::{Load, load};
use pi0_burn::weights::open::{Choice, Opened};

/// Sets whose weights are there; those of procedural weights are held by `cargo xtask golden`.
fn sets() -> Vec<PathBuf> {
    let golden =
        std::env::var("PI0_TEST_GOLDEN").map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"), PathBuf::from);
    let mut sets: Vec<PathBuf> = std::fs::read_dir(golden)
        .expect("golden/ is there")
        .map(|entry| entry.expect("a folder can be listed").path())
        .filter(|path| path.join("set.toml").is_file())
        .collect();
    sets.sort();
    sets
}

fn compared(path: &Path) -> Option<Vec<Line>> {
    let set = Set::open(path).unwrap_or_else(|e| panic!("{e:#}"));
    let weights = set.weights()?;
    let precision: Precision = set.document.mode.parse().expect("a precision mode");
    let name = std::env::var("PI0_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let device = device(&name).unwrap_or_else(|e| panic!("{e:#}"));
    let opened = Opened::open(&weights, &Choice::default()).unwrap_or_else(|e| panic!("{e:#}"));
    let how = Load {
        from: None,
        parameters: precision.parameters(),
        activations: precision.activations(),
        lora_scale: 1.0,
        threads: 2,
        pack: packs(&device, precision),
        digest: false,
    };
    let pi = load(&opened, &how, &device, &()).unwrap_or_else(|e| panic!("{e:#}")).pi;
    let recording = record(&pi, &set).unwrap_or_else(|e| panic!("{e:#}"));
    Some(compare(&set, &recording))
}

#[test]
fn every_recorded_intermediate_is_within_its_tolerance() {
    let mut wrong = vec![];
    for path in sets() {
        let Some(lines) = compared(&path) else { continue };
        for l in &lines {
            println!(
                "{:20} {:40} max {:.2e} rel {:.2e} cos {:.6} ratio {:?} [{}] {} {}",
                path.file_name().unwrap_or_default().display(),
                l.name,
                l.max_abs,
                l.relative,
                l.cosine,
                l.error_ratio,
                l.allowed,
                if l.ok { "ok" } else { "WRONG" },
                l.fault.as_deref().unwrap_or_default()
            );
        }
        if let Some(first) = lines.iter().find(|l| !l.ok) {
            wrong.push(format!("{}: {first:?}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
