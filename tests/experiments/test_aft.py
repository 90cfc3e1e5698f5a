"""AFT, RRHF and PRO in the RL experiment, on own chains beside the given one; and the study of AFT."""

import math

import jax
import numpy as np
import pytest

from configs import aft
from experiments import rl
from experiments.groups import Groups
from experiments.objectives import OBJECTIVES
from experiments.studies import aft as study
from jaxalign.errors import UserError
from jaxalign.losses.log_probs import TokenLogProbs
from tests.experiments import runs


def batch(random):
    """Three own chains and, last, the given one. Of the second question an own chain is the given one again, of the
    third two own chains are equal and one could not be scored."""
    completions, lengths = random.integers(1, 99, (3, 4, 4)), random.integers(1, 5, (3, 4))
    completions[1, 1, : lengths[1, 3]], lengths[1, 1] = completions[1, 3, : lengths[1, 3]], lengths[1, 3]
    completions[2, 2, : lengths[2, 0]], lengths[2, 2] = completions[2, 0, : lengths[2, 0]], lengths[2, 0]
    rewards = np.array([[0, 1, 0, 1], [0, 1, 0, 1], [0, np.nan, 0, 1]], np.float32)
    rest = dict.fromkeys(("prompts", "prompt_lengths", "absent_weight", "old_log_probs", "reference_log_probs"))
    mask = (np.arange(4) < lengths[..., None]).astype(np.float32)
    return Groups(completions=completions, mask=mask, advantages=np.zeros((3, 4)), rewards=rewards, **rest)


# The distinct chains of each question by their places above: (right ones, wrong ones).
SIDES = [((1, 3), (0, 2)), ((3,), (0, 2)), ((3,), (0,))]


@pytest.mark.parametrize("name", ["aft_loss", "rrhf_loss", "pro_loss"])
def test_each_distinct_chain_counts_once(name):
    random = np.random.default_rng(0)
    groups, log_probs = batch(random), -random.exponential(size=(3, 4, 4))
    # Copies are one text and have one log-prob; that of the later ones must not matter at all.
    log_probs[1, 1], log_probs[2, 2] = np.nan, np.nan
    found = jax.jit(OBJECTIVES[name])(TokenLogProbs(log_probs, None), groups)
    s = np.where(groups.mask > 0, log_probs, 0).sum(-1) / groups.mask.sum(-1)
    expected = 0.0
    for question, (right, wrong) in enumerate(SIDES):
        gaps = np.array([[s[question, j] - s[question, i] for j in wrong] for i in right])
        expected += {
            "aft_loss": math.log(1 + np.exp(gaps).sum()),
            "rrhf_loss": np.maximum(gaps, 0).sum(),
            "pro_loss": np.log(1 + np.exp(gaps).sum(axis=1)).sum(),
        }[name]
        expected -= s[question, 3]
    np.testing.assert_allclose(found.total, expected, rtol=1e-5)
    assert found.weight == 3
    assert found.metrics["copies"] == (2, 12)
    assert found.metrics["pairs"] == (7, 3)


def test_words_choose_the_loss():
    configs = {word: aft.get_config(word) for word in ("", "boundary", "none", "rrhf", "pro")}
    for config in configs.values():
        rl.build_loss(config, None)  # the names of options are those of nothing else
    objectives = {word: config.rl for word, config in configs.items()}
    assert [x.objective for x in objectives.values()] == ["aft_loss"] * 3 + ["rrhf_loss", "pro_loss"]
    assert [objectives[word].loss.constraint for word in ("", "boundary", "none")] == ["detached", "boundary", "none"]
    with pytest.raises(UserError, match="exclude each other"):
        aft.get_config("none,pro")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.answer_fields", (), r"answer_fields=\(\) does not go with config.rl.objective='aft_loss'"),
        ("rollout.group_size", 1, r"group_size of at least 2"),
        ("prompts.weighting.enabled", True, r"no config.prompts.weighting"),
        ("reward.reference_completions", 8, r"set config.reward.reference_completions=0"),
    ],
)
def test_impossible_settings_are_refused(key, value, message):
    config = aft.get_config("tiny")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        rl.check(config)


def test_a_run(tmp_path):
    overrides = ("train.steps=2", "rollout.prompts_per_step=8", "rollout.group_size=2", "warm_start.steps=2")
    overrides += ("data.held_out=", "rl.report_kl_prompts=0")
    ended = runs.run("configs/aft.py:tiny,boundary", tmp_path, *(f"--config.{text}" for text in overrides))
    assert ended.code == 0, ended.err
    last = runs.rows(tmp_path)[-1]
    assert 0 < last["pairs"] <= 2  # an untrained model is always wrong, the given chain is right
    assert last["score_better"] < 0 and last["score_worse"] < 0
    assert 0 <= last["assessment_accuracy"] <= 1 and 0 <= last["below_boundary"] <= 1


def test_the_study_runs(monkeypatch):
    monkeypatch.setattr(study, "TRAINED", study.TESTED)  # one shape to sample
    before, after = (study.run(setting, 0, steps=2, first_steps=20) for setting in ("start", "rrhf detached"))
    assert set(before) == {"accuracy", "score_better", "score_worse", "assessment_accuracy"}
    assert before["score_better"] != after["score_better"] < 0


def test_chains_of_the_study_follow_their_rule():
    prompts, chains = study.questions(np.random.default_rng(0), 50)
    before = np.c_[np.zeros(50, int), chains[:, :-1]]
    np.testing.assert_array_equal(chains, (3 * before + 7 * prompts[:, : study.DIGITS] + 2) % 10)
    assert (prompts[:, -1] == study.SEPARATOR).all()
