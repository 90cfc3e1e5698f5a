"""CosFace and ArcFace against the angles themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxalign.losses.margin_softmax import margin_logits, margin_softmax_loss
from jaxalign.objective import loss

KINDS = {"cosface": 0.35, "arcface": 0.5, "none": 0.0}
every_kind = pytest.mark.parametrize("kind", KINDS)


def problem(rows=7, classes=5, width=3):
    random = np.random.default_rng(0)
    arrays = {"x": random.normal(size=(rows, width)), "w": random.normal(size=(classes, width))}
    arrays["x"][0] = -2 * arrays["w"][1] + 0.01  # an angle near pi, beyond pi - margin
    return arrays, np.array([1, 0, 4, 2, 2, 3, 0])


def reference_logits(x, w, labels, kind):
    margin = KINDS[kind]
    logits = np.empty((len(x), len(w)))
    for i, j in np.ndindex(logits.shape):
        c = x[i] @ w[j] / np.linalg.norm(x[i]) / np.linalg.norm(w[j])
        if j == labels[i] and kind == "cosface":
            c -= margin
        elif j == labels[i] and kind == "arcface":
            theta = np.arccos(c)
            c = np.cos(theta + margin) if theta <= np.pi - margin else c - margin * np.sin(margin)
        logits[i, j] = c
    return logits


def reference_loss(x, w, labels, kind, scale, rows):
    logits = scale * reference_logits(x, w, labels, kind)[rows]
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -np.mean(log_p[np.arange(len(rows)), labels[rows]])


@every_kind
def test_value_gradient_and_chunks(kind):
    arrays, labels = problem()
    rows, scale = [0, 1, 3, 4, 6], 8.0
    valid = np.isin(np.arange(7), rows)

    @jax.jit
    def all_of_it(arrays):
        def value(arrays, chunk):
            options = dict(scale=scale, margin=KINDS[kind], kind=kind, valid=valid, chunk=chunk)
            objective = margin_softmax_loss(**arrays, labels=np.where(valid, labels, -1), **options)
            return loss(objective), objective

        logits = margin_logits(**arrays, labels=labels, margin=KINDS[kind], kind=kind)
        return logits, [jax.value_and_grad(value, has_aux=True)(arrays, chunk) for chunk in (None, 3)]

    with jax.enable_x64(True):
        logits, found = all_of_it(arrays)
    np.testing.assert_allclose(logits, reference_logits(**arrays, labels=labels, kind=kind), atol=1e-12)
    for (value, objective), gradient in found:
        np.testing.assert_allclose(value, reference_loss(**arrays, labels=labels, kind=kind, scale=scale, rows=rows))
        hits = reference_logits(**arrays, labels=labels, kind="none")[rows].argmax(1) == labels[rows]
        assert [float(x) for x in objective.metrics["accuracy"]] == [hits.sum(), len(rows)]
        for key, x in arrays.items():
            slopes = np.zeros_like(x)
            for at in np.ndindex(x.shape):
                step = np.zeros_like(x)
                step[at] = 1e-6
                ends = [
                    reference_loss(**(arrays | {key: x + s}), labels=labels, kind=kind, scale=scale, rows=rows)
                    for s in (step, -step)
                ]
                slopes[at] = (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose(gradient[key], slopes, atol=1e-6)


@pytest.mark.devices(8)
def test_class_vectors_over_devices_change_nothing():
    """Rows lie over the other axis; one does not count, and one is nearest to two classes, of which the first is it."""
    random = np.random.default_rng(1)
    x, w, labels = random.normal(size=(16, 3)), random.normal(size=(24, 3)), random.integers(24, size=16)
    x[1] = w[20] = w[3]
    labels[1], valid = 20, np.arange(16) != 5
    rows, classes = PartitionSpec("data"), PartitionSpec("classes")

    def whole(arrays):
        found = margin_softmax_loss(arrays["x"], arrays["w"], labels, scale=8.0, valid=valid)
        return found.total, found

    def spread(arrays, devices, chunk):
        mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(-1, devices), ("data", "classes"))

        def part(x, w, labels, valid):
            options = dict(scale=8.0, valid=valid, chunk=chunk, class_axis_name="classes")
            return jax.lax.psum(margin_softmax_loss(x, w, labels, **options), ("data", "classes"))

        part = jax.shard_map(part, mesh=mesh, in_specs=(rows, classes, rows, rows), out_specs=PartitionSpec())
        found = part(arrays["x"], arrays["w"], labels, valid)
        return found.total, found

    arrays = {"x": x, "w": w}
    with jax.enable_x64(True):
        expected = jax.jit(jax.value_and_grad(whole, has_aux=True))(arrays)
        gradient = jax.jit(jax.value_and_grad(spread, has_aux=True), static_argnums=(1, 2))
        for devices, chunk in ((1, 1), (4, 2), (8, None)):
            found = gradient(arrays, devices, chunk)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)
    assert float(expected[0][1].weight) == 15


@every_kind
def test_the_true_logit_falls_with_the_angle_and_stays_finite_at_its_ends(kind):
    angles = np.linspace(0, np.pi, 101)
    x = np.stack([np.cos(angles), np.sin(angles)], 1)
    x[0], x[-1] = (1, 0), (-1, 0)
    w, labels = jnp.array([[1.0, 0.0]]), np.zeros(101, int)

    def logits(x):
        return margin_logits(x, w, labels, KINDS[kind], kind)[:, 0]

    gradient, values = jax.jit(jax.grad(lambda x: (logits(x).sum(), logits(x)), has_aux=True))(x)
    assert (np.diff(values) < 1e-6).all() and np.diff(values)[2:-2].max() < 0
    assert np.isfinite(gradient).all()


def test_margins_out_of_range():
    x = jnp.ones((2, 2))
    for margin, kind, message in ((-0.1, "cosface", "must be at least 0"), (3.2, "arcface", "below pi")):
        with pytest.raises(ValueError, match=message):
            margin_logits(x, x, jnp.zeros(2, int), margin, kind)
    with pytest.raises(ValueError, match="unknown kind of margin 'sphere'"):
        margin_logits(x, x, jnp.zeros(2, int), 0.1, "sphere")
