"""Times openpi's JAX model on the CPU at its published size: its own sample_actions, compiled, batch 1, three cameras.

    python xtask/peers/jax_cpu.py --model pi0 --dtype f32

Random weights, born in their type: normal × 0.02, repeated along the leading axes. The stages are timed apart from the whole: the image
tower over three images; the prefix with it; the steps are what remains of the whole.
"""

import os

import report

args = report.arguments(__doc__)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Else XLA takes the f32 copies of bf16 weights out of the loop over the steps and holds all of them at once: twice the memory.
os.environ.setdefault("XLA_FLAGS", "--xla_disable_hlo_passes=while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion")

import time
import warnings

warnings.simplefilter("ignore")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from openpi.models import pi0, pi0_config, pi0_fast
from openpi.models.model import Observation

DTYPE = {"f32": ("float32", jnp.float32), "bf16": ("bfloat16", jnp.bfloat16)}[args.dtype]
BLOCK = 1 << 22  # values drawn per leaf at most


def weight(shape, chance):
    """An array of `shape`, made by one broadcast of as many trailing axes as fit a block."""
    axes = len(shape)
    while axes and np.prod(shape[axes - 1 :]) <= BLOCK:
        axes -= 1
    block = (chance.standard_normal(shape[axes:], np.float32) * 0.02).astype(DTYPE[1])
    return jax.block_until_ready(jax.jit(lambda block: jnp.broadcast_to(block, shape))(block))


def build():
    if args.model == "pi0_fast":
        config = pi0_fast.Pi0FASTConfig(dtype=DTYPE[0])
    else:
        config = pi0_config.Pi0Config(dtype=DTYPE[0], pi05=args.model == "pi05")
    _, state = nnx.split(nnx.eval_shape(config.create, jax.random.key(0)))
    chance = np.random.default_rng(0)
    return config, config.load(jax.tree.map(lambda leaf: weight(leaf.shape, chance), state.to_pure_dict()))


def observation(config):
    chance = np.random.default_rng(1)
    valid, length = report.PROMPT[args.model]
    mask = np.arange(length)[None] < valid
    fast = dict(token_ar_mask=jnp.zeros((1, length), jnp.int32), token_loss_mask=jnp.zeros((1, length), bool)) if args.model == "pi0_fast" else {}
    return Observation(
        images={camera: jnp.asarray(chance.uniform(-1, 1, (1, 224, 224, 3)), jnp.float32) for camera in report.CAMERAS[args.model]},
        image_masks={camera: jnp.ones(1, bool) for camera in report.CAMERAS[args.model]},
        state=jnp.asarray(chance.standard_normal((1, config.action_dim)), jnp.float32),
        tokenized_prompt=jnp.asarray(np.where(mask, chance.integers(2, 250_000, (1, length)), 0), jnp.int32),
        tokenized_prompt_mask=jnp.asarray(mask),
        **fast,
    )


def vision(model, observation):
    return [model.PaliGemma.img(image, train=False)[0] for image in observation.images.values()]


def prefix(model, observation):
    """Images and prompt through the language model, once: what sample_actions does before its loop."""
    if args.model != "pi0_fast":
        tokens, mask, ar = model.embed_prefix(observation)
        return model.PaliGemma.llm([tokens, None], mask=pi0.make_attn_mask(mask, ar), positions=jnp.cumsum(mask, axis=1) - 1)[1]
    tokens, mask, ar = model.embed_inputs(observation)
    tokens, mask, attn_mask = pi0_fast.left_to_right_align(tokens, mask, pi0_fast.make_attn_mask(mask, ar))
    attn_mask = jnp.pad(attn_mask, ((0, 0), (0, 0), (0, args.steps)))
    logits, cache, _ = model.PaliGemma.llm(embedded_prefix=tokens, mask=attn_mask, positions=jnp.cumsum(mask, axis=-1) - 1, decode=True)
    return logits[:, -1:], cache


def whole(model, observation):
    steps = {"max_decoding_steps" if args.model == "pi0_fast" else "num_steps": args.steps}
    return model.sample_actions(jax.random.key(0), observation, **steps)


start = time.perf_counter()
config, model = build()
load_s = time.perf_counter() - start
inputs = observation(config)


def timed(method):
    """(wall, CPU) of every repeat; the first run compiles and is not counted."""
    compiled = nnx.jit(method)
    run = lambda: jax.block_until_ready(compiled(model, inputs))
    run()
    return [report.milliseconds(run) for _ in range(args.repeats)]


total = timed(whole)
vision_ms, prefix_ms = min(timed(vision))[0], min(timed(prefix))[0]
report.line(args, "jax", ("jax", "flax", "rpent-openpi"), load_s, total, vision_ms, prefix_ms - vision_ms, min(total)[0] - prefix_ms)
