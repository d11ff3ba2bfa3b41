//! No file is replaced, no number left out, nobody made to wait; what goes wrong is told once and counted.

use std::sync::mpsc;

use super::*;
use crate::policy::array::Array;
use crate::serve::request::Extensions;

fn request(n: u64) -> Request {
    let mut request = Request::default();
    request.observation.put_array("state", Array::f64([1], vec![n as f64]));
    request
}

fn outputs() -> Tree {
    Tree::Map(vec![("actions".to_owned(), Tree::Array(Array::f32([1, 1], vec![0.5])))])
}

fn silent(event: Event) {
    panic!("nothing to tell, but {event:?}");
}

/// What each file's state was, by number.
fn kept(folder: &Path) -> Vec<(u64, f64)> {
    let one = |(number, path): (u64, PathBuf)| {
        let state = recording::read(&path).unwrap().inputs.array("state").unwrap().values.to_f64();
        (number, state[0])
    };
    recording::steps(folder).unwrap().into_iter().map(one).collect()
}

#[test]
fn every_request_has_its_file_in_order_and_all_are_there_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("policy_records");
    let recorder = Recorder::open(&inner, Room { recordings: 100, ..Room::default() }, silent).unwrap();
    for n in 0..40 {
        recorder.keep(&request(n), &outputs());
    }
    assert_eq!(recorder.close(), Counts { written: 40, ..Counts::default() });
    assert_eq!(kept(&inner), (0..40).map(|n| (n, n as f64)).collect::<Vec<_>>());
    assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 40);
}

#[test]
fn numbers_go_on_after_the_highest_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["step_2.npy", "step_10.npy", "notes.txt"] {
        std::fs::write(folder.path().join(name), b"mine").unwrap();
    }
    let recorder = Recorder::open(folder.path(), Room::default(), silent).unwrap();
    recorder.keep(&request(1), &outputs());
    drop(recorder);
    assert!(folder.path().join("step_11.npy").exists());
    assert_eq!(std::fs::read(folder.path().join("step_10.npy")).unwrap(), b"mine");
}

#[test]
fn another_that_writes_into_the_folder_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = Recorder::open(folder.path(), Room::default(), silent).unwrap();
    let second = Recorder::open(folder.path(), Room::default(), silent).unwrap();
    second.keep(&request(7), &outputs());
    assert_eq!(second.close().written, 1);
    first.keep(&request(8), &outputs());
    first.keep(&request(9), &outputs());
    assert_eq!(first.close().written, 2);
    assert_eq!(kept(folder.path()), [(0, 7.0), (1, 8.0), (2, 9.0)]);
}

#[test]
fn a_disk_that_does_not_keep_up_costs_recordings_and_no_time() {
    let folder = tempfile::tempdir().unwrap();
    let (told, events) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    // Telling of a recording that is none holds the writer up, as a disk would.
    let tell = move |event: Event| {
        let failed = matches!(event, Event::Failed { .. });
        told.send(event).unwrap();
        if failed {
            wait.lock().unwrap().recv().unwrap();
        }
    };
    let room = Room { recordings: 2, bytes: 1 << 20, patience: Duration::from_millis(1) };
    let recorder = Recorder::open(folder.path(), room, tell).unwrap();
    recorder.keep(&Request::default(), &outputs());
    let Event::Failed { error } = events.recv().unwrap() else { panic!("a recording without inputs") };
    assert!(error.to_string().contains("begin with inputs/"), "{error}");
    for n in 0..10 {
        recorder.keep(&request(n), &outputs());
    }
    assert!(matches!(events.recv().unwrap(), Event::Dropped { dropped: 1 }));
    assert_eq!(recorder.counts(), Counts { written: 0, dropped: 8, failed: 1 });
    go_on.send(()).unwrap();
    let counts = recorder.close();
    assert_eq!(counts, Counts { written: 2, dropped: 8, failed: 1 });
    // What was dropped or failed took no number.
    assert_eq!(kept(folder.path()), [(0, 0.0), (1, 1.0)]);
    assert_eq!(events.try_iter().count(), 0, "one event for eight that were dropped");
}

#[test]
fn a_recording_of_many_bytes_waits_alone() {
    let folder = tempfile::tempdir().unwrap();
    let room = Room { recordings: 9, bytes: 1, patience: Duration::from_secs(60) };
    let recorder = Recorder::open(folder.path(), room, silent).unwrap();
    for n in 0..5 {
        recorder.keep(&request(n), &outputs());
    }
    assert_eq!(recorder.close().written, 5);
}

#[test]
fn a_failure_is_told_once_of_each_kind_and_leaves_no_gap() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("records");
    let (told, events) = mpsc::channel();
    let recorder = Recorder::open(&inner, Room::default(), move |event| told.send(event).unwrap()).unwrap();
    std::fs::remove_dir(&inner).unwrap();
    let settled = |failed| {
        while recorder.counts().failed < failed {
            std::thread::yield_now();
        }
    };
    for n in 0..3 {
        recorder.keep(&request(n), &outputs());
    }
    settled(3);
    recorder.keep(&Request::default(), &outputs());
    settled(4);
    let beyond = Extensions { seed: Some(u64::MAX), ..Extensions::default() };
    recorder.keep(&Request { extensions: Some(beyond), ..request(4) }, &outputs());
    std::fs::create_dir(&inner).unwrap();
    recorder.keep(&request(5), &outputs());
    assert_eq!(recorder.close(), Counts { written: 1, dropped: 0, failed: 5 });
    assert_eq!(kept(&inner), [(0, 5.0)]);
    let words: Vec<String> = events.try_iter().map(|event| format!("{event:?}")).collect();
    assert_eq!(words.len(), 3, "{words:?}");
    assert!(
        words[0].contains("NotFound") && words[1].contains("NoInputs") && words[2].contains("63 bits"),
        "{words:?}"
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a");
    std::fs::write(&file, b"").unwrap();
    let error = Recorder::open(&file.join("records"), Room::default(), silent).unwrap_err().to_string();
    assert!(error.contains("records: cannot be written"), "{error}");
}
