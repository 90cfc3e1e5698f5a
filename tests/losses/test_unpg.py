"""UNPG against the concatenated softmax of the formula, row by row; the filter against a sorted list."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from jaxalign.losses.unpg import magface_margins, unpg_loss, wdfs_gap, whisker_mask

LABELS = np.array([0, 1, 2, 0, -1, 2, 1, 0], np.int32)
SCALE, MARGIN = 8.0, 0.3


def problem(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(8, 4)) * random.uniform(5, 60, (8, 1))  # norms on both sides of 10
    return x, random.normal(size=(3, 4))


def filtered(values, whisker):
    values = sorted(values)
    if whisker is None or not values:
        return values
    n = len(values)
    first, third = values[int(0.25 * n)], values[int(0.75 * n)]
    reach = whisker * (third - first)
    return [v for v in values if first - reach <= v <= third + reach]


def by_loops(x, w, labels, kind, whisker):
    """(losses, base losses, M, all pairs) of rows with a label."""
    norms = np.linalg.norm(x, axis=1)
    u, c = x / norms[:, None], w / np.linalg.norm(w, axis=1, keepdims=True)
    rows = [i for i in range(len(x)) if labels[i] >= 0]
    pairs = [float(u[i] @ u[j]) for i in rows for j in rows if i < j and labels[i] != labels[j]]
    kept = filtered(pairs, whisker)
    losses, base = [], []
    for i in rows:
        cosines = c @ u[i]
        true = cosines[labels[i]]
        regulariser = 0.0
        if kind == "magface":
            a = min(max(norms[i], 10), 110)
            margin = 0.45 + 0.35 * (a - 10) / 100
            target = math.cos(math.acos(true) + margin) if true > 0 else true
            regulariser = 35 * (a / 110**2 + 1 / a)
        elif kind == "cosface":
            target = true - MARGIN
        else:
            assert math.acos(true) <= math.pi - MARGIN  # beyond, the head is another
            target = math.cos(math.acos(true) + MARGIN)
        classes = [math.exp(SCALE * target)]
        classes += [math.exp(SCALE * v) for j, v in enumerate(cosines) if j != labels[i]]
        both = classes + [math.exp(SCALE * v) for v in kept]
        losses.append(math.log(sum(both)) - SCALE * target + regulariser)
        base.append(math.log(sum(classes)) - SCALE * target)
    return losses, base, kept, pairs


@pytest.mark.parametrize(("kind", "whisker"), [("arcface", 0.3), ("cosface", None), ("magface", 1.0)])
def test_loss_and_metrics_equal_the_concatenated_softmax(kind, whisker):
    x, w = problem()
    losses, base, kept, pairs = by_loops(x, w, LABELS, kind, whisker)
    x[4] = np.nan
    with jax.enable_x64(True):
        loss = jax.jit(lambda x, w: unpg_loss(x, w, LABELS, scale=SCALE, margin=MARGIN, kind=kind, whisker=whisker))
        found = jax.tree.map(float, loss(x, w))
    np.testing.assert_allclose(found.total, sum(losses), rtol=1e-9)
    assert found.weight == 7
    np.testing.assert_allclose(found.metrics["base_loss"], (sum(base), 7), rtol=1e-9)
    np.testing.assert_allclose(found.metrics["kept"], (7 * len(kept) / len(pairs), 7), rtol=1e-12)
    np.testing.assert_allclose(found.metrics["low"][0] / 7, min(kept), rtol=1e-9)
    np.testing.assert_allclose(found.metrics["high"][0] / 7, max(kept), rtol=1e-9)
    assert whisker != 0.3 or len(kept) < len(pairs)
    assert min(a - b for a, b in zip(losses, base, strict=True)) > 0


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=12), st.sampled_from([0.0, 0.5, 1.5])
)
def test_the_filter_equals_a_sorted_list(entries, whisker):
    values = np.zeros(12, np.float32)
    mask = np.zeros(12, bool)
    for place, (value, counts) in enumerate(entries):
        values[place], mask[place] = value, counts
    kept = np.asarray(jax.jit(whisker_mask, static_argnums=2)(values, mask, whisker))
    assert not (kept & ~mask).any()
    assert sorted(values[kept]) == filtered(values[mask].tolist(), whisker)


def test_gradient_without_a_margin_edge_and_independence_of_order():
    """Numerical derivative of x and w; a permutation of the batch changes nothing."""
    x, w = problem()

    def total(x, w, labels):
        return unpg_loss(x, w, labels, scale=SCALE, margin=MARGIN, whisker=1.0).total

    with jax.enable_x64(True):
        value_and_gradient = jax.jit(jax.value_and_grad(total, (0, 1)))
        value, gradients = value_and_gradient(x, w, LABELS)
        step = np.random.default_rng(1).normal(size=x.shape), np.random.default_rng(2).normal(size=w.shape)
        ends = [float(value_and_gradient(x + h * step[0], w + h * step[1], LABELS)[0]) for h in (1e-5, -1e-5)]
        slope = sum(float((np.asarray(g) * d).sum()) for g, d in zip(gradients, step, strict=True))
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)
        order = np.random.default_rng(3).permutation(8)
        np.testing.assert_allclose(np.asarray(value_and_gradient(x[order], w, LABELS[order])[0]), value, rtol=1e-12)


def test_without_pairs_it_is_the_margin_softmax():
    x, w = problem()

    def total(x, labels, some):
        return unpg_loss(x, w, labels, scale=SCALE, batch_negatives=some).total

    both = jax.jit(lambda labels: [jax.value_and_grad(total)(x, labels, some) for some in (True, False)])
    for labels in (np.full(8, 1), np.array([0] + [-1] * 7), np.full(8, -1)):
        (value, gradient), (expected, expected_gradient) = both(labels)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_equal_embeddings_are_finite():
    x = np.ones((6, 4), np.float32)
    loss = jax.jit(jax.value_and_grad(lambda x: unpg_loss(x, x[:3], np.arange(6) % 3).total))
    value, gradient = loss(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.devices(4)
def test_devices_make_up_the_whole_or_keep_to_themselves():
    x, w = problem()
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))

    def spread(x, w, pool):
        def part(x, labels, w):
            found = unpg_loss(x, w, labels, scale=SCALE, whisker=1.0, pool=pool, axis_name="data")
            return jax.lax.psum(found, "data")

        specs = (PartitionSpec("data"), PartitionSpec("data"), PartitionSpec())
        found = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(x, LABELS, w)
        return found.total, found

    def whole(x, w):
        found = unpg_loss(x, w, LABELS, scale=SCALE, whisker=1.0)
        return found.total, found

    def apart(x, w):
        return sum(unpg_loss(x[i : i + 2], w, LABELS[i : i + 2], scale=SCALE, whisker=1.0).total for i in (0, 2, 4, 6))

    with jax.enable_x64(True):
        found, expected = (
            jax.jit(jax.value_and_grad(form, (0, 1), has_aux=True))(x, w)
            for form in (lambda x, w: spread(x, w, "global"), whole)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)
        np.testing.assert_allclose(
            np.asarray(jax.jit(lambda x, w: spread(x, w, "device")[0])(x, w)), jax.jit(apart)(x, w), rtol=1e-12
        )


@pytest.mark.devices(6)
def test_class_vectors_over_devices_change_nothing():
    """Both kinds of axes at once: two parts of the rows, three classes over three devices."""
    x, w = problem()
    mesh = Mesh(np.asarray(jax.devices()[:6]).reshape(2, 3), ("data", "classes"))
    rows, classes = PartitionSpec("data"), PartitionSpec("classes")

    def spread(x, w):
        def part(x, labels, w):
            options = dict(scale=SCALE, kind="magface", axis_name="data", class_axis_name="classes")
            return jax.lax.psum(unpg_loss(x, w, labels, **options), ("data", "classes"))

        part = jax.shard_map(part, mesh=mesh, in_specs=(rows, rows, classes), out_specs=PartitionSpec())
        found = part(x, LABELS, w)
        return found.total, found

    def whole(x, w):
        found = unpg_loss(x, w, LABELS, scale=SCALE, kind="magface")
        return found.total, found

    with jax.enable_x64(True):
        found, expected = (jax.jit(jax.value_and_grad(form, (0, 1), has_aux=True))(x, w) for form in (spread, whole))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


def test_the_gap_between_pairs():
    x = jnp.array([[1.0, 0.0], [2.0, 0.2], [0.0, 1.0], [0.1, 1.0]])
    measure = jax.jit(wdfs_gap)
    gap, there = measure(x, jnp.array([0, 0, 1, 1]))
    u = np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)
    s = u @ u.T
    assert there
    np.testing.assert_allclose(gap, min(s[0, 1], s[2, 3]) - s[:2, 2:].max(), rtol=1e-5)
    assert not measure(x, jnp.array([0, 0, 0, 0]))[1]


def test_margins_of_magface():
    margins, regularisers = magface_margins(jnp.array([1.0, 10.0, 60.0, 110.0, 500.0]))
    np.testing.assert_allclose(margins, [0.45, 0.45, 0.625, 0.8, 0.8], rtol=1e-6)
    assert (np.diff(regularisers) <= 0).all()  # longer embeddings cost less, least at the upper end


def test_impossible_arguments():
    x, w = (jnp.asarray(array) for array in problem())
    with pytest.raises(ValueError, match="kind='none'"):
        unpg_loss(x, w, LABELS, kind="none")
    with pytest.raises(ValueError, match="whisker=-1"):
        unpg_loss(x, w, LABELS, whisker=-1)
