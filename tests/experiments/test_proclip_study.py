"""The study of ProCLIP runs, and its world keeps detail from the old captions."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import proclip as study


def test_the_study_runs():
    found = study.run("stage1", 0, shorter=200)
    assert set(found) == {"zero_shot", "retrieval"} and all(0 <= value <= 1 for value in found.values())


def test_what_is_shown():
    world = study.world(jax.random.key(0))
    shown = study.show(world, jax.random.key(1), jnp.arange(5))
    assert [x.shape for x in shown] == [(5, 64), (5, 48), (5, 256)]
    bare, again = (study.show(world, jax.random.key(k), jnp.arange(5), spread=0.0) for k in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, bare, again)
