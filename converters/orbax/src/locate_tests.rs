//! Every folder a user may point at.
use super::*;

/// An empty but complete item.
fn item(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("_METADATA"), "{}").unwrap();
    fs::write(dir.join("manifest.ocdbt"), "").unwrap();
}

fn root() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn fails(path: &Path, wanted: Option<&str>, with: &str) {
    let error = locate(path, wanted).unwrap_err().to_string();
    assert!(error.contains(with), "{error}");
}

#[test]
fn an_item_folder_is_taken_as_given() {
    let root = root();
    item(&root.path().join("ckpt"));
    let found = locate(root.path().join("ckpt"), None).unwrap();
    assert_eq!((found.dir.as_path(), found.item, found.step), (root.path().join("ckpt").as_path(), None, None));
}

#[test]
fn an_item_of_a_step_knows_its_step_and_assets() {
    let root = root();
    let step = root.path().join("run/19999");
    item(&step.join("params"));
    item(&step.join("train_state"));
    fs::create_dir(step.join("assets")).unwrap();
    let expected = Location {
        dir: step.join("params"),
        item: Some("params".into()),
        step: Some(19999),
        assets: Some(step.join("assets")),
        taken: String::new(),
    };
    for path in [step.join("params"), step.clone(), root.path().join("run")] {
        let found = locate(&path, None).unwrap();
        assert!(!found.taken.is_empty());
        assert_eq!(Location { taken: String::new(), ..found }, expected, "{}", path.display());
    }
    assert_eq!(locate(&step, Some("train_state")).unwrap().dir, step.join("train_state"));
    assert_eq!(locate(root.path().join("run"), Some("train_state")).unwrap().dir, step.join("train_state"));
    fails(&step, Some("opt_state"), "no item \"opt_state\"; found params, train_state");
    fails(&step.join("params"), Some("train_state"), "there is");
}

#[test]
fn steps_are_compared_as_numbers() {
    let root = root();
    for step in ["900", "1000", "20"] {
        item(&root.path().join(step).join("params"));
    }
    let found = locate(root.path(), None).unwrap();
    assert_eq!(found.step, Some(1000));
    assert_eq!(found.taken, "latest of 3 steps: 1000, item params (the only item)");
}

#[test]
fn unfinished_saves_are_never_taken() {
    let root = root();
    item(&root.path().join("10/params"));
    item(&root.path().join("30.orbax-checkpoint-tmp-123/params"));
    fs::create_dir_all(root.path().join("20/params.orbax-checkpoint-tmp-5")).unwrap();
    fs::create_dir_all(root.path().join("15/params/ocdbt.process_0")).unwrap();
    let found = locate(root.path(), None).unwrap();
    assert_eq!(found.step, Some(10));
    assert!(found.taken.contains("skipping unfinished 20, 15"), "{}", found.taken);
    fails(&root.path().join("30.orbax-checkpoint-tmp-123"), None, "unfinished");
    fails(&root.path().join("15"), None, "unfinished");
    fails(&root.path().join("20"), None, "only unfinished saves: params.orbax-checkpoint-tmp-5");
}

#[test]
fn a_step_with_one_unfinished_item_is_not_complete() {
    let root = root();
    item(&root.path().join("1/params"));
    item(&root.path().join("2/params"));
    fs::create_dir_all(root.path().join("2/train_state.orbax-checkpoint-tmp-1")).unwrap();
    assert_eq!(locate(root.path(), None).unwrap().step, Some(1));
}

#[test]
fn items_are_preferred_in_their_order() {
    for (items, expected) in [
        (vec!["train_state", "params", "default"], "params"),
        (vec!["train_state", "default"], "default"),
        (vec!["metrics", "pytree"], "pytree"),
        (vec!["metrics", "state"], "state"),
        (vec!["anything"], "anything"),
    ] {
        let root = root();
        items.iter().for_each(|name| item(&root.path().join(name)));
        assert_eq!(locate(root.path(), None).unwrap().item.as_deref(), Some(expected));
    }
    let root = root();
    item(&root.path().join("x"));
    item(&root.path().join("y"));
    fails(root.path(), None, "several items, choose one: x, y");
}

#[test]
fn a_step_that_is_itself_an_item_is_taken() {
    let root = root();
    item(&root.path().join("3"));
    item(&root.path().join("prefix_12"));
    let found = locate(root.path(), None).unwrap();
    assert_eq!((found.step, found.item), (Some(12), None));
    assert_eq!(locate(root.path().join("3"), None).unwrap().step, Some(3));
}

#[test]
fn a_folder_without_a_checkpoint_says_what_it_holds() {
    let root = root();
    fs::write(root.path().join("notes.txt"), "").unwrap();
    fails(root.path(), None, "no checkpoint in it; found notes.txt");
    fails(&root.path().join("notes.txt"), None, "is a file");
    fails(&root.path().join("absent"), None, "absent");
    fs::create_dir(root.path().join("5")).unwrap();
    fails(root.path(), None, "none of its steps is a complete save: 5");
}

#[test]
fn an_item_name_is_no_path() {
    let root = root();
    item(&root.path().join("1/params"));
    for wanted in ["../1/params", "", "..", "a/b"] {
        fails(root.path(), Some(wanted), "is not the name of an item");
    }
}
