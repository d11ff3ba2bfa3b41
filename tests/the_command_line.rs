//! The command as people and scripts meet it.

mod tool;

use tool::{checkpoint, done, pi0, refused};

fn convert(more: &[&str]) -> Vec<String> {
    let from = checkpoint("base/pi0/params").display().to_string();
    let mut all = vec!["convert".to_owned(), "--checkpoint-dir".to_owned(), from];
    all.extend(more.iter().map(|s| (*s).to_owned()));
    all
}

#[test]
fn the_same_input_gives_the_same_bytes_wherever_and_however_often() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("elsewhere/params");
    copy_all(&checkpoint("base/pi05/params"), &copy);
    for to in ["burn", "openpi-torch", "jax"] {
        let mut first = None;
        for (i, from) in [checkpoint("base/pi05/params"), copy.clone()].iter().enumerate() {
            let out = folder.path().join(format!("{to}-{i}.safetensors"));
            tool::convert(from, &out, &["--to", to, "--threads", &(i + 1).to_string()]);
            let bytes = std::fs::read(&out).unwrap();
            assert!(*first.get_or_insert(bytes.clone()) == bytes, "{to}");
        }
    }
}

#[test]
fn openpis_and_gigas_spellings_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let from = checkpoint("manager/pi0_noema/7");
    let from = from.to_str().unwrap();
    let out = out.to_str().unwrap();
    done(&["convert", "--checkpoint_dir", from, "--output_path", out, "--precision", "bfloat16"]);
    let params = checkpoint("manager/pi0_noema/7/params");
    let giga = ["convert", "--checkpoint-dir", params.to_str().unwrap(), "--output-path", out, "--overwrite"];
    done(&[&giga[..], &["--tokenizer-id", "a/tiny-one", "--no-pi05-enabled", "--to", "giga"]].concat());
    let listed = done(&["convert", "--checkpoint_dir", from, "--inspect_only"]);
    assert!(listed.contains("pi0 · "), "{listed}");
}

#[test]
fn what_contradicts_the_tensors_is_refused() {
    let words = refused(&convert(&["--pi05-enabled", "--output", "x.safetensors"]));
    assert!(words.contains("--pi05-enabled contradicts the tensors: they are a pi0"), "{words}");
    let words = refused(&convert(&["--config_name", "pi05_droid", "--output", "x.safetensors"]));
    assert!(words.contains("pi05_droid"), "{words}");
    let words = refused(&convert(&["--tokenizer-id", "google/paligemma-3b-pt-224", "--output", "x.safetensors"]));
    assert!(words.contains("it has 257152 pieces, the embedding has 512 rows"), "{words}");
    let words = refused(&convert(&["--config_name", "pi0_alhoa", "--output", "x.safetensors"]));
    assert!(words.contains("pi0_aloha"), "{words}");
}

#[test]
fn a_dry_run_writes_nothing_and_tells_all() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.safetensors");
    let text = done(&convert(&["--dry-run", "--json", "--output", out.to_str().unwrap()]));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["tensors"].as_array().unwrap().len(), 50);
    assert_eq!(report["outputs"].as_array().unwrap().len(), 122);
    assert_eq!(report["target"]["written"], false);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_json_report_has_the_hash_of_every_tensor_as_it_is_in_the_file() {
    use sha2::{Digest, Sha256};
    let folder = tempfile::tempdir().unwrap();
    for (to, out) in [("openpi-torch", "a.safetensors"), ("jax", "b")] {
        let out = folder.path().join(out);
        let text = done(&convert(&["--to", to, "--json", "--output", out.to_str().unwrap()]));
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let file = if to == "jax" {
            let file = folder.path().join("c.safetensors");
            tool::convert(&out, &file, &["--to", "jax"]);
            file
        } else {
            out
        };
        let tensors = tool::tensors(&file);
        let outputs = report["outputs"].as_array().unwrap();
        assert_eq!(outputs.len(), tensors.len());
        for output in outputs {
            let tensor = &tensors[output["name"].as_str().unwrap()];
            let hash: String = Sha256::digest(&tensor.bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(output["sha256"], hash, "{output}");
        }
    }
}

#[test]
fn what_stands_there_is_not_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.safetensors");
    std::fs::write(&out, "precious").unwrap();
    let words = refused(&convert(&["--output", out.to_str().unwrap()]));
    assert!(words.contains("exists; --overwrite replaces it"), "{words}");
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    done(&convert(&["--overwrite", "--output", out.to_str().unwrap()]));
    let thesis = folder.path().join("thesis");
    std::fs::create_dir(&thesis).unwrap();
    std::fs::write(thesis.join("chapter.tex"), "").unwrap();
    let words = refused(&convert(&["--overwrite", "--output", thesis.to_str().unwrap()]));
    assert!(words.contains("holds no converted model"), "{words}");
}

#[test]
fn errors_say_what_there_is_instead() {
    let words = refused(&convert(&["--to", "pytorch", "--output", "x"]));
    assert!(words.contains("no such scheme; there are jax, burn, openpi-torch, lerobot, giga"), "{words}");
    let words = refused(&["convert", "--checkpoint-dir", "/nowhere/at/all", "--output", "x"]);
    assert!(words.contains("there is nothing under this path"), "{words}");
    let words = refused(&convert(&[]));
    assert!(words.contains("--output is missing"), "{words}");
    let words = refused(&convert(&["--to", "lerobot", "--output", "x.safetensors"]));
    assert!(words.contains("name a folder"), "{words}");
    let words = refused(&convert(&["--filter", "nothing_like_it", "--output", "x.safetensors"]));
    assert!(words.contains("matches none of the 50 tensors"), "{words}");
    let output = pi0(&convert(&["--to", "pytorch", "--json", "--output", "x"]));
    assert_eq!(output.status.code(), Some(2));
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(error["error"].as_str().unwrap().contains("no such scheme"));
}

#[test]
fn bare_names_are_made_where_one_stands() {
    let folder = tempfile::tempdir().unwrap();
    for (to, out) in [("burn", "a.safetensors"), ("burn", "a"), ("jax", "b"), ("lerobot", "c")] {
        let run = std::process::Command::new(env!("CARGO_BIN_EXE_pi0"))
            .args(convert(&["--to", to, "--output", out]))
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(run.status.success(), "{to} {out}: {}", String::from_utf8_lossy(&run.stderr));
        assert!(folder.path().join(out).exists());
    }
}

#[test]
fn a_filter_takes_a_part_and_says_what_stayed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("heads.safetensors");
    let text = done(&convert(&["--filter", "^action_", "--output", out.to_str().unwrap()]));
    assert!(text.contains("42 arrays left out"), "{text}");
    assert_eq!(tool::tensors(&out).len(), 8);
}

#[test]
fn shards_hold_what_one_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let (one, many) = (folder.path().join("one.safetensors"), folder.path().join("many"));
    done(&convert(&["--to", "openpi-torch", "--output", one.to_str().unwrap()]));
    let more = ["--to", "openpi-torch", "--max-shard-size", "300kB", "--output", many.to_str().unwrap()];
    done(&convert(&more));
    let mut all = std::collections::BTreeMap::new();
    let mut shards = 0;
    for entry in std::fs::read_dir(&many).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            all.extend(tool::tensors(&path));
            shards += 1;
        }
    }
    assert!(shards > 5, "{shards}");
    assert!(many.join("model.safetensors.index.json").exists());
    assert!(all == tool::tensors(&one));
    // And they are read as one.
    let text = done(&["inspect", many.to_str().unwrap()]);
    assert!(text.contains("pi0 · "), "{text}");
}

#[test]
fn training_states_give_raw_weights_and_moments() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let step = checkpoint("manager/pi0_ema/7");
    for weights in ["ema", "raw", "mu", "nu"] {
        tool::convert(&step, &file(weights), &["--weights", weights]);
    }
    let [ema, raw, mu, nu] = ["ema", "raw", "mu", "nu"].map(|w| tool::tensors(&file(w)));
    assert_eq!(ema.keys().collect::<Vec<_>>(), raw.keys().collect::<Vec<_>>());
    assert!(ema != raw);
    assert_eq!(mu.keys().collect::<Vec<_>>(), nu.keys().collect::<Vec<_>>());
    assert!(nu.values().all(|t| t.bytes.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]) >= 0.0)));
    // Without a moving average params are the raw weights, and asking for them says so.
    let text = tool::convert(&checkpoint("manager/pi0_noema/7"), &file("noema"), &["--weights", "raw"]);
    assert!(text.contains("without a moving average"), "{text}");
    // The rest of the state, under its own names.
    tool::convert(&step, &file("state"), &["--item", "train_state", "--to", "as-is"]);
    assert!(tool::tensors(&file("state")).contains_key("step"));
}

#[test]
fn low_rank_pairs_never_vanish_unsaid() {
    let folder = tempfile::tempdir().unwrap();
    let step = checkpoint("manager/pi0_lora/7");
    let out = |name: &str| folder.path().join(name);
    let text = tool::convert(&step, &out("merged"), &["--to", "openpi-torch"]);
    assert!(text.contains("20 merged"), "{text}");
    let text = tool::convert(&step, &out("dropped"), &["--to", "openpi-torch", "--lora", "drop"]);
    assert!(text.contains("20 dropped"), "{text}");
    tool::convert(&step, &out("adapter"), &["--to", "openpi-torch", "--lora", "keep"]);
    let adapter = tool::tensors(&out("adapter").join("adapter/adapter_model.safetensors"));
    assert_eq!(adapter.len(), 2 * 2 * 7 * 3);
    let base = tool::tensors(&out("adapter").join("model.safetensors"));
    assert!(base == tool::tensors(&out("dropped").join("model.safetensors")));
    assert!(base != tool::tensors(&out("merged").join("model.safetensors")));
}

#[test]
fn a_filter_never_parts_a_weight_from_the_pair_that_is_merged_into_it() {
    let folder = tempfile::tempdir().unwrap();
    let from = checkpoint("manager/pi0_lora/7");
    let out = folder.path().join("q.safetensors");
    let base = ["convert", "--checkpoint-dir", from.to_str().unwrap(), "--to", "openpi-torch"];
    let to = ["--output", out.to_str().unwrap()];
    for filter in ["q_einsum/w$", "q_einsum/(w|lora_a)$", "q_einsum/(w|lora_b)$"] {
        let words = refused(&[&base[..], &to, &["--filter", filter]].concat());
        assert!(words.contains("which has to be merged into it"), "{filter}: {words}");
        assert!(!out.exists());
    }
    done(&[&base[..], &to, &["--filter", "q_einsum/"]].concat());
    let whole = folder.path().join("whole.safetensors");
    done(&[&base[..], &["--output", whole.to_str().unwrap()]].concat());
    let whole = tool::tensors(&whole);
    let part = tool::tensors(&out);
    assert_eq!(part.len(), 3);
    assert!(part.iter().all(|(name, tensor)| whole[name] == *tensor));
    done(&[&base[..], &to, &["--overwrite", "--lora", "drop", "--filter", "q_einsum/w$"]].concat());
}

#[test]
fn raw_weights_are_found_from_params_too() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|n| folder.path().join(format!("{n}.safetensors")));
    tool::convert(&checkpoint("manager/pi0_ema/7"), &a, &["--weights", "raw"]);
    tool::convert(&checkpoint("manager/pi0_ema/7/params"), &b, &["--weights", "raw"]);
    assert!(tool::tensors(&a) == tool::tensors(&b));
}

#[test]
fn files_and_folders_do_not_take_each_others_place() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::write(&out, "precious").unwrap();
    for to in ["burn", "jax"] {
        let words = refused(&convert(&["--to", to, "--overwrite", "--output", out.to_str().unwrap()]));
        assert!(words.contains("is a file"), "{words}");
    }
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    // The index of earlier shards is not replaced unasked either.
    let model = folder.path().join("model.safetensors");
    let sharded = ["--max-shard-size", "300kB", "--output", model.to_str().unwrap()];
    done(&convert(&sharded));
    let words = refused(&convert(&sharded));
    assert!(words.contains("index.json exists; --overwrite replaces it"), "{words}");
}

#[test]
fn help_teaches_by_example() {
    let text = done(&["convert", "--help"]);
    assert!(text.contains("Examples:") && text.contains("--to lerobot"), "{text}");
    let text = done(&["inspect", "--help"]);
    assert!(text.contains("--diff params model.safetensors"), "{text}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_pi0"))
        .args(["inspect", checkpoint("base/pi0/params").to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
