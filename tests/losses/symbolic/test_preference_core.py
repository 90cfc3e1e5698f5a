"""Losses compiled from formulas are the losses of the preference core that have their names."""

import functools

import jax
import numpy as np
import pytest

from jaxalign.losses.preference import PairLogProbs, preference_loss
from jaxalign.losses.symbolic.compilation import symbolic_loss
from jaxalign.losses.symbolic.named import get_loss


def pairs(scale: float) -> PairLogProbs:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 9, (2, 16)).astype(float)
    sums = [-scale * random.uniform(0.05, 2.0, 16) * lengths[which % 2] for which in range(4)]
    return PairLogProbs(*sums, *lengths, mask=(np.arange(16) % 5 > 0).astype(float))


@pytest.mark.parametrize(
    ("name", "core", "symbolic"),
    [
        ("dpo", dict(loss="dpo", beta=0.1), dict(beta=0.1)),
        ("cpo", dict(loss="cpo", beta=0.1, likelihood_weight=0.0), dict(beta=0.1, likelihood_weight=0.0)),
        ("orpo", dict(loss="orpo", beta=1.0, likelihood_weight=0.0), dict(beta=1.0, likelihood_weight=0.0)),
    ],
)
def test_values_and_gradients(name, core, symbolic):
    """For likely, ordinary and hopeless completions."""
    with jax.enable_x64(True):
        options = get_loss(name).options | symbolic

        def by_formula(sums, given):
            return symbolic_loss(**given._replace(chosen=sums[0], rejected=sums[1])._asdict(), **options).total

        def by_core(sums, given):
            return preference_loss(given._replace(chosen=sums[0], rejected=sums[1]), **core).total

        @jax.jit
        def both(given):
            sums = (given.chosen, given.rejected)
            return [jax.value_and_grad(function)(sums, given) for function in (by_formula, by_core)]

        for scale in (0.1, 1.0, 300.0):
            close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9, err_msg=f"scale={scale}")
            jax.tree.map(close, *both(pairs(scale)))
