"""What a step remembers of its prompts, without a model: the rollout is made up."""

import jax
import numpy as np
import pytest

from configs import gdro, infalign, spo
from experiments.curriculum import Curriculum
from experiments.groups import Groups
from experiments.rollout import Rollout
from jaxalign.errors import UserError
from jaxalign.rewards.advantages import advantages
from jaxalign.rewards.inference_aware import calibrate, transform

PROMPTS, BATCH, T = 40, 8, 3


def rollout(outcomes, owner, log_probs=None):
    outcomes = np.asarray(outcomes, np.float32)
    rows = len(owner)
    advantages = np.nan_to_num(outcomes - np.nanmean(outcomes, axis=1, keepdims=True))
    place = np.arange(rows) - np.searchsorted(owner, owner)
    own = advantages[owner, place][:, None] if rows != len(outcomes) else advantages
    ids = np.arange(rows * own.shape[1] * T, dtype=np.int32).reshape(rows, own.shape[1], T)
    batch = Groups(
        np.zeros((rows, 2), np.int32), np.ones(rows, np.int32), ids, np.ones(ids.shape, np.float32), own,
        np.zeros(rows, np.float32), None, None,
    )  # fmt: skip
    return Rollout(batch, {}, [], None, np.asarray(owner), outcomes, advantages, np.ones(len(outcomes), bool))


class Scorer:
    """Gives every token the log-prob `value`."""

    value = -1.0

    def score(self, params, prompts, lengths, ids, mask):
        return np.full(ids.shape, self.value, np.float32)


def test_spo_measures_against_the_rate_before_and_remembers_the_completion():
    config = spo.get_config("tiny")
    config.rollout.prompts_per_step, config.rollout.max_new_tokens = BATCH, T
    curriculum = Curriculum(config, PROMPTS)
    trials = np.zeros((2, PROMPTS, 8), np.float32)
    trials[1, :20, :4] = 1
    memory = curriculum.start(trials)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), memory, jax.eval_shape(curriculum.start))
    indices = curriculum.choose(memory, 0)
    assert len(set(indices.tolist())) == BATCH
    np.testing.assert_array_equal(indices, curriculum.choose(memory, 0))
    assert set(indices.tolist()) != set(curriculum.choose(memory, 1).tolist())

    indices = np.arange(16, 24)  # four that were right every other time, four that never were
    memory, known, plan = curriculum.plan(memory, indices)
    np.testing.assert_allclose(plan.baseline, [0.5] * 4 + [0.5 / 9] * 4, rtol=1e-5)
    assert plan.completions is None
    found = rollout(np.ones((BATCH, 1)), np.arange(BATCH))
    worker = Scorer()
    memory, metrics = curriculum.learn(memory, known, found, None, worker)
    assert metrics["prompts/first_visits"] == 1
    assert metrics["prompts/drift"] == 0
    np.testing.assert_allclose(metrics["prompts/retention"], 0.96, rtol=1e-6)
    np.testing.assert_allclose(memory["statistics"].successes[16], 0.96 * 4 + 1, rtol=1e-5)
    np.testing.assert_array_equal(memory["last"].ids[16:24], found.batch.completions[:, 0])
    np.testing.assert_array_equal(memory["last"].log_probs[16:24], -1)

    worker.value = -1.01  # the policy has moved by a sixth of the half-life
    memory, known, _ = curriculum.plan(memory, indices)
    memory, metrics = curriculum.learn(memory, known, found, None, worker)
    np.testing.assert_allclose(metrics["prompts/drift"], 0.01, rtol=1e-4)
    np.testing.assert_allclose(metrics["prompts/retention"], 2 ** (-1 / 6), rtol=1e-4)
    np.testing.assert_array_equal(np.asarray(memory["statistics"].visits).nonzero()[0], indices)


def test_gdro_deals_out_completions_at_an_exact_mean_and_weighs_hard_classes():
    config = gdro.get_config("tiny,rollout")
    config.prompts.weighting.enabled = True
    curriculum = Curriculum(config, PROMPTS)
    memory, indices = curriculum.start(), np.arange(BATCH)
    random = np.random.default_rng(0)
    for step in range(12):
        memory, known, plan = curriculum.plan(memory, indices)
        assert plan.completions.sum() == 4 * BATCH
        assert step or (plan.completions == 4).all()
        outcomes = np.full((BATCH, 12), np.nan)
        for prompt, count in enumerate(plan.completions):
            outcomes[prompt, :count] = random.random(count) < (0.9 if prompt < 4 else 0.3)
        found = rollout(outcomes, np.repeat(indices, plan.completions))
        memory, batch, metrics = curriculum.weigh(memory, known, found)
        before = found.batch.advantages[:, 0]
        weights = np.divide(batch.advantages[:, 0], before, out=np.ones_like(before), where=before != 0)
        assert metrics["prompts/price"] == 0
        memory, _ = curriculum.learn(memory, known, found, None, None)
    assert len(set(known.classes.tolist())) > 1
    hard = found.owner >= 4
    assert weights[hard & (before != 0)].mean() > weights[~hard & (before != 0)].mean()
    assert known.classes[:4].mean() > known.classes[4:].mean()
    np.testing.assert_array_equal(memory["statistics"].visits[:BATCH], 12)


def test_infalign_keeps_the_reference_rewards_of_each_prompt():
    config = infalign.get_config("tiny")
    curriculum = Curriculum(config, PROMPTS)
    assert curriculum.trials == 32
    trials = np.random.default_rng(0).random((2, PROMPTS, 32)).astype(np.float32)
    memory, _, plan = curriculum.plan(curriculum.start(trials), [3, 1])
    np.testing.assert_array_equal(plan.reference_rewards, trials[0, [3, 1]])
    assert set(memory) == {"reference_rewards"}


@pytest.mark.parametrize(("kind", "ratio"), [("identity", 1.0), ("exp", np.exp(4.0))])
def test_the_advantages_of_infalign_keep_its_transform(kind, ratio):
    """Prompts that the reference solves with 0.1 and 0.9: C is 0.95 or 0.45 there, 0.55 or 0.05 here."""
    config = infalign.get_config("tiny")
    config.reward.transform.kind = kind
    reference = (np.arange(10) < np.array([[1], [9]])).astype(np.float32)
    calibrated = calibrate(np.array([[1, 0, 0, 0], [1, 1, 1, 0]], np.float32), reference)
    found = advantages(
        rewards=transform(calibrated, **config.reward.transform).reshape(-1), group_size=4, **config.rl.advantages
    )
    hard, easy = np.ptp(np.asarray(found).reshape(2, 4), axis=1)
    np.testing.assert_allclose(hard / easy, ratio, rtol=1e-3)


def test_rewards_that_are_no_rates_are_refused():
    curriculum = Curriculum(gdro.get_config("tiny"), PROMPTS)
    memory, known, _ = curriculum.plan(curriculum.start(), np.arange(2))
    with pytest.raises(UserError, match=r"gave 2; put a reward within \[0, 1\] first"):
        curriculum.learn(memory, known, rollout(np.full((2, 4), 2.0), np.arange(2)), None, None)
