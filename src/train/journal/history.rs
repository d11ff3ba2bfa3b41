//! The lines of a run as curves need them: all of a short run, every so many of a long one.
//!
//! Invariant: which lines are kept depends on their number alone, so that a run that was resumed shows the same ones.

use super::line::Line;

/// Lines at most. Beyond it every other is forgotten; the file has them all.
const MAX_LINES: usize = 20_000;

/// What has been written so far.
#[derive(Debug, Clone)]
pub(super) struct History {
    kept: Vec<Line>,
    /// Every so many are kept.
    stride: usize,
    seen: usize,
    last: Option<Line>,
}

impl History {
    pub(super) fn new() -> Self {
        History { kept: vec![], stride: 1, seen: 0, last: None }
    }

    pub(super) fn push(&mut self, line: Line) {
        if self.seen.is_multiple_of(self.stride) {
            self.kept.push(line);
        }
        self.seen += 1;
        self.last = Some(line);
        if self.kept.len() >= MAX_LINES {
            let mut even = false;
            self.kept.retain(|_| {
                even = !even;
                even
            });
            self.stride *= 2;
        }
    }

    /// The newest.
    pub(super) fn last(&self) -> Option<&Line> {
        self.last.as_ref()
    }

    /// Those that are kept, and the newest.
    pub(super) fn lines(&self) -> Vec<Line> {
        let mut lines = self.kept.clone();
        if let Some(last) = self.last.filter(|last| lines.last().is_none_or(|kept| kept.step != last.step)) {
            lines.push(last);
        }
        lines
    }
}

/// An exponential mean over about `window` values, each mean over those before it; what is not finite changes nothing.
pub(super) fn smooth(values: &[f64], window: f64) -> Vec<f64> {
    let keep = 1.0 - 1.0 / window.max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mean = |value: &f64| {
        if value.is_finite() {
            sum = sum * keep + value;
            weight = weight * keep + 1.0;
        }
        if weight > 0.0 { sum / weight } else { f64::NAN }
    };
    values.iter().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Line {
        let (loss, seconds) = (1.0, step as f64);
        let (grad_norm, param_norm, learning_rate) = (1.0, 1.0, 1e-4);
        Line {
            step,
            loss,
            grad_norm,
            param_norm,
            learning_rate,
            samples_per_s: 1.0,
            seconds,
            data_wait: 0.0,
            samples: step,
        }
    }

    #[test]
    fn a_long_run_is_thinned_evenly_and_its_newest_line_stays() {
        let mut history = History::new();
        (0..100_001).for_each(|step| history.push(line(step)));
        let steps: Vec<u64> = history.lines().iter().map(|line| line.step).collect();
        assert!(steps.len() <= MAX_LINES && steps.len() >= MAX_LINES / 2, "{}", steps.len());
        assert!(steps.windows(3).all(|w| w[1] - w[0] == 8), "{:?}", &steps[..4]);
        assert_eq!((steps.first(), steps.last()), (Some(&0), Some(&100_000)));
        history.push(line(100_001));
        assert_eq!(history.lines().last().map(|line| line.step), Some(100_001));
    }

    #[test]
    fn a_mean_is_of_what_came_before_and_skips_what_is_not_finite() {
        assert_eq!(smooth(&[2.0, 2.0, f64::NAN, 2.0], 4.0), [2.0; 4]);
        assert_eq!(smooth(&[1.0, 3.0], 1.0), [1.0, 3.0]);
        let mean = smooth(&[1.0, 3.0], 2.0)[1];
        assert!((mean - (0.5 + 3.0) / 1.5).abs() < 1e-12, "{mean}");
        assert!(smooth(&[f64::INFINITY], 2.0)[0].is_nan());
    }
}
