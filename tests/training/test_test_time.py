"""Predictions of before the update, and an update of the selected parameters only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import UserError
from jaxalign.objective import Objective
from jaxalign.training.state import create_state
from jaxalign.training.test_time import make_adapt_step, replaced, selected

PARAMS = {
    "a": {"kernel": jnp.ones(2), "norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}},
    "b": {"kernel": jnp.ones(1)},
}


def test_a_part_is_taken_out_and_put_back():
    part = selected(PARAMS, r".*/norm/.*")
    assert jax.tree.structure(part) == jax.tree.structure({"a": {"norm": {"scale": 0, "bias": 0}}})
    changed = replaced(PARAMS, jax.tree.map(lambda x: x + 5, part))
    assert changed["a"]["norm"]["bias"].tolist() == [5, 5] and changed["b"] is PARAMS["b"]
    assert changed["a"]["kernel"] is PARAMS["a"]["kernel"] and PARAMS["a"]["norm"]["bias"].tolist() == [0, 0]
    with pytest.raises(UserError, match="no parameter matches 'scale'"):
        selected(PARAMS, "scale")


def test_predictions_come_before_the_update_and_nan_changes_nothing():
    def forward(part, batch, extra):
        return batch["x"] * replaced(extra["source"], part)["a"]["norm"]["scale"]

    def loss_fn(outputs, batch, extra):
        return Objective((outputs**2).sum(), jnp.float32(len(outputs)), {})

    optimizer = optax.sgd(0.1)
    part = jax.tree.map(jnp.copy, selected(PARAMS, ".*/scale"))
    state = create_state(part, optimizer, jax.random.key(0), {"source": PARAMS})
    step = jax.jit(make_adapt_step(forward, loss_fn, optimizer))
    batch = {"x": jnp.array([[1.0, 2.0], [3.0, 0.0]])}
    state, outputs, metrics = step(state, batch)
    np.testing.assert_array_equal(outputs, batch["x"])
    assert metrics["loss"] == 7
    np.testing.assert_allclose(state.params["a"]["norm"]["scale"], [1 - 0.1 * 10, 1 - 0.1 * 4], atol=1e-6)
    after, outputs, _ = step(state, {"x": jnp.full((2, 2), jnp.nan)})
    np.testing.assert_array_equal(after.params["a"]["norm"]["scale"], state.params["a"]["norm"]["scale"])
    assert np.isnan(outputs).all() and after.skipped == 1
