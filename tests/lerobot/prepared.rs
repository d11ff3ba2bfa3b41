//! Frames that were prepared: used, kept, noticed when they are stale.

use std::path::Path;

use pi0_burn::data::lerobot::{DataError, Dataset, Episode};

use super::{copy, fixture, stamped};

/// One level brighter, so that a frame tells where it came from; sizes stay.
fn brighter(picture: &[u8], _: (usize, usize)) -> Result<Vec<u8>, String> {
    Ok(picture.iter().map(|level| level.saturating_add(1)).collect())
}

fn picture(dataset: &Dataset, index: usize) -> Result<Vec<u8>, DataError> {
    let (episode, frame) = dataset.locate(index).unwrap();
    let mut taken = vec![];
    dataset.pictures("observation.images.image", episode, frame..frame + 1, 1, &mut |_, _, pixels| {
        taken = pixels.to_vec();
        Ok(())
    })?;
    Ok(taken)
}

fn prepare(dir: &Path, films: &Path, how: &str) -> (u64, u64) {
    let dataset = Dataset::open(dir).unwrap();
    let episodes: Vec<&Episode> = dataset.episodes().iter().collect();
    let done = dataset.prepare(films, &episodes, 64, how, &brighter, &|_| ()).unwrap();
    (done.written, done.kept)
}

#[test]
fn prepared_frames_are_used_kept_and_made_anew_when_they_must() {
    let dir = copy("libero_v21_img");
    let films = dir.path().join(".pi0-cache");
    assert_eq!(Dataset::prepared_beside(dir.path()), None);
    assert_eq!(prepare(dir.path(), &films, "brighter"), (6, 0));
    assert_eq!(Dataset::prepared_beside(dir.path()), Some(films.clone()));
    let plain = Dataset::open(dir.path()).unwrap();
    let prepared = Dataset::open(dir.path()).unwrap().with_prepared(&films);
    for index in [0, 41, 97] {
        let expected = brighter(&picture(&plain, index).unwrap(), (64, 64)).unwrap();
        assert_eq!(picture(&prepared, index).unwrap(), expected, "{index}");
    }
    assert_eq!(prepare(dir.path(), &films, "brighter"), (0, 6), "all are there");
    let one = films.join("observation.images.image/episode_000001.frames");
    std::fs::remove_file(&one).unwrap();
    assert_eq!(prepare(dir.path(), &films, "brighter"), (1, 5), "one was missing");
    assert_eq!(prepare(dir.path(), &films, "otherwise"), (6, 0), "made in another way");
    let left: Vec<_> =
        std::fs::read_dir(one.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "nothing half-made is left: {left:?}");
}

#[test]
fn a_film_that_the_dataset_left_behind_is_noticed() {
    let dir = copy("libero_v21_img");
    let films = dir.path().join("films");
    prepare(dir.path(), &films, "brighter");
    let table = dir.path().join("data/chunk-000/episode_000001.parquet");
    let bytes = std::fs::read(&table).unwrap();
    std::fs::remove_file(&table).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(&table, bytes).unwrap();
    let dataset = Dataset::open(dir.path()).unwrap().with_prepared(&films);
    let error = picture(&dataset, 41).unwrap_err().to_string();
    assert!(error.contains("episode_000001.frames") && error.contains("run `pi0 prepare` again"), "{error}");
    assert!(picture(&dataset, 0).is_ok(), "the others are as they were");
    assert_eq!(prepare(dir.path(), &films, "brighter"), (2, 4));
}

#[test]
fn a_film_that_is_cut_off_is_named() {
    let dir = copy("libero_v21_img");
    let films = dir.path().join("films");
    prepare(dir.path(), &films, "brighter");
    let film = films.join("observation.images.image/episode_000001.frames");
    let bytes = std::fs::read(&film).unwrap();
    let dataset = Dataset::open(dir.path()).unwrap().with_prepared(&films);
    for kept in [0, 4, 100, bytes.len() - 1] {
        std::fs::write(&film, &bytes[..kept]).unwrap();
        let error = picture(&dataset, 41).unwrap_err().to_string();
        assert!(error.contains("episode_000001.frames: prepared frames: it"), "{kept}: {error}");
    }
    std::fs::write(&film, [0xff; 200]).unwrap();
    assert!(picture(&dataset, 41).unwrap_err().to_string().contains("its header is cut off"));
}

#[test]
fn a_resize_that_gives_another_size_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = Dataset::open(&fixture("libero_v30_img")).unwrap();
    let episodes: Vec<&Episode> = dataset.episodes().iter().take(1).collect();
    let error = dataset.prepare(dir.path(), &episodes, 32, "not at all", &brighter, &|_| ()).unwrap_err().to_string();
    assert!(error.contains("resized to 12288 bytes, expected 3072"), "{error}");
    for camera in std::fs::read_dir(dir.path()).unwrap() {
        assert_eq!(std::fs::read_dir(camera.unwrap().path()).unwrap().count(), 0);
    }
    let frame = picture(&dataset, 41).unwrap();
    assert_eq!(stamped(&frame, (64, 64)), (1, 1, 0));
}
