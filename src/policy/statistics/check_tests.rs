//! Each way to go wrong is seen, and data that fits is left in peace.

use super::super::exact::exact;
use super::super::{Column, stats};
use super::*;

fn motion(scale: f32) -> Motion {
    let wave = |phase: f32| Column::F32((0..2000).map(|i| scale * (i as f32 / 30.0 + phase).sin()).collect());
    Motion {
        state: vec![wave(0.0), wave(1.0)],
        actions: vec![wave(0.1), wave(1.1)],
        episodes: vec![0..1000, 1000..2000],
        horizon: 10,
        delta: vec![],
        picked: None,
    }
}

#[test]
fn statistics_of_the_data_itself_fit_it() {
    let motion = motion(1.0);
    let own = exact(&motion).unwrap();
    for quantiles in [false, true] {
        let checked = check(&motion, Some(&stats(&own.state)), Some(&stats(&own.actions)), quantiles).unwrap();
        assert!(checked.iter().all(Checked::fine), "{checked:?}");
        let element = &checked[0].elements[0];
        let outside = element.below_q01.unwrap() + element.above_q99.unwrap();
        assert!((0.0..0.025).contains(&outside), "{outside}");
        assert!(element.shift.abs() < 1e-9 && (element.stretch - 1.0).abs() < 1e-4, "{element:?}");
    }
}

#[test]
fn another_unit_is_seen() {
    let own = exact(&motion(1.0)).unwrap();
    let degrees = motion(57.3);
    let checked = check(&degrees, Some(&stats(&own.state)), Some(&stats(&own.actions)), false).unwrap();
    let findings = checked[1].elements[0].findings.join("\n");
    assert!(findings.contains("another unit") && findings.contains("normalised values reach"), "{findings}");
}

#[test]
fn a_nearly_constant_element_is_seen() {
    let mut still = motion(1.0);
    still.actions[1] = Column::F32(vec![0.5; 2000]);
    let own = exact(&still).unwrap();
    for quantiles in [false, true] {
        let checked = check(&still, Some(&stats(&own.state)), Some(&stats(&own.actions)), quantiles).unwrap();
        assert!(checked[1].elements[1].findings[0].contains("nearly constant"), "{checked:?}");
        assert!(checked[1].elements[0].findings.is_empty());
    }
}

#[test]
fn missing_and_narrow_statistics_are_seen() {
    let motion = motion(1.0);
    let own = exact(&motion).unwrap();
    let mut narrow = stats(&own.actions[..1]);
    narrow.q01 = None;
    let checked = check(&motion, None, Some(&narrow), true).unwrap();
    assert!(checked[0].findings[0].contains("no statistics of state"));
    assert!(checked[1].findings[0].contains("the data has 2 values, the statistics 1"));
    assert!(checked[1].findings[1].contains("q01 and q99"));
}
