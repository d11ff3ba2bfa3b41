#!/usr/bin/env python3
"""What optax makes of gradients: openpi's AdamW and SGD, with the clipping and the rate that its schedule gives.

Usage: python golden/record_optimizer.py golden/optimizer.json        (openpi 15a9616, optax 0.2.4, jax 0.5.3, CPU)

Two tensors of eight values, five steps; gradients over eight orders of magnitude, some of them zero, with a norm above and
below the clipping's. Every number is an f32 written exactly.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import openpi.training.optimizer as openpi_optimizer
import optax

RATES = [3.3333337e-4, 6.6666666e-4, 1e-3, 9.397115e-4, 7.750000e-4]


def run(config) -> dict:
    chance = np.random.default_rng(7)
    params = {k: jnp.asarray(chance.normal(size=8), jnp.float32) for k in "ab"}
    rates = jnp.asarray(RATES, jnp.float32)
    tx = openpi_optimizer.create_optimizer(config, type("Rate", (), {"create": lambda self: lambda i: rates[i]})())
    state = tx.init(params)
    steps = []
    for step in range(5):
        scale = 10.0 ** chance.uniform(-7, 1, size=(2, 8)) * (0.02 if step == 3 else 1.0)
        drawn = chance.normal(size=(2, 8)) * scale
        drawn[0, 2] = 0.0
        gradients = {k: jnp.asarray(drawn[i], jnp.float32) for i, k in enumerate("ab")}
        updates, state = jax.jit(tx.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
        lists = lambda tree: {k: [float(x) for x in tree[k]] for k in "ab"}
        steps.append({"gradient": lists(gradients), "norm": float(optax.global_norm(gradients)), "after": lists(params)})
    return {"steps": steps}


def main() -> None:
    chance = np.random.default_rng(7)
    start = {k: [float(x) for x in np.asarray(chance.normal(size=8), np.float32)] for k in "ab"}
    document = {"rates": [float(np.float32(r)) for r in RATES], "start": start}
    document["adamw"] = run(openpi_optimizer.AdamW())["steps"]
    document["adamw_decay"] = run(openpi_optimizer.AdamW(weight_decay=0.1))["steps"]
    document["sgd"] = run(openpi_optimizer.SGD(momentum=0.9, nesterov=False))["steps"]
    document["sgd_nesterov"] = run(openpi_optimizer.SGD(momentum=0.9, nesterov=True))["steps"]
    with open(sys.argv[1], "w") as file:
        file.write(json.dumps(document, indent=None, separators=(",", ":")).replace('},{"gradient', '},\n{"gradient') + "\n")


if __name__ == "__main__":
    main()
