//! A run from end to end with scripts in place of the programs, and what a machine without a GPU is told.

use clap::Parser;

use super::child::script;
use super::machine::Gpu;
use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
    Line::try_parse_from(["gpu"].iter().chain(words)).map(|line| line.arguments)
}

fn machine(gpus: Vec<Gpu>) -> Machine {
    Machine {
        processor: None,
        cores: 1,
        memory_bytes: None,
        system: None,
        kernel: None,
        rustc: None,
        commit: None,
        gpus,
        driver_cuda: Some("13.0".into()),
    }
}

#[test]
fn devices_are_known_by_their_features() {
    for (device, feature) in [("cuda:0", "cuda"), ("cuda:7", "cuda"), ("cuda", "cuda"), ("wgpu", "wgpu")] {
        let arguments = parse(&["--device", device]).unwrap();
        assert_eq!(features(&arguments.device), [feature]);
    }
    assert!(features(&parse(&["--device", "cpu"]).unwrap().device).is_empty());
    assert_eq!(parse(&["--device", "cuda"]).unwrap().device, "cuda:0");
    for device in ["gpu", "cuda:x", "cuda0", "CPU"] {
        assert!(parse(&["--device", device]).is_err(), "{device}");
    }
    assert!(parse(&["--prepare", "a", "--programs", "b"]).is_err());
    assert!(parse(&["--runs", "0"]).is_err());
    assert_eq!(parse(&["--only", "parity,sample"]).unwrap().only, [Trial::Parity, Trial::Sample]);
}

#[test]
fn every_missing_thing_comes_with_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let probed = probe("cuda:0", Some(empty.path()), &machine(Vec::new()));
    let said = |name: &str| {
        let item = probed.items.iter().find(|item| item.name == name).unwrap();
        assert_eq!(item.verdict, Verdict::Failed, "{name}: {}", item.says);
        item.says.clone()
    };
    assert!(said("GPU").contains("comes with the driver"));
    let toolkit = said("NVRTC and headers");
    assert!(toolkit.contains("nvidia-cuda-crt==13.0.*") && toolkit.contains("CUDA_PATH"), "{toolkit}");
    assert!(probed.environment.is_empty());

    let two = Gpu { name: "A".into(), driver: "1".into(), memory_mib: None, compute_capability: None };
    let found = gpu("cuda:1", &machine(vec![two.clone(), two.clone()]));
    assert_eq!(found.verdict, Verdict::Passed);
    assert!(gpu("cuda:2", &machine(vec![two])).says.contains("none has number 2"));
}

/// A tree with one golden set, and a folder with scripts in place of the programs.
fn stage(pi0: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let set = root.path().join("golden/tiny");
    let programs = root.path().join("programs");
    for folder in [&set, &programs] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(set.join("set.toml"), "weights = \"model.safetensors\"\n").unwrap();
    let parity = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'";
    for (name, text) in [("pi0", pi0), ("parity", parity), ("training", parity), ("chunking", parity)] {
        script(programs.join(name), text);
    }
    let output = root.path().join("out");
    (root, programs, output)
}

#[test]
fn a_rehearsal_on_the_cpu_takes_the_same_way_to_a_report() {
    let (root, programs, output) = stage("echo '{\"chunk_ms\": [1.5, 2.5]}'");
    let words = ["--device", "cpu", "--programs", programs.to_str().unwrap(), "--output", output.to_str().unwrap()];
    assert!(run(root.path(), &parse(&words).unwrap()).unwrap());
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(output.join("report.json")).unwrap()).unwrap();
    let stages: Vec<&str> = json["stages"].as_array().unwrap().iter().filter_map(|it| it["stage"].as_str()).collect();
    assert_eq!(stages, ["probe", "build", "parity", "training", "chunking", "verify", "sample"]);
    assert_eq!(json["stages"][6]["items"][0]["chunks"]["p50_ms"], 1.5);
    let page = std::fs::read_to_string(output.join("report.md")).unwrap();
    assert!(page.contains("| model.safetensors, f32 | 1.50 | 2.50 | 1.50 | 2 |"), "{page}");
    assert!(output.join("verify-tiny.out").exists());
}

#[test]
fn full_size_weights_are_made_only_for_whom_asks() {
    let folder = tempfile::tempdir().unwrap();
    let weights = Weights::Procedural { model: "pi0".into(), tiny: false };
    let refused = checkpoint_of(&weights, folder.path(), &["pi05".into()]).unwrap_err();
    assert_eq!((refused.verdict, refused.says.contains("--synthetic pi0")), (Verdict::Skipped, true));
    // Made once: what is there is taken.
    std::fs::create_dir_all(folder.path().join("synthetic-pi0/params")).unwrap();
    let taken = checkpoint_of(&weights, folder.path(), &["pi0".into()]).unwrap();
    assert_eq!(taken, folder.path().join("synthetic-pi0"));
    let stored = checkpoint_of(&Weights::Stored("w".into()), folder.path(), &[]).unwrap();
    assert_eq!(stored, Path::new("w"));
}

#[test]
fn a_failed_trial_fails_the_run_and_the_others_are_still_made() {
    let (root, programs, output) = stage("case $1 in verify) exit 1;; *) echo '{\"chunk_ms\": [1]}';; esac");
    let words = ["--device", "cpu", "--programs", programs.to_str().unwrap(), "--output", output.to_str().unwrap()];
    assert!(!run(root.path(), &parse(&words).unwrap()).unwrap());
    let page = std::fs::read_to_string(output.join("report.md")).unwrap();
    assert!(page.contains("| **verify** | **FAILED** |") && page.contains("| **sample** | **passed** |"), "{page}");

    let words = [&words[..], &["--only", "parity"]].concat();
    assert!(run(root.path(), &parse(&words).unwrap()).unwrap());
}

#[test]
fn a_device_that_lacks_something_is_not_tried() {
    let (root, programs, output) = stage("exit 9");
    let empty = root.path().join("programs");
    let mut words = vec!["--device", "cuda:65535", "--programs", programs.to_str().unwrap()];
    words.extend(["--output", output.to_str().unwrap(), "--cuda-path", empty.to_str().unwrap()]);
    assert!(!run(root.path(), &parse(&words).unwrap()).unwrap());
    let page = std::fs::read_to_string(output.join("report.md")).unwrap();
    assert!(page.contains("| **probe** | **FAILED** |") && page.contains("| **sample** | **skipped** |"), "{page}");
}
