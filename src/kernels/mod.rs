//! Custom operations behind Burn's run-time dispatch, for the CPU: packed bf16 linear layers, attention, norms, GELU,
//! rotary embedding and residual sums, each of them where it was measured to pay (`benches/kernels.rs`).
//!
//! The public face are plain functions over [`Tensor`](burn::tensor::Tensor). Activations are f32 or bf16, and the same code
//! serves both. On a device without kernels here, for another dtype, and where a gradient is wanted that no kernel has, the
//! same function is a composition of Burn's own operations.
//!
//! Reading order: `ops` (what there is, and gradients), `flex` (tensors as slices), then one file an operation; `gemm` and
//! `engine` (how operands lie in memory, and the instructions), `amx`, `cpu` (what this machine has), `number` (f32 and bf16
//! alike), `plain` (the compositions).
//!
//! Invariant: which path is taken never changes a result beyond the order of sums and roundings that the composition makes
//! between its steps. `unsafe` lives in `amx`, `engine`, `gemm`, `attention` and one macro, and nowhere else.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod cpu;
mod engine;
mod flex;
mod gelu;
mod gemm;
mod norm;
mod number;
mod ops;
mod packed;
mod plain;
mod residual;
mod rope;
mod rows;
#[cfg(test)]
mod tests;

pub use attention::{attention, attention_in_dtype};
pub use gelu::{geglu, gelu_tanh};
pub use norm::{layer_norm, rms_norm, rms_norm_modulated};
pub use packed::{linear_packed, pack, packed_shape, packs, unpack};
pub use residual::add;
pub use rope::rope;
pub use rows::times_rows;
