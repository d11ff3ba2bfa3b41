"""The taps of pi0 and pi0.5.

Every part is compiled by itself, and each takes the recorded output of the one before: so the recordings are the values JAX has there, and
an error of one part is not blamed on the next. `sample/*` and the loss are openpi's own methods, whole.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from openpi.models import pi0

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


def call(model, method, *args):
    """`method(model, *args)`, compiled; the lambda is new each time so that nothing is taken from a cache."""
    return nnx.jit(lambda model, *args: method(model, *args))(model, *args)


def exact_sines(pos, embedding_dim, min_period, max_period):
    """openpi's time embedding in f64, rounded once."""

    def compute(pos):
        period = min_period * (max_period / min_period) ** np.linspace(0.0, 1.0, embedding_dim // 2)
        phase = np.asarray(pos, np.float64)[:, None] * (2 * np.pi / period)
        return np.concatenate([np.sin(phase), np.cos(phase)], axis=-1).astype(np.float32)

    return jax.pure_callback(compute, jax.ShapeDtypeStruct((pos.shape[0], embedding_dim), jnp.float32), pos)


def vision(model, image, camera):
    tokens, out = call(model, lambda model, image: model.PaliGemma.img(image, train=False), image)
    taps = {"stem": out["stem"], "with_posemb": out["with_posemb"], "encoded": out["encoded"], "tokens": tokens}
    taps |= {f"{block}/{name}": array for block, arrays in out["encoder"].items() for name, array in arrays.items()}
    return {f"siglip/{camera}/{name}": array for name, array in taps.items()}


class Prefix:
    """The prefix of an observation: embedded, and run once for its keys and values."""

    def __init__(self, model, observation):
        self.tokens, self.mask, self.ar = call(model, lambda model, obs: model.embed_prefix(obs), observation)
        run = lambda model, tokens, mask, positions: model.PaliGemma.llm([tokens, None], mask=mask, positions=positions)
        (self.out, _), self.kv = call(model, run, self.tokens, pi0.make_attn_mask(self.mask, self.ar), jnp.cumsum(self.mask, axis=1) - 1)


def suffix(model, observation, x_t, time):
    return call(model, lambda model, obs, x_t, time: model.embed_suffix(obs, x_t, time), observation, x_t, time)


def velocity(model, out):
    return call(model, lambda model, out: model.action_out_proj(out[:, -model.action_horizon :]), out)


class Given:
    """Stands for the draw from the beta distribution in openpi's loss: whatever is made of it, it is the time."""

    def __init__(self, time):
        self.time = time

    def __mul__(self, _):
        return self

    def __add__(self, _):
        return self.time


def loss(model, observation, actions, noise, time):
    """openpi's compute_loss with this noise and this time."""

    def compute(model, observation, actions, noise, time):
        normal = jax.random.normal  # the network's initialisers ask for it too, for shapes
        drawn = lambda key, shape=(), *rest: noise if shape == noise.shape else normal(key, shape, *rest)
        with mock.patch("jax.random.normal", drawn), mock.patch("jax.random.beta", lambda *_: Given(time)):
            return model.compute_loss(jax.random.key(0), observation, actions, train=False)

    return call(model, compute, observation, actions, noise, time)


def sample(model, observation, noise, steps):
    run = lambda model, obs, noise, steps: model.sample_actions(jax.random.key(0), obs, noise=noise, num_steps=steps)
    return call(model, run, observation, noise, steps)


def all_taps(model, observation, inputs):
    """Every tap in full."""
    camera = next(iter(observation.images))
    taps = vision(model, observation.images[camera], camera)
    noise, time, actions = inputs["loss/noise"], inputs["loss/time"], inputs["in/actions"]
    at = time[:, None, None]
    x_t, u_t = at * noise + (1 - at) * actions, noise - actions
    prefix = Prefix(model, observation)
    tokens, mask, ar, cond = suffix(model, observation, x_t, time)
    width = tokens.shape[-1]
    taps |= {"embed_prefix/tokens": prefix.tokens, "embed_prefix/mask": prefix.mask, "embed_prefix/ar": prefix.ar}
    taps |= {"embed_suffix/tokens": tokens, "embed_suffix/mask": mask, "embed_suffix/ar": ar}
    if cond is not None:
        taps["embed_suffix/adarms_cond"] = cond
    taps["posemb_sincos"] = pi0.posemb_sincos(time, width, MIN_PERIOD, MAX_PERIOD)

    valid = jnp.concatenate([prefix.mask, mask], axis=1)
    attn_mask, positions = pi0.make_attn_mask(valid, jnp.concatenate([prefix.ar, ar])), jnp.cumsum(valid, axis=1) - 1
    run = lambda model, p, s, m, at, c: model.PaliGemma.llm([p, s], mask=m, positions=at, adarms_cond=[None, c])
    (prefix_out, suffix_out), kv = call(model, run, prefix.tokens, tokens, attn_mask, positions, cond)
    taps |= {"full/attn_mask": attn_mask, "full/positions": positions, "full/prefix_out": prefix_out, "full/suffix_out": suffix_out}
    taps |= {"full/kv_k": kv[0], "full/kv_v": kv[1], "full/v_t": velocity(model, suffix_out)}
    taps |= {"prefix/out": prefix.out, "prefix/kv_k": prefix.kv[0], "prefix/kv_v": prefix.kv[1]}
    taps |= {"loss/x_t": x_t, "loss/u_t": u_t, "loss/chunked": loss(model, observation, actions, noise, time)}
    for steps, name in ((10, "actions"), (1, "actions_steps1"), (5, "actions_steps5")):
        taps[f"sample/{name}"] = sample(model, observation, inputs["sample/noise"], steps)
    return taps


def small_taps(model, observation, inputs):
    """A part of each tap: what a network of published size leaves in about a megabyte."""
    camera = next(iter(observation.images))
    noise = inputs["sample/noise"]
    prefix = Prefix(model, observation)
    per_image = (prefix.tokens.shape[1] - observation.tokenized_prompt.shape[1]) // len(observation.images)
    images, end, depth = per_image * len(observation.images), int(prefix.mask[0].sum()), prefix.kv[0].shape[0]
    layers = np.unique([0, (depth - 1) // 2, depth - 1])
    wanted = [0, 1, 100, per_image - 1, per_image, 600, images - 1, images, end - 1, end, prefix.tokens.shape[1] - 1]
    slots = np.unique([slot for slot in wanted if slot < prefix.tokens.shape[1]])
    taps = {f"siglip/{camera}/tokens_every16": prefix.tokens[:, :per_image:16]}
    taps["embed_prefix/lang_tokens_every8"] = prefix.tokens[:, images::8]
    taps |= {"prefix/kv_layers": jnp.asarray(layers, jnp.int32), "prefix/kv_positions": jnp.asarray(slots, jnp.int32)}
    taps |= {f"prefix/kv_{name}": kv[layers][:, :, slots] for name, kv in zip("kv", prefix.kv)}

    def step(model, observation, x_t, time, dt, mask, kv):
        """One Euler step on the cached prefix: the state of the loop in openpi's sample_actions, seen from outside."""
        tokens, own, ar, cond = model.embed_suffix(observation, x_t, jnp.broadcast_to(time, x_t.shape[0]))
        seen = jnp.broadcast_to(mask[:, None], (mask.shape[0], tokens.shape[1], mask.shape[1]))
        attn_mask = jnp.concatenate([seen, pi0.make_attn_mask(own, ar)], axis=-1)
        positions = jnp.sum(mask, axis=1, keepdims=True) + jnp.cumsum(own, axis=1) - 1
        (_, out), _ = model.PaliGemma.llm([None, tokens], mask=attn_mask, positions=positions, kv_cache=kv, adarms_cond=[None, cond])
        v_t = model.action_out_proj(out[:, -model.action_horizon :])
        return tokens, cond, out, v_t, x_t + dt * v_t, time + dt

    compiled = nnx.jit(step)
    for steps in (10, 3):
        # As in openpi, where num_steps is traced: dt is a weak f32 scalar, and time is summed up in f32.
        x_t, time, dt, v_ts = noise, jnp.asarray(1.0), -1.0 / jnp.asarray(steps), []
        dt = jax.lax.convert_element_type_p.bind(dt, new_dtype=np.dtype("float32"), weak_type=True, sharding=None)
        for index in range(steps):
            tokens, cond, out, v_t, x_t, time = compiled(model, observation, x_t, time, dt, prefix.mask, prefix.kv)
            v_ts.append(v_t)
            if steps == 10 and index == 0:
                taps |= {"step_t1/embed_suffix": tokens, "step_t1/suffix_out": out, "step_t1/v_t": v_t}
                if cond is not None:
                    taps["step_t1/adarms_cond"] = cond
        taps[f"sample/loop_actions_steps{steps}"] = x_t
        if steps == 10:
            taps["sample/loop_v_t_steps10"] = jnp.stack(v_ts)
        taps[f"sample/actions_steps{steps}"] = sample(model, observation, noise, steps)
    taps["loss/chunked"] = loss(model, observation, inputs["in/actions"], inputs["loss/noise"], inputs["loss/time"])
    return taps


def moved_by_exact_sines(model, observation, inputs, taps, record):
    """{tap: largest difference} that exact sines in place of JAX's f32 ones make: what a better implementation may differ by."""
    with mock.patch.object(pi0, "posemb_sincos", exact_sines):
        exact = record(model, observation, inputs)
    far = lambda name: float(np.abs(np.asarray(exact[name], np.float64) - np.asarray(taps[name], np.float64)).max())
    return {name: far(name) for name in taps if jnp.issubdtype(taps[name].dtype, jnp.floating)}
