"""InfoNCE, CLIP and SigLIP over a whole batch, forward and backward, against the formulas in torch.

Sides: jaxalign a chunk of anchors at a time, and at once; torch as one writes the formulas down, which holds the whole
matrix of similarities: cross-entropy of S / temperature (for CLIP of the logits of both sides, each a product of its
own as in open_clip), and softplus of all B^2 pairs. All are compared with float64 first, then timed in turns. Memory is
the growth of the resident peak during one forward and backward pass, measured in the same way in each process; for the
JAX sides also what the compiler says it needs.
"""

import numpy as np

from benchmarks import common
from benchmarks.comparisons import compare_values

WIDTH, TEMPERATURE, SCALE, BIAS = 64, 0.07, 10.0, -10.0
CHUNKS = {"InfoNCE": 256, "CLIP": 256, "SigLIP": 128}


def problem(rows: int) -> dict[str, np.ndarray]:
    """Partners with a cosine of about 0.5, as after some training."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(rows, WIDTH))
    return {name: (shared + rng.normal(size=(rows, WIDTH))).astype(np.float32) for name in ("a", "b")}


class Jax:
    def __init__(self, loss: str, rows: int, chunk: int | None):
        import jax
        import jax.numpy as jnp

        from jaxalign import objective
        from jaxalign.losses.contrastive import clip_loss, info_nce, siglip_loss

        def value(a, b):
            if loss == "InfoNCE":
                return objective.loss(info_nce(a, b, TEMPERATURE, chunk=chunk))
            if loss == "CLIP":
                return objective.loss(clip_loss(a, b, -np.log(TEMPERATURE), chunk=chunk))
            return objective.loss(siglip_loss(a, b, np.log(SCALE), BIAS, chunk=chunk))

        self._arguments = [jnp.asarray(x) for x in problem(rows).values()]
        self._compiled = jax.jit(jax.value_and_grad(value, (0, 1))).lower(*self._arguments).compile()

    def run(self) -> None:
        import jax

        jax.block_until_ready(self._compiled(*self._arguments))

    def temporary_bytes(self) -> int:
        return self._compiled.memory_analysis().temp_size_in_bytes

    def save(self, path: str) -> None:
        value, (d_a, d_b) = self._compiled(*self._arguments)
        np.savez(path, value=value, d_a=d_a, d_b=d_b)


class Torch:
    def __init__(self, loss: str, rows: int):
        import torch

        self._a, self._b = (torch.from_numpy(x).requires_grad_() for x in problem(rows).values())
        self._name = loss
        self._partners = torch.arange(rows)
        self._signs = 2 * torch.eye(rows) - 1

    def _loss(self):
        from torch.nn import functional

        a, b = functional.normalize(self._a), functional.normalize(self._b)
        if self._name == "CLIP":
            both = [functional.cross_entropy(x @ y.T / TEMPERATURE, self._partners) for x, y in ((a, b), (b, a))]
            return sum(both) / 2
        cosines = a @ b.T
        if self._name == "InfoNCE":
            return functional.cross_entropy(cosines / TEMPERATURE, self._partners)
        return -functional.logsigmoid(self._signs * (SCALE * cosines + BIAS)).sum() / len(cosines)

    def run(self) -> None:
        self._a.grad = self._b.grad = None
        self._loss().backward()

    def save(self, path: str) -> None:
        self.run()
        np.savez(path, value=self._loss().detach().numpy(), d_a=self._a.grad.numpy(), d_b=self._b.grad.numpy())


def exact(loss: str, rows: int, swapped: bool = False) -> dict[str, np.ndarray]:
    """The same in float64, some anchors at a time."""
    if loss == "CLIP":
        forth, back = (exact("InfoNCE", rows, swapped) for swapped in (False, True))
        sides = {"value": "value", "d_a": "d_b", "d_b": "d_a"}
        return {name: (forth[name] + back[other]) / 2 for name, other in sides.items()}
    given = {name: x.astype(np.float64) for name, x in problem(rows).items()}
    norms = {name: np.linalg.norm(x, axis=1, keepdims=True) for name, x in given.items()}
    names = ("b", "a") if swapped else ("a", "b")
    a, b = (given[name] / norms[name] for name in names)
    total, d_a, d_b = 0.0, np.zeros_like(a), np.zeros_like(b)
    for start in range(0, rows, 512):
        part = np.arange(start, min(start + 512, rows))
        cosines, own = a[part] @ b.T, (np.arange(len(part)), part)
        if loss == "InfoNCE":
            logits = cosines / TEMPERATURE
            weights = np.exp(logits - logits.max(1, keepdims=True))
            total += (logits.max(1) + np.log(weights.sum(1)) - logits[own]).sum()
            weights /= weights.sum(1, keepdims=True)
            weights[own] -= 1
            weights /= TEMPERATURE
        else:
            logits = SCALE * cosines + BIAS
            logits[own] *= -1
            total += np.logaddexp(logits, 0).sum()
            weights = SCALE / (1 + np.exp(-logits))
            weights[own] *= -1
        d_a[part] += weights @ b
        d_b += weights.T @ a[part]
    pairs = zip(names, (d_a, d_b), (a, b), strict=True)
    slopes = [(d - (d * u).sum(1, keepdims=True) * u) / norms[name] for name, d, u in pairs]
    return {"value": np.asarray(total / rows), "d_a": slopes[0] / rows, "d_b": slopes[1] / rows}


def main() -> None:
    parser = common.parser(__doc__, rounds=7)
    parser.add_argument("--rows", type=int, default=6144)
    parser.add_argument("--chunk", type=int, help=f"anchors at a time (default {CHUNKS})")
    arguments = parser.parse_args()
    common.print_machine()
    print(f"  {arguments.rows} rows, width {WIDTH}, float32, forward and backward")
    peer = common.has_peer(arguments.peer_python, "torch")
    for loss in CHUNKS:
        compare(loss, peer, arguments)


def compare(loss: str, peer: bool, arguments) -> None:
    chunk = arguments.chunk or CHUNKS[loss]
    problem = dict(loss=loss, rows=arguments.rows)
    sides = {
        "jaxalign, chunks": ("Jax", dict(chunk=chunk, **problem)),
        "jaxalign, at once": ("Jax", dict(chunk=None, **problem)),
    }
    if peer:
        sides["torch"] = ("Torch", problem)
    truth = exact(loss, arguments.rows)
    found = compare_values(f"{loss}, chunk {chunk}", "benchmarks.contrastive", sides, truth, arguments)
    if peer:
        for name in found.temporary:
            ratio = found.times[name].seconds / found.times["torch"].seconds
            common.print_target(f"{name}, of the time of torch", ratio, 1 / 3, "x")


if __name__ == "__main__":
    main()
