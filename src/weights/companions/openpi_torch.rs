//! openpi's PyTorch layout: one `config.json` of five members, which its converter writes and nothing reads.
//!
//! Source: openpi 15a9616, examples/convert_jax_model_to_pytorch.py.

use super::json::Json;
use super::{Companions, Kind, Request};

pub(super) fn add(made: &mut Companions, request: &Request<'_>, kind: Kind) {
    if kind == Kind::Pi0Fast {
        made.notes
            .push("openpi has no pi0-FAST in PyTorch: nothing there reads these weights, so no config.json".into());
        return;
    }
    let horizon = request.horizon(kind, made);
    let config = Json::object([
        ("action_dim", request.action_dim().into()),
        ("action_horizon", horizon.into()),
        ("paligemma_variant", request.variant(0).into()),
        ("action_expert_variant", request.variant(1).into()),
        ("precision", request.dtype.name().into()),
    ]);
    made.files.push(("config.json".into(), config.to_text(2)));
    if request.action_dim().is_some_and(|dim| dim != 32) {
        made.notes.push(
            "openpi's PyTorch model has 32 values in an action built in and will not load these projections".into(),
        );
    }
}
