"""Token log-probs and entropies against the dense log-softmax: values, gradients, special tokens, memory, shardings."""

import functools
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.log_probs import log_probs_from_logits, token_log_probs
from jaxalign.training.mesh import make_mesh

ROOT = Path(__file__).resolve().parents[2]
P = jax.sharding.PartitionSpec
V, D = 37, 5


def dense(hidden, head, ids, cotangents=(0.0, 0.0), *, temperature=1.0, softcap=None):
    """(log_probs, entropy, gradients of hidden and head) by the definition: float64, with the whole [..., V] array."""
    hidden, head = (np.asarray(x, np.float64) for x in (hidden, head))
    logits = hidden @ head.T
    capped = logits if softcap is None else softcap * np.tanh(logits / softcap)
    z = capped / temperature
    z = z - z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    p, entropy = np.exp(log_p), -(np.exp(log_p) * log_p).sum(-1)
    of_log_prob, of_entropy = (np.broadcast_to(c, ids.shape)[..., None] for c in cotangents)
    dz = of_log_prob * ((np.arange(len(head)) == ids[..., None]) - p) - of_entropy * p * (log_p + entropy[..., None])
    d_logits = dz / temperature * (1 if softcap is None else 1 - (capped / softcap) ** 2)
    d_head = d_logits.reshape(-1, len(head)).T @ hidden.reshape(-1, hidden.shape[-1])
    return np.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0], entropy, d_logits @ head, d_head


def problem(shape=(3, 8), dtype=np.float64, seed=0, vocabulary=V, width=D):
    """hidden, head, ids and a cotangent for each of the two results."""
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(*shape, width)).astype(dtype)
    head = random.normal(size=(vocabulary, width)).astype(dtype)
    ids = random.integers(0, vocabulary, shape)
    cotangents = tuple(random.normal(size=(2, *shape)).astype(dtype))
    return hidden, head, ids, cotangents


def value_and_gradients(score, hidden, head, ids, cotangents):
    """(log_probs, entropy, gradient of hidden, gradient of head) for a weighted sum of both results."""
    results, pull = jax.vjp(
        lambda hidden, head: tuple(score(hidden, head, ids)), jnp.asarray(hidden), jnp.asarray(head)
    )
    cotangents = tuple(jnp.asarray(c, r.dtype) for c, r in zip(cotangents, results, strict=True))
    return (*results, *pull(cotangents))


@functools.cache
def compiled(**options):
    return jax.jit(functools.partial(value_and_gradients, functools.partial(token_log_probs, **options)))


def host(arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def close(actual, expected, **tolerance):
    for a, b in zip(host(actual), host(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "softcap": 1.5}], ids=str)
def test_the_gradients_of_the_dense_form_are_the_slopes_of_its_values(settings):
    hidden, head, ids, cotangents = problem((2, 3))
    directions = problem((2, 3), seed=1)[:2]

    def total(step):
        moved = (x + step * d for x, d in zip((hidden, head), directions, strict=True))
        return sum((c * x).sum() for c, x in zip(cotangents, dense(*moved, ids, **settings)[:2], strict=True))

    gradients = dense(hidden, head, ids, cotangents, **settings)[2:]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(slope, (total(1e-5) - total(-1e-5)) / 2e-5, rtol=1e-8)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 8), {}),
        ((), {"block": 5}),
        ((3, 8), {"block": 1}),
        ((8,), {"block": 5}),
        ((8,), {"block": V, "num_chunks": 8}),
        ((3, 8), {"block": 16, "num_chunks": 4}),
        ((2, 3, 8), {"block": 1000, "num_chunks": 2}),
        ((3, 8), {"block": 10, "temperature": 0.3}),
        ((2, 3, 8), {"block": 10, "softcap": 1.5, "temperature": 2.0, "num_chunks": 2}),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_dense_form(shape, options):
    """Blocks that divide V = 37 and that do not, one chunk and several; log-probs and entropy both pulled back."""
    settings = {key: value for key, value in options.items() if key in ("temperature", "softcap")}
    with jax.enable_x64(True):
        hidden, head, ids, cotangents = problem(shape)
        expected = dense(hidden, head, ids, cotangents, **settings)
        found = compiled(**options)(hidden, head, ids, cotangents)
        assert all(a.dtype == jnp.float64 and a.shape == b.shape for a, b in zip(found, expected, strict=True))
        close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_entropy_has_a_gradient_of_its_own():
    """Formula of the docstring: dH/dz = -p (z - logsumexp + H); zero at the uniform distribution, where H = log V."""
    with jax.enable_x64(True):
        hidden, head, ids, (_, weights) = problem()
        _, entropy, d_hidden, _ = compiled(block=6)(hidden, head, ids, (np.zeros_like(weights), weights))
        z = hidden @ head.T
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        expected = -(np.exp(log_p) * log_p).sum(-1)
        np.testing.assert_allclose(entropy, expected, rtol=1e-12)
        dz = -np.exp(log_p) * (log_p + expected[..., None]) * weights[..., None]
        np.testing.assert_allclose(d_hidden, dz @ head, rtol=1e-9, atol=1e-12)

        _, entropy, d_hidden, d_head = compiled(block=6)(0 * hidden, head, ids, (np.zeros_like(weights), weights))
        np.testing.assert_allclose(entropy, math.log(V), rtol=1e-12)
        close((d_hidden, d_head), (0 * hidden, 0 * head), atol=1e-12)


def test_float32_is_near_the_truth_for_large_logits_too():
    """Log-probs of about -1000 nats: nothing overflows, and the error is what rounding the logits alone would make."""
    hidden, head, ids, cotangents = problem(dtype=np.float32)
    hidden = 200 * hidden
    exact = dense(hidden, head, ids, cotangents)
    found = compiled(block=7)(hidden, head, ids, cotangents)
    assert exact[0].min() < -1000
    assert all(a.dtype == jnp.float32 for a in found)
    rounding = 2 * np.finfo(np.float32).eps * np.abs(hidden @ head.T).max()  # in nats; a probability's relative error
    close(found[:2], exact[:2], rtol=1e-6, atol=rounding)
    for a, b in zip(found[2:], exact[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rounding * np.abs(b).max())


@pytest.mark.parametrize("num_chunks", [1, 4])
@pytest.mark.parametrize("given", ["inputs", "compute_dtype"])
def test_bfloat16_products(given, num_chunks):
    """Results are float32 and as exact as the rounded inputs; gradients have the inputs' dtype and bfloat16's error."""
    hidden, head, ids, cotangents = problem((4, 16), np.float32)
    rounded = [a.astype(jnp.bfloat16) for a in (hidden, head)]
    exact = dense(*rounded, ids, cotangents)
    if given == "inputs":
        found = compiled(block=8, num_chunks=num_chunks)(*rounded, ids, cotangents)
    else:
        found = compiled(block=8, num_chunks=num_chunks, compute_dtype="bfloat16")(hidden, head, ids, cotangents)
    wanted = jnp.bfloat16 if given == "inputs" else jnp.float32
    assert [a.dtype for a in found] == [jnp.float32, jnp.float32, wanted, wanted]
    close(found[:2], exact[:2], rtol=1e-5, atol=1e-5)
    for a, b in zip(found[2:], exact[2:], strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=2**-7, atol=2**-7 * np.abs(b).max())


def test_many_chunks_add_to_the_head_in_float32():
    """512 terms of 1/2: a running sum in bfloat16 would stand still at 128."""
    hidden, head = np.ones((512, 2), jnp.bfloat16), np.zeros((2, 2), jnp.bfloat16)
    gradient = compiled(num_chunks=512)(hidden, head, np.zeros(512, int), (np.ones(512), np.zeros(512)))[3]
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, [[256.0, 256.0], [-256.0, -256.0]])


def test_the_temperature_is_an_input_without_gradient():
    hidden, head, ids, _ = problem(dtype=np.float32)

    @jax.jit
    @jax.value_and_grad
    def total(temperature):
        return token_log_probs(hidden, head, ids, temperature=temperature, block=8).log_probs.sum()

    for temperature in (0.5, 2.0):
        value, gradient = total(temperature)
        np.testing.assert_allclose(value, dense(hidden, head, ids, temperature=temperature)[0].sum(), rtol=1e-5)
        assert gradient == 0
    assert total._cache_size() == 1


def test_negative_ids_are_finite_and_ids_beyond_the_vocabulary_are_nan():
    hidden, head, _, _ = problem((5,), np.float32)
    for block in (8, V):  # with and without rows that pad the last block
        score = jax.jit(functools.partial(token_log_probs, block=block))
        log_probs, entropy = score(hidden, head, np.array([3, -1, -100, V, V + 2]))
        expected, all_entropy, *_ = dense(hidden, head, np.array([3, 0, 0, 0, 0]))
        np.testing.assert_allclose(log_probs[:3], expected[:3], rtol=1e-5)
        assert np.isnan(log_probs[3:]).all()
        np.testing.assert_allclose(entropy, all_entropy, rtol=1e-5)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("num_chunks", [1, 4])
def test_a_token_without_cotangent_adds_nothing_whatever_its_hidden_state(poison, num_chunks):
    hidden, head, ids, cotangents = problem(dtype=np.float32)
    unused = np.random.default_rng(1).random(ids.shape) < 0.4
    cotangents = tuple(np.where(unused, 0, c) for c in cotangents)
    score = compiled(block=8, num_chunks=num_chunks)
    clean = score(np.where(unused[..., None], np.float32(0), hidden), head, ids, cotangents)
    poisoned = score(np.where(unused[..., None], np.float32(poison), hidden), head, ids, cotangents)
    for a, b in zip(poisoned[2:], clean[2:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert (np.asarray(clean[2])[unused] == 0).all()
    np.testing.assert_array_equal(np.asarray(poisoned[0])[~unused], np.asarray(clean[0])[~unused])


def test_a_nan_of_a_token_that_counts_is_not_hidden():
    hidden, head, ids, cotangents = problem(dtype=np.float32)
    hidden[1, 2] = np.nan
    log_probs, entropy, d_hidden, d_head = compiled(block=8, num_chunks=1)(hidden, head, ids, cotangents)
    assert np.isnan(log_probs[1, 2])
    assert np.isnan(entropy[1, 2])
    assert np.isnan(d_head).any()
    assert np.isfinite(np.delete(np.asarray(d_hidden).reshape(-1, D), 10, axis=0)).all()


def test_an_impossible_token_has_log_prob_minus_infinity():
    head = np.array([[1.0, 0.0], [-np.inf, 0.0], [0.0, 1.0], [0.0, 0.5]])
    log_probs, entropy = jax.jit(functools.partial(token_log_probs, block=2))(
        np.ones((3, 2)), head, np.array([1, 0, 2])
    )
    z = np.array([1.0, 1.0, 0.5])
    p = np.exp(z) / np.exp(z).sum()
    np.testing.assert_allclose(log_probs, [-np.inf, math.log(p[0]), math.log(p[1])], rtol=1e-6)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(), rtol=1e-6)


def test_logits_that_are_there_already():
    """Values and gradients of both results; a masked vocabulary leaves them finite."""
    with jax.enable_x64(True):
        hidden, head, ids, cotangents = problem()
        expected = dense(hidden, head, ids, cotangents, temperature=0.7)

        def score(hidden, head, ids):
            return log_probs_from_logits(hidden @ head.T, ids, temperature=0.7)

        found = jax.jit(functools.partial(value_and_gradients, score))(hidden, head, ids, cotangents)
        close(found, expected, rtol=1e-9, atol=1e-9)

    allowed = np.arange(V) % 3 == 0
    logits = np.where(allowed, np.float32(hidden @ head.T), -np.inf)
    ids = ids - ids % 3
    ids[0, 0] = -1

    def total(logits):
        log_probs, entropy = log_probs_from_logits(logits, ids)
        return log_probs.sum() + entropy.sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(logits)
    # the definition over the words that are allowed, whose logits are the products of their rows of the head
    log_probs, entropy, *_ = dense(hidden, head[allowed], np.maximum(ids, 0) // 3)
    np.testing.assert_allclose(value, log_probs.sum() + entropy.sum(), rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[..., ~allowed] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden=np.ones((4, D))), r"hidden \(4, 5\) must be the shape of ids \(6,\)"),
        (dict(head=np.ones((V, 3))), r"head \(37, 3\) must be \[vocabulary, 5\]"),
        (dict(softcap=0.0), "softcap must be > 0, not 0.0"),
        (dict(temperature=0.0), "temperature must be > 0 to score tokens, not 0.0; greedy rollouts are scored at 1"),
        (dict(num_chunks=4), r"num_chunks=4 must divide the last axis of ids \(6,\)"),
        (dict(num_chunks=0), "num_chunks=0"),
        (dict(block=0), "block must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    arguments = dict(hidden=np.ones((6, D)), head=np.ones((V, D)), ids=np.zeros(6, int)) | change
    with pytest.raises(ValueError, match=message):
        token_log_probs(**arguments)
    with pytest.raises(ValueError, match=r"logits \(2, 9\) must be the shape of ids \(3,\)"):
        log_probs_from_logits(np.zeros((2, 9)), np.zeros(3, int))


def with_gradients(hidden, head, ids):
    def total(hidden, head):
        log_probs, entropy = token_log_probs(hidden, head, ids, compute_dtype="bfloat16")
        return jnp.sum(log_probs) - 0.01 * jnp.sum(entropy)

    return jax.value_and_grad(total, argnums=(0, 1))(hidden, head)


MEMORY = """
    import jax
    import jax.numpy as jnp
    from tests.losses.test_log_probs import with_gradients
    assert jax.device_count() == 1  # the choice of blocks and chunks counts devices
    for tokens in (4096, 16384):
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((tokens, 576), (49152, 576))]
        compiled = jax.jit(with_gradients).lower(*shapes, jax.ShapeDtypeStruct((tokens,), jnp.int32)).compile()
        print(compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.optimised
def test_memory_neither_holds_the_logits_nor_grows_with_the_tokens():
    """The head of SmolLM2; the logits of 4,096 tokens alone would be 805 MB. By the compiler's own account."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    assert few <= 160e6
    assert many <= 1.1 * few


def sharded_arguments(mesh):
    layouts = [P(("data", "fsdp")), P("tensor", "fsdp"), P(("data", "fsdp"))]
    return [jax.sharding.NamedSharding(mesh, spec) for spec in layouts]


@pytest.mark.devices(8)
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_sharded_equals_unsharded(shape):
    hidden, head, ids, cotangents = problem((8, 16), np.float32, vocabulary=48, width=8)
    expected = dense(hidden, head, ids, cotangents)
    placed = jax.device_put((hidden, head, ids), tuple(sharded_arguments(make_mesh(*shape))))
    score = functools.partial(token_log_probs, block=16, num_chunks=2)
    found = jax.jit(functools.partial(value_and_gradients, score, cotangents=cotangents))(*placed)
    close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.devices(8)
@pytest.mark.optimised
def test_each_device_holds_its_share_only():
    """Eight devices with eight times the tokens: batch and head sharded, the memory of each is that of one."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    layouts = sharded_arguments(mesh)
    shapes = [((32, 1024, 576), jnp.float32), ((49152, 576), jnp.float32), ((32, 1024), jnp.int32)]
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=layout)
        for (shape, dtype), layout in zip(shapes, layouts, strict=True)
    ]
    gradients = jax.jit(with_gradients, out_shardings=(None, tuple(layouts[:2])))
    assert gradients.lower(*arguments).compile().memory_analysis().temp_size_in_bytes <= 160e6
