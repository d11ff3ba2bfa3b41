"""Times PyTorch on the CPU at the published size: openpi's PI0Pytorch, eager; for pi0_fast, which it lacks, transformers' PaliGemma.

    python xtask/peers/torch_cpu.py --model pi0 --dtype bf16

Random weights, born in their type: normal × 0.02, repeated. bf16 is openpi's own mixture: norms and patch embedding in f32, the
projections of state, action and time too. pi0_fast: one prefill of the valid tokens (768 + 120), then a token at a time with a cache.
"""

import os

import report

args = report.arguments(__doc__)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import contextlib
import time
import types
import warnings

warnings.simplefilter("ignore")

import torch
import transformers
from transformers.modeling_utils import no_init_weights

torch.set_num_threads(args.threads)
transformers.logging.set_verbosity_error()
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
VALID, LENGTH = report.PROMPT[args.model]


@contextlib.contextmanager
def born_as(dtype):
    """Parameters are allocated in `dtype`, without values."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            yield
    finally:
        torch.set_default_dtype(before)


def fill(model):
    """Normal × 0.02, one draw of four million repeated; rope frequencies and other buffers stay as they are."""
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02
    for parameter in model.parameters():
        values, typed = parameter.data.view(-1), block.to(parameter.dtype)
        for start in range(0, values.numel(), typed.numel()):
            part = values[start : start + typed.numel()]
            part.copy_(typed[: part.numel()])
    return model.eval()


class Clock:
    """Adds up the time spent in a method."""

    def __init__(self, owner, method):
        self.inner, self.ms = getattr(owner, method), 0.0
        setattr(owner, method, self)

    def __call__(self, *arguments, **named):
        start = time.perf_counter()
        out = self.inner(*arguments, **named)
        self.ms += (time.perf_counter() - start) * 1e3
        return out

    def taken(self):
        ms, self.ms = self.ms, 0.0
        return ms


def flow():
    """pi0 and pi0.5: (run, vision clock, steps clock)."""
    from openpi.models_pytorch.pi0_pytorch import PI0Pytorch

    config = types.SimpleNamespace(
        paligemma_variant="gemma_2b",
        action_expert_variant="gemma_300m",
        pi05=args.model == "pi05",
        dtype={"f32": "float32", "bf16": "bfloat16"}[args.dtype],
        action_dim=32,
        action_horizon=50,
        pytorch_compile_mode=None,
    )
    with born_as(DTYPE):
        model = PI0Pytorch(config)
    for name in ("action_in_proj", "action_out_proj", "state_proj", "action_time_mlp_in", "action_time_mlp_out", "time_mlp_in", "time_mlp_out"):
        if hasattr(model, name):
            getattr(model, name).float()
    if args.dtype == "bf16":
        # The package computes the rotary tables in the type of its input before it casts that to bf16; openpi casts first.
        both, forward = model.paligemma_with_expert, model.paligemma_with_expert.forward
        cast = lambda embedded: [None if e is None else e.to(DTYPE) for e in embedded]
        both.forward = lambda *, inputs_embeds, **named: forward(inputs_embeds=cast(inputs_embeds), **named)
    model.paligemma_with_expert.gemma_expert.lm_head = None  # 263 M values that nothing uses
    fill(model)
    torch.set_float32_matmul_precision("highest")  # the class lowers it
    cameras = report.CAMERAS[args.model]
    seen = torch.arange(LENGTH)[None] < VALID
    observation = types.SimpleNamespace(
        images={camera: torch.rand(1, 3, 224, 224) * 2 - 1 for camera in cameras},
        image_masks={camera: torch.ones(1, dtype=torch.bool) for camera in cameras},
        state=torch.randn(1, 32),
        tokenized_prompt=torch.where(seen, torch.randint(2, 250_000, (1, LENGTH)), 0),
        tokenized_prompt_mask=seen,
        token_ar_mask=None,
        token_loss_mask=None,
    )
    run = lambda: PI0Pytorch.sample_actions(model, "cpu", observation, num_steps=args.steps)  # the instance's is wrapped in torch.compile
    return run, Clock(model.paligemma_with_expert, "embed_image"), Clock(model, "denoise_step")


def tokens():
    """pi0_fast: the same."""
    config = transformers.CONFIG_MAPPING["paligemma"](
        text_config=dict(
            model_type="gemma", hidden_size=2048, intermediate_size=16384, num_attention_heads=8, num_key_value_heads=1, head_dim=256,
            num_hidden_layers=18, vocab_size=257152, hidden_activation="gelu_pytorch_tanh",
        ),
        vision_config=dict(
            model_type="siglip_vision_model", hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
            patch_size=14, image_size=224, projection_dim=2048, vision_use_head=False,
        ),
        projection_dim=2048,
    )
    with born_as(DTYPE):
        model = transformers.PaliGemmaForConditionalGeneration(config)
    model.tie_weights()
    fill(model)
    images, prompt = torch.rand(3, 1, 3, 224, 224, dtype=DTYPE) * 2 - 1, torch.randint(2, 250_000, (1, VALID))

    def decode(hidden, cache):
        out = []
        for _ in range(args.steps):
            token = model.lm_head(hidden[:, -1:]).argmax(-1)
            out.append(token)
            step = model.language_model(inputs_embeds=model.language_model.embed_tokens(token), past_key_values=cache, use_cache=True)
            hidden = step.last_hidden_state
        return torch.cat(out, dim=1)

    stages = types.SimpleNamespace(vision=model.get_image_features, decode=decode)

    @torch.no_grad()
    def run():
        pictures = [stages.vision(image) for image in images]
        embedded = torch.cat([*pictures, model.language_model.embed_tokens(prompt)], dim=1)
        # A prefix sees all of itself: a mask of zeros, where the default would be causal.
        mask = torch.zeros(1, 1, embedded.shape[1], embedded.shape[1], dtype=DTYPE)
        out = model.language_model(inputs_embeds=embedded, attention_mask=mask, use_cache=True)
        return stages.decode(out.last_hidden_state, out.past_key_values)

    return run, Clock(stages, "vision"), Clock(stages, "decode")


torch.manual_seed(0)
start = time.perf_counter()
run, vision, steps = tokens() if args.model == "pi0_fast" else flow()
load_s = time.perf_counter() - start
run()
vision.taken(), steps.taken()
runs = [(report.milliseconds(run), vision.taken(), steps.taken()) for _ in range(args.repeats)]
(total_ms, _), vision_ms, steps_ms = min(runs)
packages = ("torch", "transformers") + (("rpent-openpi",) if args.model != "pi0_fast" else ())
report.line(args, "torch", packages, load_s, [total for total, _, _ in runs], vision_ms, total_ms - vision_ms - steps_ms, steps_ms)
