"""Held-out questions: what is sampled and scored; the model is made up."""

import numpy as np
import pytest

from configs import grpo_qwen
from experiments.questions import HeldOut, Questions, make_rewards
from experiments.setup import build_model
from jaxalign.errors import UserError


def held_out(**options):
    config = grpo_qwen.get_config("tiny")
    config.evaluation.update(max_questions=6, **options)
    model = build_model(config)
    questions = Questions(config.data.held_out, model.tokenizer, config.data, "held_out")
    return HeldOut(model, questions, make_rewards(config.reward), config.evaluation), model


class Session(dict):
    def has(self, name, when):
        return (name, when) in self

    def print(self, text):
        pass

    def record(self, name, when, scores):
        self[name, when] = scores


def test_pass_rates_count_the_right_ones_of_several_samples(monkeypatch):
    found, model = held_out(samples=4, pass_at=(1, 3))
    params = model.read()
    right = np.array([0, 1, 2, 3, 4, 0])

    def scores(ids, lengths, questions):
        if len(questions) == 6:
            return np.ones(6, np.float32)
        assert [question["prompt"] for question in questions[::4]] == [q["prompt"] for q in found.questions]
        assert len({tuple(row) for row in ids}) > 6  # sampled, not greedy
        return (np.arange(4) < right[:, None]).astype(np.float32).reshape(-1)

    monkeypatch.setattr(found, "_scores", scores)
    session = Session()
    found.record(session, params, "after")
    np.testing.assert_allclose(session["held-out pass@1, 4 samples", "after"], right / 4)
    # All three of the drawn samples are wrong: C(wrong, 3) / C(4, 3).
    np.testing.assert_allclose(session["held-out pass@3, 4 samples", "after"], [0, 3 / 4, 1, 1, 1, 0])
    assert set(session) >= {("held-out solve rate, greedy, 4 new tokens", "after")}


def test_nothing_is_sampled_unless_asked_for_and_k_must_fit():
    found, model = held_out()
    assert found.pass_rates(model.read()) == {}
    with pytest.raises(UserError, match=r"pass_at=\(1, 4\) must be numbers from 1 to config.evaluation.samples=2"):
        held_out(samples=2)
