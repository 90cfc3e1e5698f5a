"""One train step of a real decoder: equal on any number of devices, on any mesh, in any number of micro-batches."""

import functools
import math

import jax
import numpy as np
import pytest

from experiments.rl import make_loss
from experiments.rollout import Groups
from jaxalign.models.config import NAMED
from jaxalign.models.decoder import Decoder
from jaxalign.training.mesh import make_mesh, spread
from jaxalign.training.optimizers import make_optimizer
from jaxalign.training.sharding import DECODER_RULES, shardings_for, state_shardings
from jaxalign.training.state import abstract_state, create_state
from jaxalign.training.step import make_train_step

PROMPTS, GROUP, WIDTH, NEW = 32, 2, 8, 4
# Plain gradient descent: Adam's first steps are the signs of gradients, which magnify rounding where one is nearly 0.
OPTIMIZER = make_optimizer("sgd", 0.1, b1=0.9, max_grad_norm=1.0, weight_decay=0.1)
DECODER = Decoder(NAMED["tiny_qwen3"], compute_dtype="float32")
MESHES = [(1, 1, 1), (4, 1, 1), (1, 4, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)]
# Every pair is a program to compile: all meshes with two micro-batches, four of them at both ends; one batch on one
# device is what all are compared with.
WAYS = [(shape, 2) for shape in MESHES] + [(MESHES[0], 4), (MESHES[-1], 1), (MESHES[-1], 4)]


def groups(seed: int) -> Groups:
    random = np.random.default_rng(seed)
    shape = (PROMPTS, GROUP, NEW)
    lengths = random.integers(0, NEW + 1, (PROMPTS, GROUP))  # rows differ in weight, some are empty
    return Groups(
        prompts=random.integers(0, 64, (PROMPTS, WIDTH)).astype(np.int32),
        prompt_lengths=random.integers(1, WIDTH + 1, PROMPTS).astype(np.int32),
        completions=random.integers(0, 64, shape).astype(np.int32),
        mask=(np.arange(NEW) < lengths[..., None]).astype(np.float32),
        advantages=random.normal(size=(PROMPTS, GROUP)).astype(np.float32),
        absent_weight=np.zeros(PROMPTS, np.float32),
        old_log_probs=random.normal(-4, 0.3, shape).astype(np.float32),
        reference_log_probs=random.normal(-4, 0.3, shape).astype(np.float32),
    )


def two_steps(mesh, micro_batches: int):
    abstract_params = DECODER.abstract_params()
    params_shardings = shardings_for(abstract_params, DECODER_RULES, mesh)
    abstract = abstract_state(abstract_params, OPTIMIZER, jax.random.key(1))
    shardings = state_shardings(abstract, params_shardings, mesh)
    params = jax.device_put(first(), params_shardings)
    state = create_state(params, OPTIMIZER, jax.random.key(1), shardings=shardings)
    loss = make_loss(DECODER, temperature=1.0, share_prompt=True, kl_coefficient=0.1, aggregation="token-mean")
    step = make_train_step(loss, OPTIMIZER, mesh=mesh, shardings=shardings, micro_batches=micro_batches)
    losses = []
    for seed in range(2):
        state, metrics = step(state, spread(groups(seed), mesh))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@functools.cache
def first():
    return jax.device_get(jax.jit(DECODER.init)(jax.random.key(0)))


@functools.cache
def plain():
    return two_steps(make_mesh(devices=jax.devices()[:1]), 1)


@pytest.mark.filterwarnings("ignore:.*does not divide over mesh axis")
@pytest.mark.parametrize(
    ("shape", "micro_batches"), [pytest.param(*way, id=f"{'x'.join(map(str, way[0]))}, {way[1]}") for way in WAYS]
)
def test_losses_and_updated_parameters_are_equal(shape, micro_batches):
    mesh = make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
    losses, params = two_steps(mesh, micro_batches)
    np.testing.assert_allclose(losses, plain()[0], rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), params, plain()[1])
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(*map(jax.tree.leaves, (params, first())), strict=True))


def test_first_weights_are_those_of_one_device():
    shardings = shardings_for(DECODER.abstract_params(), DECODER_RULES, make_mesh(2, 2, 2))
    params = jax.jit(DECODER.init, out_shardings=shardings)(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), params, first())
