//! Draws and pictures without a recording: distributions, independence of rows and threads, what is mended, what is refused.
//! Invariant: all chance is from seeds; nothing here can fail on one day and pass on another.

use super::*;

const SIZE: (usize, usize) = (224, 224);
const CAMERAS: [&str; 4] = ["base_0_rgb", "base_1_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"];

/// A picture of values from chance.
fn picture((h, w): (usize, usize), row: usize) -> Vec<f32> {
    let mut chance = crate::chance::Stream::new(1, "picture", row);
    (0..h * w * CHANNELS).map(|_| (chance.below(256) as f32) / 255.0 * 2.0 - 1.0).collect()
}

fn draws(row: usize, camera: &str, quirks: Quirks) -> Draws {
    Draws::of((3, 11), row, camera, SIZE, quirks)
}

/// A picture's draws as numbers of [-1, 1], and whether its colours are jittered.
type Numbers = ([f64; 7], bool);

fn numbers(draws: &Draws) -> Numbers {
    let View { center_y, center_x, angle } = draws.view.expect("a view");
    let Jitter { applied, brightness, contrast, hue, saturation } = draws.jitter;
    let limits = [6.0, 6.0, 5f64.to_radians(), 0.3, 0.4, 0.1, 0.5];
    let values = [center_y, center_x, angle, brightness, contrast, hue, saturation];
    (std::array::from_fn(|i| f64::from(values[i]) / limits[i]), applied)
}

/// A batch of `rows` rows from number `first`, augmented; camera by camera.
fn batch(augmentation: Augment, first: usize, rows: usize) -> Vec<Vec<f32>> {
    let size = (12, 16);
    let mut values: Vec<Vec<f32>> =
        CAMERAS.iter().map(|_| (first..first + rows).flat_map(|row| picture(size, row)).collect()).collect();
    let mut cameras: Vec<Pictures<'_>> =
        values.iter_mut().zip(CAMERAS).map(|(values, camera)| Pictures { camera, values }).collect();
    augment_rows(augmentation, (3, 11), first, size, &mut cameras).expect("a batch");
    values
}

#[test]
fn every_word_comes_home() {
    for augment in Augment::ALL {
        assert_eq!(augment.to_string().parse(), Ok(augment));
        assert_eq!(serde_json::to_string(&augment).unwrap(), format!("\"{augment}\""));
    }
    assert_eq!(
        "Off".parse::<Augment>().unwrap_err().to_string(),
        "Off: no such augmentation; there are off, openpi and fixed"
    );
}

#[test]
fn draws_are_uniform_in_their_ranges_and_independent() {
    const ROWS: usize = 20_000;
    let all: Vec<_> = (0..ROWS).map(|row| numbers(&draws(row, CAMERAS[0], Quirks::OPENPI))).collect();
    let mean = |f: &dyn Fn(&Numbers) -> f64| all.iter().map(f).sum::<f64>() / ROWS as f64;
    // Five deviations of a mean over as many rows.
    let close =
        |found: f64, expected: f64, deviation: f64| (found - expected).abs() < 5.0 * deviation / (ROWS as f64).sqrt();
    assert!(close(mean(&|(_, on)| f64::from(u8::from(*on))), 0.5, 0.5));
    for i in 0..7 {
        let x = |(x, _): &Numbers| x[i];
        assert!(all.iter().all(|row| x(row).abs() <= 1.0 + 1e-6), "{i}");
        assert!(close(mean(&x), 0.0, 3f64.sqrt().recip()), "{i}: mean {}", mean(&x));
        assert!(close(mean(&|row| x(row).powi(2)), 1.0 / 3.0, 0.3), "{i}: square {}", mean(&|row| x(row).powi(2)));
        for bin in 0..20 {
            let low = f64::from(bin) / 10.0 - 1.0;
            let share = mean(&|row| f64::from(u8::from((low..low + 0.1).contains(&x(row)))));
            assert!(close(share, 0.05, 0.22), "{i}: {share} from {low}");
        }
        let on = mean(&|row| x(row) * if row.1 { 1.0 } else { -1.0 });
        assert!(close(on, 0.0, 0.58), "{i} and the jitter: {on}");
        for j in 0..i {
            let together = mean(&|(x, _)| x[i] * x[j]);
            assert!(close(together, 0.0, 1.0 / 3.0), "{i} and {j}: {together}");
        }
    }
}

#[test]
fn the_crop_is_continuous_and_has_openpis_room() {
    let room = |size, limit: [f32; 2]| {
        let views = (0..2000).map(|row| Draws::of((0, 0), row, "base_0_rgb", size, Quirks::OPENPI).view.expect("one"));
        let most =
            views.clone().fold([0f32; 2], |most, v| [most[0].max(v.center_y.abs()), most[1].max(v.center_x.abs())]);
        assert!((0..2).all(|i| most[i] <= limit[i] && most[i] > 0.99 * limit[i]), "{most:?}");
        assert!(views.filter(|v| v.center_y.fract() != 0.0).count() > 1990);
    };
    room((224, 224), [6.0, 6.0]);
    room((48, 64), [1.5, 2.0]);
}

#[test]
fn seed_step_and_row_part_the_draws() {
    let of = |seed, step, row| Draws::of((seed, step), row, CAMERAS[0], SIZE, Quirks::OPENPI);
    let all = [of(0, 0, 0), of(1, 0, 0), of(0, 1, 0), of(0, 0, 1), of(0, 10, 0), of(0, 1, 10)];
    for (i, a) in all.iter().enumerate() {
        for b in &all[..i] {
            let ((a, _), (b, _)) = (numbers(a), numbers(b));
            assert!((0..7).all(|i| a[i] != b[i]), "{a:?} {b:?}");
        }
    }
}

#[test]
fn mended_cameras_draw_for_themselves() {
    const ROWS: usize = 4000;
    let mut same = 0;
    for row in 0..ROWS {
        let all = CAMERAS.map(|camera| draws(row, camera, Quirks::FIXED));
        assert!(all[0].view != all[1].view && all[2].view.is_none() && all[3].view.is_none());
        let jitter = all.map(|draws| draws.jitter.brightness);
        assert!((0..4).all(|i| (0..i).all(|j| jitter[i] != jitter[j])), "{jitter:?}");
        same += usize::from((all[0].view.expect("a view").center_y < 0.0) == all[2].jitter.applied);
    }
    assert!((ROWS * 9 / 20..ROWS * 11 / 20).contains(&same), "{same}");
}

#[test]
fn a_row_does_not_know_its_batch() {
    for augmentation in [Augment::Openpi, Augment::Fixed] {
        let whole = batch(augmentation, 0, 5);
        assert_ne!(whole, batch(Augment::Off, 0, 5));
        let parts = [batch(augmentation, 0, 1), batch(augmentation, 1, 3), batch(augmentation, 4, 1)];
        for (camera, whole) in whole.iter().enumerate() {
            let joined: Vec<f32> = parts.iter().flat_map(|part| part[camera].clone()).collect();
            assert_eq!(*whole, joined, "{augmentation}: {}", CAMERAS[camera]);
        }
    }
}

#[test]
fn the_number_of_threads_is_not_seen() {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| batch(Augment::Openpi, 0, 6))
    };
    assert_eq!(with(1), with(5));
}

#[test]
fn a_batch_is_its_pictures_one_by_one() {
    let (size, rows) = ((12, 16), 3);
    for (camera, values) in CAMERAS.iter().zip(batch(Augment::Fixed, 0, rows)) {
        for (row, found) in values.chunks(size.0 * size.1 * CHANNELS).enumerate() {
            let mut expected = picture(size, row);
            let draws = Draws::of((3, 11), row, camera, size, Quirks::FIXED);
            apply(&mut expected, size, &draws, Quirks::FIXED).expect("a picture");
            assert_eq!(found, expected, "{camera}[{row}]");
        }
    }
}

#[test]
fn off_leaves_every_bit() {
    let values = batch(Augment::Off, 0, 2);
    let expected: Vec<f32> = (0..2).flat_map(|row| picture((12, 16), row)).collect();
    assert!(values.iter().all(|values| *values == expected));
}

#[test]
fn mended_saturation_is_multiplied_and_ends_at_one() {
    let still = Jitter { applied: true, brightness: 0.0, contrast: 0.0, hue: 0.0, saturation: 0.0 };
    let of = |pixel: [f32; 3], saturation: f32, quirks: Quirks| {
        let mut picture = pixel.map(|x| x * 2.0 - 1.0);
        let draws = Draws { view: None, jitter: Jitter { saturation, ..still } };
        apply(&mut picture, (1, 1), &draws, quirks).expect("a picture");
        picture.map(|x| x / 2.0 + 0.5)
    };
    let close = |a: [f32; 3], b: [f32; 3]| assert!((0..3).all(|i| (a[i] - b[i]).abs() < 1e-6), "{a:?} {b:?}");
    for saturation in [-0.5, -0.1, 0.3, 0.5] {
        close(of([0.8, 0.4, 0.6], saturation, Quirks::OPENPI), [0.8, 0.4, 0.6]);
        close(of([0.5, 0.5, 0.5], saturation, Quirks::FIXED), [0.5, 0.5, 0.5]);
        let less = 0.4 * (1.0 + saturation);
        close(of([0.8, 0.4, 0.6], saturation, Quirks::FIXED), [0.8, 0.8 - less, 0.8 - less / 2.0]);
    }
    close(of([0.2, 0.1, 0.9], 0.5, Quirks::FIXED), [0.1125, 0.0, 0.9]);
}

#[test]
fn colours_of_the_range_stay_in_it() {
    let mut chance = crate::chance::Stream::new(5, "jitter", 0);
    for row in 0..300 {
        let mut values = picture((4, 4), row);
        let mut draws = draws(row, "wrist", Quirks::FIXED);
        draws.jitter.applied = true;
        if chance.unit() < 0.2 {
            draws.jitter.contrast = 0.0;
        }
        apply(&mut values, (4, 4), &draws, Quirks::FIXED).expect("a picture");
        assert!(values.iter().all(|x| x.abs() <= 1.0 + 1e-6), "{draws:?}");
    }
}

#[test]
fn a_positive_angle_turns_the_picture_counterclockwise_around_its_middle() {
    let mut values = vec![-1.0; 9 * 9 * CHANNELS];
    values[(4 * 9 + 8) * CHANNELS] = 1.0;
    let still = Jitter { applied: false, brightness: 0.0, contrast: 0.0, hue: 0.0, saturation: 0.0 };
    let view = View { center_y: 0.0, center_x: 0.0, angle: std::f32::consts::FRAC_PI_2 };
    let scale = cropped_share(9);
    apply(&mut values, (9, 9), &Draws { view: Some(view), jitter: still }, Quirks::OPENPI).expect("a picture");
    // From the right to the top; the crop to 8 of 9 pixels has put it half a pixel beyond the edge.
    let brightest = (0..81).max_by(|a, b| values[a * CHANNELS].total_cmp(&values[b * CHANNELS])).expect("one");
    assert_eq!((brightest / 9, brightest % 9), (0, 4));
    assert!((values[brightest * CHANNELS] - (2.0 * (1.0 - (4.0 - 4.0 * scale)) - 1.0)).abs() < 1e-5);
}

fn cropped_share(side: usize) -> f32 {
    view::cropped(side) as f32 / side as f32
}

#[test]
fn draws_from_elsewhere_do_no_harm() {
    for x in [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN, 1e10, -1e10, 0.0] {
        let jitter = Jitter { applied: true, brightness: x, contrast: x, hue: x, saturation: x };
        let view = Some(View { center_y: x, center_x: -x, angle: x });
        let mut values = picture((5, 7), 0);
        apply(&mut values, (5, 7), &Draws { view, jitter }, Quirks::FIXED).expect("a picture");
    }
    let turned = |turns: f32| {
        let jitter = Jitter { applied: true, brightness: 0.0, contrast: 0.0, hue: turns, saturation: 0.0 };
        let mut values = picture((5, 7), 0);
        apply(&mut values, (5, 7), &Draws { view: None, jitter }, Quirks::OPENPI).expect("a picture");
        values
    };
    for turns in [-3.0, -1.0, 1.0, 2.0] {
        let (a, b) = (turned(0.25), turned(0.25 + turns));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4), "{turns}");
    }
}

#[test]
fn pictures_of_another_size_are_named_and_left() {
    let draws = draws(0, "base_0_rgb", Quirks::OPENPI);
    let refused = apply(&mut [0.0; 11], (2, 2), &draws, Quirks::OPENPI).unwrap_err();
    assert_eq!(refused.to_string(), "picture: expected 2 × 2 × 3, found 11 values");
    assert!(apply(&mut [0.0; 3], (usize::MAX, 2), &draws, Quirks::OPENPI).is_err());

    let rows = |lengths: [usize; 2], size| {
        let mut values = lengths.map(|n| vec![0.25; n]);
        let [base, wrist] = &mut values;
        let mut cameras =
            [Pictures { camera: "base_0_rgb", values: base }, Pictures { camera: "wrist_0_rgb", values: wrist }];
        let refused = augment_rows(Augment::Openpi, (0, 0), 0, size, &mut cameras).unwrap_err();
        assert!(values.iter().flatten().all(|x| *x == 0.25));
        refused.to_string()
    };
    assert_eq!(rows([24, 25], (2, 2)), "wrist_0_rgb: expected B × 2 × 2 × 3, found 25 values");
    assert_eq!(rows([24, 12], (2, 2)), "wrist_0_rgb: expected 2 × 2 × 2 × 3 as the cameras before it, found 12 values");
    assert_eq!(rows([24, 24], (0, 2)), "base_0_rgb: expected B × 0 × 2 × 3, found 24 values");
}
