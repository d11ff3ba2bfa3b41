"""Serves a small checkpoint with openpi's own parts: its policy server, its policy, its transforms, its JAX model on the CPU.

    python xtask/peers/serve_cpu.py --config pi0_aloha --checkpoint fixtures/checkpoints/policy/pi0 --port 8000

What a client is answered is what openpi answers it. The sizes of the network come from the tensors, as golden/recording/checkpoint.py puts
them in from outside, and so do the file of the vocabulary and, with --norm-stats, the statistics; all else is openpi's, unmodified. Parameters
and arithmetic are f32. Prints `ready` once it has answered itself, so that the first client waits for no compiler; a signal ends it.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "golden"))

import warnings

warnings.simplefilter("ignore")

import openpi.models.tokenizer as openpi_tokenizer
from openpi import transforms
from openpi.policies import aloha_policy, droid_policy, libero_policy
from openpi.policies import policy as openpi_policy
from openpi.serving import websocket_policy_server
from openpi.shared import normalize
from openpi.training import config as openpi_config
from recording import checkpoint

EXAMPLES = {"aloha": aloha_policy.make_aloha_example, "droid": droid_policy.make_droid_example, "libero": libero_policy.make_libero_example}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="one of openpi's presets")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with params, assets and paligemma_tokenizer.model")
    parser.add_argument("--norm-stats", type=Path, help="folder with norm_stats.json (default: the checkpoint's assets)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--num-steps", type=int, default=10, help="Euler steps of pi0 and pi0.5")
    parser.add_argument("--threads", type=int, help="cores that the process is pinned to (default: all)")
    return parser.parse_args()


def trained(args):
    """create_trained_policy, with a model of any size."""
    vocabulary = args.checkpoint / "paligemma_tokenizer.model"
    openpi_tokenizer.download.maybe_download = lambda *args, **kwargs: vocabulary
    openpi_tokenizer.AutoProcessor = type("Auto", (), {"from_pretrained": staticmethod(lambda *args, **kwargs: None)})
    openpi_config.DataConfigFactory._load_norm_stats = lambda *args: None
    preset = openpi_config.get_config(args.config)
    data = preset.data.create(Path("nowhere"), preset.model)
    stats = normalize.load(args.norm_stats or args.checkpoint / "assets" / data.asset_id)
    params = checkpoint.read(str(args.checkpoint), "f32")
    size = checkpoint.sizes({leaf: array.shape for leaf, array in params.items()})
    shape = preset.model.action_dim, preset.model.action_horizon, preset.model.max_token_len
    model = checkpoint.build(params, size, "f32", *shape)
    kwargs = {} if size.model == "pi0_fast" else {"num_steps": args.num_steps}
    return openpi_policy.Policy(
        model,
        transforms=[
            transforms.InjectDefaultPrompt(None),
            *data.data_transforms.inputs,
            transforms.Normalize(stats, use_quantiles=data.use_quantile_norm),
            *data.model_transforms.inputs,
        ],
        output_transforms=[
            *data.model_transforms.outputs,
            transforms.Unnormalize(stats, use_quantiles=data.use_quantile_norm),
            *data.data_transforms.outputs,
        ],
        sample_kwargs=kwargs,
        metadata=preset.policy_metadata,
    )


if __name__ == "__main__":
    args = arguments()
    if args.threads:
        # XLA takes as many threads as it sees cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    policy = trained(args)
    robot = next(name for name in EXAMPLES if name in args.config)
    policy.infer(EXAMPLES[robot]())
    server = websocket_policy_server.WebsocketPolicyServer(policy=policy, host=args.host, port=args.port, metadata=policy.metadata)
    print("ready", flush=True)
    server.serve_forever()
