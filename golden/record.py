"""Records what openpi's JAX model computes from a checkpoint: observation, noise, time and every tap, as a set for `pi0 verify`.

    python golden/record.py --checkpoint-dir ~/.cache/openpi/openpi-assets/checkpoints/pi0_base --out golden/mine
    pi0 verify --checkpoint pi0_base --golden golden/mine

Writes OUT/io.safetensors and OUT/set.toml; the README beside this file says what is in them. Which model it is, and all its sizes, are
read from the tensors. Inputs that --observation does not give are drawn from --seed. A bf16 recording needs the f32 one of the same
weights and inputs, made first:

    python golden/record.py --checkpoint-dir CKPT --out golden/mine_f32
    python golden/record.py --checkpoint-dir CKPT --out golden/mine_bf16 --dtype serve-bf16 --observation golden/mine_f32/io.safetensors \
                            --reference golden/mine_f32

On a CPU a published model needs 16 to 20 GiB in f32 and 10 in serve-bf16, and a few minutes; use --taps small for it.
Environment (Python 3.11), from the root of the repository:

    python3.11 -m venv venv && venv/bin/pip install -r fixtures/recipes/requirements-openpi.txt \
                            && venv/bin/pip install --no-deps -r fixtures/recipes/requirements-openpi-no-deps.txt

that is openpi as packaged in rpent-openpi 0.2.2, jax 0.5.3, flax 0.10.2, orbax-checkpoint 0.11.13, numpy 1.26.4.
Other versions of JAX give other last bits.
"""

import argparse
import json
import math
import os
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
warnings.simplefilter("ignore")

import jax.numpy as jnp
import numpy as np
from recording import checkpoint, fast, flow, inputs
from safetensors.flax import save_file

# Else XLA takes the f32 copies of bf16 weights out of the loops and holds all of them at once. Not for the sets with all taps: it moves last bits.
FRUGAL = "--xla_disable_hlo_passes=while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion"
RELATIVE, ACTIONS, SINE = 1e-5, 5e-5, 3e-4  # the tolerances of f32; README.md says what they mean
OPENPI = "15a9616"  # the commit whose models the package holds


def up(value):
    """`value` rounded up to one digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(value / unit) * unit:.0e}")


def tap_tolerances(mode, taps, moved):
    """[(name, absolute, reason)]: taps for which the rule of the whole set is wrong."""
    out = []
    if "posemb_sincos" in taps:
        out.append(("posemb_sincos", SINE, "Phases reach 1570 rad, where JAX's f32 sine is 1.4e-4 from the exact one."))
    for name, by in moved.items():
        actions = name.startswith("sample/actions")
        rule = ACTIONS if actions else RELATIVE * float(jnp.abs(taps[name]).max())
        if name != "posemb_sincos" and by > rule * (0.9 if actions else 0.5):
            out.append((name, up(2 * by + rule), f"Follows from JAX's f32 sine: the exact one moves it by {by:.1e}."))
    if mode != "f32":
        exact = [name for name in taps if name in ("loss/x_t", "loss/u_t")]
        if mode == "train-bf16":
            exact += [name for name in taps if name.endswith(("/stem", "/with_posemb")) or name in ("embed_suffix/tokens", "embed_suffix/adarms_cond")]
        out += [(name, 1e-6 if name.startswith("loss") else 1e-4, "f32 in this mode: JAX's own error is zero and no ratio exists.") for name in exact]
    return out


def set_toml(args, size, prompt_length, action_dim, horizon, tolerances):
    """The text of set.toml."""
    quoted = json.dumps
    source = args.checkpoint_dir if args.checkpoint_dir.startswith(checkpoint.PROCEDURAL) else os.path.relpath(args.checkpoint_dir, args.out)
    given = f"From {args.observation.name}" if args.observation else "Drawn"
    lines = [
        f"# {args.note}",
        f"model = {quoted(size.model)}",
        f"mode = {quoted(args.dtype)}",
        f"weights = {quoted(source)}",
        f"action_horizon = {horizon}",
        f"prompt_length = {prompt_length}",
        f"action_dim = {action_dim}",
    ]
    if args.reference:
        lines.append(f"reference = {quoted(os.path.relpath(args.reference, args.out))}")
    if size.model == "pi0_fast":
        lines.append(f"max_decoding_steps = {args.max_decoding_steps}")
    lines += ["", "[recorded]", f"openpi = {quoted(OPENPI)}"] + [f"{name} = {quoted(version(name))}" for name in ("jax", "flax", "numpy")]
    lines += ['recipe = "golden/record.py"', f"inputs = {quoted(f'{given}; what it lacks from seed {args.seed}.')}", "", "[tolerance]"]
    if args.dtype == "f32":
        lines += [f"relative = {RELATIVE:.0e}   # another order of f32 sums", f"actions = {ACTIONS:.0e}    # absolute, after all steps"]
    else:
        lines += ["error_ratio = 1.1   # our error against the f32 set, over JAX's own in this mode", "cosine = 0.999      # to this recording"]
    for name, absolute, reason in tolerances:
        lines += ["", "[[tolerance.tap]]", f"names = [{quoted(name)}]", f"absolute = {absolute:.0e}", f"reason = {quoted(reason)}"]
    return "\n".join(lines) + "\n"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", required=True, help="folder that has params/ in it, or that is it; safetensors under JAX names; procedural:NAME")
    parser.add_argument("--out", required=True, type=Path, help="the set's folder")
    parser.add_argument("--config", choices=checkpoint.CAMERAS, help="fail unless the tensors are of this model")
    parser.add_argument("--dtype", choices=("f32", "train-bf16", "serve-bf16"), default="f32")
    parser.add_argument("--observation", type=Path, help=".npz or .safetensors with any of in/*, noise, time")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs that are not given")
    parser.add_argument("--batch", type=int, default=1, help="examples, where no state is given")
    parser.add_argument("--action-horizon", type=int, help="where no actions are given; else openpi's for the model")
    parser.add_argument("--prompt-length", type=int, help="where no prompt is given; else openpi's for the model")
    parser.add_argument("--action-dim", type=int, default=32, help="pi0_fast only, where no actions are given")
    parser.add_argument("--max-decoding-steps", type=int, default=24, help="pi0_fast only")
    parser.add_argument("--taps", choices=("all", "small"), default="all", help="small: a part of each, for published sizes")
    parser.add_argument("--reference", type=Path, help="bf16 only: the f32 set of the same weights and inputs")
    parser.add_argument("--no-exact-sines", action="store_true", help="do not measure what exact sines change (it takes a second run)")
    parser.add_argument("--note", default="Recorded by golden/record.py.", help="first line of set.toml")
    args = parser.parse_args()
    if (args.dtype == "f32") == bool(args.reference):
        parser.error("--reference goes with --dtype train-bf16 and serve-bf16, and they need it")
    return args


def main():
    args = arguments()
    if args.taps == "small":
        os.environ.setdefault("XLA_FLAGS", FRUGAL)  # read when JAX first computes
    params = checkpoint.read(args.checkpoint_dir, args.dtype)
    size = checkpoint.sizes({name: array.shape for name, array in params.items()})
    if args.config and args.config != size.model:
        raise SystemExit(f"{args.checkpoint_dir} holds {size.model}, expected {args.config}")
    cameras = checkpoint.CAMERAS[size.model]
    given = inputs.read(args.observation)
    horizon, prompt_length = checkpoint.DEFAULTS[size.model]
    horizon, prompt_length, action_dim = args.action_horizon or horizon, args.prompt_length or prompt_length, size.action_dim or args.action_dim
    batch = args.batch
    if "in/state" in given:
        batch, action_dim = given["in/state"].shape
    if "in/actions" in given:
        horizon, action_dim = given["in/actions"].shape[1:]
    if "in/tokenized_prompt" in given:
        prompt_length = given["in/tokenized_prompt"].shape[1]
    given = inputs.complete(given, size, cameras, batch, action_dim, horizon, prompt_length, args.seed)
    model = checkpoint.build(params, size, args.dtype, action_dim, horizon, prompt_length)
    del params
    observation = inputs.observation(given, cameras)
    moved = {}
    if size.model == "pi0_fast":
        record = fast.all_taps if args.taps == "all" else fast.small_taps
        taps = record(model, observation, inputs.observation(given, cameras, "infer/"), given, args.max_decoding_steps)
    else:
        record = flow.all_taps if args.taps == "all" else flow.small_taps
        taps = record(model, observation, given)
        if args.dtype == "f32" and not args.no_exact_sines:
            moved = flow.moved_by_exact_sines(model, observation, given, taps, record)
    if args.taps == "all":  # the pixels as the network takes them
        given |= {f"in/image/{camera}": observation.images[camera] for camera in cameras}
        given = {name: array for name, array in given.items() if not name.startswith("in/image_u8/")}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: jnp.asarray(array) for name, array in (given | taps).items()}, args.out / "io.safetensors")
    tolerances = tap_tolerances(args.dtype, taps, moved)
    (args.out / "set.toml").write_text(set_toml(args, size, prompt_length, action_dim, horizon, tolerances))
    print(f"{args.out}: {size.model}, {args.dtype}, {len(given)} inputs, {len(taps)} taps")


if __name__ == "__main__":
    main()
