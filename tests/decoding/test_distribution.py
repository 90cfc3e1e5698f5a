"""The draw against exact probabilities, truncation against a sort, ends of the unit interval."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxalign.decoding import distribution
from tests.compiled import compiled

greedy, sample, truncate, next_token = map(
    compiled, (distribution.greedy, distribution.sample, distribution.truncate, distribution.next_token)
)
VOCAB = 600  # three blocks, the last one padded


def softmax(x):
    weights = np.exp(np.asarray(x, np.float64) - np.max(x))
    return weights / weights.sum()


def truncated_probabilities(logits, top_k, top_p, min_p):
    """One row, by a stable sort: probabilities after top-k, then top-p, then min-p."""
    order = np.argsort(-logits, kind="stable")
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        mass = np.cumsum(softmax(logits[order]))
        order = order[: int(np.argmax(mass >= top_p)) + 1]
    keep = np.zeros(len(logits), bool)
    keep[order] = True
    keep &= logits >= logits.max() + np.log(max(min_p, 1e-300))
    probabilities = np.where(keep, softmax(logits), 0.0)
    return probabilities / probabilities.sum()


def chi_square_p_value(counts, probabilities):
    """Cells that expect fewer than 5 draws are merged; a token of probability 0 fails at once."""
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * counts.sum()
    large = expected >= 5
    observed = np.append(counts[large], counts[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    return stats.chisquare(observed, expected * (observed.sum() / expected.sum())).pvalue


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1.0),
        dict(temperature=1.3, top_k=40),
        dict(temperature=0.9, top_k=200, top_p=0.9, min_p=0.01),
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution(settings):
    # What is cut off is compared exactly below, and passing over every row 32 times takes time.
    draws = 50_000 if len(settings) == 1 else 10_000
    logits = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32) * 2
    uniforms = jax.random.uniform(jax.random.key(1), (draws // 1000, 1000, 2))
    row = jnp.broadcast_to(logits, (1000, VOCAB))
    tokens, _ = jax.jit(lambda u: jax.lax.map(lambda v: distribution.next_token(row, v, **settings), u))(uniforms)

    scaled = logits / np.float32(settings["temperature"])
    exact = truncated_probabilities(
        scaled, settings.get("top_k", 0), settings.get("top_p", 1.0), settings.get("min_p", 0.0)
    )
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=VOCAB)
    assert chi_square_p_value(counts, exact) > 1e-3


@pytest.mark.parametrize("vocab", [3, 256, 257, VOCAB])
def test_tokens_of_probability_zero_are_never_drawn(vocab):
    rng = np.random.default_rng(vocab)
    rows = rng.normal(size=(40, vocab)).astype(np.float32)
    for row in rows:  # zeros at both ends and, in the longer vocabularies, whole blocks of them
        low, high = np.sort(rng.choice(vocab + 1, 2, replace=False))
        row[:low], row[high:] = -np.inf, -200.0  # exp(-200) underflows
        row[(low + high) // 2] = 3.0
    ends = [0.0, 1e-30, 2.0**-23, 0.5, 1 - 2.0**-23, 1 - 2.0**-24, 1.0]
    pairs = np.float32(list(itertools.product(ends, ends)))  # each for all rows, row after row
    tokens = np.asarray(sample(np.tile(rows, (len(pairs), 1)), np.repeat(pairs, len(rows), axis=0)))
    drawn = rows[np.arange(len(rows)), tokens.reshape(len(pairs), len(rows))]
    assert (drawn > -100).all(), pairs[(drawn <= -100).any(axis=1)]


def test_rounded_running_sums_do_not_draw_an_empty_block():
    """Over 600 blocks XLA's running sum is a tree: it may rise where a zero is added.

    That is a vocabulary of 153,600. One token in every second block or so; each uniform number is
    put into such a rise.
    """
    rng = np.random.default_rng(0)
    values = np.where(rng.random((300, 600)) < 0.5, -np.inf, rng.normal(size=(300, 600)))
    values = values.astype(np.float32)
    values[:, 0] = 4.0  # the highest, clearly
    weights = np.exp(values - 4.0)
    running = np.asarray(jnp.cumsum(weights, axis=-1))
    row, block = np.nonzero((running[:, 1:] > running[:, :-1]) & (weights[:, 1:] == 0))
    uniform = (running[row, block] / running[row, -1]).astype(np.float32)
    target = uniform * running[row, -1]
    within = (target >= running[row, block]) & (target < running[row, block + 1])
    row, uniform = row[within][:16], uniform[within][:16]
    if len(row) == 0:
        pytest.skip("this backend's running sums are monotone")
    logits = np.full((len(row), 600, distribution.BLOCK), -np.inf, np.float32)
    logits[:, :, 9] = values[row]
    logits = logits.reshape(len(row), -1)
    tokens = np.asarray(sample(logits, np.stack([uniform, np.full(len(row), 0.5, np.float32)], axis=1)))
    assert (logits[np.arange(len(row)), tokens] > -np.inf).all()


def test_ends_of_the_unit_interval_are_the_first_and_the_last_possible_token():
    logits = np.full((2, VOCAB), -np.inf, np.float32)
    logits[:, [7, 300, 301]] = 0.0, 1.0, 0.0
    assert sample(logits, np.float32([[0, 0], [1, 1]])).tolist() == [7, 301]


def test_flat_distribution_over_a_large_vocabulary_reaches_every_part():
    """Running float32 sums over 49,152 equal weights must not favour either end."""
    vocab, draws = 49_152, 48 * 200
    tokens = jax.jit(jax.vmap(lambda u: distribution.sample(jnp.zeros((1, vocab)), u[None])[0]))(
        jax.random.uniform(jax.random.key(2), (draws, 2))
    )
    counts = np.histogram(np.asarray(tokens), bins=48, range=(0, vocab))[0]
    assert stats.chisquare(counts).pvalue > 1e-3
    inside = np.bincount(np.asarray(tokens) % distribution.BLOCK, minlength=distribution.BLOCK)
    assert stats.chisquare(inside).pvalue > 1e-3


def test_not_a_number_still_gives_an_id_of_the_vocabulary():
    logits = np.full((2, VOCAB), np.nan, np.float32)
    for temperature in (0.0, 1.0):
        found = next_token(logits, np.full((2, 2), 0.7, np.float32), temperature=temperature)
        tokens, log_probs = map(np.asarray, found)
        assert ((tokens >= 0) & (tokens < VOCAB)).all() and np.isnan(log_probs).all()


@pytest.mark.parametrize(
    "settings",
    [
        dict(top_k=1),
        dict(top_k=7),
        dict(top_k=VOCAB + 5),
        dict(top_p=0.3),
        dict(top_p=0.9),
        dict(top_p=1e-12),
        dict(min_p=0.2),
        dict(min_p=1.0),
        dict(top_k=50, top_p=0.7, min_p=0.1),
    ],
    ids=str,
)
def test_truncation_equals_a_plain_sort(settings):
    """Of logits without ties and of the same ones rounded, with many."""
    logits = np.random.default_rng(3).normal(size=(20, VOCAB)).astype(np.float32) * 3
    logits = np.concatenate([logits, np.round(logits)])
    kept = np.asarray(truncate(logits, **settings))
    for row, truncated in zip(logits, kept, strict=True):
        plain = truncated_probabilities(
            row, settings.get("top_k", 0), settings.get("top_p", 1.0), settings.get("min_p", 0.0)
        )
        np.testing.assert_array_equal(truncated > -np.inf, plain > 0)
        np.testing.assert_array_equal(truncated[plain > 0], row[plain > 0])


def test_top_p_keeps_the_smallest_sufficient_set():
    logits = np.log(np.float32([[0.125, 0.5, 0.25, 0.125]]))
    expected = {0.5: [1], 0.51: [1, 2], 0.8: [0, 1, 2], 0.9: [0, 1, 2, 3]}
    found = jax.jit(lambda x: [distribution.truncate(x, top_p=top_p)[0] > -jnp.inf for top_p in expected])(logits)
    for (top_p, ids), kept in zip(expected.items(), found, strict=True):
        assert np.flatnonzero(kept).tolist() == ids, top_p


def test_signed_zeros_are_equal():
    kept = np.asarray(truncate(np.float32([[-1.0, -0.0, 0.0, -0.0]]), top_k=2))[0] > -np.inf
    assert np.flatnonzero(kept).tolist() == [1, 2]


def test_greedy_is_the_first_maximum():
    logits = np.round(np.random.default_rng(4).normal(size=(200, VOCAB)) * 2).astype(np.float32)  # many ties
    np.testing.assert_array_equal(greedy(logits), logits.argmax(axis=-1))
    tokens, _ = next_token(logits, np.full((200, 2), 0.99, np.float32), temperature=1.0, top_k=1)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))


def test_smallest_temperatures_are_greedy_and_finite():
    random = np.random.default_rng(5)
    logits = random.normal(size=(50, VOCAB)).astype(np.float32) * 1e3
    uniforms = random.random((50, 2), np.float32)
    tokens, log_probs = next_token(logits, uniforms, temperature=1e-37)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    np.testing.assert_array_equal(log_probs, 0.0)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_log_probs_are_of_the_untruncated_scaled_distribution(temperature):
    random = np.random.default_rng(6)
    logits = random.normal(size=(30, VOCAB)).astype(np.float32) * 4 + 50
    uniforms = random.random((30, 2), np.float32)
    found = next_token(logits, uniforms, temperature=temperature, top_k=20, top_p=0.9)
    for row, token, log_prob in zip(logits, *map(np.asarray, found), strict=True):
        exact = np.log(softmax(row.astype(np.float64) / (temperature or 1.0))[token])
        assert log_prob == pytest.approx(exact, abs=2e-5)


def test_only_what_is_asked_for_is_compiled():
    def program(**settings):
        logits, uniforms = jnp.zeros((4, VOCAB)), jnp.zeros((4, 2))
        return jax.jit(lambda x, u: distribution.next_token(x, u, **settings)).lower(logits, uniforms).as_text()

    plain = program(temperature=0.7)
    assert "exponential" in plain and "stablehlo.while" not in plain
    truncating = program(temperature=0.7, top_k=10, top_p=0.9, min_p=0.1)
    assert "stablehlo.while" in truncating
    assert not any(word in plain + truncating for word in ("stablehlo.sort", "top_k"))
