"""Log-probs and entropies of tokens from hidden states and the head, forward and backward, at the size of SmolLM2.

Sides: jaxalign's `token_log_probs`; the dense form in plain JAX; in torch what TRL 1.16 has, that is logits and
`selective_log_softmax_and_entropy` (its trainers of other methods), and the chunked function behind
`add_fused_lm_head` (its GRPO). First all are compared with the dense form in float64, then they are timed in turns.
Memory is the growth of the resident peak during one forward and backward pass, measured in the same way in each
process; for the JAX sides also what the compiler says it needs besides arguments and results. Gradients of hidden
states and head are part of every peak.
"""

import numpy as np

from benchmarks import common
from benchmarks.comparisons import compare_values

WIDTH, VOCABULARY = 576, 49152
ENTROPY_WEIGHT = 0.01


def problem(tokens: int, vocabulary: int = VOCABULARY, width: int = WIDTH) -> dict[str, np.ndarray]:
    """Hidden states of unit size as a final norm makes them, and a head that gives entropies of a language model."""
    rng = np.random.default_rng(0)
    return {
        "hidden": rng.normal(size=(tokens, width)).astype(np.float32),
        "head": (0.12 * rng.normal(size=(vocabulary, width))).astype(np.float32),
        "ids": rng.integers(0, vocabulary, tokens).astype(np.int32),
        "weights": rng.normal(size=tokens).astype(np.float32),
    }


class Jax:
    """`form` is "streamed" (in blocks of `block` rows of the head) or "dense"; `dtype` that of the products, inputs are
    float32; `shape` (vocabulary, width) of the head."""

    def __init__(self, form: str, dtype: str, tokens: int, *, shape=(VOCABULARY, WIDTH), block: int | None = None):
        import jax
        import jax.numpy as jnp

        from jaxalign.losses.log_probs import token_log_probs

        def dense(hidden, head, ids):
            logits = jnp.matmul(hidden.astype(dtype), head.T.astype(dtype), preferred_element_type=jnp.float32)
            log_p = jax.nn.log_softmax(logits)
            return jnp.take_along_axis(log_p, ids[:, None], 1)[:, 0], -(jnp.exp(log_p) * log_p).sum(-1)

        def streamed(hidden, head, ids):
            return token_log_probs(hidden, head, ids, block=block, compute_dtype=dtype)

        def total(hidden, head, ids, weights):
            log_probs, entropy = {"dense": dense, "streamed": streamed}[form](hidden, head, ids)
            return (weights * log_probs).sum() + ENTROPY_WEIGHT * entropy.sum(), (log_probs, entropy)

        self._arguments = [jnp.asarray(value) for value in problem(tokens, *shape).values()]
        gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        self._compiled = gradient.lower(*self._arguments).compile()

    def run(self) -> None:
        import jax

        jax.block_until_ready(self._compiled(*self._arguments))

    def temporary_bytes(self) -> int:
        return self._compiled.memory_analysis().temp_size_in_bytes

    def save(self, path: str) -> None:
        (_, (log_probs, entropy)), (d_hidden, d_head) = self._compiled(*self._arguments)
        np.savez(path, log_probs=log_probs, entropy=entropy, d_hidden=d_hidden, d_head=d_head)


class Trl:
    """`form` is "logits" or "chunked"; `dtype` that of inputs and products."""

    def __init__(self, form: str, dtype: str, tokens: int):
        import torch

        device = common.torch_device()
        arrays = {name: torch.from_numpy(value).to(device) for name, value in problem(tokens).items()}
        self._hidden = arrays["hidden"].to(getattr(torch, dtype)).requires_grad_()
        self._head = arrays["head"].to(getattr(torch, dtype)).requires_grad_()
        self._ids, self._weights, self._form = arrays["ids"].long(), arrays["weights"], form

    def _score(self):
        from trl.trainer import utils

        if self._form == "logits":
            return utils.selective_log_softmax_and_entropy(self._hidden @ self._head.T, self._ids)
        fields = ("log_probs", "entropy")
        size = utils._CHUNKED_LOGPROB_CHUNK_SIZE
        return utils._ChunkedLogProbFunction.apply(
            self._hidden, self._head, None, self._ids, 1.0, size, None, 1.0, fields
        )[:2]

    def run(self) -> None:
        self._hidden.grad = self._head.grad = None
        log_probs, entropy = self._score()
        ((self._weights * log_probs.float()).sum() + ENTROPY_WEIGHT * entropy.float().sum()).backward()
        self._head.grad[0, 0].item()  # waits for a GPU

    def save(self, path: str) -> None:
        self.run()
        log_probs, entropy = self._score()
        values = dict(log_probs=log_probs, entropy=entropy, d_hidden=self._hidden.grad, d_head=self._head.grad)
        np.savez(path, **{name: value.detach().float().cpu().numpy() for name, value in values.items()})


def exact(tokens: int) -> dict[str, np.ndarray]:
    """The same in float64, a few tokens at a time."""
    given = {
        name: value.astype(np.float64) if value.dtype != np.int32 else value for name, value in problem(tokens).items()
    }
    found = dict(log_probs=np.empty(tokens), entropy=np.empty(tokens), d_hidden=np.empty((tokens, WIDTH)), d_head=0.0)
    for start in range(0, tokens, 256):
        part = slice(start, start + 256)
        hidden, ids, weights = given["hidden"][part], given["ids"][part], given["weights"][part, None]
        logits = hidden @ given["head"].T
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        p = np.exp(log_p)
        entropy = -(p * log_p).sum(1, keepdims=True)
        d_logits = -weights * p - ENTROPY_WEIGHT * p * (log_p + entropy)
        d_logits[np.arange(len(ids)), ids] += weights[:, 0]
        found["log_probs"][part], found["entropy"][part] = log_p[np.arange(len(ids)), ids], entropy[:, 0]
        found["d_hidden"][part] = d_logits @ given["head"]
        found["d_head"] = found["d_head"] + d_logits.T @ hidden
    return found


def main() -> None:
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of the products")
    arguments = parser.parse_args()
    peer = common.has_peer(arguments.peer_python, "torch", "trl")
    common.print_machine()
    print(f"  {arguments.tokens} tokens, width {WIDTH}, vocabulary {VOCABULARY}, forward and backward")
    truth = exact(arguments.tokens)
    for dtype in arguments.dtypes:
        problem = dict(tokens=arguments.tokens, dtype=dtype)
        sides = {
            "jaxalign": ("Jax", dict(form="streamed", **problem)),
            "JAX, dense": ("Jax", dict(form="dense", **problem)),
        }
        if peer:
            sides["TRL, logits"] = ("Trl", dict(form="logits", **problem))
            sides["TRL, chunked"] = ("Trl", dict(form="chunked", **problem))
        found = compare_values(dtype, "benchmarks.log_probs", sides, truth, arguments)
        common.print_target("temporary memory", found.temporary["jaxalign"] / 1e6, 160, "MB")
        if peer:
            share = 100 * found.temporary["jaxalign"] / found.growth["TRL, logits"]
            common.print_target("of the peak growth of TRL's logits", share, 6, "%")
            for name in ("TRL, logits", "TRL, chunked"):
                ratio = found.times["jaxalign"].seconds / found.times[name].seconds
                common.print_target(f"of the time of {name}", ratio, 0.5, "x")
    print("growth with the number of tokens (bfloat16)")
    needed = []
    for tokens in (arguments.tokens, 4 * arguments.tokens):
        with common.Worker("benchmarks.log_probs:Jax", form="streamed", dtype="bfloat16", tokens=tokens) as side:
            needed.append(side.call("temporary_bytes"))
            print(f"  {tokens} tokens: {needed[-1] / 1e6:.1f} MB")
    common.print_target("growth over four times the tokens", 100 * (needed[1] / needed[0] - 1), 10, "%")


if __name__ == "__main__":
    main()
