"""BCO's bound: above the DPO loss for every shift, and how far."""

import jax
import numpy as np

from jaxalign.diagnostics.classification_bound import bound_report


def test_the_bound_holds_and_its_gap_is_exact():
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        r_w, r_l, shift = 3 * random.normal(size=(3, 50))
        found = bound_report(r_w, r_l, shift)
        np.testing.assert_allclose(found["dpo"], np.log1p(np.exp(r_l - r_w)), rtol=1e-9)
        np.testing.assert_allclose(found["error_term"], np.exp(shift - r_w) + np.exp(r_l - shift), rtol=1e-9)
        bce = np.log1p(np.exp(shift - r_w)) + np.log1p(np.exp(r_l - shift))
        np.testing.assert_allclose(found["bce"], bce, rtol=1e-9)
        np.testing.assert_allclose(found["gap"], bce - np.log1p(np.exp(r_l - r_w)), rtol=1e-7)
        assert (np.asarray(found["gap"]) > 0).all()
        best = bound_report(r_w, r_l, (r_w + r_l) / 2)
        np.testing.assert_allclose(best["error_term"], 2 * np.exp(-(r_w - r_l) / 2), rtol=1e-9)
        assert (np.asarray(best["gap"]) <= np.asarray(found["gap"])).all()
    far = bound_report(np.float32(1e4), np.float32(-1e4))
    assert all(np.isfinite(value) for value in far.values())
