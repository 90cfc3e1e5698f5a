"""Multi-similarity loss with its mining, forward and backward, against the same formula in torch.

Sides: jaxalign a chunk of anchors at a time, and dense; the MultiSimilarityMiner and MultiSimilarityLoss of
pytorch-metric-learning, where the other interpreter has it; and a plain reading of their documentation in torch, which
holds the whole matrix of similarities. All are compared with a loop over anchors
in float64 first, and then timed in turns. Memory is the growth of the resident peak during one forward and backward
pass, measured in the same way in each process; for the JAX sides also what the compiler says it needs.
"""

import numpy as np

from benchmarks import common
from benchmarks.comparisons import compare_values

WIDTH, PER_CLASS = 128, 8
ALPHA, BETA, THRESHOLD, MARGIN = 2.0, 50.0, 0.5, 0.1


def problem(rows: int) -> dict[str, np.ndarray]:
    """Classes of 8 whose members have a cosine of about 0.6, so that part of the pairs is mined."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(rows // PER_CLASS), PER_CLASS)
    x = rng.normal(size=(rows // PER_CLASS, WIDTH))[labels] + 0.8 * rng.normal(size=(rows, WIDTH))
    return {"x": x.astype(np.float32), "labels": labels.astype(np.int32)}


class Jax:
    def __init__(self, rows: int, chunk: int | None):
        import jax
        import jax.numpy as jnp

        from jaxalign import objective
        from jaxalign.losses.multi_similarity import multi_similarity_loss

        def loss(x, labels):
            options = dict(alpha=ALPHA, beta=BETA, threshold=THRESHOLD, mining_margin=MARGIN)
            return objective.loss(multi_similarity_loss(x, labels, chunk=chunk, **options))

        self._arguments = [jnp.asarray(value) for value in problem(rows).values()]
        self._compiled = jax.jit(jax.value_and_grad(loss)).lower(*self._arguments).compile()

    def run(self) -> None:
        import jax

        jax.block_until_ready(self._compiled(*self._arguments))

    def temporary_bytes(self) -> int:
        return self._compiled.memory_analysis().temp_size_in_bytes

    def save(self, path: str) -> None:
        value, gradient = self._compiled(*self._arguments)
        np.savez(path, value=value, gradient=gradient)


class Torch:
    def __init__(self, rows: int):
        import torch

        given = problem(rows)
        self._x = torch.from_numpy(given["x"]).requires_grad_()
        self._labels = torch.from_numpy(given["labels"])

    def _loss(self):
        import torch

        u = torch.nn.functional.normalize(self._x)
        s = u @ u.T
        same = self._labels[:, None] == self._labels
        with torch.no_grad():
            positive = same & ~torch.eye(len(s), dtype=torch.bool)
            hardest_positive = s.masked_fill(~positive, float("inf")).amin(1, keepdim=True)
            hardest_negative = s.masked_fill(same, float("-inf")).amax(1, keepdim=True)
            negative = ~same & (s + MARGIN > hardest_positive)
            positive &= s - MARGIN < hardest_negative

        def log1p_sum_exp(logits, kept):
            zero = torch.zeros_like(logits[:, :1])
            return torch.cat([logits.masked_fill(~kept, float("-inf")), zero], 1).logsumexp(1)

        pulled = log1p_sum_exp(-ALPHA * (s - THRESHOLD), positive) / ALPHA
        pushed = log1p_sum_exp(BETA * (s - THRESHOLD), negative) / BETA
        return (pulled + pushed).mean()

    def run(self) -> None:
        self._x.grad = None
        self._loss().backward()

    def save(self, path: str) -> None:
        self.run()
        np.savez(path, value=self._loss().detach().numpy(), gradient=self._x.grad.numpy())


class MetricLearning(Torch):
    """The package itself."""

    def __init__(self, rows: int):
        from pytorch_metric_learning import losses, miners

        super().__init__(rows)
        self._miner = miners.MultiSimilarityMiner(epsilon=MARGIN)
        self._of_pairs = losses.MultiSimilarityLoss(alpha=ALPHA, beta=BETA, base=THRESHOLD)

    def _loss(self):
        return self._of_pairs(self._x, self._labels, self._miner(self._x, self._labels))


def exact(rows: int) -> dict[str, np.ndarray]:
    """The same in float64, one anchor at a time; the gradient by the weights of pairs."""
    given = problem(rows)
    x, labels = given["x"].astype(np.float64), given["labels"]
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    u = x / norms
    total, d_u = 0.0, np.zeros_like(u)
    for i in range(rows):
        s = u @ u[i]
        same = labels == labels[i]
        positive, negative = np.flatnonzero(same & (np.arange(rows) != i)), np.flatnonzero(~same)
        kept_positive = positive[s[positive] - MARGIN < s[negative].max()]
        kept_negative = negative[s[negative] + MARGIN > s[positive].min()]
        for kept, scale in ((kept_positive, -ALPHA), (kept_negative, BETA)):
            terms = np.exp(scale * (s[kept] - THRESHOLD))
            total += np.log1p(terms.sum()) / abs(scale)
            weights = np.sign(scale) * terms / (1 + terms.sum())
            d_u[i] += weights @ u[kept]
            d_u[kept] += weights[:, None] * u[i]
    gradient = (d_u - (d_u * u).sum(1, keepdims=True) * u) / norms
    return {"value": np.asarray(total / rows), "gradient": gradient / rows}


def main() -> None:
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=256)
    arguments = parser.parse_args()
    common.print_machine()
    print(f"  {arguments.rows} rows, width {WIDTH}, chunk {arguments.chunk}, float32, forward and backward")
    rows = dict(rows=arguments.rows)
    sides = {
        "jaxalign, chunks": ("Jax", dict(chunk=arguments.chunk, **rows)),
        "jaxalign, dense": ("Jax", dict(chunk=None, **rows)),
    }
    if common.has_peer(arguments.peer_python, "torch"):
        sides["torch, dense"] = ("Torch", rows)
        if common.has_peer(arguments.peer_python, "pytorch_metric_learning"):
            sides["pytorch-metric-learning"] = ("MetricLearning", rows)
    truth = exact(arguments.rows)
    found = compare_values("multi-similarity", "benchmarks.multi_similarity", sides, truth, arguments)
    for name in [name for name in sides if name not in found.temporary]:
        share = found.times["jaxalign, chunks"].seconds / found.times[name].seconds
        common.print_target(f"chunks, of the time of {name}", share, 1 / 5, "x")
        memory = 100 * found.temporary["jaxalign, chunks"] / found.growth[name]
        common.print_target(f"chunks, of the memory of {name}", memory, 25, "%")
    with common.Worker("benchmarks.multi_similarity:Jax", rows=16384, chunk=arguments.chunk) as side:
        needed = side.call("temporary_bytes")
    common.print_target("temporaries at 16,384 rows", needed / 2**30, 4, "GiB")


if __name__ == "__main__":
    main()
