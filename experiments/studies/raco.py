"""RACO (arXiv 2602.02495) on two preferences that disagree: does clipping keep CAGrad with the user's weights?

600 pairs of vectors of 8 numbers. Two directions with cosine -0.3 say which of a pair is better, for each objective; a
scorer with 6 tanh units learns both by DPO's loss with beta = 1, weights 0.8 and 0.2, from batches of 8 pairs, 300
plain gradient steps of size 0.3. Settings are `<arm>, <radius>`:

  weighted        the weighted loss, whatever the radius
  cagrad, raco    its gradient with the correction, whole or clipped
  midway          no arm of its own: the mean of weighted and cagrad; raco is held against half of what cagrad drifts

Every arm is trained a second time with the gradients of all pairs, for the bound of convergence.
"""

import functools

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxalign.gradients.conflict_averse import (
    combine,
    gram_matrix,
    min_norm_mixture,
    objective_gradients,
    raco_coefficients,
)
from jaxalign.losses.multi_objective import objective_losses
from jaxalign.objective import loss

PAIRS, FEATURES, HIDDEN, BATCH, STEPS, LAST, STEP_SIZE = 600, 8, 6, 8, 300, 100, 0.3
WEIGHTS, COSINE, ROUNDING = (0.8, 0.2), -0.3, 1e-4
SETTINGS = (
    "weighted, 0.8",
    *(f"{arm}, {radius}" for radius in (0.8, 0.4) for arm in ("cagrad", "raco")),
    "midway, 0.8",
)


def make_problem(key: jax.Array):
    """(pairs [600, 2, 8], signs [2, 600], first parameters)"""
    keys = jax.random.split(key, 4)
    pairs = jax.random.normal(keys[0], (PAIRS, 2, FEATURES))
    first, other = jnp.linalg.qr(jax.random.normal(keys[1], (FEATURES, 2)))[0].T
    directions = jnp.stack([first, COSINE * first + (1 - COSINE**2) ** 0.5 * other])
    signs = jnp.sign(directions @ (pairs[:, 0] - pairs[:, 1]).T)
    params = {
        "in": jax.random.normal(keys[2], (FEATURES, HIDDEN)) / FEATURES**0.5,
        "bias": jnp.zeros(HIDDEN),
        "out": jax.random.normal(keys[3], (HIDDEN,)) / HIDDEN**0.5,
    }
    return pairs, signs, params


def losses(params, pairs: jax.Array, signs: jax.Array) -> jax.Array:
    """[2]: DPO's loss of each objective."""
    scores = jnp.tanh(pairs @ params["in"] + params["bias"]) @ params["out"]
    return jnp.stack([loss(found) for found in objective_losses(scores[:, 0] - scores[:, 1], signs, beta=1.0)])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 4))
def train(arm: str, radius: float, full: bool, key: jax.Array, steps: int) -> dict[str, jax.Array]:
    """Of every step: `losses` [2] on all pairs after it, and before it `gain`, by how much clipping raises the cosine
    of mixture and weighted gradient. With `full` steps are taken by all pairs, and before them there are `shortest`,
    the squared norm of the shortest mixture, and `curvature`, the largest eigenvalue of the weighted loss."""
    pairs, signs, params = make_problem(key)

    def step(params, key):
        rows = jnp.arange(PAIRS) if full else jax.random.choice(key, PAIRS, (BATCH,), replace=False)
        _, gradients = objective_gradients(lambda p: losses(p, pairs[rows], signs[:, rows]), params)
        gram = gram_matrix(gradients)
        clipped, whole = (raco_coefficients(gram, WEIGHTS, radius, clip=clip)[1] for clip in (True, False))
        coefficients = {"raco": clipped.coefficients, "cagrad": whole.coefficients}.get(arm, jnp.asarray(WEIGHTS))
        told = {"gain": clipped.rho - whole.rho}
        if full:
            p = min_norm_mixture(gram)
            flat, unflatten = ravel_pytree(params)
            hessian = jax.hessian(lambda flat: weighted(losses(unflatten(flat), pairs, signs)))(flat)
            told |= {"shortest": p @ gram @ p, "curvature": jnp.linalg.eigvalsh(hessian)[-1]}
        params = jax.tree.map(lambda x, g: x - STEP_SIZE * g, params, combine(gradients, coefficients))
        return params, told | {"losses": losses(params, pairs, signs)}

    told = jax.lax.scan(step, params, jax.random.split(jax.random.fold_in(key, 1), steps))[1]
    return told | {"start": losses(params, pairs, signs)}


def weighted(losses: jax.Array) -> jax.Array:
    return losses @ jnp.asarray(WEIGHTS)


def run(setting: str, seed: int, steps: int = STEPS) -> dict[str, float]:
    """What came of it.

    first_loss, second_loss, weighted_loss: on all pairs, mean of the last 100 steps. first_moved: distance of the first
    loss from that of the weighted arm. violations: share of steps (of both trainings) at which clipping lowers the
    cosine of mixture and weighted gradient; gain: by how much it raises it, in the mean. log10_spare: of the bound
    2 L_w / (step size (1 - c^2) steps) over the least squared norm of the shortest mixture. over_bound: 1 if that is
    less than 0. curvature: the largest of the weighted loss, times the step size; the bound wants 1 at most.
    """
    arm, _, radius = setting.partition(", ")
    if arm == "midway":
        ends = [run(f"{other}, {radius}", seed, steps) for other in ("weighted", "cagrad")]
        return {name: sum(end[name] for end in ends) / 2 for name in ends[0]}
    key, c = jax.random.key(seed), float(radius)
    told, full = (train(arm, c, full, key, steps) for full in (False, True))
    end, reference = (x["losses"][-LAST:].mean(0) for x in (told, train("weighted", c, False, key, steps)))
    gains = jnp.concatenate([told["gain"], full["gain"]])
    taken = 0.0 if arm == "weighted" else c
    spare = 2 * weighted(full["start"]) / (STEP_SIZE * (1 - taken**2) * steps) / full["shortest"].min()
    metrics = {
        "first_loss": end[0],
        "second_loss": end[1],
        "weighted_loss": weighted(end),
        "first_moved": jnp.abs(end - reference)[0],
        "violations": (gains < -ROUNDING).mean(),
        "gain": told["gain"].mean(),
        "log10_spare": jnp.log10(spare),
        "over_bound": spare < 1,
        "curvature": STEP_SIZE * full["curvature"].max(),
    }
    return {name: float(value) for name, value in metrics.items()}
