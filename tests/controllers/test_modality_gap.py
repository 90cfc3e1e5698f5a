"""The controller of the gap against its rule written in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.controllers import modality_gap

OPTIONS = dict(warmup=3, headroom=0.4, slack=0.1, least_weight=0.2)


def test_a_run_against_plain_python():
    similarities = [0.1, 0.2, 0.0, 0.3, 0.5, np.nan, 0.9, 0.9, 0.2]
    state, average, reference, seen = modality_gap.init(), 0.0, 0.0, 0
    step = jax.jit(lambda state, s: modality_gap.update(state, s, decay=0.8, **OPTIONS))
    weights = []
    for similarity in similarities:
        if np.isfinite(similarity):
            average = similarity if seen == 0 else 0.8 * average + 0.2 * similarity
            if seen < 3:
                reference = (reference * seen + similarity) / (seen + 1)
            seen += 1
        state, decision = step(state, similarity)
        found = (state.average, state.reference, state.steps)
        np.testing.assert_allclose(found, (average, reference, seen), rtol=1e-5, atol=1e-6)
        high = reference + 0.4 * (1 - reference)
        want = (1, -np.inf, np.inf)
        if seen >= 3:
            want = (np.clip(1 - (average - reference) / (high - reference), 0.2, 1), reference - 0.1, high)
        np.testing.assert_allclose(decision, want, rtol=1e-5, atol=1e-6)
        weights.append(float(decision.weight))
    assert len(set(weights)) > 3 and min(weights) >= 0.2
    np.testing.assert_allclose(modality_gap.decide(state, **OPTIONS), decision, rtol=1e-6, atol=1e-6)


def test_special_points():
    close = modality_gap.ModalityGap(jnp.float32(1.0), jnp.float32(1.0), jnp.int32(20))
    assert float(modality_gap.decide(close).weight) == 1  # no room, and nothing above the reference
    nearer = close._replace(reference=jnp.float32(0.5))
    assert float(modality_gap.decide(nearer, headroom=0.0).weight) == pytest.approx(0.1)
    gradient = jax.grad(lambda s: modality_gap.update(modality_gap.init(), s, warmup=1)[1].high)(0.3)
    assert gradient == 0
    with pytest.raises(ValueError, match="warmup=0"):
        modality_gap.decide(close, warmup=0)
