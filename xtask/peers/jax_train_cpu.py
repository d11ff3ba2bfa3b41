"""Times one training step of openpi's JAX model on the CPU: loss and gradients, clipping, AdamW and the moving average, in one jit.

    python xtask/peers/jax_train_cpu.py --config debug --dtype f32 --batch-size 2

The step is put together of openpi's own parts, as its scripts/train.py does it, which no package holds: `compute_loss` of the model with
train=True (so pictures are augmented within the step), gradients of all parameters, `create_optimizer`, the moving average, and the norms
of gradient and kernels; the state's buffers are given away. Weights are drawn by the model's own rules; one batch, made before, whose
masks are all true.
"""

import argparse
import functools
import json
import os
import resource
import time
import warnings
from importlib.metadata import version

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", choices=("debug", "debug_pi05"), required=True)
parser.add_argument("--dtype", choices=("f32", "bf16"), required=True)
parser.add_argument("--batch-size", type=int, default=2)
parser.add_argument("--steps", type=int, default=4, help="timed steps")
parser.add_argument("--warm-up", type=int, default=2, help="steps before them; the first one compiles")
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
# XLA takes as many threads as it sees cores.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
warnings.simplefilter("ignore")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from openpi.models.model import Observation
from openpi.models.pi0_config import Pi0Config
from openpi.shared import nnx_utils
from openpi.training import optimizer

EMA_DECAY = 0.99  # the presets' own
NO_KERNELS = nnx_utils.PathRegex(".*/(bias|scale|pos_embedding|input_embedding)")


def batch(config):
    """Observation and actions of the sizes that the model asks for."""
    chance = np.random.default_rng(1)

    def made(spec):
        if spec.dtype == jnp.float32:
            return jnp.asarray(chance.uniform(-1, 1, spec.shape), jnp.float32)
        if spec.dtype == jnp.int32:
            return jnp.asarray(chance.integers(0, 2048, spec.shape), jnp.int32)
        return jnp.ones(spec.shape, bool)

    observation, actions = config.inputs_spec(batch_size=args.batch_size)
    fields = {name: value for name, value in vars(observation).items() if value is not None}
    return Observation(**{name: jax.tree.map(made, value) for name, value in fields.items()}), made(actions)


def begin(config, tx, key):
    """Parameters, what the optimizer remembers, and the average, of which none shares a buffer with another."""
    params = nnx.state(config.create(key))
    return params, tx.init(params), jax.tree.map(jnp.copy, params)


def step(graph, tx, key, state, at, batch):
    params, memory, average = state
    model = nnx.merge(graph, params)
    model.train()

    def loss_of(model, key, observation, actions):
        return jnp.mean(model.compute_loss(key, observation, actions, train=True))

    loss, gradients = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, nnx.Param))(model, jax.random.fold_in(key, at), *batch)
    updates, memory = tx.update(gradients, memory, params)
    params = optax.apply_updates(params, updates)
    average = jax.tree.map(lambda old, new: EMA_DECAY * old + (1 - EMA_DECAY) * new, average, params)
    kernels = params.filter(nnx.All(nnx.Not(NO_KERNELS), lambda _, x: x.value.ndim > 1))
    return (params, memory, average), (loss, optax.global_norm(gradients), optax.global_norm(kernels))


dtype = {"f32": "float32", "bf16": "bfloat16"}[args.dtype]
config = Pi0Config(dtype=dtype, pi05=args.config == "debug_pi05", paligemma_variant="dummy", action_expert_variant="dummy")
tx = optimizer.create_optimizer(optimizer.AdamW(), optimizer.CosineDecaySchedule())
key = jax.random.key(0)
start = time.perf_counter()
graph = nnx.graphdef(nnx.eval_shape(config.create, key))
state = jax.block_until_ready(jax.jit(functools.partial(begin, config, tx))(key))
parameters = sum(leaf.size for leaf in jax.tree.leaves(state[0]))
inputs = batch(config)
load_s = time.perf_counter() - start
compiled = jax.jit(functools.partial(step, graph, tx, key), donate_argnums=0)

walls, cpus, losses, norms = [], [], [], []
for at in range(args.warm_up + args.steps):
    start, cpu = time.perf_counter(), time.process_time()
    state, told = jax.block_until_ready(compiled(state, at, inputs))
    walls.append(time.perf_counter() - start)
    cpus.append(time.process_time() - cpu)
    losses.append(float(told[0]))
    norms.append([float(norm) for norm in told[1:]])
assert np.isfinite(losses).all(), losses
answer = {"config": args.config, "dtype": args.dtype, "peer": "jax", "batch_size": args.batch_size, "threads": args.threads}
answer["versions"] = {name: version(name) for name in ("jax", "flax", "optax", "rpent-openpi")}
answer |= {"parameters": parameters, "load_s": load_s, "compile_s": walls[0] - float(np.median(walls[1:]))}
answer |= {"step_s": walls[args.warm_up :], "step_cpu_s": cpus[args.warm_up :], "losses": losses, "norms": norms}
print(json.dumps(answer | {"max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
