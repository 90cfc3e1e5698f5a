import itertools

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxalign.controllers import difficulty_classes, prompt_gdro, rollout_gdro
from jaxalign.controllers.difficulty_classes import equal_edges
from tests.compiled import compiled

update_classes, update_weights = compiled(difficulty_classes.update), compiled(prompt_gdro.update)
few_examples = hypothesis.settings(deadline=None, max_examples=40, derandomize=True)


def classify(rates, edges, hysteresis):
    """The classes of one prompt whose rate goes through `rates`, by a plain loop."""
    found, current = [], None
    for rate in rates:
        raw = sum(np.float32(edge) <= rate for edge in edges)
        if current is not None:
            lower = edges[current - 1] if current else -np.inf
            upper = edges[current] if current < len(edges) else np.inf
            if np.float32(lower - hysteresis) < rate < np.float32(upper + hysteresis):
                raw = current
        current = raw
        found.append(current)
    return found


@few_examples
@hypothesis.given(st.lists(st.integers(0, 20).map(lambda i: np.float32(i / 20)), min_size=5, max_size=5))
def test_classes_are_left_beyond_the_hysteresis_only(rates):
    edges = (0.2, 0.5, 0.9)
    state, found = difficulty_classes.init(3), []
    for rate in rates:
        state, classes = update_classes(state, np.array([1]), np.array([rate]), edges, hysteresis=0.06)
        found.append(int(classes[0]))
    assert found == classify(rates, edges, 0.06)
    np.testing.assert_array_equal(state.last, [-1, found[-1], -1])


def test_equal_intervals_are_exact_and_prompts_can_fall():
    rates = np.float32(np.arange(11) / 10)
    _, classes = update_classes(difficulty_classes.init(11), np.arange(11), rates, equal_edges(10))
    np.testing.assert_array_equal(classes, [*range(10), 9])
    state, _ = update_classes(difficulty_classes.init(1), np.array([0]), np.array([0.55]), equal_edges(10))
    for rate, expected in ((0.48, 5), (0.46, 4), (0.0, 0)):
        state, classes = update_classes(state, np.array([0]), np.array([rate]), equal_edges(10))
        assert int(classes[0]) == expected


def weights_by_hand(state, classes, losses, decay, step_size, mixing, max_weight):
    average, seen = list(state[0]), list(state[1])
    for c in set(classes):
        own = [loss for k, loss in zip(classes, losses, strict=True) if k == c and not np.isnan(loss)]
        if own:
            average[c] = (1 - decay) * average[c] + decay * np.mean(own) if seen[c] else np.mean(own)
            seen[c] = True
    present = sorted(set(classes))
    e = {c: np.exp(step_size * average[c]) for c in present}
    q = {c: (1 - mixing) * e[c] / sum(e.values()) + mixing / len(present) for c in present}
    raw = np.array([q[c] for c in classes])
    return average, seen, np.minimum(raw / raw.mean(), max_weight)


@few_examples
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0, 2.0, np.nan])), min_size=5, max_size=5),
    st.sampled_from([{}, {"step_size": 3.0, "decay": 0.4}, {"mixing": 0.3, "max_weight": 1.5}]),
)
def test_weights_are_those_of_the_loops(batch, options):
    classes, losses = map(list, zip(*batch, strict=True))
    state = prompt_gdro.PromptGdro(np.float32([0.5, 0, 2, 0]), np.array([True, False, True, False]))
    found, weights = update_weights(state, np.array(classes), np.array(losses), **options)
    settings = {"decay": 0.12, "step_size": 0.65, "mixing": 0.01, "max_weight": 15.0} | options
    average, seen, expected = weights_by_hand(state, classes, losses, **settings)
    np.testing.assert_allclose(found.average, average, rtol=1e-5)
    np.testing.assert_array_equal(found.seen, seen)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_one_class_alone_has_weight_one():
    _, weights = update_weights(prompt_gdro.init(3), np.array([2, 2]), np.array([0.3, 5.0]), step_size=1e4)
    np.testing.assert_allclose(weights, [1, 1])


def test_the_other_forms_of_weights():
    classes, losses = np.array([0, 1, 1, 1]), np.array([1.0, 0.2, 0.2, 0.2])
    start = prompt_gdro.init(3)
    _, plain = update_weights(start, classes, losses, weighting="exponential", max_weight=1.5)
    np.testing.assert_allclose(plain, [1.5, *[np.exp(0.13)] * 3], rtol=1e-5)
    _, limited = update_weights(start, classes, losses, weighting="exponential", limit=0.1)
    np.testing.assert_allclose(limited, np.exp(0.065), rtol=1e-5)
    state, shared = update_weights(start, classes, losses, share_floor=0.5)
    np.testing.assert_allclose(state.average[:2], [1 / 0.5, 0.2 / 0.75], rtol=1e-5)
    assert shared[0] > plain[1]
    # two classes are +-1 standard deviations from their mean, whatever their losses
    _, standard = update_weights(start, classes, losses, score="standardised", step_size=1.0, mixing=0.0)
    q = np.array([np.e, 1 / np.e]) / (np.e + 1 / np.e)
    np.testing.assert_allclose(standard[0] / standard[1], q[0] / q[1], rtol=1e-5)


def test_fixed_losses_lead_to_the_entropic_game():
    """q is the softmax of eta L mixed with uniform, the gradient of R = log(sum exp(eta L)) / eta >= max L."""
    losses, eta = np.float32([1.0, 0.5, 0.2, 0.1]), 4.0
    state = prompt_gdro.init(4)
    for _ in range(3):
        state, weights = update_weights(state, np.arange(4), losses, step_size=eta, mixing=0.1)
    powers = np.exp(eta * losses)
    value, gradient = np.log(powers.sum()) / eta, powers / powers.sum()
    np.testing.assert_allclose(weights / 4, 0.9 * gradient + 0.1 / 4, rtol=1e-5)
    assert 1.0 <= value <= 1.0 + np.log(4) / eta


@few_examples
@hypothesis.given(
    st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any), st.integers(0, 60), st.integers(0, 10_000)
)
def test_the_choice_of_arms_is_the_best_of_all(counts, total, seed):
    arms, counts = (2, 3, 5), np.array(counts)
    values = np.random.default_rng(seed).normal(size=(3, 3))
    chosen, met = rollout_gdro.choose_arms(values, counts, arms, total)
    options = []
    for arm in itertools.product(range(3), repeat=3):
        used = int((counts * np.array(arms)[list(arm)]).sum())
        options.append((abs(used - total), -values[range(3), arm].sum()))
    found = (abs(int((counts * np.array(arms)[chosen]).sum()) - total), -values[range(3), chosen].sum())
    np.testing.assert_allclose(found, min(options))
    assert met == (found[0] == 0)


SHARES, VARIANCES, BUDGET = np.array([30, 20, 10, 4]), np.array([0.01, 0.2, 0.25, 0.1]), 4
ARMS = tuple(range(2, 13))


def proxy(completions):
    """sum of share v / n, against that of equal numbers."""
    q = SHARES / SHARES.sum()
    return (q * VARIANCES / completions).sum() / ((q * VARIANCES).sum() / BUDGET)


def test_the_square_root_law_bounds_every_whole_choice():
    q = SHARES / SHARES.sum()
    best = (q @ np.sqrt(VARIANCES)) ** 2 / BUDGET
    numbers = BUDGET * np.sqrt(VARIANCES) / (q @ np.sqrt(VARIANCES))
    np.testing.assert_allclose(q @ numbers, BUDGET)
    np.testing.assert_allclose((q * VARIANCES / numbers).sum(), best)
    cost = SHARES[:, None] * VARIANCES[:, None] / np.array(ARMS)
    chosen, met = rollout_gdro.choose_arms(-cost, SHARES, ARMS, BUDGET * SHARES.sum())
    assert met
    ratio = proxy(np.array(ARMS)[chosen])
    assert best / ((q * VARIANCES).sum() / BUDGET) <= ratio < 0.76


def play(score, scale):
    """The proxy of the last 100 of 400 steps with noisy utilities, and whether every budget was met."""
    random = np.random.default_rng(0)
    state, found, exact = rollout_gdro.init(4, len(ARMS)), [], True
    for _ in range(400):
        log_probs = rollout_gdro.arm_log_probs(state, score=score)
        chosen, met = rollout_gdro.choose_arms(log_probs, SHARES, ARMS, BUDGET * SHARES.sum())
        numbers = np.array(ARMS)[chosen]
        earned = rollout_gdro.utility("variance_proxy", np.zeros(4), VARIANCES * random.uniform(0.8, 1.2, 4), numbers)
        state, price = rollout_gdro.update(state, chosen, SHARES, scale * earned, ARMS, BUDGET)
        exact &= met and price == 0
        found.append(proxy(numbers))
    return np.mean(found[-100:]), exact


def test_averaged_scores_find_the_law_and_summed_ones_do_not():
    (averaged, exact), (summed, _), (scaled, _) = play("mean", 1), play("sum", 1), play("sum", 20)
    assert exact
    assert averaged < 0.90
    assert summed > averaged + 0.05
    assert scaled > 1


def test_the_price_follows_a_budget_that_cannot_be_met():
    state = rollout_gdro.init(2, 2)
    chosen, counts = np.array([1, 0]), np.array([3, 1])
    state, price = rollout_gdro.update(state, chosen, counts, np.array([1.0, 2.0]), (2, 4), 3.0, price_step=0.1)
    np.testing.assert_allclose(price, 0.1 * (14 / 4 - 3))
    np.testing.assert_allclose(state.score, [[0, 1], [2, 0]])
    utilities = np.array([1.0, np.nan])
    state, _ = rollout_gdro.update(state, chosen, counts, utilities, (2, 4), 3.0, price_step=0.1)
    np.testing.assert_allclose(state.score, [[0, 2 - 0.05], [2, 0]])
    np.testing.assert_array_equal(state.plays, [[0, 2], [1, 0]])
    unchanged, _ = rollout_gdro.update(state, chosen, np.zeros(2, int), utilities, (2, 4), 3.0)
    assert unchanged is state


def test_utilities_have_the_sign_of_their_name():
    arguments = np.array([0.5]), np.array([0.2]), np.array([4])
    found = [float(rollout_gdro.utility(kind, *arguments)[0]) for kind in ("minus_loss", "plus_loss", "variance_proxy")]
    np.testing.assert_allclose(found, [-0.5, 0.5, -0.05])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="must increase"):
        difficulty_classes.update(difficulty_classes.init(1), jnp.array([0]), jnp.array([0.1]), (0.5, 0.2))
    with pytest.raises(ValueError, match="score='best'"):
        prompt_gdro.update(prompt_gdro.init(1), jnp.array([0]), jnp.array([0.1]), score="best")
    with pytest.raises(ValueError, match="utility 'reward'"):
        rollout_gdro.utility("reward", np.zeros(1), np.zeros(1), np.ones(1))
    with pytest.raises(ValueError, match="0 prompts"):
        rollout_gdro.choose_arms(np.zeros((1, 2)), np.zeros(1, int), (2, 4), 4)
