//! Training states: both forms come back bit for bit, every verb takes them, and no kill leaves half a step.

mod tool;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use orbax::{Checkpoint, Source, Value};
use pi0_burn::weights::companions::Preset;
use pi0_burn::weights::open::{Choice, Opened, Weights};
use pi0_burn::weights::state::{
    self, Begin, Folder, Format, Keep, Optimizer, Outline, StateOnDisk, Tree, Values, condemned,
};
use remap::{Map, Memory, Mover, Options, Plan, Settings};
use serde_json::json;

const ORBAX: Format = Format::Orbax { time_ns: 1_700_000_000_000_000_000 };
const FORMS: [Format; 2] = [Format::Safetensors, ORBAX];

/// A run without a device: weights of a shipped checkpoint, all else made of names.
struct Fake {
    outline: Outline,
    params: BTreeMap<String, Vec<u8>>,
    /// Fails at this call, where it is told.
    fails_at: Option<usize>,
    calls: AtomicUsize,
    /// Looks at the disk at every call.
    watch: Option<Box<dyn Fn() + Sync>>,
}

impl Values for Fake {
    fn bytes(&self, tree: Tree, name: &str) -> Result<Vec<u8>> {
        if self.fails_at == Some(self.calls.fetch_add(1, Ordering::Relaxed)) {
            bail!("the device is gone");
        }
        if let Some(watch) = &self.watch {
            watch();
        }
        let params = &self.params[name];
        if tree == Tree::Params {
            return Ok(params.clone());
        }
        // Another pattern for every tree, name and step: FNV-1a, then a walk of Weyl's.
        let seed = tree.name().bytes().chain(name.bytes()).chain(self.outline.step.to_le_bytes());
        let mut x = seed.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Ok(params
            .iter()
            .map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (x >> 56) as u8
            })
            .collect())
    }
}

/// What a run would have that began with this checkpoint.
fn fake(checkpoint: &str, step: u64, optimizer: Optimizer, ema: bool) -> Fake {
    let map = Map::pi0();
    let opened = Opened::open(&tool::checkpoint(checkpoint), &Choice::default()).unwrap();
    let (jax, burn) = (map.scheme("jax").unwrap(), map.scheme("burn").unwrap());
    let options = Options::default();
    let plan = Plan::new(&map, &opened.tensors, jax, burn, &options).unwrap();
    let anatomy = pi0_burn::weights::anatomy::Anatomy::read(&map, &opened.tensors, jax, &options).unwrap();
    let memory = Memory::new(&plan);
    let stop = AtomicBool::new(false);
    let mover = Mover::new(&plan, &*opened.source, &opened.arrays, None, Settings::threads(1), &stop);
    mover.run(&mover.units(|_| true), &memory).unwrap();
    let tensors: Vec<_> = plan.outputs.iter().map(|o| o.tensor.clone()).collect();
    let names = tensors.iter().map(|t| t.name.clone());
    let params = names.clone().zip(memory.bytes.into_iter().map(|b| b.into_inner().unwrap())).collect();
    let trainable = names.filter(|name| !anatomy.has_lora() || trained_with_lora(name)).collect();
    Fake {
        outline: Outline {
            step,
            count: step + 1,
            tensors,
            trainable,
            optimizer,
            ema,
            heads: anatomy.heads(),
            preset: None,
            run: json!({"seed": u64::MAX, "position": [3, 0.1], "words": "ä"}),
            assets: vec![("tiny/robot".into(), stats())],
            beside: vec![("paligemma_tokenizer.model".into(), b"pieces".to_vec())],
        },
        params,
        fails_at: None,
        calls: AtomicUsize::new(0),
        watch: None,
    }
}

fn stats() -> Vec<u8> {
    std::fs::read(tool::checkpoint("manager/pi0_ema/7/assets/tiny/robot/norm_stats.json")).unwrap()
}

/// openpi's rule for a LoRA of both experts: of the language model only the pairs.
fn trained_with_lora(name: &str) -> bool {
    !name.starts_with("llm.") || name.contains("lora")
}

fn save(fake: &Fake, run: &Path, format: Format, threads: usize) -> Result<PathBuf> {
    state::save(run, &fake.outline, fake, format, threads, &(), &AtomicBool::new(false))
}

/// Every tree and name of a state, against what it should be.
fn assert_same(found: &StateOnDisk, expected: &Fake, what: &str) {
    let outline = &expected.outline;
    let counted = |s: u64, c: u64, o: Optimizer, e: bool| format!("step {s}, count {c}, {o:?}, average {e}");
    assert_eq!(
        counted(found.step, found.count, found.optimizer, found.ema),
        counted(outline.step, outline.count, outline.optimizer, outline.ema),
        "{what}"
    );
    assert_eq!(found.run.as_ref(), Some(&outline.run), "{what}");
    assert_eq!(found.tensors, outline.tensors, "{what}");
    assert_eq!(found.trainable, outline.trainable, "{what}");
    let whole = [Tree::Params].iter().chain(outline.ema.then_some(&Tree::Ema));
    let of_all = whole.flat_map(|tree| outline.tensors.iter().map(|t| (*tree, t.name.as_str())));
    let trees = outline.optimizer.trees();
    let of_some = trees.iter().flat_map(|tree| outline.trainable.iter().map(|name| (*tree, name.as_str())));
    let mut seen = 0;
    for (tree, name) in of_all.chain(of_some) {
        assert!(found.bytes(tree, name).unwrap() == expected.bytes(tree, name).unwrap(), "{what}: {tree:?} {name}");
        seen += 1;
    }
    assert!(seen >= 2 * outline.trainable.len(), "{what}");
}

/// Every file below a folder with its bytes.
fn listing(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

/// A folder for a run: one that vanishes, or one below `PI0_BURN_STATES` that stays (fixtures/recipes/check_train_state.py).
struct Run {
    path: PathBuf,
    _vanishes: Option<tempfile::TempDir>,
}

impl Run {
    fn new(checkpoint: &str, optimizer: Optimizer, ema: bool, format: Format) -> Self {
        let Ok(kept) = std::env::var("PI0_BURN_STATES") else {
            let folder = tempfile::tempdir().unwrap();
            return Run { path: folder.path().to_owned(), _vanishes: Some(folder) };
        };
        let form = if format == Format::Safetensors { "safetensors" } else { "orbax" };
        let name = checkpoint.trim_end_matches("/params").replace('/', "-");
        let average = if ema { "-ema" } else { "" };
        let path = Path::new(&kept).join(format!("{name}-{optimizer:?}{average}").to_lowercase()).join(form);
        Run { path, _vanishes: None }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

#[test]
fn both_forms_come_back_bit_for_bit() {
    let cases = [
        ("base/pi0/params", Optimizer::AdamW, true),
        ("base/pi05/params", Optimizer::AdamW, false),
        ("base/pi0fast/params", Optimizer::AdamW, true),
        ("base/pi0_bf16/params", Optimizer::Sgd, true),
        ("manager/pi0_lora/7/params", Optimizer::AdamW, false),
        ("manager/pi0_lora/7/params", Optimizer::Sgd, false),
    ];
    for (checkpoint, optimizer, ema) in cases {
        let fake = fake(checkpoint, 999, optimizer, ema);
        for format in FORMS {
            let what = format!("{checkpoint} {optimizer:?} {ema} {format:?}");
            let run = Run::new(checkpoint, optimizer, ema, format);
            let step = save(&fake, run.path(), format, 2).unwrap_or_else(|e| panic!("{what}: {e:#}"));
            let found = state::open(&step).unwrap_or_else(|e| panic!("{what}: {e:#}"));
            assert_same(&found, &fake, &what);
            // And from one form into the other.
            let other = FORMS[usize::from(format == Format::Safetensors)];
            let again = tempfile::tempdir().unwrap();
            let step =
                state::save(again.path(), &fake.outline, &found, other, 1, &(), &AtomicBool::new(false)).unwrap();
            assert_same(&state::open(&step).unwrap(), &fake, &format!("{what}, then {other:?}"));
        }
    }
}

#[test]
fn the_same_state_is_the_same_bytes_whatever_the_threads() {
    let fake = fake("base/pi0/params", 7, Optimizer::AdamW, true);
    for format in FORMS {
        let folders = [1, 3].map(|threads| {
            let run = tempfile::tempdir().unwrap();
            listing(&save(&fake, run.path(), format, threads).unwrap())
        });
        assert!(folders[0] == folders[1], "{format:?}");
        let [files, _] = folders;
        assert_eq!(files.get(Path::new("assets/tiny/robot/norm_stats.json")), Some(&stats()), "{format:?}");
        assert_eq!(files.get(Path::new("paligemma_tokenizer.model")), Some(&b"pieces".to_vec()), "{format:?}");
    }
}

#[test]
fn a_step_is_taken_unchanged_by_every_reader() {
    let map = Map::pi0();
    let mut fake = fake("base/pi05/params", 999, Optimizer::AdamW, true);
    fake.outline.preset = Some(Preset { action_horizon: 12, ..Preset::named("pi05_libero").unwrap().clone() });
    for (format, kind) in [(Format::Safetensors, "safetensors"), (ORBAX, "orbax (ocdbt, zarr2)")] {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("try1");
        for step in [7, 1000, 999] {
            fake.outline.step = step;
            save(&fake, &run, format, 2).unwrap();
        }
        std::fs::create_dir_all(run.join(".1001.part/params")).unwrap();
        for (path, step) in [("", 1000), ("7", 7), ("1000/params", 1000), ("999", 999)] {
            fake.outline.step = step;
            let path = run.join(path);
            let opened =
                Opened::open(&path, &Choice::default()).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
            assert_eq!((opened.format.as_str(), opened.step), (kind, Some(step)), "{}", path.display());
            assert_eq!(opened.assets.as_deref(), Some(&*run.join(step.to_string()).join("assets")));
            assert_eq!(opened.ema(), Some(true));
            assert_eq!(opened.path, run.join(step.to_string()).join("params"));
            for (weights, tree) in [
                (Weights::Ema, Tree::Ema),
                (Weights::Raw, Tree::Params),
                (Weights::Mu, Tree::Mu),
                (Weights::Nu, Tree::Nu),
            ] {
                let opened = Opened::open(&path, &Choice { weights, ..Choice::default() }).unwrap();
                let from = opened.scheme(&map, None).unwrap();
                let heads = opened.own_anatomy().map(|a| a.heads()).unwrap_or_default();
                let options = Options { heads, part: weights.is_optimizer(), ..Options::default() };
                let plan = Plan::new(&map, &opened.tensors, from, map.scheme("burn").unwrap(), &options).unwrap();
                let memory = Memory::new(&plan);
                let stop = AtomicBool::new(false);
                let mover = Mover::new(&plan, &*opened.source, &opened.arrays, None, Settings::threads(1), &stop);
                mover.run(&mover.units(|_| true), &memory).unwrap();
                for (output, bytes) in plan.outputs.iter().zip(&memory.bytes) {
                    let expected = fake.bytes(tree, &output.tensor.name).unwrap();
                    assert!(
                        *bytes.lock().unwrap() == expected,
                        "{} {weights:?} {}",
                        path.display(),
                        output.tensor.name
                    );
                }
            }
            let absent = Opened::open(&path, &Choice { weights: Weights::Trace, ..Choice::default() }).err().unwrap();
            assert!(absent.to_string().contains("trace") || absent.to_string().contains("momentum"), "{absent:#}");
        }
        if format == Format::Safetensors {
            let text = std::fs::read(run.join("1000/params/config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!((&config["model"], &config["action_horizon"]), (&json!("pi05"), &json!(12)));
        }
    }
}

#[test]
fn a_run_with_steps_in_both_forms_is_opened_at_its_newest() {
    let folder = tempfile::tempdir().unwrap();
    let mut fake = fake("base/pi0/params", 0, Optimizer::AdamW, false);
    for (step, format) in [(1, Format::Safetensors), (2, ORBAX), (3, Format::Safetensors), (4, ORBAX)] {
        fake.outline.step = step;
        save(&fake, folder.path(), format, 1).unwrap();
        assert_eq!(Opened::open(folder.path(), &Choice::default()).unwrap().step, Some(step));
        assert_eq!(state::latest(folder.path()).unwrap(), Some(step));
        let raw = Opened::open(folder.path(), &Choice { weights: Weights::Raw, ..Choice::default() }).unwrap();
        assert_eq!(raw.step, Some(step));
        assert!(raw.taken.contains("without a moving average"), "{}", raw.taken);
    }
}

#[test]
fn a_step_goes_to_jax_and_back_by_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let fake = fake("base/pi0fast/params", 30, Optimizer::AdamW, true);
    let step = save(&fake, &path("run"), Format::Safetensors, 2).unwrap();
    for (weights, tree, file) in
        [("ema", Tree::Ema, "params/model.safetensors"), ("raw", Tree::Params, "train_state/raw.safetensors")]
    {
        let (there, back) = (path(&format!("jax-{weights}")), path(&format!("{weights}.safetensors")));
        tool::convert(&step, &there, &["--to", "jax", "--weights", weights]);
        tool::convert(&there, &back, &["--to", "burn"]);
        let back = tool::tensors(&back);
        assert!(back == tool::tensors(&step.join(file)), "{weights}");
        assert!(back.iter().all(|(name, tensor)| tensor.bytes == fake.bytes(tree, name).unwrap()), "{weights}");
    }
    let told = tool::done(&["inspect", &path("run").display().to_string()]);
    assert!(told.contains("pi0_fast") && told.contains("30"), "{told}");
    let error = tool::refused(&["inspect", &path("run").display().to_string(), "--item", "train_state"]);
    assert!(error.contains("--weights"), "{error}");
}

/// openpi's own checkpoints are read, and written again as openpi wrote them: every leaf, every empty node.
#[test]
fn what_openpi_wrote_is_gone_on_from_and_written_as_it_was() {
    for (name, ema, trained) in [("pi0_ema", true, 165), ("pi0_noema", false, 165), ("pi0_lora", false, 0)] {
        let real = tool::checkpoint(&format!("manager/{name}/7"));
        let found = state::open(&real).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!((found.step, found.count, found.optimizer), (7, 0, Optimizer::AdamW), "{name}");
        assert_eq!((found.ema, found.run.as_ref()), (ema, None), "{name}");
        let names = found.tensors.iter().map(|t| t.name.clone());
        let expected: BTreeSet<String> = match trained {
            0 => names.filter(|name| trained_with_lora(name)).collect(),
            _ => names.collect(),
        };
        assert_eq!(found.trainable, expected, "{name}");
        let outline = Outline {
            step: 7,
            count: found.count,
            tensors: found.tensors.clone(),
            trainable: found.trainable.clone(),
            optimizer: found.optimizer,
            ema,
            heads: found.anatomy.heads(),
            preset: None,
            run: json!(null),
            assets: vec![],
            beside: vec![],
        };
        let run = tempfile::tempdir().unwrap();
        let ours = state::save(run.path(), &outline, &found, ORBAX, 2, &(), &AtomicBool::new(false)).unwrap();
        for item in ["params", "train_state"] {
            let [real, ours] = [&real, &ours].map(|step| leaves(&step.join(item)));
            assert_eq!(ours.keys().collect::<Vec<_>>(), real.keys().collect::<Vec<_>>(), "{name} {item}");
            for (leaf, content) in &real {
                // The recording's step is a Python number; a training's is of 32 bits, as ours.
                if leaf != "step" {
                    assert!(ours[leaf] == *content, "{name} {item} {leaf}");
                }
            }
        }
    }
}

/// Leaves of an item: type, shape and bytes of an array, or the kind of an empty node.
fn leaves(item: &Path) -> BTreeMap<String, (String, Vec<u64>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(item).unwrap();
    let content = |value: &Value| match value {
        Value::Array(i) => {
            let info = &checkpoint.arrays()[*i];
            (info.dtype.name().to_owned(), info.shape.clone(), orbax::read_array(&checkpoint, *i).unwrap())
        }
        Value::Empty(kind) => (kind.clone(), vec![], vec![]),
        Value::String(text) => (text.clone(), vec![], vec![]),
    };
    checkpoint.leaves().iter().map(|leaf| (orbax::path_name(&leaf.path), content(&leaf.value))).collect()
}

#[test]
fn a_save_that_fails_anywhere_leaves_the_step_before_and_nothing_of_its_own() {
    for format in FORMS {
        let run = tempfile::tempdir().unwrap();
        let first = fake("base/pi0/params", 1, Optimizer::AdamW, true);
        let before = listing(&save(&first, run.path(), format, 1).unwrap());
        let calls = first.calls.load(Ordering::Relaxed);
        assert_eq!(calls, 4 * first.outline.tensors.len());
        for fails_at in [0, 1, calls / 4, calls / 2, calls - 1] {
            let mut next = fake("base/pi0/params", 2, Optimizer::AdamW, true);
            next.fails_at = Some(fails_at);
            let path = run.path().to_owned();
            next.watch = Some(Box::new(move || assert_eq!(state::steps(&path).unwrap(), [1])));
            let error = save(&next, run.path(), format, 2).unwrap_err();
            assert!(format!("{error:#}").contains("the device is gone"), "{error:#}");
            let names: Vec<_> = std::fs::read_dir(run.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names, ["1"], "{format:?} at {fails_at}");
        }
        assert!(listing(&run.path().join("1")) == before);
        // A stop is an error like any other.
        let next = fake("base/pi0/params", 2, Optimizer::AdamW, true);
        let stopped = state::save(run.path(), &next.outline, &next, format, 1, &(), &AtomicBool::new(true));
        assert!(stopped.is_err() && state::steps(run.path()).unwrap() == [1], "{format:?}");
        save(&next, run.path(), format, 1).unwrap();
        assert_same(&state::open(&run.path().join("2")).unwrap(), &next, "after all those");
    }
}

/// The child is this test again, told by the environment; it saves and tidies until it is killed.
#[test]
fn a_run_that_is_killed_while_saving_is_gone_on_from_its_newest_whole_step() {
    const RUN: &str = "PI0_TEST_RUN";
    const KEEP: Keep = Keep { max_to_keep: Some(1), keep_period: None };
    let format_of = |step: u64| FORMS[(step % 2) as usize];
    if let Ok(run) = std::env::var(RUN) {
        let folder = Folder::open(Path::new(&run), Begin::Resume).unwrap();
        let mut fake =
            fake("base/pi0/params", folder.latest().unwrap().map_or(0, |step| step + 1), Optimizer::AdamW, true);
        loop {
            save(&fake, folder.path(), format_of(fake.outline.step), 1).unwrap();
            folder.tidy(KEEP).unwrap();
            fake.outline.step += 1;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("try1");
    let mut newest = None;
    for moment in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_run_that_is_killed_while_saving_is_gone_on_from_its_newest_whole_step"])
            .env(RUN, &run)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // While it makes its first step, or after that one, at another moment each time.
        let next = newest.map_or(0, |step: u64| step + 1);
        let sign = if moment % 3 == 0 { format!(".{next}.part") } else { next.to_string() };
        while !run.join(&sign).exists() {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(3_700 * moment));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        let steps = state::steps(&run).unwrap();
        assert!(steps.len() <= 2 && steps.last().copied() >= newest, "{steps:?} after {newest:?}");
        // Whatever stands under a number is whole.
        for entry in std::fs::read_dir(&run).unwrap() {
            let path = entry.unwrap().path();
            if let Ok(step) = path.file_name().unwrap().to_str().unwrap().parse::<u64>() {
                assert!(steps.contains(&step), "half of step {step}");
                let mut expected = fake("base/pi0/params", step, Optimizer::AdamW, true);
                // The child counts from where it started.
                expected.outline.count = state::open(&path).unwrap().count;
                assert_same(&state::open(&path).unwrap(), &expected, &format!("step {step}"));
            }
        }
        newest = steps.last().copied();
    }
    assert!(newest >= Some(7), "no child came far enough: {newest:?}");
    drop(Folder::open(&run, Begin::Resume).unwrap());
    let names = std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let hidden: Vec<String> = names.filter(|name| name.starts_with('.')).collect();
    assert_eq!(hidden, [".lock"]);
}

#[test]
fn old_steps_go_and_every_nth_stays() {
    let folder = tempfile::tempdir().unwrap();
    let run = Folder::open(&folder.path().join("try1"), Begin::Fresh).unwrap();
    let mut fake = fake("base/pi0/params", 0, Optimizer::Sgd, false);
    let keep = Keep { max_to_keep: Some(1), keep_period: Some(4) };
    let mut removed = vec![];
    for step in 2..=9 {
        fake.outline.step = step;
        save(&fake, run.path(), FORMS[(step % 2) as usize], 1).unwrap();
        assert_eq!(condemned(&run.steps().unwrap(), keep), removed_next(step));
        removed.extend(run.tidy(keep).unwrap());
    }
    assert_eq!(removed, [2, 3, 5, 6, 7]);
    assert_eq!((run.steps().unwrap(), run.latest().unwrap()), (vec![4, 8, 9], Some(9)));
    let error = save(&fake, run.path(), Format::Safetensors, 1).unwrap_err().to_string();
    assert!(error.contains("step 9 is saved already"), "{error}");
    // Half a copy is no step, and is replaced by one.
    std::fs::create_dir_all(run.step(10).join("params")).unwrap();
    assert_eq!(run.latest().unwrap(), Some(9));
    fake.outline.step = 10;
    save(&fake, run.path(), Format::Safetensors, 1).unwrap();
    assert_eq!(run.latest().unwrap(), Some(10));
}

fn removed_next(step: u64) -> Vec<u64> {
    if step == 2 || (step - 1).is_multiple_of(4) { vec![] } else { vec![step - 1] }
}

#[test]
fn an_outline_that_is_no_model_or_leads_outside_is_refused_before_a_byte_is_written() {
    let run = tempfile::tempdir().unwrap();
    let base = || fake("base/pi0/params", 1, Optimizer::AdamW, false);
    let refused = |change: &dyn Fn(&mut Outline), format: Format| {
        let mut fake = base();
        change(&mut fake.outline);
        let error = format!("{:#}", save(&fake, run.path(), format, 1).unwrap_err());
        assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 0, "{error}");
        error
    };
    let either = |change: &dyn Fn(&mut Outline), with: &str| {
        for format in FORMS {
            let error = refused(change, format);
            assert!(error.contains(with), "{error}");
        }
    };
    either(&|o| _ = o.tensors.remove(0), "hole");
    either(&|o| _ = o.trainable.insert("llm.embed.wieght".into()), "llm.embed.wieght");
    either(&|o| o.trainable.clear(), "nothing is trained");
    either(&|o| o.assets[0].0 = "../elsewhere".into(), "outside");
    either(&|o| o.beside[0].0 = "/etc/tokenizer".into(), "outside");
    // Layers that are stacked are trained together, and have one type.
    let first = "img.blocks.0.norm1.beta";
    let one_layer = |o: &mut Outline| _ = o.trainable.remove(first);
    let error = refused(&one_layer, ORBAX);
    assert!(error.contains("stacked"), "{error}");
    let other_type = |o: &mut Outline| {
        o.tensors.iter_mut().filter(|t| t.name == first).for_each(|t| t.dtype = orbax::Dtype::Bf16);
    };
    let error = refused(&other_type, ORBAX);
    assert!(error.contains(first), "{error}");
    let mut fake = base();
    one_layer(&mut fake.outline);
    assert_same(&state::open(&save(&fake, run.path(), Format::Safetensors, 1).unwrap()).unwrap(), &fake, "safetensors");
}

#[test]
fn a_damaged_state_is_named() {
    let run = tempfile::tempdir().unwrap();
    let fake = fake("base/pi0/params", 1, Optimizer::AdamW, true);
    let step = save(&fake, run.path(), Format::Safetensors, 1).unwrap();
    let error = || format!("{:#}", state::open(&step).unwrap_err());
    let file = step.join("train_state/state.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"version\": 1", "\"version\": 9")).unwrap();
    assert!(error().contains("version 9, this program reads 1"), "{}", error());
    std::fs::write(&file, "{").unwrap();
    assert!(error().contains("state.json"), "{}", error());
    std::fs::remove_file(&file).unwrap();
    assert!(error().contains("state.json is missing"), "{}", error());
    assert_eq!(state::latest(run.path()).unwrap(), None);
    std::fs::write(&file, text).unwrap();
    // The average of another model under this name.
    let other = self::fake("base/pi05/params", 1, Optimizer::AdamW, true);
    let elsewhere = tempfile::tempdir().unwrap();
    let other = save(&other, elsewhere.path(), Format::Safetensors, 1).unwrap();
    std::fs::copy(other.join("params/model.safetensors"), step.join("params/model.safetensors")).unwrap();
    assert!(error().contains("ema"), "{}", error());
}
