"""The shift of BCO against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.controllers import reward_shift


def batches(seed=0):
    """Four batches: both classes, one class only, nothing that counts, both again; with rows that do not count."""
    random = np.random.default_rng(seed)
    rewards = random.normal(size=(4, 6)) + 1
    label = np.array([[1, 0, 1, 1, 0, 1], [1] * 6, [0, 1] * 3, [0, 0, 1, 0, 1, 0]])
    mask = np.array([[1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1], [0] * 6, [1] * 6])
    rewards[0, 3], rewards[3, 4] = np.nan, np.inf  # masked, and not finite
    return rewards, label, mask


def expected(mode, decay):
    """[4] shifts."""
    means, pooled, shifts = {}, [], []
    for rewards, label, mask in zip(*batches(), strict=True):
        kept = [(float(r), int(y)) for r, y, m in zip(rewards, label, mask, strict=True) if m and np.isfinite(r)]
        now = {}
        for kind in (0, 1):
            found = [r for r, y in kept if y == kind]
            if found:
                now[kind] = np.mean(found)
                means[kind] = decay * means[kind] + (1 - decay) * now[kind] if kind in means else now[kind]
        pooled += [r for r, _ in kept]
        if not kept:
            shifts.append(shifts[-1])
            continue
        shifts.append(
            {
                "ema": np.mean(list(means.values())),
                "cumulative": np.mean(pooled),
                "batch": np.mean(list(now.values())),
                "none": 0.0,
            }[mode]
        )
    return shifts


@pytest.mark.parametrize("mode", ["ema", "cumulative", "batch", "none"])
def test_shifts_are_those_of_plain_loops(mode):
    state, found = reward_shift.init(), []
    for rewards, label, mask in zip(*batches(), strict=True):
        state, shift = reward_shift.update(state, jnp.asarray(rewards), label, mask, mode=mode, decay=0.7)
        found.append(float(shift))
        assert shift == state.shift
    np.testing.assert_allclose(found, expected(mode, 0.7), rtol=1e-6)
    assert (state.seen_desirable, state.seen_undesirable) == (3 + 4 + 1, 2 + 4)


def test_the_shift_is_a_constant_and_one_for_all_devices():
    rewards, label, _ = batches()
    rewards, mask = np.nan_to_num(rewards[:2], posinf=0), np.ones((2, 6))

    def shift(rewards, label, mask):
        return reward_shift.update(reward_shift.init(), rewards, label, mask, axis_name="devices")[1]

    by_device = jax.vmap(shift, axis_name="devices")(rewards, label[:2], mask)
    _, whole = reward_shift.update(reward_shift.init(), rewards.reshape(-1), label[:2].reshape(-1), mask.reshape(-1))
    np.testing.assert_allclose(by_device, [whole, whole], rtol=1e-6)
    gradient = jax.grad(lambda r: reward_shift.update(reward_shift.init(), r, label[0], mask[0])[1])(rewards[0])
    np.testing.assert_array_equal(gradient, 0)


def test_mistakes_are_named():
    for options, words in (({"mode": "mean"}, "unknown mode 'mean'"), ({"decay": 1.0}, r"decay=1.0 .* in \[0, 1\)")):
        with pytest.raises(ValueError, match=words):
            reward_shift.update(reward_shift.init(), jnp.zeros(2), jnp.ones(2), jnp.ones(2), **options)
