#!/usr/bin/env python3
"""Makes the check values of the procedural weights: recipe.py RECORDINGS OUT.

RECORDINGS holds <model>_f32/{weights.json, meta.json} and <model>_bf16_infer/meta.json: what openpi's JAX models saw
when they were run with these weights. The published sizes are copied from there; the tiny sizes are computed here, by
this second generator, after it has been held against the recorded values of the published sizes. Standard library only.
"""
import json
import math
import pathlib
import struct
import sys

MASK = (1 << 64) - 1
MODELS = {"pi0": "pi0", "pi05": "pi05", "pi0fast": "pi0_fast"}
SUMMED_HERE = 300_000  # elements of a leaf up to which the recorded sums are recomputed too


def mix(x):
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def to_f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def from_bits(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def to_bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def element(leaf, i):
    k = mix((int(leaf["seed"], 16) + i) & MASK) >> 40
    u = to_f32((k * 2.0**-23 - 1.0) * from_bits(0x3FDDB3D7))
    scaled = to_f32(from_bits(int(leaf["scale_f32_bits"], 16)) * u)
    return to_bits(to_f32(scaled + leaf["offset"]))


def bf16(bits):
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def checks(leaf, total):
    """(f32, bf16) check values; the sums are None where the leaf is too big for Python."""
    n = math.prod(leaf["shape"])
    at = {i: element(leaf, i) for i in {0, 1, 2, 3, n - 2, n - 1, n // 2}}
    values = [element(leaf, i) for i in range(n)] if total else None
    out = []
    for convert, digits in ((lambda b: b, 8), (bf16, 4)):
        text = lambda i: f"{convert(at[i]):0{digits}x}"
        out.append({
            "first": [text(i) for i in range(4)],
            "last": [text(n - 2), text(n - 1)],
            "mid": text(n // 2),
            "sum": sum(map(convert, values)) & 0xFFFFFFFF if total else None,
        })
    return out


def recorded(check):
    return {
        "first": check["first4"],
        "last": check["last2"],
        "mid": check["mid"],
        "sum": check["u32_wrapping_sum_of_bit_patterns"],
    }


def write(out, name, leaves):
    rows = ",\n".join("  " + json.dumps(leaf, separators=(",", ":")) for leaf in leaves)
    (out / f"{name}.json").write_text(f'{{"model":"{name}","leaves":[\n{rows}\n]}}\n')


def row(leaf, f32, bf):
    return {
        "name": leaf["name"],
        "shape": leaf["shape"],
        "seed": leaf["seed"],
        "scale": leaf["scale_f32_bits"],
        "offset": leaf["offset"],
        "f32": f32,
        "bf16": bf,
    }


def main(recordings, out):
    load = lambda *parts: json.loads(recordings.joinpath(*parts).read_text())
    for model, name in MODELS.items():
        f32 = load(f"{model}_f32", "meta.json")["weight_check"]
        bf = load(f"{model}_bf16_infer", "meta.json")["weight_check"]
        leaves = []
        for leaf in load(f"{model}_f32", "weights.json")["params"]:
            known = [recorded(f32[leaf["name"]]), recorded(bf[leaf["name"]])]
            total = math.prod(leaf["shape"]) <= SUMMED_HERE
            for mine, theirs in zip(checks(leaf, total), known):
                if not total:
                    mine["sum"] = theirs["sum"]
                assert mine == theirs, leaf["name"]
            leaves.append(row(leaf, *known))
        write(out, name, leaves)
        tiny = load(f"tiny_{model}_f32", "weights.json")["params"]
        write(out, f"tiny_{name}", [row(leaf, *checks(leaf, True)) for leaf in tiny])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
