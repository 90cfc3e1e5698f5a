"""PPO's value function in a run: what it is before the first step, what moves it, and what it makes of rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.critic import Critic
from experiments.groups import Groups
from experiments.objectives import make_loss
from experiments.setup import build_model, build_policy
from jaxalign.errors import UserError
from jaxalign.models.value_head import NAME, without_value_head
from jaxalign.rewards.statistics import whiten
from jaxalign.training import configuration

PROMPTS, GROUP, TIME = 2, 3, 5


@pytest.fixture(scope="module")
def start():
    config = configuration.load_config("configs/ppo.py:tiny")
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.compute_dtype = "float32"
    model = build_model(config)
    policy = build_policy(config, model)
    return config, model, policy, policy.begin(model.read())


def completions(seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, TIME + 1, (PROMPTS, GROUP))
    lengths[0, 0] = TIME
    mask = (np.arange(TIME) < lengths[..., None]).astype(np.float32)
    prompts = random.integers(1, 200, (PROMPTS, 4)).astype(np.int32)
    ids = random.integers(1, 200, mask.shape).astype(np.int32)
    return (prompts, np.full(PROMPTS, 4, np.int32), ids, mask), lengths, random


def test_without_values_advantages_are_discounted_rewards(start):
    """V = 0: A_t = lambda^(n - 1 - t) r, whitened over the tokens, and returns are A before whitening."""
    config, model, _, params = start
    scored, lengths, random = completions()
    rewards = random.integers(0, 2, (PROMPTS, GROUP)).astype(np.float32)
    log_probs = random.normal(size=scored[3].shape).astype(np.float32)
    found = Critic(config, model)(params, scored, rewards, log_probs, None)
    left = lengths[..., None] - 1 - np.arange(TIME)
    expected = np.where(scored[3] > 0, 0.95 ** np.maximum(left, 0) * rewards[..., None], 0)
    assert (found.values == 0).all()
    np.testing.assert_allclose(found.returns, expected, rtol=1e-5)
    np.testing.assert_allclose(found.advantages, whiten(jnp.asarray(expected), scored[3]), rtol=1e-4, atol=1e-5)


def test_the_kl_is_taken_off_token_by_token(start):
    config, model, _, params = start
    scored, lengths, random = completions()
    rewards = np.zeros((PROMPTS, GROUP), np.float32)
    log_probs, reference = (random.normal(size=scored[3].shape).astype(np.float32) for _ in range(2))
    found = Critic(config, model)(params, scored, rewards, log_probs, reference)
    penalty = -config.reward.kl_coefficient * (log_probs - reference) * scored[3]
    for row in np.ndindex(PROMPTS, GROUP):
        expected = [
            sum(0.95 ** (later - t) * penalty[row][later] for later in range(t, lengths[row]))
            for t in range(lengths[row])
        ]
        np.testing.assert_allclose(found.returns[row][: lengths[row]], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("detached", [True, False])
def test_what_the_value_error_moves(start, detached):
    """With advantages 0 only values are in error: detached they move their head alone."""
    _, model, _, params = start
    scored, _, _ = completions()
    zeros = np.zeros(scored[3].shape, np.float32)
    batch = Groups(*scored, zeros, np.zeros(PROMPTS, np.float32), None, None, old_values=zeros, returns=zeros + 1)
    loss_fn = make_loss(model.decoder, temperature=1.0, share_prompt=True, objective="ppo_loss", detach_values=detached)
    # The head must not be 0, or nothing could flow through it.
    params = params | {NAME: jax.tree.map(lambda x: x + 0.1, params[NAME])}
    moved = jax.jit(jax.grad(lambda p: loss_fn(p, batch, None, None).total))(params)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(moved[NAME]))
    trunk = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(without_value_head(moved)))
    assert (trunk == 0) == detached


def test_an_adapter_is_refused():
    config = configuration.load_config("configs/ppo.py:tiny")
    config.adapter.kind = "lora"
    with pytest.raises(UserError, match=r"does not go with config\.rl\.objective='ppo_loss'"):
        build_policy(config, build_model(config))
