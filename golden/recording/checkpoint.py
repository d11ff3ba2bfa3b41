"""Opens a checkpoint as openpi's own network, in whatever sizes its tensors have.

openpi names a handful of sizes and builds only those. Here the sizes come from the tensors and are put, from outside, where openpi looks
them up: the two tables of Gemma variants, the table of SigLIP variants, the vocabulary and the image side.
Invariant: the network holds exactly the checkpoint's leaves; a missing or an extra one is an error.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from openpi.models import gemma, gemma_fast, lora, pi0_config, pi0_fast, siglip
from openpi.models import model as openpi_model
from safetensors import safe_open

PROCEDURAL = "procedural:"
CAMERAS = {
    "pi0": ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"),
    "pi05": ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"),
    "pi0_fast": ("base_0_rgb", "base_1_rgb", "wrist_0_rgb"),
}
DEFAULTS = {"pi0": (50, 48), "pi05": (50, 200), "pi0_fast": (32, 250)}  # action horizon and prompt length of openpi's configs
LLM, IMG = "PaliGemma/llm/", "PaliGemma/img/"


def leaves(source):
    """Yields (name, array): JAX path joined by `/`, without the root `params` and without a closing `value`."""
    if source.startswith(PROCEDURAL):
        yield from procedural(source.removeprefix(PROCEDURAL))
    elif source.endswith((".safetensors", ".index.json")):
        yield from safetensors(Path(source))
    else:
        yield from orbax(Path(source))


def orbax(folder):
    folder = (folder / "params" if (folder / "params").is_dir() else folder).resolve()
    reader = ocp.PyTreeCheckpointer()
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder))
    tree = reader.restore(folder, restore_args=how)
    flat = flax.traverse_util.flatten_dict(tree.pop("params", tree), sep="/")
    suffix = "/value" if all(name.endswith("/value") for name in flat) else ""  # SigLIP has a module of that name, so all or none
    while flat:
        name, array = flat.popitem()
        yield name.removesuffix(suffix), array


def safetensors(path):
    files = [path]
    if path.suffix == ".json":
        files = sorted({path.with_name(shard) for shard in json.loads(path.read_text())["weight_map"].values()})
    for file in files:
        with safe_open(file, "np") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)


def procedural(name):
    """The formula of procedural/README.md, in f32 step by step."""
    u64 = np.uint64
    table = json.loads((Path(__file__).parent.parent / "procedural" / f"{name}.json").read_text())
    f32 = lambda bits: np.array(bits, np.uint32).view(np.float32)
    for leaf in table["leaves"]:
        seed, scale = u64(int(leaf["seed"], 16)), f32(int(leaf["scale"], 16))
        out = np.empty(math.prod(leaf["shape"]), np.float32)
        for first in range(0, out.size, 1 << 22):
            z = seed + u64(first) + np.arange(min(1 << 22, out.size - first), dtype=u64) + u64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> u64(30))) * u64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> u64(27))) * u64(0x94D049BB133111EB)
            unit = ((z ^ (z >> u64(31))) >> u64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
            out[first : first + z.size] = scale * (unit * f32(0x3FDDB3D7)) + np.float32(leaf["offset"])
        yield leaf["name"], out.reshape(leaf["shape"])


def read(source, mode):
    """All leaves as JAX arrays in the parameter types of `mode`. `train-bf16` keeps what is stored: LoRA freezes some leaves in bf16."""
    dtype = {"f32": jnp.float32, "serve-bf16": jnp.bfloat16, "train-bf16": None}[mode]
    return {name: jnp.asarray(np.asarray(array, dtype)) for name, array in leaves(source)}


def expert(shapes, suffix):
    """Sizes of one expert; `suffix` is "" or "_1"."""
    at = lambda name: shapes.get(f"{LLM}layers/{name}")
    if whole := at(f"attn/qkv_einsum{suffix}/w"):
        depth, _, heads, width, head_dim = whole
        kv_heads = heads
    else:
        depth, heads, width, head_dim = at(f"attn/q_einsum{suffix}/w")
        kv_heads = at(f"attn/kv_einsum{suffix}/w")[2]
    ranks = {"attn": at(f"attn/attn_vec_einsum{suffix}/lora_b"), "ffn": at(f"mlp{suffix}/linear_lora_b")}
    return dict(
        width=width,
        depth=depth,
        mlp_dim=at(f"mlp{suffix}/linear")[1],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        # A checkpoint does not hold alpha. In every variant of openpi it is the rank, which makes the factor 1.
        lora_configs={part: lora.LoRAConfig(rank=b[-2], alpha=float(b[-2])) for part, b in ranks.items() if b},
    )


def sizes(shapes):
    """What the shapes tell: the kind of model and all its sizes but the action horizon and the prompt length."""
    stem, query = shapes[f"{IMG}embedding/kernel"], shapes[f"{IMG}Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"]
    tokens = shapes[f"{IMG}pos_embedding"][1]
    if math.isqrt(tokens) ** 2 != tokens:
        raise SystemExit(f"{IMG}pos_embedding has {tokens} positions, which no square image gives")
    flow = "action_in_proj/kernel" in shapes
    return SimpleNamespace(
        model="pi0" if "state_proj/kernel" in shapes else "pi05" if flow else "pi0_fast",
        vocabulary=shapes[f"{LLM}embedder/input_embedding"][0],
        image=math.isqrt(tokens) * stem[0],
        vision=dict(
            width=stem[3],
            depth=query[0],
            mlp_dim=shapes[f"{IMG}Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"][2],
            num_heads=query[2],
            patch_size=stem[:2],
        ),
        experts=[expert(shapes, "")] + ([expert(shapes, "_1")] if flow else []),
        action_dim=shapes["action_in_proj/kernel"][0] if flow else None,
    )


def build(params, size, mode, action_dim, action_horizon, prompt_length):
    """openpi's model around `params`."""
    common = dict(
        action_dim=action_dim,
        action_horizon=action_horizon,
        max_token_len=prompt_length,
        dtype="float32" if mode == "f32" else "bfloat16",
        paligemma_variant="language",
    )
    siglip.decode_variant = lambda _: dict(size.vision)
    openpi_model.IMAGE_RESOLUTION = (size.image, size.image)
    openpi_model.preprocess_observation.__kwdefaults__["image_resolution"] = (size.image, size.image)
    if size.model == "pi0_fast":
        variant = dict(size.experts[0], variant="language", norm_eps=1e-6, vocab_size=size.vocabulary, scan=True, remat_policy="nothing_saveable")
        gemma_fast.get_config = lambda _: ml_collections.ConfigDict(variant)
        config = pi0_fast.Pi0FASTConfig(**common)
    else:
        gemma.PALIGEMMA_VOCAB_SIZE = size.vocabulary
        gemma.get_config = {name: gemma.Config(**sizes) for name, sizes in zip(("language", "action"), size.experts)}.__getitem__
        config = pi0_config.Pi0Config(**common, action_expert_variant="action", pi05=size.model == "pi05")
    return config.load(flax.traverse_util.unflatten_dict(params, sep="/"), remove_extra_params=False)
