"""Records what openpi's own tokenizers do: prompts, FAST rows, extracted actions, and a fitted codec.

    python golden/tokenizer/record.py tiny                # fixtures/tokenizer/{tiny,fast_tiny}, golden/tokenizer/tiny_*.jsonl
    python golden/tokenizer/record.py gemma MODEL OUT     # prompts with PaliGemma's vocabulary (MODEL is its .model)

Environment: fixtures/recipes/requirements-openpi.txt (sentencepiece, tokenizers, transformers, scipy are in it).
openpi/models/tokenizer.py runs unmodified; only where it fetches its two files from is replaced. The published FAST
processor is code of its repository on the hub, which no package ships: `Processor` below does what it does.
"""

import json
import pathlib
import sys
import types

import numpy as np

# What fetches files, and needs more packages for it, is never called here.
import openpi.shared

openpi.shared.download = sys.modules["openpi.shared.download"] = types.ModuleType("openpi.shared.download")

from openpi.models import tokenizer as openpi_tokenizer
from scipy.fft import dct, idct
from tokenizers import ByteLevelBPETokenizer
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Processor:
    """The published processor: a transform, a rounding, a BPE; zeros for what cannot be decoded."""

    def __init__(self, bpe, scale, vocab_size, min_token):
        self.bpe, self.scale, self.vocab_size, self.min_token = bpe, scale, vocab_size, min_token

    def coefficients(self, chunk):
        return np.around(dct(chunk, axis=0, norm="ortho") * self.scale)

    def __call__(self, chunks):
        rows = []
        for chunk in chunks:
            values = self.coefficients(chunk).flatten()
            rows.append(self.bpe("".join(map(chr, np.maximum(values - self.min_token, 0).astype(int))))["input_ids"])
        return rows

    def decode(self, rows, *, time_horizon, action_dim):
        chunks = []
        self.error = None
        for row in rows:
            try:
                values = np.array(list(map(ord, self.bpe.decode(row)))) + self.min_token
                values = values.reshape(-1, action_dim)
                assert values.shape == (time_horizon, action_dim)
            except Exception as error:
                self.error = type(error).__name__
                values = np.zeros((time_horizon, action_dim))
            chunks.append(idct(values / self.scale, axis=0, norm="ortho"))
        return np.stack(chunks)

    @classmethod
    def fit(cls, chunks, scale, vocab_size):
        values = [dct(chunk, axis=0, norm="ortho").flatten() for chunk in chunks]
        everything = np.around(np.concatenate(values) * scale)
        least, greatest = int(everything.min()), int(everything.max())
        bpe = ByteLevelBPETokenizer()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=[chr(i) for i in range(greatest - least + 1)],
            max_token_length=10000,
        )
        texts = ("".join(map(chr, (np.around(v * scale) - least).astype(int))) for v in values)
        bpe._tokenizer.train_from_iterator(texts, trainer=trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False)
        return cls(fast, scale, vocab_size, least)

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "action_dim": None,
            "auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"},
            "min_token": self.min_token,
            "processor_class": "UniversalActionProcessor",
            "scale": self.scale,
            "time_horizon": None,
            "vocab_size": self.vocab_size,
        }
        (folder / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n")
        text = json.loads(self.bpe.backend_tokenizer.to_str())
        (folder / "tokenizer.json").write_text(json.dumps(text, ensure_ascii=False, separators=(",", ":")))


def smooth(rng, horizon, dim):
    """A chunk such as robots make: slow curves, a gripper that jumps, some joints that rest."""
    t = np.linspace(0, 1, horizon)[:, None]
    wave = rng.normal(size=(1, dim)) * np.sin(2 * np.pi * (rng.uniform(0.2, 1.5, (1, dim)) * t + rng.uniform(size=(1, dim))))
    chunk = 0.5 * wave + 0.02 * rng.normal(size=(horizon, dim))
    chunk[:, rng.uniform(size=dim) < 0.2] = 0.0
    chunk[:, -1] = np.where(t[:, 0] < rng.uniform(), -1.0, 1.0)
    return np.clip(chunk, -1.2, 1.2).astype(np.float32)


def row(values):
    return [v if np.isfinite(v) else str(v) for v in np.asarray(values, np.float64).flatten().tolist()]


def bits(mask):
    return "".join(str(int(v)) for v in mask)


def patched(model, processor):
    openpi_tokenizer.download.maybe_download = lambda *args, **kwargs: pathlib.Path(model)

    class Auto:
        @staticmethod
        def from_pretrained(*args, **kwargs):
            return processor

    openpi_tokenizer.AutoProcessor = Auto


PROMPTS = [
    "pick up the red_block", "Fold the towel\n", "  put the bowl\non the plate  ", "", "_", "open the top drawer of the cabinet",
    "UNCAP THE PEN", "Straße ΟΔΟΣ İstanbul ΣΑΣ.", "wipe the table, then STOP!", "把红色方块放进盒子里", "🤖 pick ▁ up", "a\tb\x1c", "\x1f\x85pick\u3000",
    "<bos> <loc0001> </s> <seg127>", "Task: x, State: 1;\nAction: |", "put the cup in the microwave and close it " * 6,
]


def prompts(model, out):
    pi = {n: openpi_tokenizer.PaligemmaTokenizer(n) for n in (48, 64, 200)}
    rng = np.random.default_rng(7)
    special = [-1.0, 1.0, 0.0, 0.9921875, -0.9921875, 0.99218744, -1.0000001, 3.0, -3.0, np.nan, np.inf, -np.inf, -1e-20]
    rows = []
    for i, prompt in enumerate(PROMPTS):
        tokens, mask = pi[48].tokenize(prompt)
        rows.append({"prompt": prompt, "max_len": 48, "tokens": tokens.astype(int).tolist(), "mask": bits(mask)})
        state = np.array(special) if i % 4 == 0 else rng.normal(0, 0.6, int(rng.integers(1, 15))).astype(np.float32 if i % 2 else np.float64)
        for n in (200, 64):
            tokens, mask = pi[n].tokenize(prompt, state)
            rows.append({"prompt": prompt, "max_len": n, "state": row(state), "state_dtype": str(state.dtype),
                         "tokens": tokens.astype(int).tolist(), "mask": bits(mask)})
    write(out, rows)


def write(path, rows):
    with open(path, "w") as file:
        for one in rows:
            # Padding is 0: cut off here, put back by whoever reads.
            if "tokens" in one:
                one = {**one, "tokens": one["tokens"][: len(one["mask"].rstrip("0"))]}
            file.write(json.dumps(one, ensure_ascii=False, separators=(",", ":")) + "\n")


def tiny():
    horizon, dim = 10, 7
    rng = np.random.default_rng(11)
    chunks = np.stack([smooth(rng, horizon, dim) for _ in range(120)])
    folder = ROOT / "fixtures/tokenizer/fast_tiny"
    processor = Processor.fit(chunks, 10, 384)
    processor.save(folder)
    np.save(folder / "chunks.npy", chunks)
    model = ROOT / "fixtures/tokenizer/tiny/tokenizer.model"
    patched(model, processor)
    prompts(model, ROOT / "golden/tokenizer/tiny_prompts.jsonl")

    rows = []
    for i, prompt in enumerate(PROMPTS):
        n = 180 if i % 3 else 60
        fast = openpi_tokenizer.FASTTokenizer(n)
        actions = smooth(rng, horizon, dim).astype(np.float64 if i % 2 else np.float32)
        state = rng.normal(0, 0.5, 8)
        tokens, mask, ar, loss = fast.tokenize(prompt, state, actions)
        ids = processor(actions[None])[0]
        full, full_mask, full_ar, _ = openpi_tokenizer.FASTTokenizer(1000).tokenize(prompt, state, actions)
        answer = np.zeros(256, np.int32)
        said = full[np.asarray(full_ar, bool) & np.asarray(full_mask, bool)]
        answer[: len(said)] = said
        extracted = fast.extract_actions(answer, horizon, dim)
        direct = processor.decode([ids], time_horizon=horizon, action_dim=dim)[0]
        rows.append({"prompt": prompt, "max_len": n, "state": row(state), "actions": row(actions), "actions_dtype": str(actions.dtype),
                     "coefficients": processor.coefficients(actions).astype(int).flatten().tolist(), "fast_ids": ids,
                     "tokens": tokens.astype(int).tolist(), "mask": bits(mask), "ar": bits(ar), "loss": bits(loss),
                     "answer": said.astype(int).tolist(), "extracted": row(extracted), "same_as_direct": bool((extracted == direct).all())})
    fast = openpi_tokenizer.FASTTokenizer(180)
    good = np.array(rows[0]["answer"])
    eos, bar = good[-1], good[-2]
    malformed = {"no_action_word": good[3:], "cut": np.concatenate([good[:9], [bar, eos]]), "empty": good[:0],
                 "no_bar": good[:-2], "text": np.concatenate([good[:6], [300, 301], good[6:]])}
    for name, answer in malformed.items():
        processor.error = None
        rows.append({"malformed": name, "answer": answer.astype(int).tolist(), "extracted": row(fast.extract_actions(answer.astype(np.int32), horizon, dim)),
                     "error": processor.error})
    write(ROOT / "golden/tokenizer/tiny_fast.jsonl", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["tiny"]:
        tiny()
    elif sys.argv[1:2] == ["gemma"] and len(sys.argv) == 4:
        patched(sys.argv[2], None)
        prompts(sys.argv[2], sys.argv[3])
    else:
        sys.exit(__doc__)
