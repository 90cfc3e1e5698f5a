"""Group-InfoNCE and its baselines against loops over queries and documents."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxalign.losses import group_infonce

TAU, WEIGHT = 0.3, 0.7


def problem(rows=6, size=3):
    """The second query has one document, the third none; what stands in empty places is NaN."""
    random = np.random.default_rng(0)
    queries, documents = random.normal(size=(rows, 4)), random.normal(size=(rows, size, 4))
    mask = np.arange(size) < np.array([3, 1, 0, 2, 3, 2, 3, 1])[:rows, None]
    documents[~mask] = np.nan
    queries[~mask.any(1)] = np.nan
    return queries, documents, mask


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def by_loops(queries, documents, mask, ids=None, query_negatives=True):
    """(sum of l, sum of v, sum of own G, hits, queries) and (sum of multi-positive losses, documents)."""
    ids = list(range(len(queries))) if ids is None else ids
    valid = [i for i in range(len(queries)) if mask[i].any()]
    contrastive = variance = own = multi = 0.0
    hits = 0
    for i in valid:
        sims = {j: [cosine(queries[i], d) for d, m in zip(documents[j], mask[j], strict=True) if m] for j in valid}
        groups = {j: sum(values) / len(values) for j, values in sims.items()}
        others = [j for j in valid if ids[j] != ids[i]]
        against_queries = sum(math.exp(cosine(queries[i], queries[j]) / TAU) for j in others) * query_negatives
        total = sum(math.exp(groups[j] / TAU) for j in [i, *others]) + against_queries
        contrastive += math.log(total) - groups[i] / TAU
        own += groups[i]
        hits += all(groups[i] >= groups[j] for j in others)
        if len(sims[i]) > 1:
            variance += sum((s - groups[i]) ** 2 for s in sims[i]) / (len(sims[i]) - 1)
        against = sum(math.exp(s / TAU) for j in others for s in sims[j]) + against_queries
        multi += sum(math.log(math.exp(s / TAU) + against) - s / TAU for s in sims[i])
    return (contrastive, variance, own, hits, len(valid)), (multi, int(mask.sum()))


@pytest.mark.parametrize(("ids", "query_negatives"), [(None, True), ([5, 5, 1, 2, 3, 4], False)])
def test_losses_and_metrics_equal_loops(ids, query_negatives):
    queries, documents, mask = problem()
    group, many = by_loops(queries, documents, mask, ids, query_negatives)
    options = dict(temperature=TAU, query_negatives=query_negatives, ids=None if ids is None else np.array(ids))

    @jax.jit
    def losses(queries, documents):
        found = group_infonce.group_infonce_loss(queries, documents, mask, penalty_weight=WEIGHT, **options)
        return found, group_infonce.multi_positive_infonce_loss(queries, documents, mask, **options)

    with jax.enable_x64(True):
        found, multi = jax.tree.map(float, losses(queries, documents))
    contrastive, variance, own, hits, valid = group
    np.testing.assert_allclose(found.total, contrastive + WEIGHT / TAU**2 * variance, rtol=1e-12)
    assert found.weight == valid == 5
    np.testing.assert_allclose(found.metrics["contrastive"][0], contrastive, rtol=1e-12)
    np.testing.assert_allclose(found.metrics["group_variance"][0], variance, rtol=1e-12)
    np.testing.assert_allclose(found.metrics["group_similarity"][0], own, rtol=1e-12)
    assert found.metrics["accuracy"] == (hits, valid)
    np.testing.assert_allclose((multi.total, multi.weight), many, rtol=1e-12)
    np.testing.assert_allclose(multi.metrics["group_variance"], (variance, valid), rtol=1e-12)


@pytest.mark.devices(8)
def test_empty_places_have_no_gradient_and_chunks_and_devices_change_nothing():
    queries, documents, mask = problem(rows=8)
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("data",))
    rows = PartitionSpec("data")

    def totals(queries, documents, mask, **options):
        options |= dict(temperature=TAU)
        found = (
            group_infonce.group_infonce_loss(queries, documents, mask, penalty_weight=WEIGHT, **options),
            group_infonce.multi_positive_infonce_loss(queries, documents, mask, **options),
        )
        return (found[0].total + 2 * found[1].total, found[0].weight)

    def spread(queries, documents):
        def part(*arrays):
            return jax.lax.psum(totals(*arrays, axis_name="data"), "data")

        return jax.shard_map(part, mesh=mesh, in_specs=rows, out_specs=PartitionSpec())(queries, documents, mask)

    forms = (
        lambda *arrays: totals(*arrays, mask),
        lambda *arrays: totals(*arrays, mask, chunk=3),
        spread,
    )
    with jax.enable_x64(True):
        expected, *others = (
            jax.jit(jax.value_and_grad(form, (0, 1), has_aux=True))(queries, documents) for form in forms
        )
        for found in others:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)
        gradients = [np.asarray(gradient) for gradient in expected[1]]
    assert (gradients[1][~mask] == 0).all() and (gradients[0][~mask.any(1)] == 0).all()
    assert np.abs(gradients[1][mask]).max(-1).min() > 0


def test_a_group_of_one_or_of_equal_documents_is_a_single_positive():
    queries, documents, _ = problem()
    documents = np.nan_to_num(documents[:, :1])
    documents[1:3] = 1.0
    queries = np.nan_to_num(queries, nan=1.0)
    every = np.ones((6, 3), bool)

    @jax.jit
    def losses(queries, documents):
        return (
            group_infonce.single_positive_infonce_loss(queries, documents[:, 0], every[:, 0], temperature=TAU),
            group_infonce.group_infonce_loss(queries, jnp.repeat(documents, 3, 1), every, temperature=TAU),
            group_infonce.multi_positive_infonce_loss(queries, documents, every[:, :1], temperature=TAU),
        )

    with jax.enable_x64(True):
        single, group, multi = (float(found.total) for found in losses(queries, documents))
    np.testing.assert_allclose([group, multi], single, rtol=1e-12)


def test_one_query_has_only_the_penalty():
    queries, documents, mask = problem(rows=1)
    loss = jax.jit(group_infonce.group_infonce_loss, static_argnames="temperature")
    found = loss(queries.astype(np.float32), documents.astype(np.float32), mask, temperature=TAU)
    np.testing.assert_allclose(found.metrics["contrastive"][0], 0, atol=1e-6)
    np.testing.assert_allclose(found.total, found.metrics["group_variance"][0] / TAU**2, rtol=1e-5)
    multi = jax.jit(jax.value_and_grad(lambda d: group_infonce.multi_positive_infonce_loss(queries, d, mask).total))
    value, gradient = multi(documents.astype(np.float32))
    assert value == 0 and (np.asarray(gradient) == 0).all()


def test_impossible_temperature():
    for loss in (group_infonce.group_infonce_loss, group_infonce.multi_positive_infonce_loss):
        with pytest.raises(ValueError, match="temperature=0"):
            loss(jnp.ones((2, 3)), jnp.ones((2, 2, 3)), jnp.ones((2, 2)), temperature=0)
