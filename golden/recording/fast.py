"""The taps of pi0-FAST: the training pass, the aligned prefill, and the greedy tokens of openpi's own sample_actions."""

import jax
import jax.numpy as jnp
import numpy as np
from openpi.models import pi0_fast

from .flow import call


def embed(model, observation):
    tokens, mask, ar = call(model, lambda model, obs: model.embed_inputs(obs), observation)
    return tokens, mask, ar, pi0_fast.make_attn_mask(mask, ar)


def prefill(model, observation, steps):
    """The decoding prompt, rolled to the right end, through the network with a cache that has room for `steps` tokens."""
    tokens, mask, _, attn_mask = embed(model, observation)
    tokens, mask, attn_mask = pi0_fast.left_to_right_align(tokens, mask, attn_mask)
    padded = jnp.pad(attn_mask, ((0, 0), (0, 0), (0, steps)))
    run = lambda model, t, m, at: model.PaliGemma.llm(embedded_prefix=t, mask=m, positions=at, decode=True)[:2]
    logits, cache = call(model, run, tokens, padded, jnp.cumsum(mask, axis=-1) - 1)
    return tokens, mask, attn_mask, logits[:, -1:], cache


def decode(model, observation, steps):
    run = lambda model, obs: model.sample_actions(jax.random.key(0), obs, max_decoding_steps=steps)
    return call(model, run, observation)


def loss(model, observation, actions):
    return call(model, lambda model, obs, actions: model.compute_loss(jax.random.key(0), obs, actions, train=False), observation, actions)


def all_taps(model, observation, prompt, inputs, steps):
    """Every tap in full. `observation` has the training tokens, `prompt` the ones to decode from."""
    tokens, mask, ar, attn_mask = embed(model, observation)
    taps = {"embed_inputs/tokens": tokens, "embed_inputs/mask": mask, "embed_inputs/ar": ar, "attn_mask": attn_mask}
    run = lambda model, t, m: model.PaliGemma.llm(embedded_prefix=t, mask=m, return_prelogits=True)
    pre_logits, (index, k, v), out = call(model, run, tokens[:, :-1], attn_mask[:, :-1, :-1])
    length = observation.tokenized_prompt.shape[1] - 1
    logits, _ = call(model, lambda model, x: model.PaliGemma.llm(pre_logits=x), pre_logits[:, -length:])
    taps |= {"train/pre_logits": pre_logits, "train/encoded": out["encoded"], "train/logits": logits}
    taps |= {"train/kv_idx": index, "train/kv_k": k, "train/kv_v": v, "loss": loss(model, observation, inputs["in/actions"])}

    tokens, mask, attn_mask, logits, (index, k, v) = prefill(model, prompt, steps)
    taps |= {"infer/aligned_tokens": tokens, "infer/aligned_mask": mask, "infer/aligned_attn_mask": attn_mask}
    taps |= {"infer/prefill_kv_idx": index, "infer/prefill_kv_k": k, "infer/prefill_kv_v": v, "infer/prefill_last_logits": logits}
    taps["infer/tokens"] = decode(model, prompt, steps)
    return taps


def small_taps(model, observation, prompt, inputs, steps):
    """A part of each tap, for a network of published size."""
    camera = next(iter(observation.images))
    image = call(model, lambda model, image: model.PaliGemma.img(image, train=False)[0], observation.images[camera])
    tokens, mask, _, last, (index, k, v) = prefill(model, prompt, steps)
    size, depth, start = tokens.shape[1], k.shape[0], tokens.shape[1] - int(mask[0].sum())
    images = start + image.shape[1] * len(observation.images)
    layers = np.unique([0, (depth - 1) // 2, depth - 1])
    slots = np.unique([slot for slot in (0, start, start + 300, images - 1, images, size - 1) if slot < size])
    best = lambda logits, count: jax.lax.top_k(logits.astype(jnp.float32), count)
    values, ids = best(last[0, 0], 64)
    taps = {f"siglip/{camera}/tokens_every16": image[:, ::16], "infer/aligned_mask": mask}
    taps |= {"infer/kv_layers": jnp.asarray(layers, jnp.int32), "infer/kv_positions": jnp.asarray(slots, jnp.int32), "infer/prefill_kv_idx": index}
    taps |= {"infer/prefill_kv_k": k[layers][:, :, slots], "infer/prefill_kv_v": v[layers][:, :, slots]}
    taps |= {"infer/prefill_logits_every997": last[0, 0, ::997].astype(jnp.float32)}
    taps |= {"infer/prefill_top64_ids": ids, "infer/prefill_top64_logits": values}

    tops, cache, room = [], (index, k, v), jnp.arange(size + steps)
    run = lambda model, t, m, at, cache: model.PaliGemma.llm(
        embedded_prefix=model.PaliGemma.llm(t, embed_only=True), mask=m, positions=at, decode=True, kv_cache=cache
    )[:2]
    for step in range(steps):
        tops.append(best(last[0, 0], 8))
        token = jnp.argmax(last, axis=-1)
        seen = (room >= start) & (room <= size + step)
        # One position is skipped after the prompt: so does openpi.
        last, cache = call(model, run, token, seen[None, None], mask.sum(-1)[:, None] + step + 1, cache)
    taps |= {"infer/step_top8_ids": jnp.stack([ids for _, ids in tops]), "infer/step_top8_logits": jnp.stack([values for values, _ in tops])}
    taps["infer/tokens"] = decode(model, prompt, steps)
    taps["loss/chunked"] = loss(model, observation, inputs["in/actions"])
    return taps
