"""The estimators on a categorical policy, where every expectation is a sum over all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.kl import kl_estimate

VOCABULARY = 7


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def policies():
    """(logits of the policy, log-probs of the reference), float64."""
    random = np.random.default_rng(0)
    reference = random.normal(size=VOCABULARY)
    return jnp.asarray(random.normal(size=VOCABULARY)), jax.nn.log_softmax(jnp.asarray(reference))


def kl(p, q):
    """KL between log-probs."""
    return jnp.sum(jnp.exp(p) * (p - q))


def expected_value(kind, logits, reference):
    log_p = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * kl_estimate(log_p, reference, kind))


def expected_gradient(kind, logits, reference):
    """sum_v p_v grad k(v): the expectation of the loss term's gradient, tokens being drawn, not differentiated."""
    p = jax.nn.softmax(logits)
    per_token = jax.jacobian(lambda z: kl_estimate(jax.nn.log_softmax(z), reference, kind))(logits)
    return p @ per_token


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(kind):
    logits, reference = policies()
    truth = kl(jax.nn.log_softmax(logits), reference)
    assert truth > 0.1
    np.testing.assert_allclose(expected_value(kind, logits, reference), truth, rtol=1e-12)


def test_k2_is_biased_by_third_order_only():
    logits, reference = policies()
    biases = []
    for step in (1.0, 0.1, 0.01):
        near = reference + step * (logits - reference)
        truth = kl(jax.nn.log_softmax(near), reference)
        biases.append(float(abs(expected_value("k2", near, reference) - truth) / truth))
    assert biases[0] > 10 * biases[2]
    assert biases[2] < 0.01


def test_k1_as_a_loss_term_has_no_gradient_on_average():
    np.testing.assert_allclose(expected_gradient("k1", *policies()), 0, atol=1e-14)


def test_k2_as_a_loss_term_is_the_kl_to_the_reference():
    logits, reference = policies()
    truth = jax.grad(lambda z: kl(jax.nn.log_softmax(z), reference))(logits)
    np.testing.assert_allclose(expected_gradient("k2", logits, reference), truth, rtol=1e-10)


def test_k3_as_a_loss_term_is_the_kl_from_the_reference():
    logits, reference = policies()
    truth = jax.grad(lambda z: kl(reference, jax.nn.log_softmax(z)))(logits)
    np.testing.assert_allclose(expected_gradient("k3", logits, reference), truth, rtol=1e-10)


def test_k3_is_never_negative_and_keeps_its_digits_near_zero():
    d = np.array([1e-9, -1e-9, 1e-6, 0.3, -0.3, 5.0, -5.0])
    value = kl_estimate(jnp.zeros(7), jnp.asarray(d), "k3")
    assert (np.asarray(value) >= 0).all()
    np.testing.assert_allclose(value[3:], np.exp(d[3:]) - d[3:] - 1, rtol=1e-12)
    np.testing.assert_allclose(value[2], d[2] ** 2 / 2, rtol=1e-3)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_policy_at_reference_has_value_and_gradient_zero(kind):
    log_probs = jnp.array([-0.5, -3.0])
    value, pull = jax.vjp(lambda x: kl_estimate(x, log_probs, kind), log_probs)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(pull(jnp.ones(2))[0], 1.0 if kind == "k1" else 0.0)


def test_the_reference_gets_no_gradient():
    gradient = jax.grad(lambda r: kl_estimate(jnp.zeros(3), r, "k3").sum())(jnp.ones(3))
    np.testing.assert_array_equal(gradient, 0)


def test_clamps_limit_value_and_gradient():
    log_probs, reference = jnp.array([-1.0, -40.0]), jnp.array([-1.5, -1.0])  # d = -0.5, 39

    def total(x, **clamps):
        return kl_estimate(x, reference, "k3", **clamps)

    expected = [np.exp(-0.5) - 0.5, np.exp(20) - 21]
    np.testing.assert_allclose(total(log_probs, log_ratio_clamp=20.0), expected, rtol=1e-12)
    np.testing.assert_allclose(total(log_probs, value_clamp=10.0), [expected[0], 10], rtol=1e-12)
    for clamps in ({"log_ratio_clamp": 20.0}, {"value_clamp": 10.0}):
        gradient = jax.grad(lambda x, clamps=clamps: total(x, **clamps).sum())(log_probs)
        np.testing.assert_allclose(gradient, [1 - np.exp(-0.5), 0], rtol=1e-12)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown KL estimate 'k4'"):
        kl_estimate(jnp.zeros(2), jnp.zeros(2), "k4")
