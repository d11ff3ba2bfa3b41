//! giga-models: one `config.json`, as diffusers writes it.
//!
//! Source: open-gigaai/giga-models b0e05c7 with diffusers 0.35.2. Invariant: members sorted, two spaces, a newline at
//! the end. All sizes but these are built into its class.

use super::json::Json;
use super::{Companions, Kind, Request};

/// The release whose files these are.
const DIFFUSERS: &str = "0.35.2";

pub(super) fn add(made: &mut Companions, request: &Request<'_>, kind: Kind) {
    if kind == Kind::Pi0Fast {
        made.notes.push("giga-models has no pi0-FAST: nothing there reads these weights, so no config.json".into());
        return;
    }
    let odd = request.unusual();
    if !odd.is_empty() {
        made.notes.push(format!(
            "giga-models has the published sizes built in and will not load this model ({}); the tensors are right all the same",
            odd.join("; ")
        ));
    }
    let horizon = request.horizon(kind, made);
    let config = Json::object([
        ("_class_name", "PI0Policy".into()),
        ("_diffusers_version", DIFFUSERS.into()),
        ("max_action_dim", request.action_dim().into()),
        ("max_state_dim", request.action_dim().into()),
        ("n_action_steps", horizon.into()),
        ("num_steps", Json::Count(10)),
        ("pi05_enabled", (kind == Kind::Pi05).into()),
        ("proj_width", request.anatomy.experts.get(1).map(|e| e.width).into()),
        ("use_cache", true.into()),
    ]);
    let mut text = config.to_text(2);
    text.push(b'\n');
    made.files.push(("config.json".into(), text));
}
