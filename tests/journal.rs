//! A run's journal: what people and programs find in its folder, also after a run was stopped and gone on with.
#![cfg(feature = "robot")]

#[path = "journal/tensorboard.rs"]
mod tensorboard;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use pi0_burn::chance::Stream;
use pi0_burn::train::journal::{Example, Header, Image, Journal, JournalError, Line};
use pi0_burn::train::schedule::LrSchedule;

const STEPS: u64 = 3000;
const BATCH: u64 = 8;

fn header() -> Header {
    let text = |text: &str| text.to_owned();
    Header {
        config: text("pi0_libero_low_mem_finetune"),
        exp: text("try1"),
        model: text("pi0 · gemma_2b_lora, gemma_300m_lora"),
        datasets: vec![text("physical-intelligence/libero")],
        device: text("cuda:0"),
        precision: text("f32 weights, bf16 arithmetic"),
        trainable: 467_924_000,
        frozen: 2_770_124_256,
        steps: STEPS,
        batch_size: BATCH,
        settings: vec![(text("seed"), text("42")), (text("lr_schedule"), text("cosine_decay | peak 2.5e-5"))],
    }
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_000_000 + second)
}

/// What some run measured at a step, made of the step alone.
fn line(step: u64) -> Line {
    let schedule = LrSchedule::CosineDecay { warmup_steps: 300, peak_lr: 2.5e-5, decay_steps: STEPS, decay_lr: 2.5e-6 };
    let mut chance = Stream::new(7, "line", step as usize);
    let mut about = |spread: f64| 1.0 + spread * (chance.unit() - 0.5);
    let fall = 0.018 + 0.9 * (-(step as f64) / 260.0).exp();
    Line {
        step,
        loss: (fall * about(0.7)) as f32,
        grad_norm: ((0.4 + 3.0 * fall) * about(0.6)) as f32,
        param_norm: 1802.2 + step as f32 * 1e-4,
        learning_rate: schedule.rate(step),
        samples_per_s: 31.0 * about(0.06),
        seconds: step as f64 * BATCH as f64 / 31.0,
        data_wait: 0.03 * about(1.4),
        samples: step * BATCH,
    }
}

fn examples(prompt: &str) -> Vec<Example> {
    let picture = |row: usize, camera: usize| {
        let (height, width) = (224, 224);
        let pixel = |i: usize| {
            let (y, x) = (i / width, i % width);
            let disc = (x.abs_diff(60 + 40 * row)).pow(2) + (y.abs_diff(80 + 30 * camera)).pow(2) < 900;
            if disc { [220, 90, 40] } else { [(x / 2) as u8 + 60, (y / 2) as u8 + 40, (90 + 50 * camera) as u8] }
        };
        let pixels = (0..height * width).flat_map(pixel).collect();
        Image { camera: ["base_0_rgb", "left_wrist_0_rgb"][camera].to_owned(), size: [height, width], pixels }
    };
    let example = |row: usize| Example {
        prompt: prompt.to_owned(),
        dataset: "physical-intelligence/libero".to_owned(),
        frame: 1234 + 911 * row as u64,
        images: vec![picture(row, 0), picture(row, 1)],
    };
    (0..3).map(example).collect()
}

/// A line every ten steps, a checkpoint every five hundred.
fn train(journal: &mut Journal, dir: &Path, after: u64, to: u64) {
    for step in (after + 1..=to).filter(|step| step % 10 == 0) {
        journal.line(&line(step), at(step)).unwrap();
        if step % 500 == 0 {
            fs::create_dir_all(dir.join(step.to_string())).unwrap();
            journal.checkpoint(step, at(step)).unwrap();
        }
    }
}

/// Stopped after step 1870 in the middle of a line, gone on with from 1500.
fn interrupted(dir: &Path) {
    let mut journal = Journal::open(dir, header(), None, at(0)).unwrap();
    journal.pictures(&examples("put the red bowl on the plate"), at(1)).unwrap();
    train(&mut journal, dir, 0, 1870);
    drop(journal);
    append(&dir.join("metrics.jsonl"), &serde_json::to_vec(&line(1880)).unwrap()[..70]);
    let mut journal = Journal::open(dir, header(), Some(1500), at(2000)).unwrap();
    assert!(!journal.wants_pictures());
    fs::remove_dir(dir.join("500")).unwrap();
    train(&mut journal, dir, 1500, STEPS);
    journal.close(at(4000)).unwrap();
}

fn append(path: &Path, bytes: &[u8]) {
    let text = [fs::read(path).unwrap(), bytes.to_vec()].concat();
    fs::write(path, text).unwrap();
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

fn lines(dir: &Path) -> Vec<Line> {
    read(dir, "metrics.jsonl").lines().map(|text| serde_json::from_str(text).unwrap()).collect()
}

/// Tags are closed in the order in which they were opened.
fn well_formed(text: &str) -> bool {
    let body = text.split("</style>").last().unwrap();
    let mut open = vec!["html"];
    for tag in body.split('<').skip(1) {
        let Some((tag, _)) = tag.split_once('>') else { return false };
        let name = tag.split_whitespace().next().unwrap_or_default();
        if tag.matches('"').count() % 2 == 1 {
            return false;
        } else if let Some(name) = name.strip_prefix('/') {
            if name != "head" && open.pop() != Some(name) {
                return false;
            }
        } else if !tag.ends_with('/') && !["img", "input"].contains(&name) {
            open.push(name);
        }
    }
    open.is_empty()
}

/// Run with `PI0_BURN_JOURNAL=DIR` the folder stays, to be looked at; `check_tensorboard.py` reads it.
#[test]
fn a_whole_run_that_was_stopped_has_the_lines_of_one_that_was_not() {
    let temporary = tempfile::tempdir().unwrap();
    let (stopped, straight) = (temporary.path().join("stopped"), temporary.path().join("straight"));
    interrupted(&stopped);
    let mut journal = Journal::open(&straight, header(), None, at(0)).unwrap();
    train(&mut journal, &straight, 0, STEPS);
    journal.close(at(4000)).unwrap();
    assert_eq!(lines(&straight).len(), 300);
    assert_eq!(read(&stopped, "metrics.jsonl"), read(&straight, "metrics.jsonl"));
    let page = read(&stopped, "report.html");
    assert!(page.contains("done · step 3\u{202f}000 of 3\u{202f}000 (100 %)"), "{}", &page[..4000]);
    assert!(page.contains("<s>500</s>, 1000, 1500, 2000, 2500, 3000"));
    assert!(!fs::read_dir(&stopped).unwrap().any(|entry| entry.unwrap().path().extension() == Some("part".as_ref())));
    if let Some(place) = std::env::var_os("PI0_BURN_JOURNAL") {
        interrupted(Path::new(&place));
    }
}

#[test]
fn a_run_that_goes_on_cuts_off_later_lines_and_half_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let begun = |until: u64| {
        let _ = fs::remove_file(&path);
        let mut journal = Journal::open(dir.path(), header(), None, at(0)).unwrap();
        train(&mut journal, dir.path(), 0, until);
    };
    let steps = |resume_at: u64| {
        Journal::open(dir.path(), header(), Some(resume_at), at(9)).unwrap();
        lines(dir.path()).iter().map(|line| line.step).collect::<Vec<_>>()
    };
    begun(50);
    assert_eq!(steps(30), [10, 20, 30], "later ones are cut off");
    assert_eq!(steps(100), [10, 20, 30], "nothing is to be cut off");
    // What a killed run may leave: no newline, a line cut anywhere, zeros of a disk that lost its power.
    let whole = [&serde_json::to_vec(&line(40)).unwrap()[..], b"\n"].concat();
    for half in (1..whole.len()).map(|length| &whole[..length]).chain([&[0; 300][..]]) {
        append(&path, half);
        assert_eq!(steps(100), [10, 20, 30], "{half:?}");
    }
    append(&path, &whole);
    assert_eq!(steps(100), [10, 20, 30, 40]);
    fs::write(dir.path().join(".metrics.jsonl.part"), "left by a run that was killed").unwrap();
    assert_eq!(steps(0), [0; 0], "no checkpoint, no line");
}

#[test]
fn a_line_that_is_none_is_named_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), header(), None, at(0)).unwrap();
    train(&mut journal, dir.path(), 0, 20);
    let path = dir.path().join("metrics.jsonl");
    let refused = |extra: &[u8]| {
        let before = fs::read(&path).unwrap();
        append(&path, extra);
        let error = Journal::open(dir.path(), header(), Some(100), at(9)).unwrap_err();
        fs::write(&path, before).unwrap();
        assert!(matches!(error, JournalError::NotALine { line: 3, .. }), "{error}");
        error.to_string()
    };
    assert!(refused(b"{\"step\": 30}\n").contains("metrics.jsonl, line 3: missing field `loss`"));
    assert!(refused(b"\n").contains("line 3"));
    assert!(refused(&[b'x'; 100_000]).contains("longer than 65536 bytes"));
    let odd = serde_json::to_string(&line(30)).unwrap().replace("\"loss\":", "\"loss\":\"none\",\"was\":");
    assert!(refused(format!("{odd}\n").as_bytes()).contains("expected a number, \"nan\", \"inf\" or \"-inf\""));
}

#[test]
fn a_journal_that_is_there_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    drop(Journal::open(dir.path(), header(), None, at(0)).unwrap());
    let error = Journal::open(dir.path(), header(), None, at(0)).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl: it is there already; resume that run"), "{error}");
}

#[test]
fn tensorboard_files_hold_what_the_lines_say() {
    let dir = tempfile::tempdir().unwrap();
    interrupted(dir.path());
    let files = tensorboard::files(dir.path());
    let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["events.out.tfevents.1780000000.pi0.0000", "events.out.tfevents.1780002000.pi0.0001"]);
    let [first, second] = &files.iter().map(|path| tensorboard::events(path)).collect::<Vec<_>>()[..] else { panic!() };
    for events in [first, second] {
        assert_eq!(events[0].version.as_deref(), Some("brain.Event:2"));
        assert!(events[1..].iter().all(|event| event.version.is_none()));
    }
    // Each begins with a start: the second's voids what the first says of later steps.
    for (events, step, time) in [(first, 0, 1_780_000_000.0), (second, 1501, 1_780_002_000.0)] {
        assert_eq!((events[1].restart, events[1].step, events[1].wall_time), (true, step, time));
        assert!(events[2..].iter().all(|event| !event.restart));
    }
    let scalars = |events: &[tensorboard::Event]| {
        let scalars = events.iter().filter(|event| event.values.iter().any(|value| value.scalar.is_some()));
        scalars.cloned().collect::<Vec<_>>()
    };
    assert_eq!((scalars(first).len(), scalars(second).len()), (187, 150));
    for event in scalars(first).into_iter().chain(scalars(second)) {
        let line = line(event.step);
        assert_eq!(event.wall_time, 1_780_000_000.0 + event.step as f64);
        let found: Vec<_> = event.values.iter().map(|value| (&value.tag[..], value.scalar.unwrap())).collect();
        let expected = [
            ("loss", line.loss),
            ("grad_norm", line.grad_norm),
            ("param_norm", line.param_norm),
            ("learning_rate", line.learning_rate),
            ("samples_per_s", line.samples_per_s as f32),
            ("data_wait", line.data_wait as f32),
        ];
        assert_eq!(found, expected);
    }
    let value = |tag: &str| first.iter().flat_map(|event| &event.values).find(|value| value.tag == tag).expect(tag);
    let settings = value("settings");
    assert_eq!((&settings.plugin[..], settings.data_class, &settings.dims[..]), ("text", 2, &[][..]));
    let table = String::from_utf8(settings.strings[0].clone()).unwrap();
    assert!(table.contains("| seed | 42 |\n| lr_schedule | cosine_decay \\| peak 2.5e-5 |\n"), "{table}");
    let wrist = value("camera_views/left_wrist_0_rgb");
    assert_eq!((&wrist.plugin[..], wrist.data_class, &wrist.dims[..]), ("images", 3, &[5][..]));
    assert_eq!(wrist.strings[..2], [b"224".to_vec(), b"224".to_vec()]);
    assert_eq!(wrist.strings[3], fs::read(dir.path().join("first_batch/1_1_left_wrist_0_rgb.png")).unwrap());
    let image = png::Decoder::new(std::io::Cursor::new(&wrist.strings[3])).read_info().unwrap();
    assert_eq!(image.info().size(), (224, 224));
}

#[test]
fn an_event_file_that_is_begun_later_sorts_later_whatever_the_clock_says() {
    let dir = tempfile::tempdir().unwrap();
    for now in [100, 100, 5, 101] {
        drop(Journal::open(dir.path(), header(), Some(0), at(now)).unwrap());
    }
    let starts: Vec<f64> = tensorboard::files(dir.path()).iter().map(|f| tensorboard::events(f)[0].wall_time).collect();
    assert_eq!(starts, [100, 100, 5, 101].map(|second| 1_780_000_000.0 + f64::from(second)));
}

#[test]
fn what_is_not_finite_is_valid_json_and_marked_in_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), header(), None, at(0)).unwrap();
    train(&mut journal, dir.path(), 0, 30);
    let bad = Line { loss: f32::NAN, grad_norm: f32::INFINITY, samples_per_s: f64::NAN, ..line(40) };
    journal.line(&bad, at(40)).unwrap();
    train(&mut journal, dir.path(), 40, 50);
    journal.close(at(60)).unwrap();
    let last = read(dir.path(), "metrics.jsonl");
    let value: serde_json::Value = serde_json::from_str(last.lines().nth(3).unwrap()).unwrap();
    assert_eq!([&value["loss"], &value["grad_norm"], &value["samples_per_s"]], ["nan", "inf", "nan"]);
    let page = read(dir.path(), "report.html");
    assert!(page.contains("The loss was not finite in 1 line, first at step 40."));
    assert!(page.contains("<title>step 40: nan</title>") && page.contains("stopped · step 50 of"));
    assert!(well_formed(&page) && !page.contains("NaN") && !page.contains("\"inf"), "{page}");
    // All that is read back is drawn: nothing but such lines, and none at all.
    fs::write(dir.path().join("metrics.jsonl"), serde_json::to_string(&bad).unwrap() + "\n").unwrap();
    drop(Journal::open(dir.path(), header(), Some(40), at(70)).unwrap());
    assert!(well_formed(&read(dir.path(), "report.html")) && !read(dir.path(), "report.html").contains("NaN"));
    drop(Journal::open(dir.path(), header(), Some(0), at(80)).unwrap());
    assert!(read(dir.path(), "report.html").contains("No step has been written down yet."));
}

#[test]
fn no_name_and_no_prompt_becomes_markup_or_a_path() {
    let evil = "<script>alert('&\"')</script>../..\u{1}";
    let dir = tempfile::tempdir().unwrap();
    let all = || evil.to_owned();
    let header = Header {
        config: all(),
        exp: all(),
        model: all(),
        datasets: vec![all(), all()],
        device: all(),
        precision: all(),
        settings: vec![(all(), all())],
        ..header()
    };
    let mut journal = Journal::open(dir.path(), header, None, at(0)).unwrap();
    let mut shown = examples(evil);
    shown[0].dataset = all();
    shown[0].images[0].camera = all();
    journal.pictures(&shown, at(1)).unwrap();
    train(&mut journal, dir.path(), 0, 20);
    journal.close(at(30)).unwrap();
    let page = read(dir.path(), "report.html");
    assert!(well_formed(&page), "{page}");
    assert!(!page.contains("<script") && !page.contains('\u{1}') && !page.contains("alert('"));
    assert_eq!(page.matches("<blockquote>&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;").count(), 3);
    assert_eq!(page.matches("http").count(), page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
    let mut names: Vec<_> = fs::read_dir(dir.path().join("first_batch"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 7);
    assert!(names[0].starts_with("0_0__script_alert") && names[0].matches('.').count() == 1, "{names:?}");
}

#[test]
fn the_first_batch_is_shown_once_and_again_after_a_resumption() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), header(), None, at(0)).unwrap();
    assert!(journal.wants_pictures());
    journal.pictures(&examples("stack the cups"), at(1)).unwrap();
    journal.pictures(&examples("another batch"), at(2)).unwrap();
    drop(journal);
    let before = read(dir.path(), "report.html");
    assert!(before.contains("stack the cups") && before.matches("<figure>").count() == 6);
    assert!(before.contains("physical-intelligence/libero, frame 2\u{202f}145"));
    drop(Journal::open(dir.path(), header(), Some(0), at(9)).unwrap());
    let after = read(dir.path(), "report.html");
    let batch = |page: &str| page[page.find("<h2>The first batch").unwrap()..].to_owned();
    assert_eq!(batch(&before), batch(&after));
    let captions = dir.path().join("first_batch/captions.json");
    let text = fs::read_to_string(&captions).unwrap().replace("0_0_base_0_rgb.png", "../0_0_base_0_rgb.png");
    fs::write(&captions, text).unwrap();
    let error = Journal::open(dir.path(), header(), Some(0), at(9)).unwrap_err().to_string();
    assert!(error.contains("\"../0_0_base_0_rgb.png\" is not the name of a picture"), "{error}");
}

#[test]
fn a_picture_of_another_size_is_named_by_its_camera() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), header(), None, at(0)).unwrap();
    let mut shown = examples("fold the towel");
    shown[1].images[1].size = [224, 225];
    let error = journal.pictures(&shown, at(1)).unwrap_err().to_string();
    assert!(error.starts_with("left_wrist_0_rgb: expected 224 x 225 pixels of 3 bytes, found 150528 bytes"), "{error}");
    assert!(journal.wants_pictures(), "nothing is shown of it");
}

#[test]
fn a_report_is_rewritten_every_two_seconds_and_at_every_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), header(), None, at(0)).unwrap();
    let step = || read(dir.path(), "report.html").split(" of 3").next().unwrap().rsplit(' ').next().unwrap().to_owned();
    journal.line(&line(10), at(1)).unwrap();
    assert_eq!(step(), "0", "a second after the last");
    journal.line(&line(20), at(2)).unwrap();
    assert_eq!(step(), "20");
    journal.line(&line(30), at(3)).unwrap();
    journal.checkpoint(30, at(3)).unwrap();
    assert_eq!(step(), "30");
    journal.line(&line(40), at(1)).unwrap();
    assert_eq!(step(), "40", "a clock that goes back does not stop it");
    assert!(read(dir.path(), "report.html").contains("training · step 40 of"));
}
