"""Records the distributions of which openpi's models are born: statistics of every leaf over several seeds.

    python golden/record_init.py

Writes golden/init/{pi0,pi05,pi0_fast}.json: per leaf its shape, and over all seeds together the number of values, their mean, deviation, kurtosis,
least and greatest. Models of a middling size, pi0's with low-rank pairs in both experts, pi0-FAST's with them, are made by openpi's own
`config.create`. Environment: as of `record.py`.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.nnx as nnx
import flax.traverse_util
import jax
import ml_collections
import numpy as np
import openpi.models.gemma as gemma
import openpi.models.gemma_fast as gemma_fast
import openpi.models.lora as lora
import openpi.models.model as openpi_model
import openpi.models.siglip as siglip
from openpi.models import pi0_config, pi0_fast

SEEDS = 4
OUT = Path(__file__).resolve().parent / "init"
VISION = dict(width=64, depth=2, mlp_dim=160, num_heads=4, patch_size=(14, 14))
LANGUAGE = dict(width=96, depth=2, mlp_dim=256, num_heads=8, num_kv_heads=1, head_dim=16)
ACTION = dict(width=64, depth=2, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16)
VOCABULARY, IMAGE = 512, 56


def pairs(rank):
    return {part: lora.LoRAConfig(rank=rank, alpha=float(rank)) for part in ("attn", "ffn")}


def configs():
    siglip.decode_variant = lambda _: dict(VISION)
    openpi_model.IMAGE_RESOLUTION = (IMAGE, IMAGE)
    gemma.PALIGEMMA_VOCAB_SIZE = VOCABULARY
    gemma.get_config = {
        "language": gemma.Config(**LANGUAGE),
        "action": gemma.Config(**ACTION),
        "language_lora": gemma.Config(**LANGUAGE, lora_configs=pairs(4)),
        "action_lora": gemma.Config(**ACTION, lora_configs=pairs(6)),
    }.__getitem__
    fast = dict(LANGUAGE, variant="language", norm_eps=1e-6, vocab_size=VOCABULARY, scan=True, remat_policy="nothing_saveable", lora_configs=pairs(4))
    gemma_fast.get_config = lambda _: ml_collections.ConfigDict(fast)
    common = dict(dtype="float32", action_dim=8, action_horizon=6, max_token_len=16)
    yield "pi0", pi0_config.Pi0Config(**common, paligemma_variant="language_lora", action_expert_variant="action_lora")
    yield "pi05", pi0_config.Pi0Config(**common, paligemma_variant="language", action_expert_variant="action", pi05=True)
    yield "pi0_fast", pi0_fast.Pi0FASTConfig(**common, paligemma_variant="language_lora")


def leaves(config, seed):
    state = nnx.state(config.create(jax.random.key(seed)))
    flat = flax.traverse_util.flatten_dict(state.to_pure_dict(), sep="/")
    return {name: np.asarray(value, np.float64) for name, value in flat.items()}


def statistics(values):
    x = np.concatenate([value.ravel() for value in values])
    deviation = float(x.std())
    kurtosis = float((((x - x.mean()) / deviation) ** 4).mean()) if deviation > 0 else 0.0
    return {
        "shape": list(values[0].shape),
        "count": x.size,
        "mean": float(x.mean()),
        "deviation": deviation,
        "kurtosis": kurtosis,
        "least": float(x.min()),
        "greatest": float(x.max()),
    }


def main():
    OUT.mkdir(exist_ok=True)
    for name, config in configs():
        drawn = [leaves(config, seed) for seed in range(SEEDS)]
        rows = {leaf: statistics([d[leaf] for d in drawn]) for leaf in sorted(drawn[0])}
        lines = ",\n".join(f"  {json.dumps(leaf)}: {json.dumps(row)}" for leaf, row in rows.items())
        (OUT / f"{name}.json").write_text(f"{{\n{lines}\n}}\n")
        print(name, len(rows), "leaves")


if __name__ == "__main__":
    main()
