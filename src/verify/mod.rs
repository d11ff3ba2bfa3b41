//! Does this build, on this device, with this checkpoint, compute what JAX computes? And if not, where does it first
//! depart?
//!
//! Modules in reading order: [`set`] (a golden set: what was recorded, and how near is near enough), [`record`] (the
//! model run on the recorded inputs, every intermediate heard), [`view`] (recorded parts of intermediates), [`compare`]
//! (numbers to verdicts), [`report`] (the first divergence, the certificate), [`against`]
//! (two checkpoints, no golden set).
//!
//! Invariant: every recorded array is compared or is an input; one that the model does not produce is an error.

pub mod against;
pub mod compare;
pub mod record;
pub mod report;
pub mod set;
pub mod view;
