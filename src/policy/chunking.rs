//! Real-time chunking, as a client asks for it: how a new chunk is made to go on from the last one.
//!
//! Sources: Black, Galliker, Levine 2025, arXiv 2506.07339, and its code (real-time-chunking-kinetix, model.py,
//! `get_prefix_weights`); Black et al. 2025, arXiv 2512.05964.

/// How a new chunk is made to go on from the last one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Every step's velocity is corrected towards the last chunk.
    Guided {
        /// How the pull fades after the delay.
        schedule: Schedule,
        /// Its bound.
        max_guidance_weight: f32,
    },
    /// The first `delay` actions are the last chunk's own, at time 0, and the others see them.
    Frozen,
}

/// How the pull towards the last chunk fades from the delay to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// By a straight line, bent: `c (e^c - 1) / (e - 1)`.
    Exp,
    /// By a straight line: c.
    Linear,
    /// Not at all before the end.
    Ones,
    /// At once.
    Zeros,
}

/// What each of `horizon` actions counts: 1 before `delay`, then less and less, 0 from `left` on.
pub fn weights(schedule: Schedule, delay: usize, left: usize, horizon: usize) -> Vec<f32> {
    let start = delay.min(left);
    let weight = |i: usize| {
        let line = (left as f32 - i as f32) / (left - start + 1) as f32;
        let line = line.clamp(0.0, 1.0);
        match schedule {
            _ if i >= left => 0.0,
            Schedule::Ones => 1.0,
            Schedule::Zeros => f32::from(u8::from(i < start)),
            Schedule::Linear => line,
            Schedule::Exp => line * line.exp_m1() / (std::f32::consts::E - 1.0),
        }
    };
    (0..horizon).map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_whole_before_the_delay_and_none_after_the_end() {
        assert_eq!(weights(Schedule::Linear, 2, 6, 8), [1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0]);
        assert_eq!(weights(Schedule::Ones, 2, 4, 6), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(weights(Schedule::Zeros, 2, 4, 6), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        let bent = weights(Schedule::Exp, 2, 6, 8);
        assert!((bent[2] - 0.8 * (0.8f32.exp() - 1.0) / 1.718_281_8).abs() < 1e-6, "{bent:?}");
        assert!(bent.windows(2).all(|pair| pair[0] >= pair[1]));
        // More is run before the chunk is there than is left: all that is left counts in full.
        assert_eq!(weights(Schedule::Linear, 9, 3, 4), [1.0, 1.0, 1.0, 0.0]);
    }
}
