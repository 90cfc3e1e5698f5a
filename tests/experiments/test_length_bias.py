"""The length bias of GRPO (Dr. GRPO, arXiv 2503.20783), with the losses and settings of the table of methods.

The first token decides the reward and is drawn from a fixed law, right with probability 0.25. After it
the policy is a table of end-of-sequence logits, by right or wrong first token and position, and stops
with probability 0.2 everywhere. The reward never depends on the length: an unbiased method has no reason
to change it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.methods import METHODS
from jaxalign.objective import loss
from jaxalign.rewards.advantages import advantages

POSITIONS, PROMPTS, GROUP, SEEDS = 16, 32, 8, 4
STEPS, STEP_SIZE = 600, 2.0
START = float(np.log(0.2 / 0.8))


def expected_lengths(logits):
    """[2] for wrong and right: 1 + P(not stopped at the first) + P(nor at the second) + ..."""
    stop = jax.nn.sigmoid(logits)
    alive = jnp.cumprod(1 - stop[:, :-1], axis=1)
    return 1 + alive.sum(axis=1)


def sample(key, logits):
    """(right [B], stops [B, T] as sampled, mask [B, T])."""
    first, later = jax.random.split(key)
    right = jax.random.bernoulli(first, 0.25, (PROMPTS * GROUP,)).astype(jnp.int32)
    stops = jax.random.bernoulli(later, jax.nn.sigmoid(logits)[right])
    before = jnp.cumsum(stops, axis=1) - stops
    return right, stops, (before == 0).astype(jnp.float32)


def table_log_probs(logits, right, stops):
    z = logits[right]
    return jnp.where(stops, jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z))


@functools.partial(jax.jit, static_argnums=0)
def train(name, key):
    """Expected lengths [2] after training, one seed."""
    method = METHODS[name]
    options = {**method.loss, "kl_coefficient": 0.0}
    if options["aggregation"] == "seq-mean-token-scale":
        options["scale_length"] = float(POSITIONS)

    def step(logits, key):
        right, stops, mask = sample(key, logits)
        weights = advantages(rewards=right.astype(jnp.float32), group_size=GROUP, **method.advantages)

        def value(logits):
            return loss(policy_loss(table_log_probs(logits, right, stops), weights, mask, **options))

        return logits - STEP_SIZE * jax.grad(value)(logits), None

    logits, _ = jax.lax.scan(step, jnp.full((2, POSITIONS), START), jax.random.split(key, STEPS))
    return expected_lengths(logits)


@functools.cache
def trained(name):
    """[seeds, 2] expected lengths on (wrong, right) answers."""
    return np.asarray(jax.vmap(functools.partial(train, name))(jax.random.split(jax.random.key(0), SEEDS)))


def test_the_table_starts_at_4_86_tokens():
    np.testing.assert_allclose(expected_lengths(jnp.full((2, POSITIONS), START)), (1 - 0.8**16) / 0.2, rtol=1e-6)


def test_the_samples_have_the_expected_length():
    """Right and wrong lengths are drawn from the table whose expected length is computed."""
    logits = jnp.stack([jnp.full(POSITIONS, START), jnp.linspace(-2, 1, POSITIONS)])
    keys = jax.random.split(jax.random.key(3), 50)
    right, _, mask = jax.jit(jax.vmap(sample, (0, None)))(keys, logits)
    lengths = np.asarray(mask.sum(axis=2))
    for kind in (0, 1):
        chosen = lengths[np.asarray(right) == kind]
        error = chosen.std() / np.sqrt(chosen.size)
        assert abs(chosen.mean() - expected_lengths(logits)[kind]) < 4 * error
    np.testing.assert_allclose(right.mean(), 0.25, atol=0.02)


def test_grpo_makes_wrong_answers_long_and_right_ones_short():
    wrong, right = trained("grpo").T
    assert (wrong > 8).all()
    assert (right < 2).all()


def test_dr_grpo_leaves_lengths_alone():
    lengths = trained("dr_grpo")
    assert (lengths > 4.3).all()
    assert (lengths < 5.4).all()
