#!/usr/bin/env python3
"""Gradients and optimizer steps of openpi, cut down to what a test needs.

Usage: python golden/record_train.py RECORDED PI0 golden/train

RECORDED has a folder for each case with what openpi's own `train_step` (scripts/train.py at 15a9616, `train=False`, AdamW
with clipping, a cosine schedule, EMA 0.99) left: `io.safetensors` (inputs; noise and time of the gradient check and of every
step), `grads.safetensors`, `params_step5.safetensors`, `ema_step5.safetensors` (JAX names) and `meta.json` (loss, gradient
norm, parameter norm and rate of every step; how far the reference agrees with itself). PI0 is this project's program: it
gives the tensors their canonical names, one per layer.

Written per case: `chance.safetensors`, noise and time (the inputs are those of `golden/<case>`); `expect.safetensors`, of every tensor at most SAMPLES values at even distances;
`case.json`, of every tensor its largest absolute value and its norm, what is trained, and the figures of each step.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

SAMPLES = 128
CASES = ["pi0_f32", "pi05_f32", "pi0fast_f32", "pi0_lora_f32"]


def canonical(program: str, tree: dict, folder: Path) -> dict:
    """The same tensors under our names."""
    source, target = folder / "jax.safetensors", folder / "burn.safetensors"
    save_file(tree, source)
    command = [program, "convert", "--checkpoint-dir", source, "--lora", "keep", "--output", target, "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_file(target)


def sample(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(-1)
    at = np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(np.int64)
    return flat[at].astype(np.float32)


def main() -> None:
    recorded, program, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    for case in CASES:
        source, target = recorded / case, out / case
        target.mkdir(parents=True, exist_ok=True)
        meta = json.loads((source / "meta.json").read_text())
        params = load_file(source / "params_step5.safetensors")
        grads = load_file(source / "grads.safetensors")
        whole = {name: grads.get(name, np.zeros_like(x)) for name, x in params.items()}
        mask = {name: np.full_like(x, float(name in grads)) for name, x in params.items()}
        with tempfile.TemporaryDirectory() as folder:
            name = lambda tree: canonical(program, tree, Path(folder))
            trained = sorted(n for n, x in name(mask).items() if x.flat[0] == 1)
            trees = {
                "grad": {n: x for n, x in name(whole).items() if n in set(trained)},
                "params": name(params),
                "ema": name(load_file(source / "ema_step5.safetensors")),
            }
        expect, facts = {}, {}
        for kind, tree in trees.items():
            for n, x in sorted(tree.items()):
                expect[f"{kind}/{n}"] = sample(x)
                wide = x.astype(np.float64)
                facts[f"{kind}/{n}"] = [float(np.abs(wide).max()), float(np.sqrt((wide**2).sum()))]
        save_file(expect, target / "expect.safetensors")
        chance = {n: x for n, x in load_file(source / "io.safetensors").items() if not n.startswith("in/")}
        if chance:
            save_file(chance, target / "chance.safetensors")
        train = meta["train"]
        document = {
            "grad_loss": meta["grad"]["loss"],
            "trained": trained,
            "optimizer": train["optimizer"],
            "lr_schedule": train["lr_schedule"],
            "ema_decay": train["ema_decay"],
            "per_step": train["per_step"],
            "noise_floor": {k: meta["noise_floor"][k] for k in ("loss_step_abs", "grad_norm_step_rel")},
            "max_abs_and_norm": facts,
            "versions": meta["versions"],
        }
        (target / "case.json").write_text(json.dumps(document, indent=1) + "\n")
        print(case, len(trained), "trained of", len(trees["params"]), {k: len(v) for k, v in trees.items()})


if __name__ == "__main__":
    main()
