//! Recorded parts of intermediates: what a set of a large model keeps of them, found in a whole recording.
//!
//! | recorded | is |
//! | --- | --- |
//! | `X_every16` | every 16th entry of X along its tokens |
//! | `prefix/kv_k` beside `prefix/kv_layers`, `prefix/kv_positions` | those layers and positions of it |
//! | `step_t1/X` | X of the first step |
//! | `sample/loop_v_t_steps10` | the velocities of all steps, stacked |
//! | `infer/X_top64_logits` beside `infer/X_top64_ids` | the logits of those tokens |

use std::collections::BTreeMap;

use super::record::Recording;
use crate::weights::arrays::Array;

/// Names that are inputs or say which part of an intermediate was kept; they are not compared.
pub fn is_input(name: &str) -> bool {
    let indexes = ["_ids", "/kv_layers", "/kv_positions"];
    let prompts = ["infer/tokenized_prompt", "infer/tokenized_prompt_mask", "infer/token_ar_mask"];
    name.starts_with("in/")
        || ["loss/noise", "loss/time", "sample/noise"].contains(&name)
        || prompts.contains(&name)
        || indexes.iter().any(|end| name.ends_with(end))
}

/// The part of `recording` that a set keeps under `name`, and the intermediate it is of. `None` if there is none.
pub fn find(name: &str, golden: &BTreeMap<String, Array>, recording: &Recording) -> Option<(String, Array)> {
    let exact = || recording.arrays.get(name).map(|a| (name.to_owned(), a.clone()));
    if let Some((at, part)) = name.rsplit_once('/')
        && (part.ends_with("kv_k") || part.ends_with("kv_v"))
        && let (Some(layers), Some(positions)) =
            (golden.get(&format!("{at}/kv_layers")), golden.get(&format!("{at}/kv_positions")))
    {
        let whole = recording.arrays.get(name)?;
        return Some((name.to_owned(), layers_and_positions(whole, layers, positions)?));
    }
    if let Some((base, step)) = name.rsplit_once("_every")
        && let Ok(step) = step.parse::<usize>()
    {
        return every(base, step, golden, recording);
    }
    if let Some(part) = name.strip_prefix("step_t1/") {
        return first_step(recording, part);
    }
    if let Some(steps) = name.strip_prefix("sample/loop_v_t_steps").and_then(|n| n.parse::<usize>().ok()) {
        return stacked(steps, recording);
    }
    if let Some(base) = name.strip_suffix("_logits")
        && let Some(ids) = golden.get(&format!("{base}_ids"))
    {
        return top(base, ids, recording);
    }
    exact()
}

fn first_step(recording: &Recording, part: &str) -> Option<(String, Array)> {
    let name = recording.order.iter().find(|n| n.starts_with("steps") && n.ends_with(&format!("/00/{part}")))?;
    Some((name.clone(), recording.arrays.get(name)?.clone()))
}

fn stacked(steps: usize, recording: &Recording) -> Option<(String, Array)> {
    let each: Vec<&Array> =
        (0..steps).map(|s| recording.arrays.get(&format!("steps{steps}/{s:02}/v_t"))).collect::<Option<_>>()?;
    let mut shape = vec![steps];
    shape.extend(&each.first()?.shape);
    let values = each.iter().flat_map(|a| a.values.iter().copied()).collect();
    Some((format!("steps{steps}/00/v_t"), Array::new(shape, values)))
}

fn every(base: &str, step: usize, golden: &BTreeMap<String, Array>, recording: &Recording) -> Option<(String, Array)> {
    if base == "embed_prefix/lang_tokens" {
        let whole = recording.arrays.get("embed_prefix/tokens")?;
        let words = golden.get("in/tokenized_prompt")?.shape.get(1).copied()?;
        let first = whole.shape.get(1)?.checked_sub(words)?;
        return Some(("embed_prefix/tokens".into(), strided(whole, first, step)?));
    }
    if base == "infer/prefill_logits" {
        let whole = recording.arrays.get("infer/prefill_last_logits")?;
        let values: Vec<f32> = whole.values.iter().step_by(step).copied().collect();
        return Some(("infer/prefill_last_logits".into(), Array::new(vec![values.len()], values)));
    }
    Some((base.to_owned(), strided(recording.arrays.get(base)?, 0, step)?))
}

/// Entries `first, first + step, ...` of the second axis.
fn strided(whole: &Array, first: usize, step: usize) -> Option<Array> {
    let [b, t, w] = whole.shape[..] else { return None };
    let kept: Vec<usize> = (first..t).step_by(step).collect();
    let mut values = vec![];
    for row in 0..b {
        for token in &kept {
            let at = (row * t + token) * w;
            values.extend_from_slice(whole.values.get(at..at + w)?);
        }
    }
    Some(Array::new(vec![b, kept.len(), w], values))
}

/// `[L, B, S, K, H]` to some of L and some of S.
fn layers_and_positions(whole: &Array, layers: &Array, positions: &Array) -> Option<Array> {
    let [_, b, s, k, h] = whole.shape[..] else { return None };
    let mut values = vec![];
    for l in &layers.values {
        for row in 0..b {
            for p in &positions.values {
                let at = ((*l as usize * b + row) * s + *p as usize) * k * h;
                values.extend_from_slice(whole.values.get(at..at + k * h)?);
            }
        }
    }
    Some(Array::new(vec![layers.values.len(), b, positions.values.len(), k, h], values))
}

/// The logits of recorded tokens: of the prompt's end, or of each step.
fn top(base: &str, ids: &Array, recording: &Recording) -> Option<(String, Array)> {
    if base.starts_with("infer/step_") {
        let [steps, n] = ids.shape[..] else { return None };
        let mut values = vec![];
        for s in 0..steps {
            let logits = recording.arrays.get(&format!("infer/step{s:02}/logits"))?;
            for id in &ids.values[s * n..(s + 1) * n] {
                values.push(*logits.values.get(*id as usize)?);
            }
        }
        return Some(("infer/step00/logits".into(), Array::new(vec![steps, n], values)));
    }
    let logits = recording.arrays.get("infer/prefill_last_logits")?;
    let values = ids.values.iter().map(|id| logits.values.get(*id as usize).copied()).collect::<Option<Vec<f32>>>()?;
    Some(("infer/prefill_last_logits".into(), Array::new(vec![values.len()], values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_beside_kept_layers_is_no_part_of_a_cache() {
        let one = |n: usize| Array::new(vec![n], vec![0.0; n]);
        let golden: BTreeMap<String, Array> =
            ["infer/kv_layers", "infer/kv_positions"].map(|name| (name.to_owned(), one(1))).into();
        let mask = Array::new(vec![1, 3], vec![1.0, 1.0, 0.0]);
        let recording = Recording { order: vec![], arrays: [("infer/aligned_mask".to_owned(), mask.clone())].into() };
        let (_, found) = find("infer/aligned_mask", &golden, &recording).expect("it was recorded");
        assert_eq!(found, mask);
    }
}
