"""Real-time chunking on openpi's pi0 and pi0.5: how a new chunk of actions is made to go on from the one that is still being run.

openpi has none of it. Two methods, in openpi's time: 1 is noise, 0 is clean, velocity is noise − actions.

- guided: Black, Galliker, Levine 2025 (arXiv 2506.07339). Every step's velocity is corrected by the vector-Jacobian product of the
  denoised actions, taken through the whole action expert, with what they lack of the previous chunk.
- frozen: Black et al. 2025 (arXiv 2512.05964). The rows that will have been run are the previous chunk's own, at time 0.

Invariant: the networks are openpi's own; what an action's own time needs of them is asked of openpi once per time and put together.
"""

from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from openpi.models import gemma, pi0
from openpi.shared import array_typing

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0  # openpi's
SCHEDULES = ("exp", "linear", "ones", "zeros")


def prefix_weights(schedule, start, end, total):
    """[total]: how strongly each action is held to the previous chunk; 1 before `start`, 0 from `end` on."""
    index, start = jnp.arange(total), jnp.minimum(start, end)
    if schedule == "ones":
        weights = jnp.ones(total)
    elif schedule == "zeros":
        weights = jnp.where(index < start, 1.0, 0.0)
    else:
        weights = jnp.clip(1 - (index - start + 1) / (end - start + 1), 0, 1)
        if schedule == "exp":
            weights = weights * jnp.expm1(weights) / (jnp.e - 1)
    return jnp.where(index < end, weights, 0.0)


def guidance_weight(time, largest):
    """The correction's factor at openpi's `time`; at the first step, where it has no bound, the largest."""
    tau = 1 - time
    inverse_r2 = (tau**2 + (1 - tau) ** 2) / (1 - tau) ** 2
    return jnp.minimum(jnp.nan_to_num((1 - tau) / tau, posinf=largest) * inverse_r2, largest)


class TokenRMSNorm(gemma.RMSNorm):
    """openpi's RMSNorm, whose condition may be one for every token: [B, T, W] beside [B, W]."""

    @nn.compact
    def __call__(self, x, cond):
        variance = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        normed = jnp.asarray(x * jnp.reciprocal(jnp.sqrt(variance + 1e-06)))
        if cond is None:
            scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1]))
            return (normed * (1 + scale)).astype(x.dtype), None
        dense = nn.Dense(x.shape[-1] * 3, kernel_init=nn.initializers.zeros, dtype=x.dtype)
        # Token by token: a product of another shape has other last bits.
        each = [cond] if cond.ndim == 2 else [cond[:, token] for token in range(cond.shape[1])]
        scale, shift, gate = jnp.split(jnp.stack([dense(one) for one in each], axis=1), 3, axis=-1)
        return (normed * (1 + scale) + shift).astype(x.dtype), gate


def sines(model, time):
    """openpi's embedding [2, X] of `time` and of 0, each step by itself rounded to f32.

    Not compiled with the rest: there XLA rounds phases of up to 1570 rad as the shapes around them please, 1.2e-4 apart.
    """
    with jax.experimental.disable_x64():
        return np.asarray(pi0.posemb_sincos(jnp.asarray([time, 0], np.float32), model.action_in_proj.out_features, MIN_PERIOD, MAX_PERIOD))


def suffix(model, observation, x_t, embedded, frozen):
    """openpi's suffix; with `frozen` [B, N], the frozen actions' tokens and conditions are those of time 0."""

    def at(embedding):
        given = lambda pos, *_, **__: jnp.broadcast_to(embedding, (pos.shape[0], embedding.shape[0]))
        with mock.patch.object(pi0, "posemb_sincos", given):
            return model.embed_suffix(observation, x_t, jnp.zeros(x_t.shape[0], x_t.dtype))

    tokens, mask, ar, cond = at(embedded[0])
    if frozen is None:
        return tokens, mask, ar, cond
    clean, _, _, clean_cond = at(embedded[1])
    own = jnp.pad(frozen, ((0, 0), (tokens.shape[1] - frozen.shape[1], 0)))[..., None]  # pi0's state comes first and has no time
    return jnp.where(own, clean, tokens), mask, ar, None if cond is None else jnp.where(own, clean_cond[:, None], cond[:, None])


def velocity(model, observation, prefix, x_t, embedded, frozen=None):
    """v_t [B, N, A] on the cached prefix (its mask, keys and values) at a time's `sines`, as openpi's sample_actions asks for it."""
    prefix_mask, kv = prefix
    tokens, own, ar, cond = suffix(model, observation, x_t, embedded, frozen)
    seen = jnp.broadcast_to(prefix_mask[:, None], (prefix_mask.shape[0], tokens.shape[1], prefix_mask.shape[1]))
    attn_mask = jnp.concatenate([seen, pi0.make_attn_mask(own, ar)], axis=-1)
    positions = jnp.sum(prefix_mask, axis=1, keepdims=True) + jnp.cumsum(own, axis=1) - 1
    run = lambda: model.PaliGemma.llm([None, tokens], mask=attn_mask, positions=positions, kv_cache=kv, adarms_cond=[None, cond])
    if frozen is None:
        (_, out), _ = run()
    else:  # openpi's annotations know no condition of three dimensions
        with mock.patch.object(gemma, "RMSNorm", TokenRMSNorm), array_typing.disable_typechecking():
            (_, out), _ = run()
    return model.action_out_proj(out[:, -model.action_horizon :])


def plain(model, observation, prefix, x_t, at, given):
    return {"v_t": velocity(model, observation, prefix, x_t, at[1])}


def guided(model, observation, prefix, x_t, at, given, jacobian=True):
    """One guided step. Without `jacobian` the denoised actions are taken to move as the noisy ones do: LeRobot's shortcut."""
    time, _ = at

    def denoise(x_t):
        v_t = velocity(model, observation, prefix, x_t, at[1])
        return x_t - time * v_t, v_t

    denoised, pull_back, v_t = jax.vjp(denoise, x_t, has_aux=True)
    error = (given["previous"] - denoised) * given["weights"][..., None]
    correction = pull_back(error)[0] if jacobian else error
    weight = guidance_weight(time, given["max_guidance_weight"])
    # From noise to data the velocity is −v_t and the correction is added; so from data to noise it is taken away.
    out = {"v_t": v_t - weight * correction, "guidance_weight": weight}
    return out | {"network_v_t": v_t, "denoised": denoised, "error": error, "correction": correction}


def identity(*args):
    return guided(*args, jacobian=False)


def frozen(model, observation, prefix, x_t, at, given):
    """One step with the first rows held: their velocity is not used and reads as zero."""
    v_t = velocity(model, observation, prefix, x_t, at[1], given["frozen"])
    return {"v_t": jnp.where(given["frozen"][..., None], 0.0, v_t)}


METHODS = {"plain": plain, "guided": guided, "identity": identity, "frozen": frozen}


class Sampler:
    """A model at an observation, its prefix run once; every method's step is compiled once."""

    def __init__(self, model, observation, prefix):
        self.graph, self.state = nnx.split(model)
        self.observation, self.prefix, self.steps = observation, prefix, {}

    def step(self, method):
        if method not in self.steps:
            run = METHODS[method]
            self.steps[method] = jax.jit(lambda state, *args: run(nnx.merge(self.graph, state), *args))
        return self.steps[method]

    def once(self, method, x_t, time, given):
        """One step at `time`: `v_t` [B, N, A] and what else the method gives."""
        at = jnp.asarray(time, x_t.dtype), jnp.asarray(sines(nnx.merge(self.graph, self.state), time), x_t.dtype)
        return self.step(method)(self.state, self.observation, self.prefix, x_t, at, given)

    def sample(self, method, noise, given, num_steps):
        """What every step was given and made, stacked: `x_t`, `time` and what the method gives; and the `actions`."""
        kept = []
        x_t = jnp.where(given["frozen"][..., None], given["previous"], noise) if method == "frozen" else noise
        # Time is summed up in f32, as in openpi; also where the rest is f64.
        dt, time = np.float32(-1) / np.float32(num_steps), np.float32(1)
        for _ in range(num_steps):
            out = self.once(method, x_t, time, given)
            kept.append({"x_t": x_t, "time": time} | out)
            x_t, time = x_t + jnp.asarray(dt, noise.dtype) * out["v_t"], time + dt
        return {name: np.stack([np.asarray(one[name]) for one in kept]) for name in kept[0]} | {"actions": np.asarray(x_t)}
