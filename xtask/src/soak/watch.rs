//! What the server holds while it is asked, and whether that grows.

use serde::Serialize;

use crate::wire::server::Vitals;

/// What it holds after so many requests.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    pub(super) at_s: f64,
    pub(super) done: u64,
    #[serde(flatten)]
    pub(super) vitals: Vitals,
}

/// Memory's median between these parts of all requests is compared: after the warm-up, and at the end.
const EARLY: [f64; 2] = [0.15, 0.35];
const LATE: [f64; 2] = [0.80, 1.0];

/// Resident bytes early and late.
pub(super) fn resident(samples: &[Sample], total: u64) -> [u64; 2] {
    [EARLY, LATE].map(|[from, to]| {
        let within = |sample: &&Sample| (from..=to).contains(&(sample.done as f64 / total as f64));
        let mut bytes: Vec<u64> = samples.iter().filter(within).map(|sample| sample.vitals.resident_bytes).collect();
        bytes.sort_unstable();
        bytes.get(bytes.len() / 2).copied().unwrap_or(0)
    })
}

/// As many as are wanted, evenly; the last among them.
pub(super) fn thinned(samples: &[Sample], wanted: usize) -> Vec<Sample> {
    let step = samples.len().div_ceil(wanted).max(1);
    samples.iter().rev().step_by(step).rev().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_between_medians_after_the_warm_up() {
        let sample = |done: u64, mib: u64| {
            let vitals = Vitals { resident_bytes: mib << 20, threads: 1, files: 1 };
            Sample { at_s: done as f64, done, vitals }
        };
        let mut samples: Vec<Sample> = (0..=100).map(|done| sample(done, 50 + done.min(15))).collect();
        assert_eq!(resident(&samples, 100), [65 << 20, 65 << 20]);
        samples.iter_mut().for_each(|sample| sample.vitals.resident_bytes = (50 + sample.done) << 20);
        assert_eq!(resident(&samples, 100), [75 << 20, 140 << 20]);
        assert_eq!(resident(&[], 100), [0, 0]);
        let few = thinned(&samples, 10);
        assert_eq!((few.len(), few.last().unwrap().done), (10, 100));
    }
}
