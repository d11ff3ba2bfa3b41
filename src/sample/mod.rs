//! From an observation to actions: [`flow`] by Euler steps (pi0, pi0.5), [`tokens`] one after another (pi0-FAST);
//! [`chunking`]: steps that go on from the last chunk.
//!
//! Invariant: noise, and the numbers that choose tokens, are arguments; the same arguments give the same actions.

pub mod chunking;
pub mod flow;
pub mod tokens;
