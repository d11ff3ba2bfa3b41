"""Records real-time chunking on openpi's JAX model: chunks that go on from a previous one, step by step.

    python golden/record_rtc.py [--kinetix path/to/real-time-chunking-kinetix/src/model.py]

Writes golden/rtc/{pi0,pi05}.safetensors, cases.json and rules.json; the README there says what is in them. Weights are those of
fixtures/checkpoints/base, observations those of golden/{pi0,pi05}_f32; noise and previous chunks come from a seed. The methods are in
recording/chunking.py. Everything is run again in f64, and guided cases with LeRobot's shortcut: the distances stand in cases.json.

It ends with an error unless, bit for bit, a weight of 0 and a delay of 0 give the plain sampler's chunk, no frozen row moves, and a
network whose actions are all frozen is openpi's at time 0. --kinetix runs the authors' own code (cc6c5f5) on the same network too.

The environment is record.py's: fixtures/recipes/requirements-openpi.txt and requirements-openpi-no-deps.txt (jax 0.5.3, flax 0.10.2,
numpy 1.26.4, rpent-openpi 0.2.2). Takes three minutes on two cores and about 2 GiB.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
warnings.simplefilter("ignore")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from openpi.models import pi0_config
from recording import checkpoint, chunking, flow, inputs
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "golden/rtc"
MODELS = ("pi0", "pi05")
HORIZON, PROMPT, WIDTH, SEED, SHOWN = 16, 16, 8, 0, 3  # SHOWN: the step whose inner values are kept
# Tiny networks of random weights magnify what guidance does to rounding; of seeds 0 to 23 this is one that does least.
# `rows`: examples of the set; `delay` and `remaining`: of each.
GUIDED = {"method": "guided", "schedule": "exp", "max_guidance_weight": 5.0, "num_steps": 10}
FROZEN = {"method": "frozen", "num_steps": 10}
CASES = {
    "plain": {"method": "plain", "num_steps": 10, "rows": [0, 1], "delay": [0, 0], "remaining": [0, 0]},
    "guided_exp": GUIDED | {"rows": [0], "delay": [2], "remaining": [10]},
    "guided_linear": GUIDED | {"rows": [1], "delay": [0], "remaining": [10], "schedule": "linear"},
    "guided_ones": GUIDED | {"rows": [0], "delay": [2], "remaining": [12], "schedule": "ones"},
    "guided_zeros": GUIDED | {"rows": [1], "delay": [4], "remaining": [10], "schedule": "zeros"},
    "guided_strong": GUIDED | {"rows": [0], "delay": [2], "remaining": [10], "max_guidance_weight": 20.0},
    "guided_weak": GUIDED | {"rows": [0], "delay": [2], "remaining": [10], "max_guidance_weight": 0.5},
    "guided_weight_0": GUIDED | {"rows": [0], "delay": [2], "remaining": [10], "max_guidance_weight": 0.0},
    "guided_five_steps": GUIDED | {"rows": [0], "delay": [3], "remaining": [16], "num_steps": 5},
    "guided_late": GUIDED | {"rows": [0], "delay": [6], "remaining": [4]},
    "guided_batch": GUIDED | {"rows": [0, 1], "delay": [2, 3], "remaining": [10, 7]},
    "frozen": FROZEN | {"rows": [0], "delay": [3], "remaining": [10]},
    "frozen_delay_0": FROZEN | {"rows": [0], "delay": [0], "remaining": [10]},
    "frozen_batch": FROZEN | {"rows": [0, 1], "delay": [3, 1], "remaining": [10, 8]},
}
SPANS = [(2, 6, 10), (2, 10, 16), (0, 10, 16), (3, 16, 16), (6, 4, 16), (4, 4, 8), (5, 0, 8), (0, 0, 4), (8, 8, 8), (0, 1, 1), (10, 37, 50)]


@contextlib.contextmanager
def wide():
    """Everything openpi computes in f32 is f64 herein, but the time's embedding, which is given."""
    config = pi0_config.Pi0Config
    with (
        jax.experimental.enable_x64(),
        mock.patch.object(jnp, "float32", jnp.float64),
        mock.patch.object(pi0_config, "Pi0Config", lambda **given: config(**given | {"dtype": "float64"})),
    ):
        yield


class Bench:
    """A model with its observations, and samplers by which of them they have."""

    def __init__(self, name, dtype):
        self.dtype, leaves = dtype, checkpoint.read(str(ROOT / "fixtures/checkpoints/base" / name), "f32")
        up = lambda array: jnp.asarray(array, dtype) if array.dtype == np.float32 else jnp.asarray(array)
        leaves = {leaf: up(array) for leaf, array in leaves.items()}
        size = checkpoint.sizes({leaf: array.shape for leaf, array in leaves.items()})
        self.model = checkpoint.build(leaves, size, "f32", WIDTH, HORIZON, PROMPT)
        given = inputs.read(ROOT / f"golden/{name}_f32/io.safetensors")
        self.observation = inputs.observation({key: up(array) for key, array in given.items()}, checkpoint.CAMERAS[name])
        chance = np.random.default_rng(SEED)
        self.noise, self.previous = (chance.standard_normal((2, HORIZON, WIDTH)).astype(np.float32) for _ in range(2))
        self.sampler = functools.cache(self.make)

    def make(self, rows):
        observation = jax.tree.map(lambda array: array[np.asarray(rows)], self.observation)
        prefix = flow.Prefix(self.model, observation)
        return chunking.Sampler(self.model, observation, (prefix.mask, prefix.kv))

    def given(self, case):
        """What the case's steps are given beside the noise; the previous chunk ends where nothing remains of it."""
        index, rows = np.arange(HORIZON), np.asarray(case["rows"])
        delay, remaining = (np.asarray(case[key]) for key in ("delay", "remaining"))
        previous = np.where((index < remaining[:, None])[..., None], self.previous[rows], 0).astype(np.float32)
        out = {"previous": jnp.asarray(previous, self.dtype), "frozen": jnp.asarray(index < delay[:, None])}
        if case["method"] == "guided":
            spans = zip(case["delay"], case["remaining"], strict=True)
            out["weights"] = jnp.stack([chunking.prefix_weights(case["schedule"], *span, HORIZON).astype(self.dtype) for span in spans])
            out["max_guidance_weight"] = jnp.asarray(case["max_guidance_weight"], self.dtype)
        return out

    def run(self, case, method=None):
        noise = jnp.asarray(self.noise[case["rows"]], self.dtype)
        return self.sampler(tuple(case["rows"])).sample(method or case["method"], noise, self.given(case), case["num_steps"])


def far(a, b):
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def must_be_same(what, a, b):
    if not np.array_equal(a, b):
        raise SystemExit(f"{what}: not bit for bit, {far(a, b):.1e} apart")


def steps_apart(exact, case, taps, label):
    """The largest distance of a step's v_t, each step from the x_t that is recorded."""
    sampler, given = exact.sampler(tuple(case["rows"])), exact.given(case)
    each = zip(taps[f"{label}/x_t"], taps[f"{label}/time"], taps[f"{label}/v_t"], strict=True)
    return max(far(sampler.once(case["method"], jnp.asarray(x_t, np.float64), time, given)["v_t"], v_t) for x_t, time, v_t in each)


def record(bench, name):
    """{tensor of the file}, after the checks that need no other run."""
    out, plain = {}, {rows: bench.run(CASES["plain"] | {"rows": list(rows)}, "plain") for rows in ((0,), (1,), (0, 1))}
    for label, case in CASES.items():
        ran, given, rows = bench.run(case), bench.given(case), case["rows"]
        if label in ("guided_weight_0", "frozen_delay_0"):
            must_be_same(f"{name} {label}", ran["x_t"], plain[tuple(rows)]["x_t"])
            must_be_same(f"{name} {label}", ran["actions"], plain[tuple(rows)]["actions"])
        kept = {"noise": bench.noise[rows]} | {key: ran[key] for key in ("time", "x_t", "v_t", "actions")}
        if case["method"] != "plain":
            kept["previous"] = given["previous"]
        if case["method"] == "frozen":
            for row, delay in enumerate(case["delay"]):
                must_be_same(f"{name} {label}", ran["actions"][row, :delay], bench.previous[rows[row], :delay])
        if case["method"] == "guided":
            kept |= {"weights": given["weights"], "guidance_weight": ran["guidance_weight"]}
            kept |= {f"step/{key}": ran[key][SHOWN] for key in ("network_v_t", "denoised", "error", "correction")}
        out |= {f"{label}/{key}": np.ascontiguousarray(array) for key, array in kept.items()}
    whole = flow.sample(bench.model, bench.observation, jnp.asarray(bench.noise), 10)
    print(f"{name}: the plain loop is {far(plain[0, 1]['actions'], whole):.1e} from openpi's sample_actions")

    # The network whose every action is frozen, at any time, is openpi's at time 0.
    sampler, x_t = bench.sampler((0, 1)), jnp.asarray(bench.noise)
    run = jax.jit(lambda state, *args: chunking.velocity(nnx.merge(sampler.graph, state), *args))
    held = run(sampler.state, sampler.observation, sampler.prefix, x_t, chunking.sines(bench.model, 0.7), jnp.ones((2, HORIZON), bool))
    must_be_same(f"{name} all frozen", held, run(sampler.state, sampler.observation, sampler.prefix, x_t, chunking.sines(bench.model, 0)))
    return out


def authors(path, benches):
    """Holds the authors' own realtime_action, on openpi's network turned to their time, against the guided cases."""
    spec = importlib.util.spec_from_file_location("kinetix", path)
    kinetix = sys.modules["kinetix"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kinetix)
    for schedule in chunking.SCHEDULES:
        for span in SPANS:
            apart = far(kinetix.get_prefix_weights(*span, schedule), chunking.prefix_weights(schedule, *span))
            if apart > 2e-7:
                raise SystemExit(f"weights of {schedule} {span} are {apart:.1e} from the authors'")
    for name, bench in benches.items():
        for label, case in CASES.items():
            if case["method"] != "guided" or len(set(case["delay"])) > 1:
                continue
            sampler, noise, given = bench.sampler(tuple(case["rows"])), jnp.asarray(bench.noise[case["rows"]]), bench.given(case)
            model, times = nnx.merge(sampler.graph, sampler.state), bench.run(case)["time"]
            embedded = jnp.stack([chunking.sines(model, time)[0] for time in (*times, 0)])

            class Turned(SimpleNamespace):
                def __call__(self, row, x_t, tau):
                    observation = jax.tree.map(lambda array: array[row], sampler.observation)
                    mask, (keys, values) = sampler.prefix
                    prefix = mask[row], (keys[:, row], values[:, row])
                    here = jnp.stack([embedded[jnp.round(tau * case["num_steps"]).astype(int)], embedded[-1]])
                    return -chunking.velocity(model, observation, prefix, x_t, here)

            turned = Turned(action_chunk_size=HORIZON, action_dim=WIDTH)
            of = case["delay"][0], case["remaining"][0], case["schedule"], case["max_guidance_weight"]
            with mock.patch.object(jax.random, "normal", lambda *_, **__: noise):
                theirs = kinetix.FlowPolicy.realtime_action(turned, None, jnp.arange(len(noise)), case["num_steps"], given["previous"], *of)
            print(f"{name} {label}: {far(theirs, bench.run(case)['actions']):.1e} from the authors' code")


def rules():
    """The arithmetic alone."""
    weights = [
        {"schedule": schedule, "start": start, "end": end, "total": total}
        | {"weights": chunking.prefix_weights(schedule, start, end, total).tolist()}
        for schedule in chunking.SCHEDULES
        for start, end, total in SPANS
    ]
    guidance = []
    for num_steps in (10, 5, 3):
        time, times = np.float32(1), []
        for _ in range(num_steps):
            times.append(time)
            time = time + np.float32(-1) / np.float32(num_steps)
        times = jnp.asarray(times)
        for largest in (0.0, 0.5, 5.0, 20.0):
            row = {"num_steps": num_steps, "max_guidance_weight": largest, "time": times.tolist()}
            guidance.append(row | {"weight": chunking.guidance_weight(times, jnp.float32(largest)).tolist()})
    return {"prefix_weights": weights, "guidance_weight": guidance}


def lines(value):
    """JSON with a line for every row."""
    if isinstance(value, dict):
        rows = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in value.items()]
        return "{\n" + ",\n".join(f"    {row}" for row in rows) + "\n  }"
    return "[\n" + ",\n".join(f"    {json.dumps(row)}" for row in value) + "\n  ]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinetix", type=Path, help="the authors' src/model.py, to be held against")
    args = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    benches = {name: Bench(name, np.float32) for name in MODELS}
    cases = {label: dict(case) for label, case in CASES.items()}
    for name, bench in benches.items():
        # The tables of sizes that checkpoint.build fills belong to the last model built; these two have the same.
        taps = record(bench, name)
        save_file(taps, OUT / f"{name}.safetensors")
        (OUT / f"{name}.safetensors").chmod(0o644)
        with wide():
            exact = Bench(name, np.float64)
            for label, case in CASES.items():
                ran = exact.run(case)
                floor = {"v_t": steps_apart(exact, case, taps, label), "actions": far(ran["actions"], taps[f"{label}/actions"])}
                cases[label].setdefault("f32_floor", {})[name] = {key: float(f"{value:.1e}") for key, value in floor.items()}
        for label, case in CASES.items():
            if case["method"] == "guided":
                apart = far(bench.run(case, "identity")["actions"], taps[f"{label}/actions"])
                cases[label].setdefault("without_jacobian", {})[name] = float(f"{apart:.1e}")
            print(name, label, json.dumps({key: cases[label][key][name] for key in ("f32_floor", "without_jacobian") if key in cases[label]}))
    head = {"action_horizon": HORIZON, "shown_step": SHOWN}
    (OUT / "cases.json").write_text(json.dumps(head)[:-1] + ', "cases": ' + lines(cases) + "}\n")
    (OUT / "rules.json").write_text("{" + ",\n ".join(f"{json.dumps(key)}: {lines(rows)}" for key, rows in rules().items()) + "}\n")
    if args.kinetix:
        authors(args.kinetix, benches)


if __name__ == "__main__":
    main()
