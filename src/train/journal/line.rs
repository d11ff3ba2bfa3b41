//! A line of the journal: what is known of a run at one step, as JSON and as a line for people.
//!
//! Invariant: a line is valid JSON whatever was measured: what is not finite is the string `"nan"`, `"inf"` or `"-inf"`,
//! and is read back as what it was.

use serde::{Deserialize, Serialize};

use crate::plot::brief;

/// A run at one step. What is measured over time is measured since the line before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps that are done.
    pub step: u64,
    /// Mean of the loss.
    #[serde(with = "real")]
    pub loss: f32,
    /// Norm of the gradient of all trainable parameters, before it was clipped.
    #[serde(with = "real")]
    pub grad_norm: f32,
    /// Norm of the kernels, frozen ones included.
    #[serde(with = "real")]
    pub param_norm: f32,
    /// The rate of the last step.
    #[serde(with = "real")]
    pub learning_rate: f32,
    /// Samples that were trained on, per second.
    #[serde(with = "real")]
    pub samples_per_s: f64,
    /// Seconds of training up to here, those before a resumption included.
    #[serde(with = "real")]
    pub seconds: f64,
    /// The share of the time, 0 to 1, in which the step waited for data.
    #[serde(with = "real")]
    pub data_wait: f64,
    /// Samples that were trained on so far.
    pub samples: u64,
}

impl Line {
    /// How long it takes until `total` steps are done, at this line's pace; none if that cannot be told.
    pub fn seconds_left(&self, total: u64) -> Option<f64> {
        let samples_per_step = self.samples as f64 / self.step as f64;
        let seconds = total.saturating_sub(self.step) as f64 * samples_per_step / self.samples_per_s;
        (seconds.is_finite() && seconds >= 0.0).then_some(seconds)
    }

    /// For people: `step 1200/30000  loss 0.0123  grad 0.8  lr 2.5e-05  31.2 samples/s  data-wait 3 %  eta 2 h 10 min`.
    pub fn progress(&self, total: u64) -> String {
        let Line { step, loss, grad_norm, learning_rate, samples_per_s, data_wait, .. } = *self;
        let [loss, grad] = [loss, grad_norm].map(|value| value_of(f64::from(value)));
        let (lr, pace, wait) = (rate(learning_rate), value_of(samples_per_s), share(data_wait));
        let mut text =
            format!("step {step}/{total}  loss {loss}  grad {grad}  lr {lr}  {pace} samples/s  data-wait {wait}");
        if let Some(seconds) = self.seconds_left(total).filter(|_| step < total) {
            text += &format!("  eta {}", duration(seconds));
        }
        text
    }
}

/// A number, or what it is instead.
pub(super) fn value_of(value: f64) -> String {
    if value.is_finite() { brief(value) } else { real::word(value).to_owned() }
}

/// A learning rate as Python writes it: `2.5e-05`, `0.0003`.
pub(super) fn rate(rate: f32) -> String {
    let rate = f64::from(rate);
    if rate == 0.0 || !rate.is_finite() || rate.abs() >= 1e-4 {
        return value_of(rate);
    }
    let text = format!("{rate:.2e}");
    let Some((digits, power)) = text.split_once("e-") else { return text };
    format!("{}e-{power:0>2}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// A share of 1: `3 %`.
pub(super) fn share(share: f64) -> String {
    if !share.is_finite() {
        return real::word(share).to_owned();
    }
    format!("{:.0} %", share * 100.0)
}

/// Its two largest units: `2 h 10 min`, `45 s`.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return real::word(seconds).to_owned();
    }
    let all = seconds.max(0.0).round() as u64;
    let (days, hours, minutes, seconds) = (all / 86_400, all / 3600 % 24, all / 60 % 60, all % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {seconds} s"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// A number as JSON, or a string where JSON has none.
mod real {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    /// What it is instead of a number.
    pub(super) fn word(value: f64) -> &'static str {
        match value {
            value if value.is_nan() => "nan",
            value if value > 0.0 => "inf",
            _ => "-inf",
        }
    }

    pub(super) fn serialize<T, S>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Copy + Into<f64> + Serialize,
        S: Serializer,
    {
        let wide: f64 = (*value).into();
        if wide.is_finite() { value.serialize(serializer) } else { serializer.serialize_str(word(wide)) }
    }

    /// A float that is read from a double.
    pub(super) trait Narrow {
        fn narrow(value: f64) -> Self;
    }

    impl Narrow for f32 {
        fn narrow(value: f64) -> Self {
            value as f32
        }
    }

    impl Narrow for f64 {
        fn narrow(value: f64) -> Self {
            value
        }
    }

    pub(super) fn deserialize<'de, T: Narrow, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Real {
            Number(f64),
            Word(String),
        }
        let value = match Real::deserialize(deserializer)? {
            Real::Number(value) => value,
            Real::Word(word) => match &word[..] {
                "nan" => f64::NAN,
                "inf" => f64::INFINITY,
                "-inf" => f64::NEG_INFINITY,
                _ => {
                    return Err(D::Error::custom(format!(
                        "expected a number, \"nan\", \"inf\" or \"-inf\", found {word:?}"
                    )));
                }
            },
        };
        Ok(T::narrow(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Line = Line {
        step: 1200,
        loss: 0.0123,
        grad_norm: 0.8,
        param_norm: 1802.25,
        learning_rate: 2.5e-5,
        samples_per_s: 31.2,
        seconds: 1230.5,
        data_wait: 0.031,
        samples: 1200 * 8,
    };

    #[test]
    fn a_line_for_people_says_all_that_one_watches() {
        let text = "step 1200/30000  loss 0.0123  grad 0.8  lr 2.5e-05  31.2 samples/s  data-wait 3 %  eta 2 h 3 min";
        assert_eq!(LINE.progress(30_000), text);
        assert!(LINE.progress(1200).ends_with("data-wait 3 %"), "nothing is left to wait for");
        let still = Line { samples_per_s: 0.0, loss: f32::NAN, grad_norm: f32::INFINITY, ..LINE };
        assert!(still.progress(30_000).contains("loss nan  grad inf"));
        assert!(!still.progress(30_000).contains("eta"));
    }

    #[test]
    fn rates_and_times_are_spelt_as_people_spell_them() {
        assert_eq!(
            [2.5e-5, 2.46e-5, 1e-6, 0.0003, 0.0, 1.23e-10].map(rate).join(" "),
            "2.5e-05 2.46e-05 1e-06 0.0003 0 1.23e-10"
        );
        assert_eq!(
            [0.4, 59.6, 3599.0, 7800.0, 270_000.0].map(duration).join(", "),
            "0 s, 1 min 0 s, 59 min 59 s, 2 h 10 min, 3 d 3 h"
        );
    }

    #[test]
    fn a_line_comes_back_from_json_as_it_was() {
        let text = serde_json::to_string(&LINE).unwrap();
        assert!(text.starts_with("{\"step\":1200,\"loss\":0.0123,\"grad_norm\":0.8,"), "{text}");
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), LINE);
        let third = Line { loss: 1.0 / 3.0, seconds: 1.0 / 3.0, ..LINE };
        assert_eq!(serde_json::from_str::<Line>(&serde_json::to_string(&third).unwrap()).unwrap(), third);
    }

    #[test]
    fn what_is_not_finite_is_a_string_and_comes_back() {
        let line = Line { loss: f32::NAN, grad_norm: f32::INFINITY, data_wait: f64::NEG_INFINITY, ..LINE };
        let text = serde_json::to_string(&line).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!([&value["loss"], &value["grad_norm"], &value["data_wait"]], ["nan", "inf", "-inf"]);
        let back: Line = serde_json::from_str(&text).unwrap();
        assert!(back.loss.is_nan() && back.grad_norm == f32::INFINITY && back.data_wait == f64::NEG_INFINITY);
        let odd = text.replace("\"nan\"", "\"none\"");
        assert!(serde_json::from_str::<Line>(&odd).is_err());
    }
}
