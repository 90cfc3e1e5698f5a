"""Small groups of images and captions: who is matched with whom, how clearly, and how it is scored.

`similarities[g, i, j]` is the logit of image i and caption j of group g, with its scale; the truth is i -> i. A
matching gives every image a caption of its own; its value is the sum of its logits (never of probabilities). Scores and
thresholds are those of test-time matching, arXiv 2510.07632.
"""

import itertools
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

Schedule = Literal["linear", "cosine", "constant"]
LARGEST = 4  # captions of a group up to which all matchings are compared


class Matching(NamedTuple):
    captions: jax.Array  # [G, m] int32: of each image
    margin: jax.Array  # [G] value of this matching minus that of the next best, >= 0; infinite where there is no other


def injections(images: int, captions: int) -> np.ndarray:
    """[P, m]: all ways of giving each of m images a caption of its own, in lexicographic order (the truth first)."""
    return np.array(list(itertools.permutations(range(captions), images)), np.int32)


def _values(similarities: jax.Array) -> tuple[jax.Array, np.ndarray]:
    """(value of every matching [G, P], the matchings [P, m])."""
    chex.assert_rank(similarities, 3)
    images, captions = similarities.shape[1:]
    if images > captions:
        raise ValueError(f"groups of {images} images and {captions} captions: swap the two, no matching is one to one")
    if captions > LARGEST:
        raise ValueError(f"groups of {captions} captions have too many matchings; use `large_matching`")
    found = injections(images, captions)
    return similarities[:, np.arange(images), found].sum(-1), found


def group_scores(similarities: jax.Array) -> dict[str, jax.Array]:
    """Scores [G] (bool) of groups [G, m, k], m <= k <= 4; ties and NaN are not right.

    text: every image prefers its own caption to all others of the group; image: every caption that has an image prefers
    that one; group: both (GroupScore); group_match: the truth is worth more than every other matching (GroupMatch). A
    group that is right by GroupScore is so by GroupMatch. By chance, for k = m: (k-1)!/(2k-1)! and 1/k!.

    Raises ValueError: more images than captions, more than 4 captions.
    """
    values, found = _values(similarities)
    images = similarities.shape[1]
    true = similarities[:, np.arange(images), np.arange(images)]
    others = ~np.eye(images, similarities.shape[2], dtype=bool)
    text = jnp.where(others, true[:, :, None] > similarities, True).all((1, 2))
    square = similarities[:, :, :images]
    image = jnp.where(~np.eye(images, dtype=bool), true[:, None, :] > square, True).all((1, 2))
    match = (values[:, :1] > values[:, 1:]).all(1) if len(found) > 1 else jnp.isfinite(values[:, 0])
    return {"text": text, "image": image, "group": text & image, "group_match": match}


def best_matching(similarities: jax.Array) -> Matching:
    """The matching of highest value of groups [G, m, k], m <= k <= 4, and how much the next one is worth less.

    Of equal ones the first in lexicographic order, with margin 0; a group with a NaN has the margin NaN, which no
    threshold selects. The order of the captions must not tell the truth (here it is i -> i): where it matters, shuffle.

    Raises ValueError: more images than captions, more than 4 captions.
    """
    values, found = _values(similarities)
    best = jnp.argmax(values, 1)
    first = jnp.take_along_axis(values, best[:, None], 1)[:, 0]
    others = jnp.where(jnp.arange(len(found)) == best[:, None], -jnp.inf, values)
    # A NaN anywhere makes every comparison meaningless, even of matchings that do not use it.
    bad = jnp.isnan(similarities).any((1, 2))
    return Matching(jnp.asarray(found)[best], jnp.where(bad, jnp.nan, first - others.max(1)))


def large_matching(similarities: np.ndarray) -> Matching:
    """`best_matching` for groups of any size, outside `jit`: one assignment, and one more for each of its pairs.

    The next best matching lacks at least one pair of the best one; it is the best of those that lack a given one.
    """
    from scipy.optimize import linear_sum_assignment

    groups = np.asarray(similarities, np.float64)
    images, captions = groups.shape[1:]
    if images > captions:
        raise ValueError(f"groups of {images} images and {captions} captions: swap the two, no matching is one to one")
    found, margins = np.zeros(groups.shape[:2], np.int32), np.full(len(groups), np.nan)
    for g, values in enumerate(groups):
        if np.isnan(values).any():
            found[g] = np.arange(images)
            continue
        rows, found[g] = linear_sum_assignment(values, maximize=True)
        best, following = values[rows, found[g]].sum(), -np.inf
        # Forbidden is what costs more than all the rest could bring.
        ban = 1 + 2 * np.abs(values).sum()
        for row, column in zip(rows, found[g], strict=True):
            without = values.copy()
            without[row, column] -= ban
            chosen = linear_sum_assignment(without, maximize=True)
            if chosen[1][row] != column:
                following = max(following, values[chosen].sum())
        margins[g] = best - following
    return Matching(found, margins)


def select_groups(margin: jax.Array, threshold: float | jax.Array) -> jax.Array:
    """[G] whether the margin is at least the threshold (logits). Threshold 0 takes all; a NaN margin is never taken."""
    return margin >= threshold


def global_matching(similarities: np.ndarray, drop: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(caption of each image [N], which pairs to keep [N]) of one assignment of N images and N captions.

    The assignment has the highest sum; kept are the int(N (1 - drop + 1e-10)) pairs of largest logit, and whatever
    equals the last of them. On the host, outside `jit`.

    Raises ValueError: not square, NaN, `drop` outside [0, 1].
    """
    from scipy.optimize import linear_sum_assignment

    similarities = np.asarray(similarities)
    if similarities.ndim != 2 or similarities.shape[0] != similarities.shape[1]:
        raise ValueError(f"one assignment needs as many captions as images, not {similarities.shape}")
    if np.isnan(similarities).any() or not 0 <= drop <= 1:
        raise ValueError(f"similarities must be numbers, and drop={drop} in [0, 1]")
    rows, captions = linear_sum_assignment(similarities, maximize=True)
    chosen = similarities[rows, captions]
    kept = int(len(rows) * (1 - drop + 1e-10))
    keep = np.zeros(len(rows), bool) if kept == 0 else chosen >= np.sort(chosen)[-kept]
    return captions.astype(np.int32), keep


def threshold_schedule(kind: Schedule, start: float, end: float, iterations: int) -> np.ndarray:
    """[T] thresholds: a line or half a cosine from `start` to `end`, or `start` throughout.

    Raises ValueError: an unknown kind, no iteration.
    """
    if kind not in get_args(Schedule) or iterations < 1:
        raise ValueError(f"schedule {kind!r} over {iterations} iterations: use one of {get_args(Schedule)}, at least 1")
    if kind == "constant":
        return np.full(iterations, start)
    progress = np.linspace(0, 1, iterations)
    if kind == "cosine":
        progress = (1 - np.cos(np.pi * progress)) / 2
    return start + (end - start) * progress


def restart_cosine(peak: float, ratio: float, iteration: int, steps: int, least: float = 0.1) -> np.ndarray:
    """[steps] learning rates of iteration 0, 1, ...: peak ratio^iteration times half a cosine from 1 to `least`."""
    progress = np.arange(steps) / max(steps, 1)
    return peak * ratio**iteration * (least + (1 - least) * (1 + np.cos(np.pi * progress)) / 2)
