//! Action tokens, one after another: greedy or by temperature.
//!
//! Source: openpi 15a9616, models/pi0_fast.py, `sample_actions`. It stops only when all rows emit the end in the same
//! step; what a row emits after its own end is kept ([`Stop::AllAtOnce`]). [`Stop::EachRow`] is what one would expect.

use burn::tensor::DType;

use crate::model::fast::{Decoding, Next};
use crate::model::observation::Observation;
use crate::model::{Pi, Taps};

/// PaliGemma's end of sequence.
pub const END: i32 = 1;

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stop {
    /// As openpi: when every row emits the end in the same step.
    #[default]
    AllAtOnce,
    /// When every row has emitted it; a row that has gets zeros after it.
    EachRow,
}

/// How a token is chosen from logits.
pub enum Choice<'a> {
    /// The largest; the first of equals.
    Greedy,
    /// By `softmax(logits / temperature)` and a number in [0, 1) for each row and step.
    Temperature(f32, &'a mut dyn FnMut() -> f64),
}

/// How to decode.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens at most.
    pub max_decoding_steps: usize,
    /// When to stop before that.
    pub stop: Stop,
    /// Where tokens stand.
    pub next: Next,
}

/// The tokens that may follow what a row has so far; `None` where any may.
pub type Allowed<'a> = &'a dyn Fn(&[i32]) -> Option<Vec<u32>>;

/// Decoded tokens of one row: with its end, without what follows at [`Stop::EachRow`].
pub type Tokens = Vec<i32>;

/// Action tokens of every row. `allowed` takes all other tokens out of the choice; `ready` is told when the prompt has been
/// read, before the first token.
pub fn sample_tokens(
    pi: &Pi,
    observation: &Observation,
    limits: Limits,
    mut choice: Choice<'_>,
    allowed: Allowed<'_>,
    taps: &mut Taps<'_>,
    ready: &mut dyn FnMut(),
) -> Vec<Tokens> {
    let room = limits.max_decoding_steps;
    let mut decoding = pi.read_prompt(observation, limits.next, room, taps);
    ready();
    let rows = decoding.logits.dims()[0];
    let mut out: Vec<Tokens> = vec![vec![]; rows];
    for step in 0..limits.max_decoding_steps {
        taps.note(format_args!("infer/step_logits"), &decoding.logits);
        let tokens = choose(&decoding, &out, &mut choice, allowed);
        let ended = |row: &Tokens| row.last() == Some(&END);
        let over: Vec<bool> = out.iter().map(|row| limits.stop == Stop::EachRow && ended(row)).collect();
        for (row, token) in tokens.iter().enumerate().filter(|(row, _)| !over[*row]) {
            out[row].push(*token);
        }
        let all = match limits.stop {
            Stop::AllAtOnce => tokens.iter().all(|t| *t == END),
            Stop::EachRow => out.iter().all(ended),
        };
        if all || step + 1 == limits.max_decoding_steps {
            break;
        }
        pi.read_token(&mut decoding, &tokens);
    }
    out
}

fn choose(decoding: &Decoding, so_far: &[Tokens], choice: &mut Choice<'_>, allowed: Allowed<'_>) -> Vec<i32> {
    let v = decoding.logits.dims()[1];
    let logits = decoding.logits.clone().cast(DType::F32).into_data();
    let logits: Vec<f32> = logits.iter::<f32>().collect();
    let rows = logits.chunks(v.max(1)).zip(so_far);
    rows.map(|(row, so_far)| match allowed(so_far) {
        None => pick(row, choice),
        Some(ids) => pick_among(row, &ids, choice),
    })
    .collect()
}

/// The choice among some tokens, as if the others were not there. Of no token at all the choice is free.
fn pick_among(logits: &[f32], ids: &[u32], choice: &mut Choice<'_>) -> i32 {
    let (ids, some): (Vec<u32>, Vec<f32>) = ids.iter().filter_map(|id| Some((*id, *logits.get(*id as usize)?))).unzip();
    match ids.is_empty() {
        true => pick(logits, choice),
        false => ids[pick(&some, choice) as usize] as i32,
    }
}

fn pick(logits: &[f32], choice: &mut Choice<'_>) -> i32 {
    let largest = || {
        let first = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
        (0..logits.len()).fold(0, first)
    };
    match choice {
        Choice::Greedy => largest() as i32,
        Choice::Temperature(temperature, _) if *temperature <= 0.0 => largest() as i32,
        Choice::Temperature(temperature, random) => {
            let top = f64::from(logits[largest()]);
            let weight = |x: &f32| ((f64::from(*x) - top) / f64::from(*temperature)).exp();
            let total: f64 = logits.iter().map(weight).sum();
            let mut left = random() * total;
            for (i, x) in logits.iter().enumerate() {
                left -= weight(x);
                if left < 0.0 {
                    return i as i32;
                }
            }
            largest() as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_tokens_are_chosen_among() {
        let logits = [9.0, 2.0, 5.0, 4.0];
        assert_eq!(pick_among(&logits, &[3, 1], &mut Choice::Greedy), 3);
        assert_eq!(pick_among(&logits, &[1], &mut Choice::Temperature(1.0, &mut || 0.99)), 1);
        assert_eq!(pick_among(&logits, &[], &mut Choice::Greedy), 0);
    }

    #[test]
    fn the_first_of_equal_logits_wins() {
        assert_eq!(pick(&[0.0, 2.0, 2.0], &mut Choice::Greedy), 1);
    }

    #[test]
    fn a_random_number_walks_through_the_distribution() {
        let logits = [0.0f32, (3.0f32).ln(), 0.0];
        let at = |u: f64| pick(&logits, &mut Choice::Temperature(1.0, &mut || u));
        assert_eq!([at(0.0), at(0.19), at(0.21), at(0.79), at(0.81), at(0.999_999)], [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn a_temperature_of_zero_is_greedy() {
        assert_eq!(pick(&[0.0, 5.0, 1.0], &mut Choice::Temperature(0.0, &mut || 0.99)), 1);
    }
}
