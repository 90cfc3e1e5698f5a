"""Gradients of several objectives made into one: CAGrad, with its correction clipped by user weights (RACO), and MGDA.

g_i are the gradients of m objectives, w the user's weights (on the simplex), g_0 = sum_i w_i g_i, and for p on the
simplex G_p = sum_i p_i g_i. Everything but the last sum is a function of H_ij = <g_i, g_j>, so that the m gradients are
read twice and never copied: `gram_matrix`, `raco_coefficients`, `combine`; `conflict_averse` is all three. They are
given as m trees, or as an array with m rows.

p and directions do not depend on the scale of H, and every tolerance here is relative: H is divided by its mean
diagonal first. Gradients of a mean loss over a whole batch go in; H of micro-batches does not add up.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.diagnostics.entanglement import inner_product
from jaxalign.objective import safe_divide

Conflict = Literal["raco", "cagrad", "min_norm"]
FACES_UP_TO = 6  # objectives for which all 2^m - 1 faces of the simplex are looked at


class Correction(NamedTuple):
    """How a combined gradient came about, for metrics."""

    coefficients: jax.Array  # [m]: a of sum_i a_i g_i
    p: jax.Array  # [m], on the simplex: the worst mixture
    p_clipped: jax.Array  # [m]: the mixture that was added; p without clipping
    rho: jax.Array  # cosine of g_0 and the mixture that was added; 0 where one of them vanishes
    weighted_norm: jax.Array  # |g_0|
    cosines: jax.Array  # [m, m]: of the gradients with each other; 0 for a gradient of 0
    dropped: jax.Array  # number of objectives left out because their gradient was not finite


def objective_gradients(losses: Callable[[Any], jax.Array], params: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    """(losses [m], m gradients like params), by one forward and m backward passes."""
    values, backward = jax.vjp(losses, params)
    chex.assert_rank(values, 1)
    return values, tuple(backward(row)[0] for row in jnp.eye(len(values), dtype=values.dtype))


def gram_matrix(gradients: Sequence[Any]) -> jax.Array:
    """H [m, m], H_ij = <g_i, g_j>, of m trees; float32 sums (float64 is kept). Leaves may lie over devices."""
    m = len(gradients)
    products = {(i, j): inner_product(gradients[i], gradients[j]) for i in range(m) for j in range(i + 1)}
    return jnp.stack([jnp.stack([products[max(i, j), min(i, j)] for j in range(m)]) for i in range(m)])


def combine(gradients: Sequence[Any], coefficients: jax.Array) -> Any:
    """sum_i a_i g_i; a gradient whose coefficient is 0 may hold anything."""

    def one(*leaves: jax.Array) -> jax.Array:
        a = coefficients.astype(jnp.promote_types(jnp.float32, leaves[0].dtype))
        parts = [jnp.where(a[i] != 0, a[i] * leaf, 0) for i, leaf in enumerate(leaves)]
        return sum(parts[1:], start=parts[0]).astype(leaves[0].dtype)

    return jax.tree.map(one, *gradients)


def conflict_averse(
    gradients: Sequence[Any],
    weights: Sequence[float] | jax.Array,
    radius: float = 0.4,
    kind: Conflict = "raco",
) -> tuple[Any, Correction]:
    """(the m gradients made into one, how it came about).

    raco: `raco_coefficients`. cagrad: the same without clipping. min_norm: sum_i p_i g_i with p = `min_norm_mixture`,
    whatever weights and radius; the correction says how it lies to g_0. A gradient that is not finite makes all of the
    result so.

    Raises:
      ValueError: an unknown kind; as `raco_coefficients`.
    """
    if kind not in get_args(Conflict):
        raise ValueError(f"unknown way {kind!r} to combine gradients; choose one of {get_args(Conflict)}")
    gram = gram_matrix(gradients)
    if kind == "min_norm":
        coefficients = min_norm_mixture(gram)
        gram, w = _checked(gram, weights)
        correction = _correction(gram, w, coefficients, coefficients, coefficients)
    else:
        coefficients, correction = raco_coefficients(gram, weights, radius, clip=kind == "raco")
    return combine(gradients, coefficients), correction


def cagrad_mixture(gram: jax.Array, weights: Sequence[float] | jax.Array, radius: float) -> tuple[jax.Array, jax.Array]:
    """(p [m], Phi(p)): the mixture of gradients that the weighted one serves worst.

    Phi(p) = <G_p, g_0> + c |g_0| |G_p|, convex, is minimised over the simplex.

    For m <= 6 exactly. On the face with vertices S, let q be the point of the affine hull of its gradients that is
    nearest to 0, M the Gram matrix of the centred gradients of S, and u the length of g_0's part along the hull. Phi
    along the hull is least at q - t v / |v|, v that part of g_0 and t = u |q| / sqrt(c^2 |g_0|^2 - u^2); with
    u >= c |g_0| it has no least value, and that of the simplex is on another face. Of all faces' points, moved into the
    simplex where they are not, the one of the smallest Phi is taken. Colinear gradients make p ambiguous, not G_p.

    For larger m by exponentiated gradient descent, whose step halves when Phi rises.

    Args:
      gram: H [m, m].
      weights: w [m], on the simplex.
      radius: c in [0, 1).

    Raises:
      ValueError: weights that are no distribution over the m objectives; a radius outside [0, 1).

    arXiv 2110.14048 (CAGrad), where c may be larger.
    """
    gram, w = _checked(gram, weights)
    _check_radius(radius)
    scaled, scale = _scaled(gram)
    everyone = jnp.ones(len(w), bool)
    p, phi = _least(scaled, scaled @ w, radius * jnp.sqrt(_square(scaled, w)), everyone)
    return p, phi * scale


def min_norm_mixture(gram: jax.Array) -> jax.Array:
    """p [m] of the shortest G_p: the direction of MGDA (arXiv 1206.1046), coefficients for `combine`.

    |G_p| is 0 where the objectives cannot all be improved (to first order): Pareto criticality.
    """
    m = len(gram)
    gram, _ = _checked(gram, jnp.full(m, 1 / m))
    scaled, scale = _scaled(gram)
    return _least(scaled, jnp.zeros(m, gram.dtype), jnp.ones((), gram.dtype), jnp.ones(m, bool))[0] + 0 * scale


def raco_coefficients(
    gram: jax.Array,
    weights: Sequence[float] | jax.Array,
    radius: float = 0.4,
    *,
    clip: bool = True,
    drop_non_finite: bool = False,
) -> tuple[jax.Array, Correction]:
    """Coefficients a [m] of G_0 = g_0 + c |g_0| G_p~ / |G_p~| = sum_i a_i g_i, and how they came about.

    With p = `cagrad_mixture` and p~_i = min(p_i, w_i), not normalised again (so that the correction never gives an
    objective a larger share than its user did): a_i = w_i + c |g_0| p~_i / |G_p~|. Where G_p~ vanishes a = w.

    With rho the cosine of g_0 and G_p~: <g_0, G_0> = |g_0|^2 (1 + c rho), |G_0|^2 = |g_0|^2 (1 + c^2 + 2 c rho), and
    for two objectives clipping makes rho no smaller. c = 0 is the weighted loss; with one objective, or equal
    gradients, G_0 = (1 + c) g_0; where one gradient is 0, p stands on it and G_0 = g_0.

    Args:
      gram: H [m, m] = `gram_matrix` of the gradients of the whole batch, before they are clipped. Constants.
      weights: w [m] >= 0 with sum 1.
      radius: c in [0, 1).
      clip: False: CAGrad, p~ = p.
      drop_non_finite: leave out objectives whose gradient is not finite, the other weights scaled up to 1; coefficients
        are all 0 if none is left. Otherwise one such gradient makes all coefficients NaN.

    Raises:
      ValueError: as `cagrad_mixture`.

    arXiv 2602.02495. Deviation: the authors' code decides what is singular by absolute tolerances and takes another
    closed form for m = 2; for gradients of norm 0.01 it returns other mixtures than the minimum.
    """
    gram, w = _checked(gram, weights)
    _check_radius(radius)
    kept = jnp.isfinite(jnp.diag(gram)) if drop_non_finite else jnp.ones(len(w), bool)
    gram = jnp.where(kept[:, None] & kept, gram, 0)
    w = safe_divide(w * kept, (w * kept).sum()) if drop_non_finite else w
    scaled, scale = _scaled(gram)
    weighted_norm = _norm(scaled, w)
    p, _ = _least(scaled, scaled @ w, radius * weighted_norm, kept)
    p_clipped = jnp.minimum(p, w) if clip else p
    a = w + safe_divide(radius * weighted_norm, _norm(scaled, p_clipped)) * p_clipped + 0 * scale
    return a, _correction(gram, w, a, p, p_clipped, (~kept).sum())


def _correction(
    gram: jax.Array, w: jax.Array, a: jax.Array, p: jax.Array, p_clipped: jax.Array, dropped: int | jax.Array = 0
) -> Correction:
    scaled, scale = _scaled(gram)
    weighted_norm, norm, lengths = _norm(scaled, w), _norm(scaled, p_clipped), jnp.sqrt(jnp.diag(scaled))
    rho = safe_divide(w @ scaled @ p_clipped, weighted_norm * norm)
    cosines = safe_divide(scaled, lengths[:, None] * lengths)
    return Correction(a, p, p_clipped, rho, weighted_norm * jnp.sqrt(scale), cosines, jnp.asarray(dropped))


def _checked(gram: jax.Array, weights: Sequence[float] | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as constants in the type of H, float32 at least; weights are looked at unless they are traced."""
    gram = jax.lax.stop_gradient(gram.astype(jnp.promote_types(jnp.float32, gram.dtype)))
    chex.assert_rank(gram, 2)
    if not isinstance(weights, jax.core.Tracer):
        given = np.asarray(weights, np.float64)
        if given.shape != (len(gram),) or not (given >= 0).all() or abs(given.sum() - 1) > 1e-5:
            raise ValueError(f"weights {given.tolist()} must be {len(gram)} numbers of at least 0 whose sum is 1")
    return gram, jnp.asarray(weights, gram.dtype)


def _check_radius(radius: float) -> None:
    if not 0 <= radius < 1:
        raise ValueError(f"radius={radius} of the correction must be in [0, 1)")


def _scaled(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(H divided by its mean diagonal, that mean)."""
    scale = jnp.trace(gram) / len(gram)
    return safe_divide(gram, scale), scale


def _square(gram: jax.Array, p: jax.Array) -> jax.Array:
    """|G_p|^2, at least 0."""
    return jnp.maximum(p @ gram @ p, 0)


def _norm(gram: jax.Array, p: jax.Array) -> jax.Array:
    """|G_p|, and 0 where it is no more than the rounding of what cancels in it."""
    square, whole = _square(gram, p), (p @ jnp.sqrt(jnp.diag(gram))) ** 2
    return jnp.sqrt(jnp.where(square <= 4 * len(p) * jnp.finfo(gram.dtype).eps * whole, 0, square))


def _least(gram: jax.Array, b: jax.Array, s: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(p, value): where b.p + s |G_p| is least among the mixtures of what is `kept`; s >= 0."""
    return (_by_faces if len(b) <= FACES_UP_TO else _by_descent)(gram, b, s, kept)


def _by_faces(gram: jax.Array, b: jax.Array, s: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    m = len(b)
    faces = jnp.asarray([face for face in itertools.product((0, 1), repeat=m) if any(face)], gram.dtype)  # [2^m - 1, m]

    def on_face(face: jax.Array) -> tuple[jax.Array, jax.Array]:
        middle = face / face.sum()
        centre = jnp.diag(face) - jnp.outer(face, middle)
        values, vectors = jnp.linalg.eigh(centre @ gram @ centre)
        rounding = 10 * m * jnp.finfo(gram.dtype).eps * (face @ jnp.diag(gram))
        vectors = vectors * jnp.where(values > rounding, jax.lax.rsqrt(jnp.maximum(values, rounding)), 0)
        inverse = centre @ (vectors @ vectors.T) @ centre  # of M, on the directions inside of the face
        nearest = middle - inverse @ (gram @ middle)
        along = inverse @ b
        room = s**2 - b @ along  # c^2 |g_0|^2 - u^2
        ratio = jnp.where(room > 0, jnp.sqrt(_square(gram, nearest)) * jax.lax.rsqrt(jnp.where(room > 0, room, 1)), 0)
        p = jnp.maximum(nearest - ratio * along, 0) * face
        p = safe_divide(p, p.sum())
        allowed = (face * ~kept).sum() == 0
        return p, jnp.where(allowed, b @ p + s * jnp.sqrt(_square(gram, p)), jnp.inf)

    points, values = jax.vmap(on_face)(faces)
    best = jnp.argmin(values)
    return points[best], values[best]


def _by_descent(
    gram: jax.Array, b: jax.Array, s: jax.Array, kept: jax.Array, iterations: int = 2000
) -> tuple[jax.Array, jax.Array]:
    def value(p):
        return b @ p + s * jnp.sqrt(_square(gram, p))

    def body(carry, _):
        log_p, least, step = carry
        p = jax.nn.softmax(log_p)
        gradient = b + s * safe_divide(gram @ p, jnp.sqrt(_square(gram, p)))
        trial = jax.nn.log_softmax(log_p - step * (gradient - gradient @ p))
        new = value(jax.nn.softmax(trial))
        falls = new <= least
        log_p = jnp.where(falls, trial, log_p)
        return (log_p, jnp.where(falls, new, least), step * jnp.where(falls, 1.5, 0.5)), None

    start = jnp.where(kept | ~kept.any(), 0.0, -jnp.inf).astype(gram.dtype)
    first = (start, value(jax.nn.softmax(start)), jnp.ones((), gram.dtype))
    (log_p, least, _), _ = jax.lax.scan(body, first, None, length=iterations)
    return jax.nn.softmax(log_p), least
