//! Tests of the comparison: small sets of tensors, and the fixture checkpoints against themselves in other clothes.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use orbax::Dtype;
use remap::{Memory, Mover, Settings, Tensor, to_bytes};
use tempfile::TempDir;

use super::*;
use crate::weights::open::Choice;

/// A checkpoint and the folder it lives in.
struct Stored {
    opened: Opened,
    _folder: TempDir,
}

fn stored(tensors: &[(Tensor, Vec<u8>)]) -> Stored {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, to_bytes(tensors, &BTreeMap::new())).unwrap();
    Stored { opened: Opened::open(&path, &Choice::default()).unwrap(), _folder: folder }
}

fn tensor(name: &str, shape: &[u64], dtype: Dtype) -> Tensor {
    Tensor { name: name.into(), shape: shape.to_vec(), dtype }
}

fn f32s(name: &str, shape: &[u64], f: impl Fn(u64) -> f32) -> (Tensor, Vec<u8>) {
    let n = shape.iter().product();
    (tensor(name, shape, Dtype::F32), (0..n).flat_map(|i| f(i).to_le_bytes()).collect())
}

fn bf16s(name: &str, shape: &[u64], f: impl Fn(u64) -> f32) -> (Tensor, Vec<u8>) {
    let n = shape.iter().product();
    (tensor(name, shape, Dtype::Bf16), (0..n).flat_map(|i| half::bf16::from_f32(f(i)).to_le_bytes()).collect())
}

fn fixture(name: &str) -> Opened {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/checkpoints").join(name).join("params");
    Opened::open(&path, &Choice::default()).unwrap()
}

/// The same weights in another scheme and type, as tensors.
fn converted(from: &Opened, to: &str, cast: Option<Dtype>) -> Vec<(Tensor, Vec<u8>)> {
    let map = Map::pi0();
    let options = Options { cast, part: true, ..Options::default() };
    let scheme = from.scheme(&map, None).unwrap();
    let plan = Plan::new(&map, &from.tensors, scheme, map.scheme(to).unwrap(), &options).unwrap();
    let (memory, stop) = (Memory::new(&plan), AtomicBool::new(false));
    let mover = Mover::new(&plan, &*from.source, &from.arrays, None, Settings::threads(2), &stop);
    mover.run(&mover.units(|_| true), &memory).unwrap();
    let bytes = memory.bytes.into_iter().map(|b| b.into_inner().unwrap());
    plan.outputs.into_iter().map(|o| o.tensor).zip(bytes).collect()
}

/// Bytes done and bytes in all, as they were last told.
#[derive(Default)]
struct Heard(Mutex<(u64, u64)>);

impl Progress for Heard {
    fn phase(&self, _: &str, bytes: u64) {
        *self.0.lock().unwrap() = (0, bytes);
    }

    fn at(&self, bytes: u64) {
        let mut heard = self.0.lock().unwrap();
        heard.0 = heard.0.max(bytes);
    }
}

fn compared_with(left: &Opened, right: &Opened, memory_bytes: u64) -> Result<Diff> {
    let map = Map::pi0();
    let folder = tempfile::tempdir().unwrap();
    let options = DiffOptions { memory_bytes, ..DiffOptions::new(3, folder.path()) };
    let heard = Heard::default();
    let diff = diff(left, left.scheme(&map, None)?, right, right.scheme(&map, None)?, &options, &heard);
    if diff.is_ok() {
        let (done, total) = *heard.0.lock().unwrap();
        assert_eq!(done, total, "progress does not reach its end");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a scratch file was left behind");
    diff
}

fn compared(left: &Opened, right: &Opened) -> Diff {
    compared_with(left, right, 64 << 20).unwrap()
}

fn verdict(diff: &Diff, name: &str) -> Verdict {
    diff.tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}")).verdict
}

#[test]
fn a_checkpoint_is_the_same_as_itself_in_every_scheme() {
    let jax = fixture("base/pi0");
    for to in ["burn", "openpi-torch", "lerobot", "jax"] {
        let other = stored(&converted(&jax, to, None));
        // In memory, and through files of a group each.
        for memory_bytes in [64 << 20, 0] {
            let diff = compared_with(&jax, &other.opened, memory_bytes).unwrap();
            let back = compared_with(&other.opened, &jax, memory_bytes).unwrap();
            assert!(diff.tensors.len() > 50, "{to}: {}", diff.tensors.len());
            assert_eq!(diff.tally(), Tally { same: diff.tensors.len(), ..Tally::default() }, "{to}");
            assert_eq!(back.tally(), diff.tally(), "{to}");
            assert_eq!((diff.left_model.as_deref(), diff.right_model.as_deref()), (Some("pi0"), Some("pi0")), "{to}");
        }
    }
}

#[test]
fn what_two_writers_of_orbax_stored_is_the_same() {
    let diff = compared(&fixture("base/pi0"), &fixture("standard/pi0"));
    assert!(diff.same_values(), "{:?}", diff.tally());
    assert_eq!(diff.tally().same, diff.tensors.len());
}

#[test]
fn two_models_share_what_they_share() {
    let diff = compared(&fixture("base/pi0"), &fixture("base/pi05"));
    let tally = diff.tally();
    assert_eq!((diff.left_model.as_deref(), diff.right_model.as_deref()), (Some("pi0"), Some("pi05")));
    assert!(tally.only_left > 0 && tally.only_right > 0, "{tally:?}");
    assert_eq!(verdict(&diff, "time_mlp_in.weight"), Verdict::OnlyRight);
    assert_eq!(verdict(&diff, "state_proj.weight"), Verdict::OnlyLeft);
    assert!(diff.tensors.is_sorted_by(|a, b| a.name < b.name));
}

#[test]
fn rounding_to_bf16_shows_as_differences_below_its_precision_and_coming_back_as_same_values() {
    let jax = fixture("base/pi0");
    let narrow = stored(&converted(&jax, "openpi-torch", Some(Dtype::Bf16)));
    let diff = compared(&jax, &narrow.opened);
    let differs: Vec<f64> = diff
        .tensors
        .iter()
        .filter_map(|t| if let Verdict::Differs { max_rel, .. } = t.verdict { Some(max_rel) } else { None })
        .collect();
    assert!(!differs.is_empty());
    assert!(differs.iter().all(|rel| *rel <= 2f64.powi(-8)), "{differs:?}");
    let wide = stored(&converted(&narrow.opened_with_heads_of(&jax), "burn", Some(Dtype::F32)));
    let back = compared(&narrow.opened, &wide.opened);
    assert_eq!(back.tally(), Tally { same_values: back.tensors.len(), ..Tally::default() });
}

impl Stored {
    /// Torch merges its heads; a file that does not tell them is converted by what the JAX tree shows.
    fn opened_with_heads_of(&self, jax: &Opened) -> Opened {
        let map = Map::pi0();
        let scheme = jax.scheme(&map, None).unwrap();
        let options = Options { part: true, ..Options::default() };
        let anatomy = crate::weights::anatomy::Anatomy::read(&map, &jax.tensors, scheme, &options).unwrap();
        let mut opened = Opened::open(&self.opened.path, &Choice::default()).unwrap();
        opened.metadata.insert("pi0.anatomy".into(), serde_json::to_string(&anatomy).unwrap());
        opened
    }
}

#[test]
fn one_nudged_element_is_found_where_it_is_and_as_large_as_it_is() {
    let jax = fixture("base/pi0");
    let plain = converted(&jax, "burn", None);
    let name = "llm.blocks.1.experts.0.gate.weight";
    let mut nudged = plain.clone();
    let (tensor, bytes) = nudged.iter_mut().find(|(t, _)| t.name == name).unwrap();
    let (shape, elements) = (tensor.shape.clone(), tensor.len());
    let at = elements / 2 + 1;
    let place = at as usize * 4..at as usize * 4 + 4;
    let before = f32::from_le_bytes(bytes[place.clone()].try_into().unwrap());
    bytes[place].copy_from_slice(&(before + 0.25).to_le_bytes());
    let expected = f64::from(before + 0.25) - f64::from(before);
    let (plain, nudged) = (stored(&plain), stored(&nudged));
    // Alike in layout, and against the tree in which all layers are one array.
    for left in [&jax, &plain.opened] {
        let diff = compared(left, &nudged.opened);
        assert_eq!(diff.tally(), Tally { same: diff.tensors.len() - 1, differs: 1, ..Tally::default() });
        let Verdict::Differs { max_abs, first, count, elements: all, .. } = verdict(&diff, name) else {
            panic!("same")
        };
        assert_eq!((max_abs, first, count, all), (expected.abs(), at, 1, elements));
        let index = index_of(&shape, first);
        assert_eq!(index.iter().zip(&shape).fold(0, |flat, (i, n)| flat * n + i), at);
    }
}

#[test]
fn missing_tensors_and_other_shapes_are_told_apart() {
    let left = stored(&[
        f32s("action_in_proj.weight", &[3, 4], |i| i as f32),
        f32s("action_in_proj.bias", &[4], |i| i as f32),
        f32s("action_out_proj.weight", &[4, 3], |i| i as f32),
        f32s("action_out_proj.bias", &[3], |i| i as f32),
    ]);
    let right = stored(&[
        f32s("action_in_proj.weight", &[3, 4], |i| i as f32),
        f32s("action_in_proj.bias", &[4], |i| i as f32),
        f32s("action_out_proj.weight", &[4, 5], |i| i as f32),
        f32s("state_proj.bias", &[3], |i| i as f32),
    ]);
    let diff = compared(&left.opened, &right.opened);
    let verdicts: Vec<(&str, Verdict)> = diff.tensors.iter().map(|t| (t.name.as_str(), t.verdict)).collect();
    let expected = [
        ("action_in_proj.bias", Verdict::Same),
        ("action_in_proj.weight", Verdict::Same),
        ("action_out_proj.bias", Verdict::OnlyLeft),
        ("action_out_proj.weight", Verdict::Shape),
        ("state_proj.bias", Verdict::OnlyRight),
    ];
    assert_eq!(verdicts, expected);
    assert!(!diff.same_values());
    let only = &diff.tensors[2];
    let described = Described { shape: vec![3], dtype: "float32", sources: vec!["action_out_proj.bias".into()] };
    assert_eq!((&only.left, &only.right), (&Some(described), &None));
}

#[test]
fn across_types_equal_values_are_same_values_and_others_differ() {
    let exact = |i| i as f32 / 8.0;
    let left = stored(&[bf16s("state_proj.weight", &[5, 7], exact), bf16s("state_proj.bias", &[7], exact)]);
    let right = stored(&[
        f32s("state_proj.weight", &[5, 7], exact),
        f32s("state_proj.bias", &[7], |i| if i == 6 { 1.0 } else { i as f32 / 8.0 }),
    ]);
    let diff = compared(&left.opened, &right.opened);
    assert_eq!(verdict(&diff, "state_proj.weight"), Verdict::SameValues);
    let differs = Verdict::Differs { max_abs: 0.25, max_rel: 0.25, first: 6, count: 1, elements: 7 };
    assert_eq!(verdict(&diff, "state_proj.bias"), differs);
}

#[test]
fn a_nan_against_a_number_is_written_to_json_by_its_name() {
    let left = stored(&[f32s("state_proj.bias", &[2], |_| f32::NAN)]);
    let right = stored(&[f32s("state_proj.bias", &[2], |i| if i == 0 { f32::NAN } else { 1.0 })]);
    assert_eq!(verdict(&compared(&left.opened, &left.opened), "state_proj.bias"), Verdict::Same);
    let json = serde_json::to_value(compared(&left.opened, &right.opened)).unwrap();
    let found = &json["tensors"][0]["verdict"]["differs"];
    assert_eq!((&found["max_abs"], &found["count"], &found["first"]), (&"inf".into(), &1.into(), &1.into()));
}

#[test]
fn tied_copies_and_what_a_filter_left_out_are_noted() {
    let alias = "paligemma_with_expert.paligemma.lm_head.weight";
    let own = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight";
    let both = stored(&[f32s(alias, &[6, 4], |i| i as f32), f32s(own, &[6, 4], |i| i as f32)]);
    let torn = stored(&[f32s(alias, &[6, 4], |i| i as f32 + 1.0), f32s(own, &[6, 4], |i| i as f32)]);
    let mut one = stored(&[f32s(own, &[6, 4], |i| i as f32), f32s("state_proj.bias", &[2], |i| i as f32)]);
    one.opened.filter(&regex::Regex::new("embed").unwrap());
    let diff = compared(&both.opened, &one.opened);
    assert_eq!(diff.tally(), Tally { same: 1, ..Tally::default() });
    let noted: Vec<(Side, &str)> = diff.notes.iter().map(|n| (n.side, n.name.as_str())).collect();
    assert_eq!(noted, [(Side::Left, alias), (Side::Right, "state_proj.bias")]);
    assert!(diff.notes[0].reason.ends_with("bit for bit"), "{:?}", diff.notes);
    let diff = compared(&torn.opened, &one.opened);
    assert!(diff.notes[0].reason.ends_with("their bytes differ"), "{:?}", diff.notes);
}

#[test]
fn arrays_of_any_kind_are_compared_under_their_own_names() {
    let left = stored(&[f32s("b", &[3], |i| i as f32), f32s("any thing", &[2, 2], |i| i as f32)]);
    let right = stored(&[f32s("any thing", &[2, 2], |i| if i == 3 { 4.0 } else { i as f32 })]);
    let diff = diff_as_is(&left.opened, &right.opened, &DiffOptions::new(1, std::env::temp_dir()), &()).unwrap();
    let differs = Verdict::Differs { max_abs: 1.0, max_rel: 0.25, first: 3, count: 1, elements: 4 };
    assert_eq!((verdict(&diff, "any thing"), verdict(&diff, "b")), (differs, Verdict::OnlyLeft));
}

#[test]
fn names_that_no_row_knows_are_refused_with_the_side_they_are_on() {
    let known = stored(&[f32s("state_proj.bias", &[2], |i| i as f32)]);
    let strange = stored(&[f32s("state_proj.bias", &[2], |i| i as f32), f32s("stranger", &[2], |i| i as f32)]);
    let error = format!("{:#}", compared_with(&known.opened, &strange.opened, 0).unwrap_err());
    assert!(error.contains("stranger") && error.contains(&strange.opened.path.display().to_string()), "{error}");
}

#[test]
fn empty_tensors_are_the_same() {
    let empty = stored(&[f32s("state_proj.bias", &[0], |i| i as f32)]);
    let other = stored(&[bf16s("state_proj.bias", &[0], |i| i as f32)]);
    assert_eq!(verdict(&compared_with(&empty.opened, &empty.opened, 0).unwrap(), "state_proj.bias"), Verdict::Same);
    assert_eq!(verdict(&compared(&empty.opened, &other.opened), "state_proj.bias"), Verdict::SameValues);
}

#[test]
fn a_flat_index_is_taken_apart_in_c_order() {
    assert_eq!(index_of(&[2, 3, 4], 23), [1, 2, 3]);
    assert_eq!(index_of(&[2, 3, 4], 4), [0, 1, 0]);
    assert!(index_of(&[], 0).is_empty());
}
