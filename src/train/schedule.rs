//! The learning rate by step.
//!
//! Source: openpi 15a9616, training/optimizer.py (`CosineDecaySchedule`, `RsqrtDecaySchedule`), and optax 0.2.4's
//! `linear_schedule`, `cosine_decay_schedule` and `join_schedules`. Invariant: the bits of optax called step by step:
//! settings are joined in f64, as Python does, then rounded; all that has to do with the step is f32.

use serde::Deserialize;

/// The learning rate by step.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum LrSchedule {
    /// Up in a line, down in a cosine: `decay_steps` counts from the first step, the warm-up included.
    CosineDecay { warmup_steps: u64, peak_lr: f64, decay_steps: u64, decay_lr: f64 },
    /// Up in a line, down by the root of the steps.
    RsqrtDecay { warmup_steps: u64, peak_lr: f64, timescale: f64 },
}

/// Why a schedule is none.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ScheduleError {
    /// optax refuses it too.
    #[error(
        "decay_steps: expected more than the {warmup_steps} of the warm-up, which they include; found {decay_steps}"
    )]
    AllWarmup { warmup_steps: u64, decay_steps: u64 },
    #[error("{name}: expected a number from 0 up, found {found}")]
    Rate { name: &'static str, found: f64 },
    #[error("timescale: expected a number above 0, found {found}")]
    Timescale { found: f64 },
}

impl LrSchedule {
    /// Refuses what gives no rate.
    ///
    /// # Errors
    /// A cosine without steps; a rate that is negative or not finite; a timescale that is not above 0.
    pub fn check(&self) -> Result<(), ScheduleError> {
        let rate = |name, found: f64| {
            if found.is_finite() && found >= 0.0 { Ok(()) } else { Err(ScheduleError::Rate { name, found }) }
        };
        match *self {
            LrSchedule::CosineDecay { warmup_steps, peak_lr, decay_steps, decay_lr } => {
                if decay_steps <= warmup_steps {
                    return Err(ScheduleError::AllWarmup { warmup_steps, decay_steps });
                }
                rate("peak_lr", peak_lr)?;
                rate("decay_lr", decay_lr)
            }
            LrSchedule::RsqrtDecay { peak_lr, timescale, .. } => {
                if !(timescale.is_finite() && timescale > 0.0) {
                    return Err(ScheduleError::Timescale { found: timescale });
                }
                rate("peak_lr", peak_lr)
            }
        }
    }

    /// The rate of the update that makes step `step + 1` of step `step`: the first is that of step 0.
    pub fn rate(&self, step: u64) -> f32 {
        match *self {
            LrSchedule::CosineDecay { warmup_steps, peak_lr, .. }
            | LrSchedule::RsqrtDecay { warmup_steps, peak_lr, .. }
                if step < warmup_steps =>
            {
                warmup(peak_lr, warmup_steps, step)
            }
            LrSchedule::CosineDecay { warmup_steps, peak_lr, decay_steps, decay_lr } => {
                let alpha = if peak_lr == 0.0 { 0.0 } else { decay_lr / peak_lr };
                let length = decay_steps.saturating_sub(warmup_steps).max(1);
                let count = (step - warmup_steps).min(length) as f32;
                let cosine = 0.5 * (1.0 + cos(std::f32::consts::PI * count / length as f32));
                peak_lr as f32 * ((1.0 - alpha) as f32 * cosine + alpha as f32)
            }
            LrSchedule::RsqrtDecay { warmup_steps, peak_lr, timescale } => {
                let timescale = timescale as f32;
                peak_lr as f32 / ((timescale + (step - warmup_steps) as f32) / timescale).sqrt()
            }
        }
    }
}

/// From `peak / (steps + 1)` in a line to what would be the peak after `steps`.
fn warmup(peak: f64, steps: u64, step: u64) -> f32 {
    let first = peak / (steps as f64 + 1.0);
    (first - peak) as f32 * (1.0 - step as f32 / steps as f32) + peak as f32
}

/// By way of f64: rounded once, and the same on every machine.
fn cos(x: f32) -> f32 {
    libm::cos(f64::from(x)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSINE: LrSchedule =
        LrSchedule::CosineDecay { warmup_steps: 1000, peak_lr: 2.5e-5, decay_steps: 30_000, decay_lr: 2.5e-6 };

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_to_its_end() {
        // Two nearly equal numbers are subtracted: f32 keeps four digits of the first.
        assert!((f64::from(COSINE.rate(0)) / (2.5e-5 / 1001.0) - 1.0).abs() < 2e-5);
        assert_eq!(COSINE.rate(1000), 2.5e-5);
        assert_eq!(COSINE.rate(30_000), 2.5e-6);
        assert_eq!(COSINE.rate(u64::MAX), COSINE.rate(30_000));
        assert!((0..1000).all(|step| COSINE.rate(step) < COSINE.rate(step + 1)));
        assert!((1000..30_000).all(|step| COSINE.rate(step) >= COSINE.rate(step + 1)));
    }

    #[test]
    fn a_decay_that_ends_with_its_warm_up_is_refused() {
        let cosine = LrSchedule::CosineDecay { warmup_steps: 10, peak_lr: 1e-3, decay_steps: 10, decay_lr: 0.0 };
        let error = cosine.check().unwrap_err().to_string();
        assert_eq!(error, "decay_steps: expected more than the 10 of the warm-up, which they include; found 10");
        assert_eq!(COSINE.check(), Ok(()));
    }

    #[test]
    fn rates_that_are_none_are_refused() {
        let schedule = |peak_lr, timescale| LrSchedule::RsqrtDecay { warmup_steps: 10, peak_lr, timescale };
        assert_eq!(schedule(5e-5, 10_000.0).check(), Ok(()));
        assert!(matches!(schedule(f64::NAN, 1.0).check(), Err(ScheduleError::Rate { name: "peak_lr", .. })));
        assert!(matches!(schedule(-1e-3, 1.0).check(), Err(ScheduleError::Rate { .. })));
        assert!(matches!(schedule(1e-3, 0.0).check(), Err(ScheduleError::Timescale { .. })));
    }
}
