//! What openpi's own training made of pictures, ours makes of them with the same draws: golden/augmentation.

#![cfg(feature = "robot")]

use std::collections::BTreeMap;
use std::path::Path;

use pi0_burn::train::augment::{Draws, Quirks, apply};
use safetensors::SafeTensors;
use serde::Deserialize;

/// Absolute, in [-1, 1]. Arithmetic is JAX's, operation by operation; what is left is where XLA fuses a product and a sum, and
/// what f32 makes of that in the hue of nearly black pixels: 3e-6 at most. Coordinates summed in another order are 1e-5 away
/// in the small pictures and 4e-5 in the large one.
const TOLERANCE: f32 = 5e-6;

/// A case of draws.json.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    height: usize,
    width: usize,
    /// Of every how many rows of pixels the result was kept.
    every: usize,
    draws: BTreeMap<String, Vec<Draws>>,
}

/// One picture as openpi took and gave it.
struct Recorded {
    name: String,
    size: (usize, usize),
    every: usize,
    draws: Draws,
    before: Vec<f32>,
    after: Vec<f32>,
}

fn cases() -> BTreeMap<String, Case> {
    serde_json::from_slice(&read("draws.json")).expect("draws")
}

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/augmentation").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn recorded() -> Vec<Recorded> {
    let bytes = read("pictures.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
    let mut all = vec![];
    for (name, case) in cases() {
        let size = (case.height, case.width);
        for (camera, rows) in case.draws {
            let before = tensors.tensor(&format!("{name}/in/{camera}")).expect("before");
            let after = tensors.tensor(&format!("{name}/out/{camera}")).expect("after");
            let after: Vec<f32> = after.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let before: Vec<f32> = before.data().iter().map(|x| f32::from(*x) / 255.0 * 2.0 - 1.0).collect();
            for (row, draws) in rows.iter().enumerate() {
                let part = |values: &[f32], n: usize| values[row * n..(row + 1) * n].to_vec();
                all.push(Recorded {
                    name: format!("{name}/{camera}[{row}]"),
                    size,
                    every: case.every,
                    draws: *draws,
                    before: part(&before, size.0 * size.1 * 3),
                    after: part(&after, size.0.div_ceil(case.every) * size.1 * 3),
                });
            }
        }
    }
    all
}

impl Recorded {
    /// How far ours is from openpi's at most.
    fn error(&self, draws: &Draws, quirks: Quirks) -> f32 {
        let mut ours = self.before.clone();
        apply(&mut ours, self.size, draws, quirks).expect("a picture");
        let kept = ours.chunks(self.size.1 * 3).step_by(self.every).flatten();
        assert_eq!(kept.clone().count(), self.after.len(), "{}", self.name);
        kept.zip(&self.after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }
}

#[test]
fn given_the_recorded_draws_pictures_are_openpis() {
    let recorded = recorded();
    assert_eq!(recorded.len(), 4 * 3 + 2 * 3 + 1);
    for picture in &recorded {
        let error = picture.error(&picture.draws, Quirks::OPENPI);
        assert!(error <= TOLERANCE, "{}: {error:e}", picture.name);
    }
}

#[test]
fn the_recording_holds_every_kind_of_draw() {
    let recorded = recorded();
    let has = |what: &dyn Fn(&Draws) -> bool| recorded.iter().any(|picture| what(&picture.draws));
    for wrist in [false, true] {
        let jittered = |draws: &Draws| draws.view.is_none() == wrist && draws.jitter.applied;
        assert!(has(&|d| d.view.is_none() == wrist && !d.jitter.applied), "one that is left, wrist {wrist}");
        assert!(has(&|d| jittered(d) && d.jitter.brightness > 0.0), "a brighter one, wrist {wrist}");
        assert!(has(&|d| jittered(d) && d.jitter.brightness < 0.0), "a darker one, wrist {wrist}");
    }
    for sign in [-1.0, 1.0] {
        assert!(has(&|d| d.jitter.applied && d.jitter.contrast * sign > 0.1), "contrast {sign}");
        assert!(has(&|d| d.jitter.applied && d.jitter.hue * sign > 0.03), "hue {sign}");
        assert!(has(&|d| d.view.is_some_and(|v| v.angle * sign > 0.01)), "angle {sign}");
    }
}

#[test]
fn a_thousandth_of_any_draw_is_seen() {
    let recorded = recorded();
    let bases = recorded.iter().filter(|picture| picture.draws.view.is_some() && picture.draws.jitter.applied);
    let base = bases.into_iter().next().expect("a cropped and jittered picture");
    type Change = fn(&mut Draws);
    let moved: [(&str, Change); 6] = [
        ("center_y", |d| d.view.as_mut().expect("one").center_y += 1e-3),
        ("center_x", |d| d.view.as_mut().expect("one").center_x += 1e-3),
        ("angle", |d| d.view.as_mut().expect("one").angle += 1e-3),
        ("brightness", |d| d.jitter.brightness += 1e-3),
        ("contrast", |d| d.jitter.contrast += 1e-3),
        ("hue", |d| d.jitter.hue += 1e-3),
    ];
    for (name, change) in moved {
        let mut draws = base.draws;
        change(&mut draws);
        assert!(base.error(&draws, Quirks::OPENPI) > 20.0 * TOLERANCE, "{name}");
    }
}

#[test]
fn mended_pictures_differ_only_where_there_is_jitter() {
    for picture in recorded() {
        let error = picture.error(&picture.draws, Quirks::FIXED);
        assert_eq!(error > TOLERANCE, picture.draws.jitter.applied, "{}: {error:e}", picture.name);
    }
}

/// What one key for all cameras means, in the recording and in ours.
#[test]
fn cameras_draw_alike_as_in_the_recording() {
    let alike = |name: &str, row: usize, draws: BTreeMap<&str, Draws>| {
        let (wrists, views): (Vec<_>, Vec<_>) = draws.into_iter().partition(|(camera, _)| camera.contains("wrist"));
        assert!(wrists.windows(2).all(|pair| pair[0].1 == pair[1].1), "{name}[{row}]");
        assert!(views.windows(2).all(|pair| pair[0].1 == pair[1].1), "{name}[{row}]");
        for ((_, wrist), (_, base)) in wrists.iter().zip(&views) {
            let above = base.view.expect("a view").center_y < 0.0;
            assert_eq!((wrist.view, wrist.jitter.applied), (None, above), "{name}[{row}]");
            assert_ne!(wrist.jitter.brightness, base.jitter.brightness, "{name}[{row}]");
        }
    };
    for (name, case) in cases() {
        let rows = case.draws.values().next().expect("a camera").len();
        for row in 0..rows {
            alike(&name, row, case.draws.iter().map(|(camera, rows)| (camera.as_str(), rows[row])).collect());
        }
        for row in 0..64 {
            let of = |camera| Draws::of((0, 7), row, camera, (case.height, case.width), Quirks::OPENPI);
            alike("ours", row, case.draws.keys().map(|camera| (camera.as_str(), of(camera))).collect());
        }
    }
}
