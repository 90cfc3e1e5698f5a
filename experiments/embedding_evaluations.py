"""What is measured of embeddings of held-out examples: retrieval, how they lie on the sphere, judged similarities."""

from collections.abc import Sequence

import jax
import numpy as np

from experiments.evaluated_run import Evaluation
from experiments.examples import Examples, take
from experiments.towers import SIDES, Towers
from jaxalign import objective
from jaxalign.evaluation.retrieval import retrieval_values, spearman
from jaxalign.losses.alignment_uniformity import uniformity_loss
from jaxalign.losses.similarity import unit
from jaxalign.placement import under_mesh
from jaxalign.training.mesh import gather, spread

CUTOFFS = (1, 5, 10)
SPREAD = {"alignment": "", "uniformity": "nats"}  # what is better if lower, and its units


class Embedder:
    """Embeddings of any number of examples, `size` at a time, by one compiled program a side."""

    def __init__(self, towers, size: int, sides: Sequence[str] = SIDES):
        self._towers, self._size = towers, size
        self._embed = {
            side: jax.jit(lambda params, inputs, side=side: towers.embed(params, side, inputs)) for side in sides
        }

    def __call__(self, params, side: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """[N, D] unit vectors, on the host."""
        count, found = len(next(iter(inputs.values()))), []
        for start in range(0, count, self._size):
            rows = np.minimum(np.arange(start, start + self._size), count - 1)  # one shape for all
            with under_mesh(self._towers.mesh):
                found.append(
                    gather(self._embed[side](params, spread(take(inputs, rows), self._towers.mesh, fill=True)))
                )
        x = np.concatenate([part[: self._size] for part in found])[:count].astype(np.float64)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@jax.jit
def _uniformity(x):
    return objective.loss(uniformity_loss(x, chunk=256))


def alignment_and_uniformity(first, second, sides: Sequence[str] = SIDES) -> dict[str, np.ndarray]:
    """How near partners are and how evenly the embeddings of `sides` fill the sphere (arXiv 2005.10242).

    alignment: the squared distance of each of the partners, unit vectors [N, D]; uniformity: log of the mean of
    exp(-2 d^2) over all pairs of rows of one side, its mean over sides, as an array of one number.
    """
    x = dict(zip(SIDES, (first, second), strict=True))
    uniformity = np.mean([float(_uniformity(x[side].astype(np.float32))) for side in sides], keepdims=True)
    return {"alignment": ((first - second) ** 2).sum(-1), "uniformity": uniformity}


class _HeldOut(Evaluation):
    """Rates, and what `SPREAD` names."""

    def title(self, name: str) -> tuple[str, str | None]:
        if name in SPREAD:
            return f"held-out {name}, lower is better", SPREAD[name]
        return f"held-out {name}", None


class HeldOut(_HeldOut):
    """Retrieval on held-out examples: partners among those of all others, or rows of the same class.

    Of pairs also alignment and uniformity.
    """

    def __init__(self, examples: Examples, towers: Towers, embedder: Embedder):
        self._examples, self._embed = examples, embedder
        self.doing = f"retrieving {len(examples)} held-out examples"
        self._inputs = {side: towers[side].inputs(*values) for side, values in examples.values.items()}

    def values(self, params) -> dict[str, np.ndarray]:
        """Of every query."""
        x = {side: self._embed(params, side, inputs) for side, inputs in self._inputs.items()}
        if self._examples.labels is not None:
            labels = self._examples.labels
            same, others = labels[:, None] == labels, ~np.eye(len(labels), dtype=bool)
            found = retrieval_values(x["first"] @ x["first"].T, same, CUTOFFS, candidates=others)
            return {name: found[name] for name in ("accuracy@1", "precision@10", "map@r")}
        ids, scores = self._examples.ids, x["first"] @ x["second"].T
        if self._examples.mask is not None:
            owners = np.repeat(ids, self._examples.mask.shape[1])
            real = np.broadcast_to(self._examples.mask.reshape(-1), scores.shape)
            found = retrieval_values(scores, ids[:, None] == owners, CUTOFFS, candidates=real)
            return {name: found[name] for name in ("accuracy@1", "recall@10", "mrr", "ndcg@10")}
        relevant = ids[:, None] == ids
        values = {}
        for direction, table in (("", scores), (", backwards", scores.T)):
            found = retrieval_values(table, relevant, CUTOFFS)
            names = ("recall@1", "recall@10", "mrr", "ndcg@10") if not direction else ("recall@1",)
            values |= {f"{name}{direction}": found[name] for name in names}
        return values | alignment_and_uniformity(x["first"], x["second"])


class HeldOutViews(_HeldOut):
    """How near two views of a held-out example are, and how evenly all are spread (arXiv 2005.10242)."""

    def __init__(self, examples: Examples, towers: Towers, size: int):
        self._inputs, self._size = towers["first"].inputs(*examples.values["first"]), size

        def views(params, inputs, key):
            return [unit(towers.embed(params, "first", inputs, one)) for one in jax.random.split(key)]

        self._views = jax.jit(views)

    def values(self, params) -> dict[str, np.ndarray]:
        """Alignment of the views of each; uniformity of the first views."""
        key, found = jax.random.key(0), []
        count = len(next(iter(self._inputs.values())))
        for start in range(0, count, self._size):
            rows = np.minimum(np.arange(start, start + self._size), count - 1)
            parts = self._views(params, take(self._inputs, rows), jax.random.fold_in(key, start))
            found.append([gather(part) for part in parts])
        first, second = (np.concatenate([part[side] for part in found])[:count] for side in range(2))
        return alignment_and_uniformity(first, second, sides=("first",))


class ScoredPairs(Evaluation):
    """Rank correlation of cosines with similarities that people gave (semantic textual similarity)."""

    def __init__(self, examples: Examples, towers: Towers, embedder: Embedder):
        self._scores, self._embed = examples.scores, embedder
        self._inputs = {side: towers[side].inputs(*values) for side, values in examples.values.items()}

    def values(self, params) -> dict[str, np.ndarray]:
        """One number of all pairs together."""
        first, second = (self._embed(params, side, self._inputs[side]) for side in SIDES)
        return {"spearman": np.array([spearman((first * second).sum(-1), self._scores)])}

    def title(self, name: str) -> tuple[str, str | None]:
        del name
        return "rank correlation with given similarities", ""
