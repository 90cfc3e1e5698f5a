"""The sum of the two losses of PPO, and what each part moves."""

import jax
import numpy as np
import pytest

from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.losses.ppo import ppo_loss
from jaxalign.objective import loss
from tests.compiled import compiled


def problem(rows=3, time=4):
    random = np.random.default_rng(0)
    names = ("log_probs", "values", "advantages", "old_values", "returns", "old_log_probs")
    arrays = {name: random.normal(size=(rows, time)) for name in names}
    return arrays | {"mask": (np.arange(time) < np.array([4, 2, 0])[:, None]).astype(float)}


def reference(p, *, c, clip, value_clip):
    """Token by token."""
    total = count = 0.0
    for row, column in zip(*np.nonzero(p["mask"]), strict=True):
        at = {name: x[row, column] for name, x in p.items()}
        rho = np.exp(at["log_probs"] - at["old_log_probs"])
        surrogate = min(rho * at["advantages"], np.clip(rho, 1 - clip, 1 + clip) * at["advantages"])
        near = np.clip(at["values"], at["old_values"] - value_clip, at["old_values"] + value_clip)
        error = max((at["values"] - at["returns"]) ** 2, (near - at["returns"]) ** 2)
        total += -surrogate + c * 0.5 * error
        count += 1
    return total / count


@pytest.mark.parametrize("c", [0.0, 0.1, 2.0])
def test_value_is_that_of_the_formula(c):
    with jax.enable_x64(True):
        p = problem()
        found = loss(compiled(ppo_loss)(**p, value_coefficient=c, clip_low=0.3, clip_high=0.3, value_clip=0.5))
        np.testing.assert_allclose(found, reference(p, c=c, clip=0.3, value_clip=0.5), rtol=1e-12)


def test_each_part_moves_its_own_input():
    with jax.enable_x64(True):
        p = problem()

        def total(log_probs, values, c):
            return ppo_loss(**p | {"log_probs": log_probs, "values": values}, value_coefficient=c).total

        def policy_total(log_probs):
            options = dict(old_log_probs=p["old_log_probs"], aggregation="token-mean")
            return policy_loss(log_probs, p["advantages"], p["mask"], **options).total

        gradients = jax.jit(lambda *x: [jax.grad(total, argnums=(0, 1))(*x, c) for c in (0.5, 1.0)])
        (d_log_probs, d_values), (again, doubled) = jax.device_get(gradients(p["log_probs"], p["values"]))
        plain = jax.jit(jax.grad(policy_total))(p["log_probs"])
        np.testing.assert_allclose(d_log_probs, plain, rtol=1e-12)
        np.testing.assert_allclose(again, plain, rtol=1e-12)
        np.testing.assert_allclose(doubled, 2 * d_values, rtol=1e-12)
        assert (d_values[p["mask"] == 0] == 0).all() and np.abs(d_values).max() > 0


def test_the_value_loss_is_reported():
    found = compiled(ppo_loss)(**{name: x.astype(np.float32) for name, x in problem().items()})
    assert {"clip_fraction", "value", "value_loss", "value_clip_fraction"} <= set(found.metrics)
    with_policy = found.metrics["value_loss"]
    assert float(with_policy[1]) == 6 and float(with_policy[0]) > 0
