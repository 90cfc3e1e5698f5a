"""Surgery on groups: leaving completions out, joining given answers, filling a step with groups that have a signal."""

import types

import numpy as np
import pytest

from experiments.given_answers import draw_answers, with_given
from experiments.groups import Groups, with_signal, without_smallest
from experiments.rollout import over_draws
from jaxalign.errors import UserError

P, G, T = 3, 3, 4


def groups(seed=0, prompts=P, width=5):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, T + 1, (prompts, G))
    return Groups(
        prompts=random.integers(1, 256, (prompts, width)).astype(np.int32),
        prompt_lengths=random.integers(1, width + 1, prompts).astype(np.int32),
        completions=random.integers(0, 256, (prompts, G, T)).astype(np.int32),
        mask=(np.arange(T) < lengths[..., None]).astype(np.float32),
        advantages=random.normal(size=(prompts, G)).astype(np.float32),
        absent_weight=np.zeros(prompts, np.float32),
        old_log_probs=random.normal(size=(prompts, G, T)).astype(np.float32),
        reference_log_probs=None,
    )


def test_the_smallest_of_each_group_is_left_out_and_what_has_no_reward_is_masked():
    batch = groups()
    weights = np.array([[1, 0, -2], [0.5, 3, 0], [0, 0, 2]], np.float32)
    rewards = np.array([[2, 1, -1], [1, 9, np.nan], [np.nan, np.nan, 3]], np.float32)
    batch = batch._replace(advantages=weights)
    found = without_smallest(batch, weights, rewards, 1)
    np.testing.assert_array_equal(found.advantages[:2], [[1, -2], [3, 0.5]])
    np.testing.assert_array_equal(found.completions[0], batch.completions[0, [0, 2]])
    np.testing.assert_array_equal(found.old_log_probs[1], batch.old_log_probs[1, [1, 0]])
    np.testing.assert_array_equal(found.mask[0], batch.mask[0, [0, 2]])
    np.testing.assert_array_equal(found.mask[1, 0], batch.mask[1, 1])
    assert not found.mask[1, 1].any()  # it only fills up the shape
    assert not found.mask[2].any()


def test_groups_with_a_signal_fill_the_step_in_the_order_drawn():
    first, second = groups(0), groups(1, width=8)
    signal = [np.array([False, True, False]), np.array([True, True, True])]
    found = with_signal([first, second], signal, 3)
    np.testing.assert_array_equal(found.completions[0], first.completions[1])
    np.testing.assert_array_equal(found.completions[1:], second.completions[:2])
    np.testing.assert_array_equal(found.prompts[0], [*first.prompts[1], 0, 0, 0])
    np.testing.assert_array_equal(found.mask[1:], second.mask[:2])
    few = with_signal([first], signal[:1], 3)
    assert few.completions.shape == first.completions.shape
    np.testing.assert_array_equal(few.mask.any(axis=(1, 2)), [True, False, False])


def test_metrics_of_several_draws_are_means_and_times_sums():
    found = over_draws([{"reward/mean": 1.0, "rollout/seconds": 2.0}, {"reward/mean": 0.0, "rollout/seconds": 1.0}])
    assert found == {"reward/mean": 0.5, "rollout/seconds": 3.0, "rollout/draws": 2.0}


class Letters:
    eos_ids = (0,)

    def encode(self, text):
        return [ord(letter) for letter in text]


def config(*fields):
    return types.SimpleNamespace(
        seed=0,
        data=types.SimpleNamespace(answer_fields=fields),
        rollout=types.SimpleNamespace(max_new_tokens=T),
    )


def test_a_given_answer_is_the_last_of_its_group():
    examples = [{"prompt": "?", "a": text, "b": text.upper()} for text in ("x", "yz", "abc")]
    batch = groups()
    given = draw_answers(config("a"), Letters(), examples, 0)
    found = with_given(batch, given, np.array([1.0, 2, 3], np.float32))
    np.testing.assert_array_equal(found.completions[:, :-1], batch.completions)
    np.testing.assert_array_equal(found.completions[1, -1], [ord("y"), ord("z"), 0, 0])
    np.testing.assert_array_equal(found.mask[:, -1].sum(axis=1), [2, 3, 4])  # with the end of the completion
    np.testing.assert_array_equal(found.advantages[:, -1], [1, 2, 3])
    np.testing.assert_array_equal(found.old_log_probs[:, -1], 0)
    assert found.reference_log_probs is None


def test_teachers_are_drawn_anew_in_each_step():
    examples = [{"prompt": "?", "a": "x", "b": "y"}] * 3
    drawn = [tuple(draw_answers(config("a", "b"), Letters(), examples, step).texts) for step in range(20)]
    assert len(set(drawn)) > 3
    assert drawn == [tuple(draw_answers(config("a", "b"), Letters(), examples, step).texts) for step in range(20)]
    with pytest.raises(UserError, match=r"no text under 'c'.*prompt, a, b"):
        draw_answers(config("c"), Letters(), examples, 0)
    with pytest.raises(UserError, match=r"has 5 tokens, more than config\.rollout\.max_new_tokens=4"):
        draw_answers(config("a"), Letters(), [{"prompt": "?", "a": "long"}], 0)
