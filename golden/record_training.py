"""Records what openpi's training makes of frames of a dataset: model-ready state, actions, tokens and masks.

    python golden/record_training.py read ITEMS.npz        # lerobot 0.4.4: what its loader returns, with chunks of actions
    python golden/record_training.py record ITEMS.npz      # the environment of record.py: golden/training/<preset>.safetensors

Datasets are fixtures/lerobot/*_png, statistics those of fixtures/checkpoints/policy. Configurations, transforms, normalisation and
tokenizers are openpi's, unmodified, put together as its training/data_loader.py does; from outside are replaced the file of the
vocabulary and the FAST codec (fixtures/tokenizer/fast_tiny). Pictures are recorded as SHA-256.
"""

import hashlib
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "fixtures/tokenizer/tiny/tokenizer.model"
CODEC = ROOT / "fixtures/tokenizer/fast_tiny"
# The preset, its dataset, the key of its chunks, and frames: some near the end of an episode.
CASES = {
    "pi0_aloha_pen_uncap": ("aloha_png", "action", [12, 38]),
    "pi05_aloha_pen_uncap": ("aloha_png", "action", [64]),
    "pi0_libero": ("libero_png", "actions", [12, 51]),
    "pi05_libero": ("libero_png", "actions", [28]),
    "pi0_fast_libero": ("libero_png", "actions", [12, 28]),
}
HORIZON = {"pi0_aloha_pen_uncap": 50, "pi05_aloha_pen_uncap": 50, "pi0_libero": 50, "pi05_libero": 10, "pi0_fast_libero": 10}


def read(path):
    os.environ["HF_HUB_OFFLINE"] = "1"
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    out = {}
    for name, (folder, key, indices) in CASES.items():
        root = ROOT / "fixtures/lerobot" / folder
        meta = LeRobotDataset(f"made/{folder}", root=root).meta
        chunk = {key: [t / meta.fps for t in range(HORIZON[name])]}
        dataset = LeRobotDataset(f"made/{folder}", root=root, delta_timestamps=chunk)
        for text, row in meta.tasks.iterrows():
            out[f"{name}/tasks/{int(row.task_index)}"] = np.asarray(text)
        for index in indices:
            for k, value in dataset[index].items():
                out[f"{name}/{index}/{k}"] = np.asarray(value)
    np.savez(path, **out)


def codec():
    """The published processor as golden/tokenizer/record.py has it, with the fitted codec."""
    import json

    from transformers import PreTrainedTokenizerFast

    spec = importlib.util.spec_from_file_location("tokenizer_record", ROOT / "golden/tokenizer/record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = json.loads((CODEC / "processor_config.json").read_text())
    bpe = PreTrainedTokenizerFast(tokenizer_file=str(CODEC / "tokenizer.json"), clean_up_tokenization_spaces=False)
    return module.Processor(bpe, config["scale"], config["vocab_size"], config["min_token"])


def leaves(tree, lead=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{lead}{key}/")
        else:
            yield f"{lead}{key}", np.asarray(value)


def record(path):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import openpi.models.tokenizer as openpi_tokenizer
    from openpi import transforms
    from openpi.shared import normalize
    from openpi.training import config as openpi_config
    from safetensors.numpy import save_file

    processor = codec()
    openpi_tokenizer.download.maybe_download = lambda *args, **kwargs: MODEL
    openpi_tokenizer.AutoProcessor = type("Auto", (), {"from_pretrained": staticmethod(lambda *args, **kwargs: processor)})
    openpi_config.DataConfigFactory._load_norm_stats = lambda *args: None
    items = np.load(path)
    (ROOT / "golden/training").mkdir(exist_ok=True)
    for name, (_, key, indices) in CASES.items():
        preset = openpi_config.get_config(name)
        assert preset.model.action_horizon == HORIZON[name], name
        data = preset.data.create(Path("nowhere"), preset.model)
        assert tuple(data.action_sequence_keys) == (key,), name
        stats = normalize.load(ROOT / "fixtures/checkpoints/policy" / preset.model.model_type.value / "assets" / data.asset_id)
        tasks = {int(k.rsplit("/")[-1]): str(items[k]) for k in items.files if k.startswith(f"{name}/tasks/")}
        steps = [
            *([transforms.PromptFromLeRobotTask(tasks)] if data.prompt_from_task else []),
            *data.repack_transforms.inputs,
            *data.data_transforms.inputs,
            transforms.Normalize(stats, use_quantiles=data.use_quantile_norm),
            *data.model_transforms.inputs,
        ]
        out = {}
        for index in indices:
            lead = f"{name}/{index}/"
            item = {k.removeprefix(lead): items[k] for k in items.files if k.startswith(lead)}
            item = {k: str(v) if v.dtype.kind == "U" else v for k, v in item.items()}
            out[f"{index}/padded"] = item[f"{key}_is_pad"]
            for k, value in leaves(transforms.compose(steps)(item)):
                if k.startswith("image/"):
                    value = np.frombuffer(hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest(), np.uint8)
                out[f"{index}/{k}"] = np.array(value, copy=True, order="C")
        save_file(out, ROOT / f"golden/training/{name}.safetensors")
        print(name, {k: (v.dtype, v.shape) for k, v in out.items()})


if __name__ == "__main__":
    {"read": read, "record": record}[sys.argv[1]](sys.argv[2])
