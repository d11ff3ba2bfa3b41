"""What every peer is asked and answers: the same flags, and one line of JSON."""

import argparse
import json
import os
import resource
import time
from importlib.metadata import version

CAMERAS = {
    "pi0": ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"),
    "pi05": ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"),
    "pi0_fast": ("base_0_rgb", "base_1_rgb", "wrist_0_rgb"),
}
PROMPT = {"pi0": (37, 48), "pi05": (150, 200), "pi0_fast": (120, 250)}  # valid tokens, padded length


def arguments(about):
    """The flags, with the process pinned to as many cores as it may use threads."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CAMERAS, required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="timed runs, after one that is not")
    parser.add_argument("--steps", type=int, default=10, help="Euler steps; tokens of pi0_fast")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    return args


def milliseconds(run):
    """(wall time, CPU time of all threads). On a machine that is not idle only the second means something."""
    start, cpu = time.perf_counter(), time.process_time()
    run()
    return (time.perf_counter() - start) * 1e3, (time.process_time() - cpu) * 1e3


def line(args, peer, packages, load_s, total, vision, prefix, steps):
    """Prints the result: `total` is of every repeat, (wall, CPU); the stages are wall times of the fastest."""
    figures = {"load_s": load_s, "vision_ms": vision, "prefix_ms": prefix, "steps_ms": steps}
    figures["per_token_ms"] = steps / args.steps if args.model == "pi0_fast" else None
    figures["max_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer = {"model": args.model, "dtype": args.dtype, "peer": peer, "versions": {name: version(name) for name in packages}}
    answer |= {"threads": args.threads, "steps": args.steps, "total_ms": [round(wall, 1) for wall, _ in total]}
    answer["total_cpu_ms"] = [round(cpu, 1) for _, cpu in total]
    print(json.dumps(answer | {name: None if value is None else round(value, 1) for name, value in figures.items()}))
