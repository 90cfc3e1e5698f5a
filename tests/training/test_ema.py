"""The moving average of the parameters: its closed form, where it lies, and when it stands still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxalign.errors import UserError
from jaxalign.training.ema import average_of, averaged
from jaxalign.training.mesh import make_mesh, put_batch
from jaxalign.training.sharding import Rule, shardings_for, state_shardings
from jaxalign.training.state import abstract_state, create_state
from jaxalign.training.step import make_train_step
from tests.training import toy

RULES = [
    Rule("embed/embedding", P(None, "fsdp")),
    Rule("layers/mlp/up/kernel", P(None, "fsdp", "tensor")),
    Rule(".*", P()),
]


def trained(steps, decay=0.75, loss_fn=toy.loss_fn):
    """The state after `steps`, and the parameters before the first and after each of them."""
    optimizer = averaged(toy.optimizer(), decay)
    state = create_state(toy.params(), optimizer, jax.random.key(0))
    step = make_train_step(loss_fn, optimizer)
    seen = [jax.device_get(state.params)]
    for seed in range(steps):
        state, _ = step(state, toy.batch(seed=seed))
        seen.append(jax.device_get(state.params))
    return state, seen


def test_the_average_is_the_geometric_sum_of_what_was():
    decay, steps = 0.75, 5
    state, seen = trained(steps, decay)
    weights = [decay**steps, *((1 - decay) * decay ** (steps - t) for t in range(1, steps + 1))]
    assert sum(weights) == pytest.approx(1)
    expected = jax.tree.map(lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)), *seen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), average_of(state.opt_state), expected)


def test_the_parameters_are_those_of_a_run_without_average():
    optimizer = toy.optimizer()
    state = create_state(toy.params(), optimizer, jax.random.key(0))
    step = make_train_step(toy.loss_fn, optimizer)
    for seed in range(3):
        state, metrics = step(state, toy.batch(seed=seed))
    assert average_of(state.opt_state) is None
    assert "learning_rate" in metrics
    jax.tree.map(np.testing.assert_array_equal, trained(3)[1][-1], jax.device_get(state.params))


def test_a_skipped_step_leaves_it_as_it_was():
    optimizer = averaged(toy.optimizer(), 0.5)
    step = make_train_step(toy.loss_fn, optimizer)
    state, _ = step(create_state(toy.params(), optimizer, jax.random.key(0)), toy.batch())
    before = jax.device_get(average_of(state.opt_state))
    bad = toy.batch()
    bad["targets"][0] = np.nan
    state, metrics = step(state, bad)
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(average_of(state.opt_state)))


def test_it_lies_where_the_parameters_lie():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    optimizer = averaged(toy.optimizer(), 0.75)
    places = shardings_for(toy.params(), RULES, mesh)
    plain = abstract_state(toy.params(), optimizer, jax.random.key(0))
    layout = state_shardings(plain, places, mesh)
    assert jax.tree.leaves(average_of(layout.opt_state)) == jax.tree.leaves(places)
    state = create_state(toy.params(), optimizer, jax.random.key(0), shardings=layout)
    step = make_train_step(toy.loss_fn, optimizer, mesh=mesh, shardings=layout)
    for seed in range(3):
        state, _ = step(state, put_batch(toy.batch(seed=seed), mesh))
    expected = average_of(trained(3)[0].opt_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), average_of(state.opt_state), expected)


def test_impossible_decay():
    with pytest.raises(UserError, match=r"train\.ema_decay=1\.0 must be in \[0, 1\)"):
        averaged(toy.optimizer(), 1.0)


def test_no_gradient_flows_into_an_average():
    from jaxalign.training.ema import update

    gradient = jax.grad(lambda p: update(jnp.ones(()), p, 0.9))(jnp.ones(()))
    assert gradient == 0
