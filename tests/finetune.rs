//! `pi0 finetune` as people meet it: a tiny model learns a shipped dataset, and what it leaves is sampled, verified, converted
//! and read back; a run that was stopped ends with the same bytes as one that was not.

#![cfg(feature = "model")]

mod tool;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tool::{done, pi0, refused};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// One of the tiny models, and the preset that trains it.
#[derive(Clone, Copy)]
struct Model {
    folder: &'static str,
    config: &'static str,
    more: &'static [&'static str],
}

const PI0: Model = Model { folder: "pi0", config: "pi0_libero", more: &[] };
const PI05: Model = Model { folder: "pi05", config: "pi05_libero", more: &[] };
const FAST: Model = Model { folder: "pi0_fast", config: "pi0_fast_libero", more: &["--fast-tokenizer", "FAST"] };
const LORA: Model = Model { folder: "pi0", config: "pi0_libero_low_mem_finetune", more: &[] };

/// A run's command line in `base`.
fn command(model: Model, base: &Path, exp: &str, steps: u64, more: &[&str]) -> Vec<String> {
    let from = fixtures().join("checkpoints/policy").join(model.folder);
    let fast = text(&fixtures().join("tokenizer/fast_tiny"));
    let mut all: Vec<String> = [
        "finetune",
        "--config",
        model.config,
        "--checkpoint-dir",
        &text(&from),
        "--dataset",
        &text(&fixtures().join("lerobot/libero_png")),
        "--norm-stats",
        &text(&from.join("assets")),
        "--exp-name",
        exp,
        "--num-train-steps",
        &steps.to_string(),
    ]
    .map(str::to_owned)
    .to_vec();
    all.extend(model.more.iter().map(|word| if *word == "FAST" { fast.clone() } else { (*word).to_owned() }));
    let overrides = [
        &format!("checkpoint_base_dir={}", base.display()),
        "model.dtype=float32",
        "batch_size=4",
        "lr_schedule.warmup_steps=5",
        "lr_schedule.peak_lr=5e-3",
        "lr_schedule.decay_steps=200",
        "lr_schedule.decay_lr=1e-3",
        "log_interval=1",
        "num_workers=1",
    ];
    for one in overrides {
        all.extend(["--override".to_owned(), (*one).to_owned()]);
    }
    all.extend(more.iter().map(|word| (*word).to_owned()));
    all
}

fn losses(run: &Path) -> Vec<f64> {
    let lines = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    let loss = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64().expect("a loss");
    lines.lines().map(loss).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Everything of a step but the clock: names and bytes.
fn contents(step: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = vec![];
    let mut folders = vec![step.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = text(path.strip_prefix(step).expect("inside"));
            let mut bytes = std::fs::read(&path).expect("bytes");
            if name.ends_with("state.json") {
                let mut state: Value = serde_json::from_slice(&bytes).expect("JSON");
                state["run"]["seconds"] = Value::Null;
                // The preset's echo names the run.
                state["run"]["config"] = Value::Null;
                bytes = serde_json::to_vec(&state).expect("JSON");
            }
            found.push((name, bytes));
        }
    }
    found.sort();
    found
}

fn alike(a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    let names = |all: &[(String, Vec<u8>)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        assert!(a == b, "{name} differs");
    }
}

/// Learns until the loss has halved, then goes round the whole circle.
fn learns_and_comes_home(model: Model, steps: u64, more: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    done(&command(model, folder.path(), "half", steps, more));
    let run = folder.path().join(model.config).join("half");
    let losses = losses(&run);
    let (first, last) = (mean(&losses[..5]), mean(&losses[losses.len() - 10..]));
    assert!(last <= first / 2.0, "{}: the loss was {first} and is {last}", model.config);
    for file in ["report.html", "config.toml", "metrics.jsonl"] {
        assert!(run.join(file).is_file(), "{file}");
    }

    // Sampled: the run's step is all that is needed.
    let step = run.join((steps - 1).to_string());
    let (from, data) = (text(&step), text(&fixtures().join("lerobot/libero_png")));
    let mut sample = vec!["sample", "--checkpoint-dir", &from, "--config", model.config, "--dataset", &data];
    sample.extend(["--frame", "3", "--json"]);
    if model.folder == "pi0_fast" {
        // A tiny model that speaks in tokens may answer with what is no chunk.
        sample.extend(["--on-malformed", "zeros"]);
    }
    let sample: Value = serde_json::from_str(&done(&sample)).expect("JSON");
    assert!(sample.is_object());

    // Verified and converted: JAX and back is the same model to the bit.
    let (jax, back) = (folder.path().join("jax"), folder.path().join("back.safetensors"));
    let convert = |from: &Path, to: &Path, more: &[&str]| {
        let mut all = vec!["convert".to_owned(), "--checkpoint-dir".into(), text(from), "--output".into(), text(to)];
        all.extend(more.iter().map(|word| (*word).to_owned()));
        done(&all)
    };
    convert(&step, &jax, &["--to", "jax"]);
    convert(&jax, &back, &[]);
    let (own, home) = (tool::tensors(&step.join("params/model.safetensors")), tool::tensors(&back));
    assert_eq!(own.len(), home.len());
    for (name, tensor) in &own {
        assert_eq!(Some(tensor), home.get(name), "{name}");
    }
    done(&["verify", "--checkpoint", &text(&step), "--against", &text(&jax)]);
}

#[test]
fn a_tiny_pi0_learns_and_comes_home() {
    learns_and_comes_home(PI0, 100, &[]);
}

#[test]
fn a_tiny_pi05_learns_and_comes_home() {
    // Its average is slow: what is served is to have learned too.
    learns_and_comes_home(PI05, 100, &["--override", "ema_decay=0.9"]);
}

#[test]
fn a_tiny_pi0_fast_learns_and_comes_home() {
    learns_and_comes_home(FAST, 100, &[]);
}

#[test]
fn low_rank_pairs_on_a_base_without_them_learn_and_come_home() {
    learns_and_comes_home(LORA, 100, &[]);
    // What is frozen is what it was.
    let folder = tempfile::tempdir().expect("a folder");
    done(&command(LORA, folder.path(), "frozen", 2, &[]));
    let step = folder.path().join(LORA.config).join("frozen/1");
    let base = folder.path().join("base.safetensors");
    let from = text(&fixtures().join("checkpoints/policy/pi0"));
    done(&["convert", "--checkpoint-dir", &from, "--output", &text(&base)]);
    let (base, trained) = (tool::tensors(&base), tool::tensors(&step.join("params/model.safetensors")));
    let changed: Vec<&String> = base.keys().filter(|name| base[*name] != trained[*name]).collect();
    assert!(!changed.is_empty() && changed.iter().all(|name| !name.starts_with("llm.")), "{changed:?}");
    assert!(base.keys().any(|name| name.starts_with("llm.blocks.")));
    assert!(trained.keys().any(|name| name.ends_with("q.lora_a")), "the pairs are kept");
    // Merged, it is a model without pairs.
    let merged = folder.path().join("merged.safetensors");
    done(&["convert", "--checkpoint-dir", &text(&step), "--lora", "merge", "--output", &text(&merged)]);
    assert!(tool::tensors(&merged).keys().eq(base.keys()));
}

/// Begins a run and kills it without warning after a while.
fn killed(arguments: &[String], after: Duration) -> bool {
    let mut child: Child = Command::new(env!("CARGO_BIN_EXE_pi0"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pi0 starts");
    let began = Instant::now();
    while began.elapsed() < after {
        if let Some(status) = child.try_wait().expect("a child") {
            assert!(status.success(), "pi0 {arguments:?}");
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("kill -9");
    child.wait().expect("its end");
    true
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_bytes_of_one_that_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    // Saved after every step, so that most kills fall into a save.
    let often = ["--override", "save_interval=1", "--override", "max_to_keep=2"];
    let steps = 16;
    done(&command(PI05, folder.path(), "whole", steps, &often));
    let began = Instant::now();
    let (mut kills, mut tries) = (0, 0);
    loop {
        let again = [&often[..], &["--resume"]].concat();
        tries += 1;
        // Later and later, so that it comes to its end on any machine.
        let after = Duration::from_millis(250 + 130 * tries);
        if !killed(&command(PI05, folder.path(), "killed", steps, &again), after) {
            break;
        }
        kills += 1;
        assert!(began.elapsed() < Duration::from_secs(600), "it never comes to its end");
    }
    println!("killed {kills} times");
    assert!(kills > 0, "nothing was killed");
    let run = |name: &str| folder.path().join(PI05.config).join(name);
    let last = (steps - 1).to_string();
    alike(&run("whole").join(&last), &run("killed").join(&last));
    // The journal tells of every step once, however often it was made.
    let steps_of = |name: &str| {
        let lines = std::fs::read_to_string(run(name).join("metrics.jsonl")).expect("metrics.jsonl");
        let field = |line: &str, key: &str| serde_json::from_str::<Value>(line).expect("JSON")[key].clone();
        lines.lines().map(|line| (field(line, "step"), field(line, "loss"))).collect::<Vec<_>>()
    };
    assert_eq!(steps_of("whole"), steps_of("killed"));
    let left: Vec<_> = std::fs::read_dir(run("killed")).expect("the run").filter_map(|e| e.ok()).collect();
    let hidden = left.iter().filter(|e| e.file_name().to_string_lossy().contains(".part")).count();
    assert_eq!(hidden, 0, "half a step is left");
}

#[test]
fn an_orbax_run_is_taken_up_to_the_same_bytes_and_a_signal_saves() {
    let folder = tempfile::tempdir().expect("a folder");
    let orbax = ["--checkpoint-format", "orbax", "--override", "save_interval=100"];
    done(&command(LORA, folder.path(), "whole", 6, &orbax));
    // A signal in the middle: it saves, says so, and is no error.
    let arguments = command(LORA, folder.path(), "stopped", 6, &[&orbax[..], &["--json"]].concat());
    let child = Command::new(env!("CARGO_BIN_EXE_pi0")).args(&arguments).stdout(Stdio::piped()).spawn().expect("pi0");
    let run = |name: &str| folder.path().join(LORA.config).join(name);
    let began = Instant::now();
    while std::fs::read_to_string(run("stopped").join("metrics.jsonl")).map_or(0, |m| m.lines().count()) < 2 {
        assert!(began.elapsed() < Duration::from_secs(300), "no step was made");
        std::thread::sleep(Duration::from_millis(2));
    }
    let signal = Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().expect("sh");
    assert!(signal.success());
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let made = told["steps"].as_u64().expect("steps");
    if made < 6 {
        assert_eq!(told["stopped"], true);
        assert!(run("stopped").join((made - 1).to_string()).is_dir(), "the signal saved");
    }
    done(&command(LORA, folder.path(), "stopped", 6, &[&orbax[..], &["--resume"]].concat()));
    // The folder has the time of its writing in it: what it holds is compared.
    for part in [&["--weights", "ema"][..], &["--weights", "raw"], &["--weights", "mu"], &["--weights", "nu"]] {
        let read = |name: &str| {
            let to = folder.path().join(format!("{name}.safetensors"));
            let (from, out) = (text(&run(name).join("5")), text(&to));
            let all = ["convert", "--checkpoint-dir", &from, "--output", &out, "--overwrite", "--lora", "keep"];
            done(&[&all[..], part].concat());
            tool::tensors(&to)
        };
        assert_eq!(read("whole"), read("stopped"), "{part:?}");
    }
}

#[test]
fn two_devices_make_of_a_batch_what_one_makes_of_it_in_two_parts() {
    let folder = tempfile::tempdir().expect("a folder");
    done(&command(PI0, folder.path(), "two", 4, &["--device", "cpu,cpu"]));
    done(&command(PI0, folder.path(), "parts", 4, &["--override", "gradient_accumulation=2"]));
    done(&command(PI0, folder.path(), "one", 4, &[]));
    let run = |name: &str| folder.path().join(PI0.config).join(name);
    let weights = |name: &str| tool::tensors(&run(name).join("3/train_state/raw.safetensors"));
    assert_eq!(weights("two"), weights("parts"), "the same sums in the same order");
    // In one part sums have another order.
    for (a, b) in losses(&run("two")).iter().zip(losses(&run("one"))) {
        assert!((a - b).abs() <= 1e-3 * b, "{a} {b}");
    }
    let refused = refused(&command(PI0, folder.path(), "odd", 4, &["--device", "cpu,cpu,cpu"]));
    assert!(refused.contains("4 examples cannot be cut into 3 equal parts"), "{refused}");
}

#[test]
fn other_kinds_of_weights_begin_the_same_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = text(&fixtures().join("checkpoints/policy/pi0"));
    done(&command(PI0, folder.path(), "jax", 2, &[]));
    let jax = folder.path().join(PI0.config).join("jax/1/train_state/raw.safetensors");
    for scheme in ["openpi-torch", "lerobot"] {
        let other = folder.path().join(scheme);
        let robot = ["--asset-id", "physical-intelligence/libero"];
        done(
            &[&["convert", "--checkpoint-dir", &base, "--to", scheme, "--output", &text(&other)][..], &robot].concat(),
        );
        let mut arguments =
            command(PI0, folder.path(), scheme, 2, &["--tokenizer", &format!("{base}/paligemma_tokenizer.model")]);
        let at = arguments.iter().position(|word| word == "--checkpoint-dir").expect("it is named");
        arguments[at + 1] = text(&other);
        done(&arguments);
        let run = folder.path().join(PI0.config).join(scheme).join("1/train_state/raw.safetensors");
        assert_eq!(tool::tensors(&jax), tool::tensors(&run), "{scheme}");
    }
}

#[test]
fn paligemma_begins_a_pi0_and_the_rest_begins_by_chance() {
    let folder = tempfile::tempdir().expect("a folder");
    let paligemma = folder.path().join("paligemma.safetensors");
    let fast = text(&fixtures().join("checkpoints/base/pi0fast/params"));
    done(&["convert", "--checkpoint-dir", &fast, "--to", "big_vision", "--output", &text(&paligemma)]);
    let debug = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train/debug.toml"));
    let small = [("paligemma_variant", "tiny_language"), ("action_expert_variant", "tiny_action")];
    let small = small.iter().fold(debug.expect("debug.toml"), |text, (key, variant)| {
        text.replace(&format!("{key} = \"dummy\""), &format!("{key} = \"{variant}\""))
    });
    let preset = folder.path().join("small.toml");
    std::fs::write(&preset, small).expect("a file");
    let run = |exp: &str, seed: &str| {
        let arguments = [
            "finetune",
            "--config",
            &text(&preset),
            "--checkpoint-dir",
            &text(&paligemma),
            "--exp-name",
            exp,
            "--num-train-steps",
            "1",
            "--seed",
            seed,
            "--override",
            &format!("checkpoint_base_dir={}", folder.path().display()),
            "--override",
            "weight_loader=paligemma",
            "--override",
            "model.dtype=float32",
            "--override",
            "lr_schedule.peak_lr=0",
            "--override",
            "lr_schedule.decay_lr=0",
        ];
        done(&arguments);
        tool::tensors(&folder.path().join("small").join(exp).join("0/train_state/raw.safetensors"))
    };
    let (one, same, other) = (run("one", "1"), run("same", "1"), run("other", "2"));
    assert_eq!(one, same);
    // A rate of zero leaves everything as it began.
    let names = folder.path().join("burn.safetensors");
    done(&["convert", "--checkpoint-dir", &fast, "--output", &text(&names)]);
    let known = tool::tensors(&names);
    assert!(known.iter().all(|(name, tensor)| one.get(name) == Some(tensor)), "what PaliGemma has is PaliGemma's");
    let drawn: Vec<&String> = one.keys().filter(|name| !known.contains_key(*name)).collect();
    assert!(drawn.iter().any(|name| name.contains("experts.1.")) && drawn.iter().any(|n| n.starts_with("state_proj")));
    let moved = drawn.iter().filter(|name| one[**name] != other[**name]).count();
    assert!(moved * 2 > drawn.len(), "chance follows from the seed: {moved} of {} differ", drawn.len());
}

#[test]
fn what_cannot_be_done_is_refused_before_the_first_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = done(&command(LORA, folder.path(), "plan", 4, &["--dry-run"]));
    for part in ["trained", "frozen", "memory of cpu", "it fits", "lora_a"] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0, "a plan touches nothing");
    done(&command(PI0, folder.path(), "there", 1, &[]));
    let there = refused(&command(PI0, folder.path(), "there", 1, &[]));
    assert!(there.contains("a run is there already") && there.contains("--resume"), "{there}");
    let seed = refused(&command(PI0, folder.path(), "there", 2, &["--resume", "--seed", "7"]));
    assert!(seed.contains("seed: the run had 42, and now it is 7"), "{seed}");
    let typo = refused(&command(PI0, folder.path(), "typo", 1, &["--override", "lr_schedule.peek_lr=1"]));
    assert!(typo.contains("the nearest is peak_lr"), "{typo}");
    let large = refused(&command(PI0, folder.path(), "large", 1, &["--batch-size", "100000000"]));
    assert!(large.contains("memory: expected"), "{large}");
    let wrong = refused(&command(Model { config: "pi05_libero", ..PI0 }, folder.path(), "wrong", 1, &[]));
    assert!(wrong.contains("it is a pi05, and these tensors are a pi0"), "{wrong}");
    for name in ["typo", "large", "wrong"] {
        assert!(!folder.path().join(PI0.config).join(name).exists(), "{name} left something");
    }
}

#[test]
fn a_loss_that_is_no_number_names_its_batch_and_the_last_good_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let wild = [
        "--override",
        "optimizer.clip_gradient_norm=1e30",
        "--override",
        "lr_schedule.warmup_steps=1",
        "--override",
        "lr_schedule.peak_lr=1e20",
        "--override",
        "save_interval=1",
    ];
    let output = pi0(&command(PI0, folder.path(), "wild", 9, &wild));
    let saved = folder.path().join(PI0.config).join("wild").join("1");
    assert!(!saved.exists(), "weights that are no numbers are not saved");
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8_lossy(&output.stderr);
    for part in ["step 1", "The batch was (dataset, frame) [(0,", "libero_png", "The last good checkpoint:"] {
        assert!(words.contains(part), "{part} in\n{words}");
    }
}

#[test]
fn made_up_data_are_enough_to_try_a_run() {
    // A preset of one's own, small enough for a test: made-up data, weights from chance, a flow's own masks.
    let folder = tempfile::tempdir().expect("a folder");
    let from = fixtures().join("checkpoints/policy/pi0");
    let preset = folder.path().join("mine.toml");
    let debug = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train/debug.toml"));
    std::fs::write(&preset, debug.expect("debug.toml")).expect("a file");
    let arguments = [
        "finetune",
        "--config",
        &text(&preset),
        "--checkpoint-dir",
        &text(&from),
        "--exp-name",
        "fake",
        "--num-train-steps",
        "2",
        "--override",
        &format!("checkpoint_base_dir={}", folder.path().display()),
        "--override",
        "model.max_token_len=12",
        "--override",
        "batch_size=2",
        "--override",
        "loss.mask_padded_steps=true",
        "--json",
    ];
    let told: Value = serde_json::from_str(&done(&arguments)).expect("JSON");
    assert_eq!(told["steps"], 2);
    assert!(told["last_loss"].as_f64().expect("a loss").is_finite());
}
