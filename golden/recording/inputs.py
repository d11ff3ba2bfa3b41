"""The inputs of a recording: read from a file, and drawn from a seed where the file has none.

Noise and time are inputs too and are recorded as such: seeds mean different numbers in different versions of JAX.
"""

import jax.numpy as jnp
import numpy as np
from openpi.models.model import Observation
from safetensors.flax import load_file

GIVEN = ("loss/noise", "loss/time", "sample/noise", "infer/tokenized_prompt", "infer/tokenized_prompt_mask", "infer/token_ar_mask")


def read(path):
    """{name: array} of an `.npz` or `.safetensors`: `in/…`, noise and time. Other names are passed over, so a recording serves as it is.

    `in/` may be left out; plain `noise` stands for the noise of loss and sampling, plain `time` for the loss's.
    """
    if path is None:
        return {}
    file = load_file(path) if path.suffix == ".safetensors" else {name: jnp.asarray(array) for name, array in np.load(path).items()}
    out = {}
    for name, array in file.items():
        plain = name.removeprefix("in/")
        if name in GIVEN:
            out[name] = array
        elif plain == "time":
            out["loss/time"] = array
        elif plain in ("state", "actions", "noise", "tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask", "token_loss_mask") or (
            plain.split("/")[0] in ("image", "image_u8", "image_mask")
        ):
            out[f"in/{plain}"] = array
    for name in ("loss/noise", "sample/noise"):
        if "in/noise" in out:
            out.setdefault(name, out["in/noise"])
    return out


def complete(given, size, cameras, batch, action_dim, horizon, prompt_length, seed):
    """Adds what `given` lacks. Drawn: images, state, actions, noise, time, a prompt that leaves padding."""
    chance = np.random.default_rng(seed)
    out = dict(given)

    def draw(name, make):
        array = make()  # always drawn, so that giving one input does not move the others
        out.setdefault(name, jnp.asarray(array))

    normal = lambda *shape: chance.standard_normal(shape).astype(np.float32)
    for camera in cameras:
        pixels = chance.integers(0, 256, (batch, size.image, size.image, 3), np.uint8)
        if f"in/image/{camera}" not in out:
            out.setdefault(f"in/image_u8/{camera}", jnp.asarray(pixels))
        out.setdefault(f"in/image_mask/{camera}", jnp.ones(batch, bool))
    draw("in/state", lambda: normal(batch, action_dim))
    draw("in/actions", lambda: normal(batch, horizon, action_dim))
    draw("loss/noise", lambda: normal(batch, horizon, action_dim))
    draw("sample/noise", lambda: normal(batch, horizon, action_dim))
    draw("loss/time", lambda: (chance.beta(1.5, 1, batch) * 0.999 + 0.001).astype(np.float32))
    valid = np.arange(prompt_length)[None] < np.maximum(1, prompt_length * 3 // 4 - np.arange(batch))[:, None]
    draw("in/tokenized_prompt", lambda: np.where(valid, chance.integers(2, size.vocabulary, valid.shape), 0).astype(np.int32))
    out.setdefault("in/tokenized_prompt_mask", jnp.asarray(valid))
    if size.model == "pi0_fast":
        valid = out["in/tokenized_prompt_mask"]
        answer = valid & (np.arange(prompt_length)[None] >= valid.sum(1, keepdims=True) // 2)
        out.setdefault("in/token_ar_mask", jnp.asarray(answer, jnp.int32))
        out.setdefault("in/token_loss_mask", jnp.asarray(answer))
        question = valid & ~out["in/token_loss_mask"]
        out.setdefault("infer/tokenized_prompt", jnp.where(question, out["in/tokenized_prompt"], 0))
        out.setdefault("infer/tokenized_prompt_mask", question)
        out.setdefault("infer/token_ar_mask", out["in/token_ar_mask"])
        for name in ("loss/noise", "loss/time", "sample/noise"):  # this model knows none
            out.pop(name)
    return out


def observation(inputs, cameras, tokens="in/"):
    """openpi's Observation; `tokens` is where the prompt stands: `in/` or `infer/`."""
    optional = lambda name: inputs.get(name)
    pixels = lambda u8: u8.astype(jnp.float32) / 255.0 * 2.0 - 1.0
    image = lambda camera: inputs[f"in/image/{camera}"] if f"in/image/{camera}" in inputs else pixels(inputs[f"in/image_u8/{camera}"])
    return Observation(
        images={camera: image(camera) for camera in cameras},
        image_masks={camera: inputs[f"in/image_mask/{camera}"] for camera in cameras},
        state=inputs["in/state"],
        tokenized_prompt=inputs[f"{tokens}tokenized_prompt"],
        tokenized_prompt_mask=inputs[f"{tokens}tokenized_prompt_mask"],
        token_ar_mask=optional(f"{tokens}token_ar_mask"),
        token_loss_mask=optional("in/token_loss_mask"),
    )
