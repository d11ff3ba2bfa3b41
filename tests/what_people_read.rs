//! The report, as people read it: a change of its words is a change to be seen.

mod tool;

fn pi0(arguments: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pi0"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    String::from_utf8(if output.status.code() == Some(2) { output.stderr } else { output.stdout }).unwrap()
}

#[test]
fn the_plan_of_a_conversion() {
    let from = "fixtures/checkpoints/manager/pi0_lora";
    insta::assert_snapshot!(pi0(&["convert", "--checkpoint-dir", from, "--to", "openpi-torch", "--dry-run"]));
}

#[test]
fn what_a_checkpoint_is() {
    insta::assert_snapshot!(pi0(&["inspect", "fixtures/checkpoints/manager/pi0_ema"]));
}

#[test]
fn what_two_checkpoints_differ_in() {
    let (a, b) = ("fixtures/checkpoints/base/pi0/params", "fixtures/checkpoints/base/pi05/params");
    insta::assert_snapshot!(pi0(&["inspect", "--diff", a, b]));
}

#[test]
fn a_refusal() {
    // A file with a name misspelt and a tensor missing.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.safetensors");
    let from = "fixtures/checkpoints/base/pi0/params";
    pi0(&["convert", "--checkpoint-dir", from, "--output", file.to_str().unwrap()]);
    let mut bytes = std::fs::read(&file).unwrap();
    let name = b"llm.blocks.1.experts.0.k.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    bytes[at + name.len() - ".weight".len() - 1] = b'K';
    std::fs::write(&file, bytes).unwrap();
    insta::assert_snapshot!(pi0(&["convert", "--checkpoint-dir", file.to_str().unwrap(), "--dry-run"]));
}

#[test]
fn the_wrong_scheme() {
    let from = "fixtures/checkpoints/base/pi0/params";
    insta::assert_snapshot!(pi0(&["convert", "--checkpoint-dir", from, "--from", "openpi-torch", "--dry-run"]));
}

#[test]
fn the_help() {
    insta::assert_snapshot!(pi0(&["convert", "--help"]));
}
