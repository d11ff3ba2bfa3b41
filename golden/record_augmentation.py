"""Records what openpi's own training makes of pictures, with every number that it drew for them.

    python golden/record_augmentation.py

Writes golden/augmentation/{pictures.safetensors, draws.json}: for every case the pictures as bytes, what `preprocess_observation(train=True)`
made of them, and the draws. The environment is record.py's, with augmax 0.4.1; openpi and augmax run unmodified. The draws are found by
splitting the key as augmax does; that they are the ones which were drawn is what tests/augmentation.rs shows.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from openpi.models import model as openpi_model

FOLDER = Path(__file__).resolve().parent / "augmentation"
PI0 = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
FAST = ("base_0_rgb", "base_1_rgb", "wrist_0_rgb")
# Name: key, height and width, rows, cameras, and of which rows of pixels the result is kept (every n-th).
CASES = {
    "pi0": (3, (40, 56), 4, PI0, 1),
    "fast": (5, (48, 48), 2, FAST, 1),
    "full": (20, (224, 224), 1, ("base_0_rgb",), 14),
}


def picture(rng, h, w):
    """Noise over a slope of colours, and patches of what is special: black, white, grey, pure and nearly black colours."""
    y, x = np.mgrid[0:h, 0:w]
    out = np.stack([255 * y / h, 255 * x / w, 255 - 255 * (y + x) / (h + w)], -1) + rng.normal(0, 60, (h, w, 3))
    out = np.clip(out, 0, 255).astype(np.uint8)
    special = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 1, 0), (2, 1, 2)]
    for i, color in enumerate(special):
        top, left = (h // 3) * (i // 3) + h // 8, (w // 3) * (i % 3) + w // 8
        out[top : top + h // 10, left : left + w // 10] = color
    return out


def draws(key, camera, h, w):
    """The numbers that augmax draws for a picture: a chain splits its key among groups of operations, and a group among its members."""
    uniform = lambda key, limit, shape=(): jax.random.uniform(key, shape, minval=-limit, maxval=limit)
    view = None
    groups = jax.random.split(key, 1 if "wrist" in camera else 2)
    if "wrist" not in camera:
        crop, _resize, rotate = jax.random.split(groups[0], 3)
        room = jnp.array([(h - int(h * 0.95)) / 2, (w - int(w * 0.95)) / 2])
        center_y, center_x = uniform(crop, room, [2])
        view = {"center_y": float(center_y), "center_x": float(center_x), "angle": float(uniform(rotate, np.deg2rad(5)))}
    (jitter,) = jax.random.split(groups[-1], 1)
    brightness, contrast, hue, saturation, _ = jax.random.split(jitter, 5)
    return {
        "view": view,
        "jitter": {
            "applied": bool(jax.random.bernoulli(jitter, 0.5)),
            "brightness": float(uniform(brightness, 0.3)),
            "contrast": float(uniform(contrast, 0.4)),
            "hue": float(uniform(hue, 0.1)),
            "saturation": float(uniform(saturation, 0.5)),
        },
    }


def record(name, tensors):
    number, (h, w), rows, cameras, every = CASES[name]
    key, rng = jax.random.key(number), np.random.default_rng(number)
    images = {camera: np.stack([picture(rng, h, w) for _ in range(rows)]) for camera in cameras}
    observation = openpi_model.Observation.from_dict(
        {
            "image": dict(images),
            "image_mask": {camera: np.ones(rows, bool) for camera in cameras},
            "state": np.zeros((rows, 1), np.float32),
        }
    )
    out = openpi_model.preprocess_observation(key, observation, train=True, image_keys=cameras, image_resolution=(h, w))
    for camera in cameras:
        tensors[f"{name}/in/{camera}"] = images[camera]
        tensors[f"{name}/out/{camera}"] = np.ascontiguousarray(np.asarray(out.images[camera])[:, ::every])
    keys = jax.random.split(key, rows)
    drawn = {camera: [draws(keys[row], camera, h, w) for row in range(rows)] for camera in cameras}
    return {"height": h, "width": w, "every": every, "draws": drawn}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    tensors = {}
    document = {name: record(name, tensors) for name in CASES}
    save_file(tensors, FOLDER / "pictures.safetensors")
    (FOLDER / "draws.json").write_text(json.dumps(document, indent=1) + "\n")
