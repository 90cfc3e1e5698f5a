"""Distillation of points and distances against loops in NumPy, and what must not matter."""

import functools

import jax
import numpy as np
import pytest

from jaxalign.losses import proclip
from tests.compiled import compiled

instance_alignment, structure_alignment, distillation_loss = map(
    compiled, (proclip.instance_alignment, proclip.structure_alignment, proclip.distillation_loss)
)
ROWS, DIM = 7, 4
VALID = np.arange(ROWS) != 2


def problem(seed=0):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(2, ROWS, DIM))
    return x, y + 0.3 * x


def units(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_loops(x, y, kind):
    """(instance, structure) as sums over the rows that count and their pairs."""
    x, y = units(x)[VALID], units(y)[VALID]
    structure = 0.0
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            gap = np.linalg.norm(x[i] - x[j]) - np.linalg.norm(y[i] - y[j])
            structure += gap**2 if kind == "squared" else gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5
    return ((x - y) ** 2).sum(), structure


def value_and_gradient(x, y, **options):
    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def function(x):
        found = proclip.distillation_loss(x, y, valid=VALID, **options)
        return found.total / found.weight, found

    return jax.device_get(function(x))


@pytest.mark.parametrize("kind", ["huber", "squared"])
def test_values_and_gradients_against_loops(kind):
    x, y = problem()
    x[VALID.nonzero()[0][0]], y[0] = units(x[1]) * 3, -y[1]  # a gap above 1, where the two kinds differ
    instance, structure = by_loops(x, y, kind)
    with jax.enable_x64(True):
        (value, found), gradient = value_and_gradient(x, y, kind=kind)
        (mean, _), _ = value_and_gradient(x, y, kind=kind, reduction="mean")
        (chunked, _), chunked_gradient = value_and_gradient(x, y, kind=kind, chunk=3)
    rows = VALID.sum()
    np.testing.assert_allclose(found.metrics["instance"][0] / found.metrics["instance"][1], instance, rtol=1e-8)
    np.testing.assert_allclose(found.metrics["structure"][0] / found.metrics["structure"][1], structure, rtol=1e-6)
    np.testing.assert_allclose(value, instance + structure, rtol=1e-6)
    np.testing.assert_allclose(mean, instance / rows + structure / (rows * (rows - 1) / 2), rtol=1e-6)
    np.testing.assert_allclose(chunked, value, rtol=1e-10)
    np.testing.assert_allclose(chunked_gradient, gradient, rtol=1e-8, atol=1e-12)
    assert (gradient[~VALID] == 0).all()
    step = 1e-6
    for row, column in ((5, 0), (4, 3)):  # not the equal ones
        moved = x + step * (np.arange(ROWS)[:, None] == row) * (np.arange(DIM) == column)
        slope = (sum(by_loops(moved, y, kind)) - instance - structure) / step
        np.testing.assert_allclose(gradient[row, column], slope, rtol=1e-3, atol=1e-4)


def test_a_rotation_changes_points_and_not_their_structure():
    x, y = problem()
    turned = x @ np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))[0]

    def both(x):
        return [f(x, y).total for f in (instance_alignment, structure_alignment)]

    with jax.enable_x64(True):
        (instance, structure), (other_instance, other_structure) = (jax.device_get(both(z)) for z in (x, turned))
    np.testing.assert_allclose(other_structure, structure, rtol=1e-8)
    assert abs(other_instance - instance) > 0.1


def test_equal_points_and_single_rows():
    x = np.float32(np.tile([[1.0, 2.0, 2.0]], (3, 1)))
    y = np.float32(problem()[1][:3, :3])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: proclip.structure_alignment(x, y).total))(x)
    assert value > 0 and (np.asarray(gradient) == 0).all()
    assert float(structure_alignment(x[:1], y[:1]).total) == 0
    same = distillation_loss(y, y)
    assert float(same.total) == pytest.approx(0, abs=1e-5)


def test_the_teacher_is_a_constant_and_can_be_left_out():
    x, y = problem()

    def total(average, **options):
        return proclip.proclip_loss(x, y, average, 1.0, **options).total

    with jax.enable_x64(True):
        gradient, plain = jax.jit(lambda a: (jax.grad(total)(a), total(None, regularisation=0.0)))(y)
        zero = jax.jit(lambda a: total(a, regularisation=0.0))(y)
        kept = jax.device_get(jax.jit(lambda: proclip.proclip_loss(x, y, y, 1.0, regularisation=0.01))())
        parts = jax.device_get(distillation_loss(x, y))
    assert (np.asarray(gradient) == 0).all()
    np.testing.assert_allclose(zero, plain, rtol=1e-12)
    np.testing.assert_allclose(kept.total, np.asarray(plain) + 0.01 * parts.total, rtol=1e-9)
    with pytest.raises(ValueError, match="needs average_images"):
        proclip.proclip_loss(x, y, None, 1.0)
    with pytest.raises(ValueError, match="unknown kind 'l1'"):
        proclip.structure_alignment(x, y, kind="l1")


@pytest.mark.devices(2)
def test_distances_stay_on_a_device_and_contrast_does_not():
    x, y = (z[:6].astype(np.float32) for z in problem())
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    rows = jax.sharding.PartitionSpec("data")

    def of_part(x, y):
        found = proclip.proclip_loss(x, y, y, 1.0, regularisation=0.5, axis_name="data")
        return jax.lax.psum((found.total, found.weight), "data")

    part = jax.shard_map(of_part, mesh=mesh, in_specs=(rows, rows), out_specs=jax.sharding.PartitionSpec())
    total, weight = jax.jit(part)(x, y)
    whole = compiled(proclip.proclip_loss)(x, y, None, 1.0, regularisation=0.0)
    halves = [distillation_loss(x[half], y[half]) for half in (slice(0, 3), slice(3, 6))]
    want = whole.total + 0.5 * sum(half.total for half in halves)
    np.testing.assert_allclose([total, weight], [want, 6], rtol=1e-5)
