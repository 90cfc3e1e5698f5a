"""What every loss of the project promises, for every row of the table of methods (see `contract_cases`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import objective
from jaxalign.methods import METHODS
from tests.contract_cases import CASES, SAME_LOSS, build, chunked

every_case = pytest.mark.parametrize("name", CASES)
POISON = (np.nan, np.inf, -np.inf)


def value_and_gradient(case, params=None, batch=None, between=None, compiled=None):
    """(Objective, gradient of its total); `between(outputs, batch)` changes what the loss is given.

    Compiled where that is the point, or is cheaper (`Case.as_one_program`).
    """
    params = case.params if params is None else params
    batch = case.batch if batch is None else batch
    program, eager = functions(case.outputs, case.loss, between)
    compiled = case.as_one_program if compiled is None else compiled
    (_, result), gradient = (program if compiled else eager)(params, batch)
    return result, gradient


@functools.cache
def functions(outputs, loss, between):
    """(compiled, eager) of (params, batch) -> ((total, Objective), gradient of the total)."""

    def total(params, batch):
        found = outputs(params, batch)
        result = loss(between(found, batch) if between else found, batch)
        return result.total, result

    function = jax.value_and_grad(total, has_aux=True)
    return jax.jit(function), function


@functools.cache
def expected_of(name, dtype=np.float32):
    return value_and_gradient(build(name, dtype=dtype))


def close(actual, expected, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # An element whose terms cancel is as exact as they are: large gradients have larger small elements.
        largest = np.abs(b[np.isfinite(b)]).max(initial=1.0)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * largest)


def all_finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def poisoned(x, counts, seed, finite):
    """`x` with other content where `counts` is false."""
    random = np.random.default_rng(seed)
    counts = counts.reshape(counts.shape + (1,) * (x.ndim - counts.ndim))
    if np.issubdtype(x.dtype, np.integer):
        other = random.integers(-100, 100, x.shape)
    elif finite:
        other = random.normal(size=x.shape)
    else:
        other = random.choice(POISON, x.shape)
    return np.where(counts, x, other.astype(x.dtype))


def poison_batch(case, batch):
    changed = dict(batch)
    for seed, (name, mask) in enumerate(case.masked.items()):
        if name in batch:
            changed[name] = poisoned(batch[name], np.asarray(batch[mask]) != 0, seed, name in case.inputs)
    for seed, name in enumerate(case.per_row):
        any_token = np.any([np.asarray(batch[mask]).any(axis=1) for mask in set(case.masked.values())], axis=0)
        changed[name] = poisoned(batch[name], any_token, seed, False)
    return changed


@functools.cache
def poison_outputs(name):
    """What the model computed where the mask is 0: NaN and infinities by turns."""
    masked = build(name).masked

    def change(x, counts):
        other = np.resize(POISON, x.shape).astype(x.dtype)
        return jnp.where(counts.reshape(counts.shape + (1,) * (x.ndim - counts.ndim)), x, other)

    def between(outputs, batch):
        return {name: change(x, batch[masked[name]] != 0) if name in masked else x for name, x in outputs.items()}

    return between


def padded(case, rows, columns):
    """The batch with more empty rows and columns, filled with 1 everywhere but in the masks."""
    masks = set(case.masked.values())
    batch = {}
    for name, x in case.batch.items():
        grows = name in case.masked or name in masks
        widths = [(0, rows)] + [(0, columns)] * bool(grows and x.ndim > 1) + [(0, 0)] * max(x.ndim - 1 - grows, 0)
        batch[name] = np.pad(x, widths, constant_values=0 if name in masks else 1)
    return batch


def test_every_method_has_a_case():
    assert set(METHODS) <= CASES.keys() | SAME_LOSS.keys(), "add the method to tests/contract_cases.py"
    assert set(SAME_LOSS.values()) <= CASES.keys()
    assert all(METHODS[name].pieces[0] == METHODS[other].pieces[0] for name, other in SAME_LOSS.items())


@every_case
def test_jit_equals_eager(name):
    case = build(name)
    close(value_and_gradient(case, compiled=True), value_and_gradient(case, compiled=False))


@every_case
def test_gradients_are_finite_and_reach_all_parameters(name):
    result, gradient = expected_of(name)
    assert all_finite((result, gradient))
    assert all(float(jnp.abs(leaf).max()) > 1e-6 for leaf in jax.tree.leaves(gradient))


@every_case
def test_only_the_total_carries_gradient(name):
    case = build(name)

    def others(params):
        result = case.loss_fn(params, case.batch)
        return result.weight + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(result.metrics))

    close(jax.grad(others)(case.params), jax.tree.map(jnp.zeros_like, case.params), atol=0)


@every_case
def test_everything_is_a_scalar_and_weights_are_not_negative(name):
    result, _ = expected_of(name)
    assert all(leaf.shape == () for leaf in jax.tree.leaves(result))
    assert result.weight > 0
    assert all(weight > 0 for _, weight in result.metrics.values())


@every_case
def test_vmap_equals_a_loop(name):
    case = build(name)
    batches = [build(name, seed=seed).batch for seed in (0, 10, 20)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    together = jax.vmap(case.loss_fn, (None, 0))
    if case.as_one_program:
        together = jax.jit(together)
        one_by_one = [value_and_gradient(case, batch=batch)[0] for batch in batches]
    else:
        one_by_one = [case.loss_fn(case.params, batch) for batch in batches]
    close(together(case.params, stacked), jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one))


@every_case
def test_the_content_of_padding_is_irrelevant(name):
    """NaN, infinities and foreign ids where the mask is 0, in the batch and in what the model computed."""
    case = build(name)
    expected = expected_of(name)
    batch = poison_batch(case, case.batch)
    close(value_and_gradient(case, batch=batch, between=poison_outputs(name)), expected)


@every_case
def test_more_padding_changes_nothing(name):
    case = build(name)
    batch = padded(case, rows=4, columns=3)
    expected = expected_of(name)
    close(value_and_gradient(case, batch=poison_batch(case, batch)), expected)


@every_case
def test_the_type_of_the_mask_is_irrelevant(name):
    case = build(name)
    loss_fn = jax.jit(case.loss_fn) if case.as_one_program else case.loss_fn
    for dtype in (bool, np.int32):
        masks = {mask: case.batch[mask].astype(dtype) for mask in set(case.masked.values())}
        close(loss_fn(case.params, case.batch | masks), expected_of(name)[0], rtol=1e-6)


@every_case
def test_an_empty_mask_gives_zero(name):
    case = build(name)
    empty = {mask: np.zeros_like(case.batch[mask]) for mask in set(case.masked.values())}
    batch = poison_batch(case, case.batch | empty)
    result, gradient = value_and_gradient(case, batch=batch, between=poison_outputs(name))
    close((result, gradient), jax.tree.map(jnp.zeros_like, (result, gradient)), atol=0)
    assert float(objective.loss(result)) == 0
    assert all(float(mean) == 0 for mean in objective.metric_means(result.metrics).values())


@every_case
def test_float64_is_kept_and_agrees_with_float32(name):
    single = expected_of(name)
    with jax.enable_x64(True):
        double = expected_of(name, np.float64)
        assert {leaf.dtype for leaf in jax.tree.leaves(double)} == {np.dtype(np.float64)}
        close(single, double, rtol=1e-4, atol=1e-5)


@every_case
def test_bfloat16_is_summed_in_float32(name):
    """Rounded inputs give what their float32 copies give, to 5 digits where bfloat16 has 2."""
    case = build(name)

    def rounded(dtype):
        def change(tree):
            return {
                key: x.astype(jnp.bfloat16).astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
                for key, x in tree.items()
            }

        batch = change({key: jnp.asarray(x) for key, x in case.batch.items() if key not in case.inputs})
        batch |= {key: case.batch[key] for key in case.inputs}
        return value_and_gradient(case, batch=batch, between=lambda outputs, _: change(outputs))

    low, high = rounded(jnp.bfloat16), rounded(jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {np.dtype(np.float32)}
    close(low[0], high[0])
    close(low[1], high[1], rtol=0.02, atol=0.02)  # cotangents of bfloat16 outputs are bfloat16


@every_case
def test_micro_batches_add_up_to_the_whole(name):
    case = build(name)
    if not case.additive:
        pytest.skip("the rows of this loss interact")
    halves = zip(*(np.split(x, 2) for x in case.batch.values()), strict=True)
    (a, d_a), (b, d_b) = (value_and_gradient(case, batch=dict(zip(case.batch, half, strict=True))) for half in halves)
    whole, gradient = expected_of(name)
    assert 0 < a.weight < whole.weight
    close((objective.add(a, b), jax.tree.map(jnp.add, d_a, d_b)), (whole, gradient))


@pytest.mark.devices(8)
@every_case
def test_sharded_equals_unsharded(name):
    case = build(name)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]), ("data",))
    over_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params, batch = jax.device_put(case.params, everywhere), jax.device_put(case.batch, over_rows)
    assert len(batch["mask"].sharding.device_set) == 8
    close(value_and_gradient(case, params, batch, compiled=True), expected_of(name))


@every_case
def test_chunked_equals_dense(name):
    with jax.enable_x64(True):
        by_chunks = value_and_gradient(build(name, dtype=np.float64, scorer=chunked))
        close(by_chunks, expected_of(name, np.float64), rtol=1e-9, atol=1e-10)
