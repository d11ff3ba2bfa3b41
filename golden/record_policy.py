"""Records what openpi's own policies make of frames of a dataset, from the frame to the robot's actions, and its statistics of the data.

    python golden/record_policy.py FRAMES.npz        # FRAMES.npz from fixtures/recipes/make_datasets.py

Writes fixtures/checkpoints/policy/<model>/{params, assets}: tiny networks with weights from chance, laid out as the published ones, with
statistics that openpi computed; and golden/policy/<preset>.safetensors: for every frame what went into the model and what came out.
The environment is record.py's. The configurations, transforms, normalisation, tokenizer, model and policy are openpi's, unmodified; from
outside are replaced: the sizes of the network, the file of the vocabulary, and the dataset's loader, whose items FRAMES.npz has.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict
from recording import checkpoint
from safetensors.numpy import save_file

import openpi.models.tokenizer as openpi_tokenizer
from openpi import transforms
from openpi.policies import policy as openpi_policy
from openpi.shared import normalize
from openpi.training import config as openpi_config

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "fixtures/tokenizer/tiny/tokenizer.model"
# What is recorded: the preset, its dataset, and the frames.
CASES = {
    "pi0_aloha_pen_uncap": ("aloha_png", [0, 12, 64]),
    "pi05_aloha_pen_uncap": ("aloha_png", [12]),
    "pi0_libero": ("libero_png", [12, 51]),
    "pi05_libero": ("libero_png", [12]),
    "pi0_fast_libero": ("libero_png", [12]),
}


def shapes(kind, vocabulary, action_dim):
    """A tiny network's leaves: two layers, images of 224 pixels in patches of 28."""
    d, w, w1, mlp, mlp1, heads, hd, v, patch = 2, 48, 32, 64, 48, 4, 12, 32, 28
    img = {
        "embedding/kernel": (patch, patch, 3, v),
        "embedding/bias": (v,),
        "pos_embedding": (1, 64, v),
        "Transformer/encoder_norm/scale": (v,),
        "Transformer/encoder_norm/bias": (v,),
        "head/kernel": (v, w),
        "head/bias": (w,),
    }
    block = "Transformer/encoderblock/"
    for norm in ("LayerNorm_0", "LayerNorm_1"):
        img |= {f"{block}{norm}/scale": (d, v), f"{block}{norm}/bias": (d, v)}
    attention = f"{block}MultiHeadDotProductAttention_0/"
    for part in ("query", "key", "value"):
        img |= {f"{attention}{part}/kernel": (d, v, 4, v // 4), f"{attention}{part}/bias": (d, 4, v // 4)}
    img |= {f"{attention}out/kernel": (d, 4, v // 4, v), f"{attention}out/bias": (d, v)}
    img |= {f"{block}MlpBlock_0/Dense_0/kernel": (d, v, 2 * v), f"{block}MlpBlock_0/Dense_0/bias": (d, 2 * v)}
    img |= {f"{block}MlpBlock_0/Dense_1/kernel": (d, 2 * v, v), f"{block}MlpBlock_0/Dense_1/bias": (d, v)}
    out = {f"PaliGemma/img/{name}": shape for name, shape in img.items()}
    experts = [("", w, mlp)] + ([("_1", w1, mlp1)] if kind != "pi0_fast" else [])
    llm = {"embedder/input_embedding": (vocabulary, w)}
    for suffix, width, hidden in experts:
        adaptive = kind == "pi05" and suffix == "_1"
        llm |= {
            f"layers/attn/q_einsum{suffix}/w": (d, heads, width, hd),
            f"layers/attn/kv_einsum{suffix}/w": (d, 2, 1, width, hd),
            f"layers/attn/attn_vec_einsum{suffix}/w": (d, heads, hd, width),
            f"layers/mlp{suffix}/gating_einsum": (d, 2, width, hidden),
            f"layers/mlp{suffix}/linear": (d, hidden, width),
        }
        for norm in (f"layers/pre_attention_norm{suffix}", f"layers/pre_ffw_norm{suffix}", f"final_norm{suffix}"):
            lead = (d,) if norm.startswith("layers") else ()
            if adaptive:
                llm |= {f"{norm}/Dense_0/kernel": (*lead, width, 3 * width), f"{norm}/Dense_0/bias": (*lead, 3 * width)}
            else:
                llm[f"{norm}/scale"] = (*lead, width)
    out |= {f"PaliGemma/llm/{name}": shape for name, shape in llm.items()}
    linear = {"action_in_proj": (action_dim, w1), "action_out_proj": (w1, action_dim)}
    if kind == "pi0":
        linear |= {"state_proj": (action_dim, w1), "action_time_mlp_in": (2 * w1, w1), "action_time_mlp_out": (w1, w1)}
    elif kind == "pi05":
        linear |= {"time_mlp_in": (w1, w1), "time_mlp_out": (w1, w1)}
    if kind != "pi0_fast":
        for name, shape in linear.items():
            out |= {f"{name}/kernel": shape, f"{name}/bias": shape[1:]}
    return out


def weights(kind, vocabulary, action_dim):
    rng = np.random.default_rng(7)
    params = {}
    for name, shape in sorted(shapes(kind, vocabulary, action_dim).items()):
        flat = name.endswith(("bias", "scale"))
        fan = 1 if flat or "embedding" in name.split("/")[-1] else int(np.prod(shape[-3:-1])) if len(shape) > 2 else shape[0]
        scale = 0.05 if flat else 0.5 if "input_embedding" in name else fan**-0.5
        base = 1.0 if name.endswith("scale") and "LayerNorm" in name or name.endswith("encoder_norm/scale") else 0.0
        params[name] = (base + scale * rng.standard_normal(shape)).astype(np.float32)
    return params


def item(frames, dataset, index):
    """A frame as the loader gives it: floats of channels first, in [0, 1]."""
    lead = f"{dataset}/{index}/"
    out = {key.removeprefix(lead): frames[key] for key in frames.files if key.startswith(lead)}
    return {key: str(value) if value.dtype.kind == "U" else value for key, value in out.items()}


def statistics(preset, data, frames, dataset):
    """openpi's statistics, in its batches, over the dataset from front to back; pictures are left out."""
    keys = data.repack_transforms.inputs[0].structure
    flat = transforms.flatten_dict(keys)
    state, actions = (frames[f"{dataset}/all/{flat[name]}"] for name in (next(k for k in flat if k.endswith("state")), "actions"))
    stats = {key: normalize.RunningStats() for key in ("state", "actions")}
    horizon = preset.model.action_horizon
    images = {name: np.zeros((3, 4, 4), np.uint8) for name in flat if "image" in name}
    rows = []
    for i in range(len(state)):
        vectors = {next(k for k in flat if k.endswith("state")): state[i], "actions": actions[i][:horizon], "prompt": "x"}
        nested = {**images, **vectors} if "observation/image" in images else transforms.unflatten_dict({**images, **vectors})
        for step in data.data_transforms.inputs:
            nested = step(nested)
        rows.append(nested)
    batch_size = min(preset.batch_size, len(rows))  # openpi refuses fewer frames than a batch
    for first in range(0, len(rows) // batch_size * batch_size, batch_size):
        for key in stats:
            # JAX makes f32 of what the loader stacks.
            batch = np.stack([np.asarray(row[key]) for row in rows[first : first + batch_size]])
            stats[key].update(np.asarray(jnp.asarray(batch)))
    return {key: value.get_statistics() for key, value in stats.items()}


def leaves(tree, lead=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{lead}{key}/")
        else:
            yield f"{lead}{key}", np.asarray(value)


def record(name, dataset, indices, frames, vocabulary):
    preset = openpi_config.get_config(name)
    data = preset.data.create(Path("nowhere"), preset.model)
    kind = preset.model.model_type.value
    folder = ROOT / "fixtures/checkpoints/policy" / kind
    stats = statistics(preset, data, frames, dataset)
    normalize.save(folder / "assets" / data.asset_id, stats)
    stats = normalize.load(folder / "assets" / data.asset_id)  # read from the file they are f64, as a policy has them
    shutil.copyfile(MODEL, folder / "paligemma_tokenizer.model")
    params = weights(kind, vocabulary, preset.model.action_dim)
    if not (folder / "params").exists():
        ocp.PyTreeCheckpointer().save(folder / "params", {"params": unflatten_dict(params, sep="/")})

    sized = checkpoint.sizes({leaf: array.shape for leaf, array in params.items()})
    arrays = {leaf: jnp.asarray(array) for leaf, array in params.items()}
    model = checkpoint.build(arrays, sized, "f32", preset.model.action_dim, preset.model.action_horizon, preset.model.max_token_len)
    seen = {}

    def robot_alone(inputs):
        """The chunk stays away, as it does on a robot."""
        return {key: value for key, value in inputs.items() if key != "actions"}

    def spy(inputs):
        seen.update({f"model/{key}": value for key, value in leaves(inputs)})
        return inputs

    def answered(outputs):
        seen.update({f"answer/{key}": value for key, value in leaves(outputs)})
        return outputs

    policy = openpi_policy.Policy(
        model,
        transforms=[
            *data.repack_transforms.inputs,
            robot_alone,
            transforms.InjectDefaultPrompt(None),
            *data.data_transforms.inputs,
            transforms.Normalize(stats, use_quantiles=data.use_quantile_norm),
            *data.model_transforms.inputs,
            spy,
        ],
        output_transforms=[answered]
        + ([] if kind == "pi0_fast" else [
            *data.model_transforms.outputs,
            transforms.Unnormalize(stats, use_quantiles=data.use_quantile_norm),
            *data.data_transforms.outputs,
        ]),
    )
    out = {}
    for index in indices:
        observation = item(frames, dataset, index)
        observation["prompt"] = observation["task"]
        noise = np.random.default_rng(index).standard_normal((preset.model.action_horizon, preset.model.action_dim)).astype(np.float32)
        seen.clear()
        replies = policy.infer(observation, noise=None if kind == "pi0_fast" else noise)
        seen["noise"] = noise
        if kind != "pi0_fast":
            seen["reply/actions"] = np.asarray(replies["actions"])
        for key, value in seen.items():
            value = np.asarray(value)
            if key.startswith("model/image/"):
                value = np.frombuffer(hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest(), np.uint8)
            out[f"{index}/{key}"] = np.ascontiguousarray(value)
    (ROOT / "golden/policy").mkdir(exist_ok=True)
    save_file(out, ROOT / f"golden/policy/{name}.safetensors")
    print(name, {key: (value.dtype, value.shape) for key, value in out.items() if key.startswith(f"{indices[0]}/")})


if __name__ == "__main__":
    frames = np.load(sys.argv[1])
    openpi_tokenizer.download.maybe_download = lambda *args, **kwargs: MODEL
    openpi_tokenizer.AutoProcessor = type("Auto", (), {"from_pretrained": staticmethod(lambda *args, **kwargs: None)})
    openpi_config.DataConfigFactory._load_norm_stats = lambda *args: None
    shutil.rmtree(ROOT / "fixtures/checkpoints/policy", ignore_errors=True)
    vocabulary = 2176  # the tiny vocabulary's 2152 pieces, and as many rows as divide well
    for name, (dataset, indices) in CASES.items():
        record(name, dataset, indices, frames, vocabulary)
