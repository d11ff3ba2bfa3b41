//! The sweep against the population written out and sorted.

use super::super::stats;
use super::*;

/// Numbers that look like chance, in [-1, 1).
fn noise(i: u64) -> f32 {
    (mixed(i) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn motion(frames: usize, per_episode: usize, horizon: usize) -> Motion {
    let column = |seed: u64, f: fn(usize, f32) -> f32| -> Vec<f32> {
        (0..frames).map(|i| f(i, noise(seed * 1_000_000_007 + i as u64))).collect()
    };
    let wave = |i: usize, x: f32| (i as f32 / 40.0).sin() + x * 0.1;
    let grip = |i: usize, x: f32| if x > 0.97 { 1.0 } else { f32::from(u8::from(i % 200 > 150)) };
    let same = |_: usize, _: f32| 0.25;
    let tail = |_: usize, x: f32| x * x * x * 50.0;
    let columns = |seed| {
        vec![
            Column::F32(column(seed, wave)),
            Column::F32(column(seed + 1, grip)),
            Column::F32(column(seed + 2, same)),
            Column::F64(column(seed + 3, tail).into_iter().map(|x| f64::from(x) / 3.0).collect()),
            Column::F32(column(seed + 4, wave)),
        ]
    };
    let ends = (0..frames).step_by(per_episode);
    Motion {
        state: columns(10),
        actions: columns(20),
        episodes: ends.map(|start| start..(start + per_episode).min(frames)).collect(),
        horizon,
        delta: vec![true, false, true, true],
        picked: None,
    }
}

/// The population, written out.
fn population(motion: &Motion, element: Option<usize>, i: usize) -> Vec<f32> {
    let at = |column: &Column, frame: usize| match column {
        Column::F32(x) => f64::from(x[frame]),
        Column::F64(x) => x[frame],
    };
    let episode = |frame: usize| motion.episodes.iter().find(|e| e.contains(&frame)).unwrap().clone();
    let all: Vec<usize> = motion.picked.clone().unwrap_or_else(|| (0..motion.frames()).collect());
    all.into_iter()
        .flat_map(|frame| match element {
            None => vec![at(&motion.state[i], frame) as f32],
            Some(i) => (0..motion.horizon)
                .map(|h| {
                    let value = at(&motion.actions[i], (frame + h).min(episode(frame).end - 1));
                    let from = if motion.relative(i) { at(&motion.state[i], frame) } else { 0.0 };
                    (value - from) as f32
                })
                .collect(),
        })
        .collect()
}

/// What `numpy.quantile`, `mean` and `std` give.
fn expected(mut values: Vec<f32>) -> Summary {
    values.sort_unstable_by(f32::total_cmp);
    let n = values.len() as f64;
    let quantile = |q: f64| {
        let place = q * (n - 1.0);
        let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
        f64::from(low) + (f64::from(high) - f64::from(low)) * place.fract()
    };
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    Summary {
        count: values.len() as u64,
        mean,
        std: variance.sqrt(),
        q01: quantile(0.01),
        q99: quantile(0.99),
        min: values[0].into(),
        max: values[values.len() - 1].into(),
    }
}

fn compare(motion: &Motion) {
    let found = exact(motion).unwrap();
    let state = (0..motion.state.len()).map(|i| (format!("state[{i}]"), found.state[i], population(motion, None, i)));
    let actions =
        (0..motion.actions.len()).map(|i| (format!("actions[{i}]"), found.actions[i], population(motion, Some(i), i)));
    for (name, found, values) in state.chain(actions) {
        let expected = expected(values);
        assert_eq!(
            (found.count, found.q01, found.q99, found.min, found.max),
            (expected.count, expected.q01, expected.q99, expected.min, expected.max),
            "{name}"
        );
        assert!((found.mean - expected.mean).abs() <= 1e-12 * (1.0 + expected.mean.abs()), "{name}: {found:?}");
        assert!((found.std - expected.std).abs() <= 1e-10 * (1e-3 + expected.std), "{name}: {found:?} {expected:?}");
    }
}

#[test]
fn a_small_population_is_summed_up_exactly() {
    compare(&motion(98, 40, 16));
    compare(&motion(7, 3, 50));
    compare(&motion(1, 1, 1));
}

#[test]
fn a_great_population_is_too_although_only_thousandths_of_it_are_kept() {
    let motion = motion(12_000, 500, 50);
    assert!(motion.counted() as u64 * 50 > SMALL);
    compare(&motion);
}

#[test]
fn only_picked_frames_count_and_their_order_does_not_matter() {
    let mut motion = motion(3000, 250, 10);
    motion.picked = Some((0..3000).filter(|i| mixed(*i).is_multiple_of(3)).map(|i| i as usize).collect());
    compare(&motion);
    let sorted = exact(&motion).unwrap();
    motion.picked.as_mut().unwrap().reverse();
    let turned = exact(&motion).unwrap();
    assert_eq!(stats(&sorted.actions).q01, stats(&turned.actions).q01);
}

#[test]
fn a_bracket_that_misses_is_widened_until_it_holds() {
    // Every 64th sorted value as a sample, and a margin of almost nothing: the first brackets miss.
    let motion = motion(4000, 100, 8);
    let population = Population::new(&motion);
    let values = population.actions(0);
    let mut sorted = values.all(4000);
    sorted.sort_unstable_by(f32::total_cmp);
    let sample: Vec<f32> = sorted.iter().copied().step_by(64).collect();
    let rank = 20_000;
    let narrow = bracket(&sample, 0.01, 1e-9);
    assert_eq!(values.sweep([narrow; 2], true).found[0].ranks(narrow, [rank, rank + 1]), None);
    let wide = bracket(&sample, 0.01, 1e9);
    assert_eq!(wide, Bracket::ALL);
    let found = values.sweep([wide; 2], true).found[1].ranks(wide, [rank, rank + 1]);
    assert_eq!(found, Some([sorted[rank as usize], sorted[rank as usize + 1]]));
}

#[test]
fn a_value_that_is_no_number_is_named_with_its_place() {
    let mut motion = motion(98, 40, 16);
    if let Column::F32(x) = &mut motion.actions[4] {
        x[57] = f32::NAN;
    }
    let error = exact(&motion).unwrap_err();
    assert_eq!((error.key, error.element, error.frame, error.episode), ("actions", 4, 57, 1));
    assert!(error.to_string().contains("frame 57 (episode 1)"), "{error}");
}

#[test]
fn the_result_does_not_depend_on_the_threads() {
    let motion = motion(30_000, 300, 20);
    let with = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| exact(&motion).unwrap())
    };
    assert_eq!(with(1), with(3));
}
