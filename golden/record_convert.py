"""Records what openpi's own converter makes of the tiny checkpoints: name, shape and SHA-256 of every tensor.

    python golden/record_convert.py pi0_torch.safetensors > golden/convert/pi0.json

The safetensors file is made by openpi at commit 15a9616 from fixtures/checkpoints/base/<model>/params: the functions
slice_paligemma_state_dict and slice_gemma_state_dict and the projection loop of
examples/convert_jax_model_to_pytorch.py, kept in float32 (the script's own model would round them), with the tiny
sizes in its two config objects. Needs the package safetensors (any version) and numpy.
"""

import hashlib
import json
import sys

from safetensors import safe_open

with safe_open(sys.argv[1], "np") as file:
    tensors = {}
    for name in sorted(file.keys()):
        array = file.get_tensor(name)
        assert array.dtype == "float32", name
        tensors[name] = {"shape": list(array.shape), "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
json.dump(tensors, sys.stdout, indent=0)
print()
