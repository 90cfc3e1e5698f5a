"""What the formulas do to a policy: a table of 16 prompts x 8 responses, of which 0 is chosen and 1 is rejected."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import objective
from jaxalign.losses.symbolic.compilation import symbolic_loss
from jaxalign.losses.symbolic.named import SINGLE_MODEL, names_of
from jaxalign.losses.symbolic.structures import parse_structure, preference_of

SEEDS = 3


@functools.cache
def training(formulas, steps=300, learning_rate=0.02):
    """From the first logits [16, 8], which are the reference, to the metrics of the last step of each formula."""
    optimizer = optax.adam(learning_rate)

    def run(start):
        reference = jax.nn.log_softmax(start)

        def loss(logits):
            results = []
            for formula, table in zip(formulas, logits, strict=True):
                log_probs = jax.nn.log_softmax(table)
                results.append(
                    symbolic_loss(
                        formula=formula,
                        mask=jnp.ones(16),
                        chosen=log_probs[:, 0],
                        rejected=log_probs[:, 1],
                        reference_chosen=reference[:, 0],
                        reference_rejected=reference[:, 1],
                    )
                )
            metrics = [objective.metric_means(result.metrics) for result in results]
            return sum(objective.loss(result) for result in results), metrics

        def step(carry, _):
            logits, state = carry
            gradient, metrics = jax.grad(loss, has_aux=True)(logits)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(logits, updates), state), metrics

        logits = jnp.stack([start] * len(formulas))  # of each formula its own: their sum trains each for itself
        _, metrics = jax.lax.scan(step, (logits, optimizer.init(logits)), None, steps)
        return jax.tree.map(lambda x: x[-1], metrics)

    return jax.jit(run)


def train(formulas, seed):
    start = np.random.default_rng(seed).normal(size=(16, 8)).astype(np.float32)
    return jax.device_get(training(tuple(formulas))(start))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_verdict_on_neither_decides_whether_the_chosen_response_rises(seed):
    found = dict(zip(SINGLE_MODEL, train([loss.formula for loss in SINGLE_MODEL.values()], seed), strict=True))
    chosen = {name: metrics["log_prob_chosen"] for name, metrics in found.items()}
    for name, loss in SINGLE_MODEL.items():
        neither = loss.preference.verdicts[-1]
        if neither in ("loses", "both"):
            assert chosen[name] > -0.15, name
        if neither == "wins":
            assert chosen[name] < -1.5, name
        assert found[name]["log_prob_rejected"] < -3, name
    assert chosen["uncpo"] < chosen["cpo"] < chosen["orpo"]


def test_a_loss_of_ones_own_optimises_its_formula():
    """The chosen response is right, and the rejected one at most where the reference says so: none of the named."""
    formula = "chosen & (rejected -> reference_rejected)"
    assert names_of(preference_of(parse_structure(formula))) == []
    (metrics,) = train([formula], seed=0)
    assert metrics["satisfaction"] > 0.95
