import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import UserError
from jaxalign.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    clip_by_global_norm,
    decay_mask,
    make_optimizer,
    make_schedule,
)
from tests.training import toy


def test_adamw_follows_its_equations():
    """Loshchilov & Hutter (2019), algorithm 2, by hand over three updates of one number."""
    rate, decay, b1, b2, epsilon = 0.1, 0.01, 0.8, 0.9, 1e-3
    optimizer = make_optimizer("adamw", rate, weight_decay=decay, b1=b1, b2=b2, epsilon=epsilon)
    params = {"kernel": jnp.float32(2.0)}
    state = optimizer.init(params)
    p, m, v = 2.0, 0.0, 0.0
    for t, g in enumerate([0.5, -1.0, 3.0], start=1):
        updates, state = optimizer.update({"kernel": jnp.float32(g)}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p -= rate * (m / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + epsilon) + decay * p)
        np.testing.assert_allclose(params["kernel"], p, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_every_name_lowers_a_loss(name, schedule):
    rate = 1e-2 if name in ("sgd", "lion", "rmsprop") else 3e-2
    optimizer = make_optimizer(name, rate, schedule=schedule, warmup_steps=2, total_steps=40, max_grad_norm=1.0)
    params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]])}

    def loss(params):
        return jnp.sum((params["kernel"] - 1) ** 2)

    @jax.jit
    def update(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    before = loss(params)
    for _ in range(30):
        params, state = update(params, state)
    assert loss(params) < 0.9 * before


def test_schedules_at_special_points():
    def values(name, counts, **settings):
        schedule = make_schedule(name, 2.0, warmup_steps=4, total_steps=12, **settings)
        return [float(schedule(count)) for count in counts]

    warm_up = [0.5, 1.0, 1.5, 2.0]
    for name in SCHEDULES:
        np.testing.assert_allclose(values(name, range(4)), warm_up, rtol=1e-6)
    np.testing.assert_allclose(values("constant", [4, 100]), [2, 2])
    np.testing.assert_allclose(values("linear", [4, 8, 12, 20]), [2, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(values("cosine", [4, 6, 8, 12]), [2, 1 + math.cos(math.pi / 4), 1, 0], atol=1e-6)
    np.testing.assert_allclose(values("inverse_sqrt", [4, 16, 40]), [2, 1, 2 * math.sqrt(4 / 40)], rtol=1e-6)
    np.testing.assert_allclose(values("cosine", [12], final_fraction=0.1), [0.2], rtol=1e-6)
    assert float(make_schedule("constant", 2.0)(0)) == 2.0, "without warm-up the first update has the full rate"


def test_clipping_keeps_the_direction_and_believes_a_given_norm():
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    clip = clip_by_global_norm(1.0)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    jax.tree.map(np.testing.assert_allclose, clipped, {"a": np.array([0.6, 0.0]), "b": np.array([0.8])})
    same, _ = clip_by_global_norm(5.0).update(gradients, optax.EmptyState())
    jax.tree.map(np.testing.assert_array_equal, same, gradients)
    given, _ = clip.update(gradients, optax.EmptyState(), grad_norm=jnp.float32(10.0))
    np.testing.assert_allclose(given["b"], [0.4], rtol=1e-6)
    zero, _ = clip.update(jax.tree.map(jnp.zeros_like, gradients), optax.EmptyState())
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(zero))


def test_the_norm_reaches_the_clipping_through_the_chain():
    optimizer = make_optimizer("sgd", 1.0, b1=0.0, max_grad_norm=1.0)
    params = {"w": jnp.array([0.0])}
    update = optax.with_extra_args_support(optimizer).update
    updates, _ = update({"w": jnp.array([1.0])}, optimizer.init(params), params, grad_norm=jnp.float32(4.0))
    np.testing.assert_allclose(updates["w"], [-0.25])


def test_norms_and_biases_do_not_decay():
    params = toy.params() | {"layers_bias": {"bias": jnp.ones((2, 3))}}
    mask = decay_mask(params)
    assert mask["embed"]["embedding"]
    assert mask["layers"]["mlp"]["up"]["kernel"]
    assert not mask["layers"]["mlp_norm"]["scale"], "a stacked scale has two dimensions and is no matrix"
    assert not mask["final_norm"]["scale"]
    assert not mask["layers_bias"]["bias"]
    optimizer = make_optimizer("adamw", 0.5, weight_decay=0.1)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    expected = jax.tree.map(lambda p, decays: -0.05 * p * decays, params, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_the_first_moment_has_the_dtype_asked_for():
    params = toy.params()
    state = make_optimizer("adamw", moment_dtype="bfloat16", max_grad_norm=1.0).init(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state[1].mu)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state[1].nu)} == {"float32"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamx"}, "optimizer.name='adamx' is not known; use one of adafactor, adam, adamw"),
        ({"schedule": "cosin"}, "optimizer.schedule='cosin' is not known; use one of constant, cosine"),
        ({"schedule": "cosine"}, "needs more steps in all"),
        ({"schedule": "linear", "warmup_steps": 5, "total_steps": 5}, "needs more steps in all"),
        ({"learning_rate": -1.0}, "optimizer.learning_rate=-1.0 must not be negative"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate=nan"),
        ({"max_grad_norm": -1.0}, "optimizer.max_grad_norm=-1.0"),
        ({"name": "adam", "weight_decay": 0.1}, "use 'adamw'"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(**settings)
