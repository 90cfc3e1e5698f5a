"""InfoNCE, NT-Xent, CLIP and SigLIP against loops over pairs in NumPy, their special points and their memory."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.contrastive import clip_loss, info_nce, nt_xent, siglip_loss
from jaxalign.objective import loss

ROWS, WIDTH = 7, 3
TEMPERATURE, LOG_SCALE, BIAS = 0.3, 1.3, -1.1


def problem(rows=ROWS, width=WIDTH, seed=0):
    random = np.random.default_rng(seed)
    return {"a": random.normal(size=(rows, width)), "b": random.normal(size=(rows, width))}


def more(rows=ROWS, width=WIDTH):
    """A padding row, two rows that are the same thing, and candidates that are nobody's partner."""
    valid, ids = np.ones(rows), np.arange(rows) + 10
    valid[2] = 0
    ids[4] = ids[1]
    return {"valid": valid, "ids": ids, "extra_negatives": np.random.default_rng(5).normal(size=(4, width))}


def cosine(x, y):
    return float(x @ y / max(np.linalg.norm(x), 1e-12) / max(np.linalg.norm(y), 1e-12))


def log_sum_exp(values):
    return max(values) + np.log(np.sum(np.exp(np.array(values) - max(values))))


def reference(name, a, b, valid=None, ids=None, extra_negatives=()):
    """(loss, accuracy) from the definitions, pair by pair."""
    rows = [i for i in range(len(a)) if valid is None or valid[i]]

    def others(i):
        return [j for j in rows if j != i and (ids is None or ids[j] != ids[i])]

    def softmax(anchor, partner, negatives, scale):
        positive, logits = scale * cosine(anchor, partner), [scale * cosine(anchor, x) for x in negatives]
        return log_sum_exp([positive, *logits]) - positive, all(positive > z for z in logits)

    found = []
    for i in rows:
        if name == "info_nce":
            negatives = [b[j] for j in others(i)] + list(extra_negatives)
            found.append(softmax(a[i], b[i], negatives, 1 / TEMPERATURE))
        elif name == "clip":
            forth = softmax(a[i], b[i], [b[j] for j in others(i)], np.exp(LOG_SCALE))
            back = softmax(b[i], a[i], [a[j] for j in others(i)], np.exp(LOG_SCALE))
            found.append(np.add(forth, back) / 2)
        elif name == "nt_xent":
            negatives = [x[j] for j in others(i) for x in (a, b)]
            found += [softmax(a[i], b[i], negatives, 1 / TEMPERATURE), softmax(b[i], a[i], negatives, 1 / TEMPERATURE)]
        else:
            logits = [np.exp(LOG_SCALE) * cosine(a[i], b[j]) + BIAS for j in [i, *others(i)]]
            pairs = [np.log1p(np.exp(-logits[0]))] + [np.log1p(np.exp(z)) for z in logits[1:]]
            found.append((sum(pairs), all(logits[0] > z for z in logits[1:])))
    return np.mean(found, axis=0)


LOSSES = {
    "info_nce": lambda a, b, **options: info_nce(a, b, TEMPERATURE, **options),
    "clip": lambda a, b, **options: clip_loss(a, b, LOG_SCALE, **options),
    "nt_xent": lambda a, b, **options: nt_xent(a, b, TEMPERATURE, **options),
    "siglip": lambda a, b, **options: siglip_loss(a, b, LOG_SCALE, BIAS, **options),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def options_of(name):
    options = more()
    if name != "info_nce":
        del options["extra_negatives"]
    return options


@every_loss
def test_value_and_gradient_are_those_of_the_definition(name):
    """Plain, and with padding, duplicates and extra negatives; gradients by central differences of the loops.

    Chunks, of which the last is not full, change neither.
    """
    arrays, options = problem(), options_of(name)

    @jax.jit
    def all_of_it(arrays, options):
        def value(arrays, options, chunk=None):
            objective = LOSSES[name](**arrays, **options, chunk=chunk)
            return loss(objective), objective

        value_and_gradient = jax.value_and_grad(value, has_aux=True)
        return [value_and_gradient(arrays, *some) for some in (({},), (options,), (options, 3))]

    with jax.enable_x64(True):
        *found, in_chunks = all_of_it(arrays, options)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), in_chunks, found[1])
    for ((value, objective), gradient), some in zip(found, ({}, options), strict=True):
        want, accuracy = reference(name, **arrays, **some)
        np.testing.assert_allclose(value, want, rtol=1e-10)
        total, weight = objective.metrics["accuracy"]
        np.testing.assert_allclose(total / weight, accuracy, rtol=1e-10)
        anchors = ROWS - 1 if some else ROWS
        assert float(objective.weight) == (2 if name == "nt_xent" else 1) * anchors
        for key, x in arrays.items():
            slopes = np.zeros_like(x)
            for at in np.ndindex(x.shape):
                step = np.zeros_like(x)
                step[at] = 1e-5
                ends = [reference(name, **(arrays | {key: x + s}), **some)[0] for s in (step, -step)]
                slopes[at] = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(gradient[key], slopes, atol=1e-8)


@every_loss
def test_special_batches(name):
    """One row that counts: nothing to tell apart. Zero vectors: all cosines 0. A NaN is seen unless in padding."""
    value = jax.jit(jax.value_and_grad(lambda a, b, valid: loss(LOSSES[name](a, b, valid=valid)), argnums=(0, 1)))
    first = np.array([1.0, 0, 0, 0])
    a, b = np.random.default_rng(1).normal(size=(2, 4, 2))
    one, gradient = value(a, b, first)
    if name == "siglip":
        z = np.exp(LOG_SCALE) * cosine(a[0], b[0]) + BIAS
        np.testing.assert_allclose(one, np.log1p(np.exp(-z)), rtol=1e-6)
    else:
        assert float(one) == 0 and not np.any(gradient)

    zeros = np.zeros((4, 2))
    found, gradient = value(zeros, zeros, np.ones(4))
    uninformed = {"siglip": np.log1p(np.exp(-BIAS)) + 3 * np.log1p(np.exp(BIAS)), "nt_xent": np.log(7)}
    np.testing.assert_allclose(found, uninformed.get(name, np.log(4)), rtol=1e-6)
    assert not np.any(gradient)

    bad = np.where(np.arange(8).reshape(4, 2) == 2, np.nan, a)
    assert np.isnan(value(bad, a, np.ones(4))[0])
    found, gradient = value(bad, a, np.array([1.0, 0, 1, 1]))
    assert np.isfinite(found) and all(np.isfinite(g).all() and not np.any(g[1]) for g in gradient)


def test_equal_embeddings_say_nothing():
    """log B, also where the scale makes exp(z) overflow float32; and no anchor counts as a hit."""
    x = jnp.ones((8, 3))
    for objective in jax.jit(lambda x: (info_nce(x, x, 0.01), clip_loss(x, x, 9.0)))(x):
        np.testing.assert_allclose(loss(objective), np.log(8), rtol=1e-5)
        assert float(objective.metrics["accuracy"][0]) == 0


def test_a_small_loss_keeps_its_digits():
    """Orthogonal pairs at scale 40: log1p(2 exp(-40)), which a difference of logits would round to 0."""
    x = jnp.eye(3)
    np.testing.assert_allclose(jax.jit(info_nce)(x, x, 1 / 40).total / 3, 2 * np.exp(-40.0), rtol=1e-5)


def test_the_scale_learns_below_its_limit_only():
    def both(log_scale):
        result = clip_loss(**problem(), log_scale=log_scale)
        return result.total, result.metrics["scale"]

    gradient = jax.jit(jax.grad(both, has_aux=True))
    assert float(gradient(4.0)[0]) != 0 and float(gradient(4.7)[0]) == 0
    scale, weight = gradient(4.7)[1]
    np.testing.assert_allclose(scale / weight, 100, rtol=1e-6)


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.integers(0, 10_000), st.permutations(range(ROWS)), st.floats(0.1, 10))
def test_order_and_length_of_the_rows_are_irrelevant(seed, order, factor):
    arrays = problem(seed=seed)
    changed = {name: (factor * x)[order,] for name, x in arrays.items()}
    np.testing.assert_allclose(_all_four(**changed), _all_four(**arrays), rtol=1e-4, atol=1e-6)


@jax.jit
def _all_four(a, b):
    return jnp.stack([loss(function(a, b)) for function in LOSSES.values()])


def test_impossible_arguments():
    arrays = problem()
    with pytest.raises(ValueError, match="temperature=0 must be positive"):
        info_nce(**arrays, temperature=0)
    with pytest.raises(ValueError, match="axis_name, which is missing"):
        clip_loss(**arrays, log_scale=0.0, ring=True)


@pytest.mark.optimised
def test_chunks_need_a_twentieth_of_the_memory():
    """Of the formula as one writes it down, with the whole matrix."""
    x = jax.ShapeDtypeStruct((6144, 64), jnp.float32)

    def written_out(a, b):
        unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
        return -jnp.diag(jax.nn.log_softmax(unit[0] @ unit[1].T / TEMPERATURE)).sum()

    def memory(total):
        gradient = jax.grad(total, argnums=(0, 1))
        return jax.jit(gradient).lower(x, x).compile().memory_analysis().temp_size_in_bytes

    assert memory(lambda a, b: info_nce(a, b, TEMPERATURE, chunk=64).total) < 0.05 * memory(written_out)


@pytest.mark.devices(8)
@pytest.mark.optimised
def test_a_ring_needs_a_quarter_of_the_memory():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    x = jax.ShapeDtypeStruct((4096, 64), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, spec))

    def memory(ring):
        def total(a, b):
            part = functools.partial(clip_loss, log_scale=2.0, axis_name="data", ring=ring)
            return jax.shard_map(lambda a, b: part(a, b).total[None], mesh=mesh, in_specs=spec, out_specs=spec)(a, b)

        gradient = jax.grad(lambda a, b: total(a, b).sum(), argnums=(0, 1))
        return jax.jit(gradient).lower(x, x).compile().memory_analysis().temp_size_in_bytes

    assert memory(True) < 0.25 * memory(False)
