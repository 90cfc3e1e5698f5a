"""The studies on tables of InfAlign and of the preference losses run, and what they measure is what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import inference_aware, preference_tables, symbolic_losses


def test_win_rates_of_tables():
    """Best-of-n of a policy is the policy itself for n = 1, and 1/2 against itself for all n."""
    rewards, log_reference = inference_aware.problem(jax.random.key(0))
    for n, best in ((1, True), (4, True), (4, False)):
        half = inference_aware.win_rate(rewards, log_reference, log_reference, n, best)
        np.testing.assert_allclose(half, 0.5, atol=1e-5)
    policy = jax.nn.log_softmax(log_reference + (rewards > jnp.median(rewards, axis=1, keepdims=True)))
    p, q = np.exp(np.float64(policy)), np.exp(np.float64(log_reference))
    beats = (rewards[:, :, None] > rewards[:, None]) + 0.5 * (rewards[:, :, None] == rewards[:, None])
    expected = np.einsum("pi,pij,pj->p", p, np.asarray(beats), q).mean()
    np.testing.assert_allclose(inference_aware.win_rate(rewards, policy, log_reference, 1, True), expected, rtol=1e-4)


def test_the_policy_moves_to_the_calibrated_reward():
    found = inference_aware.train("identity", jnp.float32(0.5), jax.random.key(0), steps=20)
    assert 0.52 < found["standard"] < 1
    assert found["kl"] > 0


def test_dpo_of_clean_labels_finds_the_optimum():
    kl = {setting: preference_tables.run(setting, seed=0)["log_kl"] for setting in ("start", "dpo, clean, 600")}
    assert kl["dpo, clean, 600"] < min(kl["start"] - 2, np.log(0.06))


@pytest.mark.parametrize("setting", ["orpo with reference", "cpo"])
def test_a_formula_becomes_true(setting):
    before, after = (symbolic_losses.run(setting, seed=0, steps=steps) for steps in (0, 100))
    assert after["satisfied"] > before["satisfied"] + 0.2
