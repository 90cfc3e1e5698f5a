"""The multi-similarity loss of embeddings against a double loop over pairs, over chunks, galleries and devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxalign import objective
from jaxalign.losses import pair_weighting
from jaxalign.losses.multi_similarity import labelled_pair_loss, multi_similarity_loss, pair_masks

LABELS = np.array([0, 0, 0, 1, 1, 2, -1, 1, 3, 3, 0, 2, 2, 1, 0, 1], np.int32)  # one unknown, no class alone
VALID = np.arange(16) != 4


def embeddings(rows=16, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 3))


def by_loops(x, labels, valid, gallery=None, alpha=2.0, beta=50.0, threshold=0.5, margin=0.1):
    """(total, anchors, used, [mined, all] positives, [mined, all] negatives)."""
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    c, c_labels = (u, labels) if gallery is None else gallery
    c = c / np.linalg.norm(c, axis=1, keepdims=True)
    total, anchors, used, positives, negatives = 0.0, 0, 0, [0, 0], [0, 0]
    for i in range(len(x)):
        if not valid[i] or labels[i] < 0:
            continue
        anchors += 1
        pairs = [j for j in range(len(c)) if c_labels[j] >= 0]
        if gallery is None:
            pairs = [j for j in pairs if valid[j] and j != i]
        pos = [float(u[i] @ c[j]) for j in pairs if c_labels[j] == labels[i]]
        neg = [float(u[i] @ c[j]) for j in pairs if c_labels[j] != labels[i]]
        kept_pos = [s for s in pos if neg and s - margin < max(neg)]
        kept_neg = [s for s in neg if pos and s + margin > min(pos)]
        for counts, kept, some in ((positives, kept_pos, pos), (negatives, kept_neg, neg)):
            counts[0] += len(kept)
            counts[1] += len(some)
        if kept_pos:
            used += 1
            total += math.log(1 + sum(math.exp(-alpha * (s - threshold)) for s in kept_pos)) / alpha
            total += math.log(1 + sum(math.exp(beta * (s - threshold)) for s in kept_neg)) / beta
    return total, anchors, used, positives, negatives


def test_loss_and_metrics_equal_loops_over_pairs():
    x = embeddings()
    x[4] = np.nan
    total, anchors, used, positives, negatives = by_loops(x, LABELS, VALID)
    with jax.enable_x64(True):
        loss = jax.jit(multi_similarity_loss, static_argnames="reduction")
        found = jax.tree.map(float, loss(x, LABELS, valid=VALID))
        active = jax.tree.map(float, loss(x, LABELS, valid=VALID, reduction="active"))
    np.testing.assert_allclose(found.total, total, rtol=1e-12)
    assert found.weight == anchors == 14
    assert found.metrics["active"] == (used, anchors)
    assert found.metrics["mined_positives"] == tuple(positives)
    assert found.metrics["mined_negatives"] == tuple(negatives)
    assert 0 < positives[0] < positives[1] and 0 < negatives[0] < negatives[1]
    assert (active.total, active.weight) == (found.total, used)


def test_a_gallery_and_a_gradient_into_it():
    x, gallery = embeddings(), embeddings(5, seed=1)
    gallery_labels = np.array([0, 1, -1, 3, 0])
    total, anchors, *_ = by_loops(x, LABELS, VALID, (gallery, gallery_labels))

    def loss(x, gallery):
        found = multi_similarity_loss(x, LABELS, x_ref=gallery, labels_ref=gallery_labels, valid=VALID)
        return found.total, found.weight

    with jax.enable_x64(True):
        (value, weight), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, gallery)
        gradients = [np.asarray(gradient) for gradient in gradients]
    np.testing.assert_allclose(np.asarray(value), total, rtol=1e-12)
    assert np.asarray(weight) == anchors
    assert np.abs(gradients[1][[0, 1, 3]]).min() > 0 and (gradients[1][2] == 0).all()
    assert (gradients[0][4] == 0).all()


def test_the_batch_as_its_own_gallery_with_the_rule_by_value():
    """The rule by value drops a row as partner of itself, and a copy of it as well, which the rule by index keeps."""
    x = np.float32(embeddings())

    @jax.jit
    def losses(x):
        by_value = multi_similarity_loss(x, LABELS, x_ref=x, labels_ref=LABELS, drop_duplicates=True)
        return multi_similarity_loss(x, LABELS), by_value

    by_index, by_value = losses(x)
    np.testing.assert_allclose(by_value.total, by_index.total, rtol=1e-5)
    x[1] = 2 * x[0]
    by_index, by_value = losses(x)
    assert by_index.metrics["mined_positives"][1] - by_value.metrics["mined_positives"][1] == 2


@pytest.mark.devices(8)
def test_chunks_and_devices_change_nothing():
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("data",))
    rows = PartitionSpec("data")

    def whole(x, **options):
        return multi_similarity_loss(x, LABELS, valid=VALID, **options)

    def spread(x, chunk):
        def part(x, labels, valid):
            found = multi_similarity_loss(x, labels, valid=valid, chunk=chunk, axis_name="data")
            return jax.lax.psum(found, "data")

        return jax.shard_map(part, mesh=mesh, in_specs=rows, out_specs=PartitionSpec())(x, LABELS, VALID)

    def gradient(loss):
        return jax.jit(jax.value_and_grad(lambda x: (loss(x).total, loss(x)), has_aux=True))

    with jax.enable_x64(True):
        x = jnp.asarray(embeddings())
        expected = gradient(whole)(x)
        for loss in (lambda x: whole(x, chunk=5), lambda x: spread(x, 1)):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), gradient(loss)(x), expected
            )


@pytest.mark.optimised
def test_memory_grows_with_the_chunk_and_not_with_the_square_of_the_batch():
    def memory(rows, chunk):
        def loss(x, labels):
            return objective.loss(multi_similarity_loss(x, labels, chunk=chunk))

        shapes = (jax.ShapeDtypeStruct((rows, 128), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32))
        return jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    small, large = memory(1024, 32), memory(2048, 32)
    assert large < 2.2 * small  # [chunk, N] and [N, D]; the square would be 4 times
    assert large < 0.1 * memory(2048, None)
    # 16,384 rows at chunk 256 hold 8 times the rows and 8 times the chunk of this at most.
    assert 64 * large < 4 * 2**30


def test_without_pairs_of_both_kinds_nothing_is_learned():
    loss = jax.jit(jax.value_and_grad(lambda x, labels: objective.loss(multi_similarity_loss(x, labels))))
    for labels in ([1, 1, 1, 1], [0, 1, 2, 3], [-1, -1, -1, -1], [0, -1, -1, -1]):
        value, gradient = loss(embeddings(4).astype(np.float32), np.array(labels))
        assert value == 0
        assert (np.asarray(gradient) == 0).all()


def test_a_nan_that_counts_is_seen():
    x = np.where(np.arange(16)[:, None] == 3, np.nan, embeddings())
    assert np.isnan(jax.jit(multi_similarity_loss)(x, LABELS).total)


def test_inner_products_and_other_pair_losses():
    @jax.jit
    def both(x):
        ids = jnp.arange(16)
        masks = pair_masks(jnp.asarray(LABELS), jnp.asarray(LABELS), ids=ids, ids_ref=ids)
        found = labelled_pair_loss(pair_weighting.contrastive, x, LABELS, normalize=False)
        return found, pair_weighting.contrastive(x @ x.T, *masks).sum()

    found, expected = both(np.float32(embeddings()))
    np.testing.assert_allclose(found.total, expected, rtol=1e-5)
    assert found.weight == 15


def test_impossible_arguments():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="x_ref and labels_ref together"):
        multi_similarity_loss(x, jnp.zeros(3, int), x_ref=x)
    with pytest.raises(ValueError, match="unknown reduction 'sum'"):
        multi_similarity_loss(x, jnp.zeros(3, int), reduction="sum")
    with pytest.raises(ValueError, match="beta=0"):
        multi_similarity_loss(x, jnp.zeros(3, int), beta=0)
