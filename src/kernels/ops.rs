//! The operations behind Burn's run-time dispatch: what the CPU backend computes itself, and the gradients.
//!
//! [`Native`] has no gradients: the functions of this room call it with tensors outside the graph alone, and take the
//! composition of Burn's own operations ([`plain`](super::plain)) where a tensor is tracked or lies on another device.
//! [`Differentiable`] goes through the graph. Another backend is added by naming it in the two attributes and giving it an
//! `impl`; until then [`fits`] sends it to the composition.
//!
//! Invariant: an operation gives the composition's result, but for the order of sums and for roundings between its steps
//! that it does not make.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary, unary};
use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, TensorMetadata, backend_extension};
use burn::tensor::{DType, Device, FloatDType, Tensor};

use super::packed;

/// Whether the kernels of this room take this tensor: it lies on the CPU and is f32 or bf16.
pub(crate) fn fits<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.dtype(), DType::F32 | DType::BF16) && x.device() == Device::flex()
}

/// Operations on constants. With `narrow` the result is bf16, else f32.
#[backend_extension(Flex)]
pub(crate) trait Native: Backend {
    /// A bf16 weight `[k, n]` in panels.
    fn pack(weight: FloatTensor<Self>) -> FloatTensor<Self>;
    /// x / rms(x) × (1 + scale), `scale [w]`.
    fn rms_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, narrow: bool) -> FloatTensor<Self>;
    /// x / rms(x) × (1 + scale) + shift, x `[b, t, w]`, scale and shift `[b or 1, 1, w]`.
    fn rms_norm_modulated(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        narrow: bool,
    ) -> FloatTensor<Self>;
    /// (x − mean) / deviation × gamma + beta.
    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        narrow: bool,
    ) -> FloatTensor<Self>;
    /// Attention; `narrow`: the logits are rounded to the dtype of k. An empty mask admits everything.
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        narrow: bool,
    ) -> FloatTensor<Self>;
    /// x `[m, k]` times the transpose of `table [v, k]`, in their own dtype.
    fn times_rows(x: FloatTensor<Self>, table: FloatTensor<Self>) -> FloatTensor<Self>;
    /// x + y.
    fn sum(x: FloatTensor<Self>, y: FloatTensor<Self>, narrow: bool) -> FloatTensor<Self>;
    /// The halves of the last axis rotated, in bf16 if `narrow`, else f32.
    fn rope(x: FloatTensor<Self>, sin: FloatTensor<Self>, cos: FloatTensor<Self>, narrow: bool) -> FloatTensor<Self>;
}

/// Operations with a gradient.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Differentiable: Backend {
    /// The tanh form of GELU.
    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// gelu′(x) × grad.
    fn gelu_tanh_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
    /// gelu(gate) × up.
    fn geglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    /// x `[m, k]` times a packed weight of n columns, in bf16 if `narrow`, else f32. The weight is a constant.
    fn linear_packed(x: FloatTensor<Self>, packed: FloatTensor<Self>, n: usize, narrow: bool) -> FloatTensor<Self>;
}

impl<B: Backend + Differentiable, S: CheckpointStrategy> Differentiable for Autodiff<B, S> {
    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Gelu;
        impl<B: Backend + Differentiable> Backward<B, 1> for Gelu {
            type State = NodeId;
            fn backward(self, ops: Ops<NodeId, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let x = checkpointer.retrieve_node_output(ops.state);
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::gelu_tanh_backward(x, grad));
            }
        }
        match Gelu.prepare::<S>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = prep.checkpoint(&x);
                prep.finish(state, B::gelu_tanh(x.into_primitive()))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gelu_tanh(x.into_primitive())),
        }
    }

    /// A constant of the graph: there are no second derivatives.
    fn gelu_tanh_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(B::gelu_tanh_backward(x.into_primitive(), grad.into_primitive()))
    }

    fn geglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Geglu;
        impl<B: Backend + Differentiable> Backward<B, 2> for Geglu {
            type State = (NodeId, NodeId);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let gate: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(ops.state.0);
                let up: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(ops.state.1);
                let same = gate.clone();
                binary::<B, _, _>(
                    ops.parents,
                    ops.node,
                    grads,
                    |grad| B::gelu_tanh_backward(gate, B::float_mul(grad, up)),
                    |grad| B::geglu(same, grad),
                );
            }
        }
        match Geglu.prepare::<S>([gate.node(), up.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&gate), prep.checkpoint(&up));
                prep.finish(state, B::geglu(gate.into_primitive(), up.into_primitive()))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::geglu(gate.into_primitive(), up.into_primitive())),
        }
    }

    fn linear_packed(x: FloatTensor<Self>, packed: FloatTensor<Self>, n: usize, narrow: bool) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Linear;
        impl<B: Backend + Differentiable> Backward<B, 1> for Linear {
            type State = (B::FloatTensorPrimitive, [usize; 2], FloatDType);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (packed, [k, n], dtype) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    // In f32 whatever the gradient's dtype: bf16 of both sides, summed wide, as forward.
                    let weight = unpack_primitive::<B>(packed, k, n);
                    let weight = B::float_cast(weight, FloatDType::F32);
                    let grad = B::float_cast(B::float_cast(grad, FloatDType::BF16), FloatDType::F32);
                    B::float_cast(B::float_matmul(grad, B::float_transpose(weight)), dtype)
                });
            }
        }
        let packed = packed.into_primitive();
        let (k, dtype) = (x.primitive().shape()[1], x.primitive().dtype().into());
        match Linear.prepare::<S>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::linear_packed(x.into_primitive(), packed.clone(), n, narrow);
                prep.finish((packed, [k, n], dtype), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::linear_packed(x.into_primitive(), packed, n, narrow)),
        }
    }
}

/// [`packed::unpack`] for a backend's own tensors.
fn unpack_primitive<B: Backend>(weight: FloatTensor<B>, k: usize, n: usize) -> FloatTensor<B> {
    use super::gemm::{DEEP, PANEL};
    let [kp, np] = packed::packed_shape([k, n]);
    let tiles = B::float_reshape(weight, [np / PANEL, kp / DEEP, PANEL, PANEL, 2].into());
    let rows = B::float_reshape(B::float_permute(tiles, &[1, 2, 4, 0, 3]), [kp, np].into());
    B::float_slice(rows, &[(0..k).into(), (0..n).into()])
}
