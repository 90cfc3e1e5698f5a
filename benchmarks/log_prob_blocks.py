"""Log-probs and entropies, forward and backward, by the size of the vocabulary's blocks: where the default comes from.

For the heads of SmolLM2-135M and Qwen3-0.6B and two numbers of tokens, in bfloat16: seconds and the compiler's
temporaries with blocks whose logits take 4 to 1,024 MiB, beside the dense form. Nothing else is needed; run it on the
backend in question.
"""

import statistics
import time

import numpy as np

from benchmarks import common

HEADS = {"SmolLM2-135M": (49152, 576), "Qwen3-0.6B": (151936, 1024)}
MEBIBYTES = (4, 16, 64, 256, 1024)


def problem(tokens: int, vocabulary: int, width: int):
    import jax

    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (tokens, width))
    head = 0.1 * jax.random.normal(keys[1], (vocabulary, width))
    return hidden, head, jax.random.randint(keys[2], (tokens,), 0, vocabulary), jax.random.normal(keys[3], (tokens,))


def compiled(block: int | None, arguments):
    import jax
    import jax.numpy as jnp

    from jaxalign.losses.log_probs import token_log_probs

    def dense(hidden, head, ids):
        logits = jnp.matmul(hidden.astype("bfloat16"), head.T.astype("bfloat16"), preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        return jnp.take_along_axis(log_p, ids[:, None], 1)[:, 0], -(jnp.exp(log_p) * log_p).sum(-1)

    def total(hidden, head, ids, weights):
        if block is None:
            log_probs, entropy = dense(hidden, head, ids)
        else:
            log_probs, entropy = token_log_probs(hidden, head, ids, block=block, compute_dtype="bfloat16")
        return (weights * log_probs).sum() + 0.01 * entropy.sum()

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*arguments).compile()


def median_seconds(function, arguments, rounds: int) -> float:
    import jax

    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--mebibytes", type=int, nargs="+", default=MEBIBYTES, help="of float32 logits a block")
    parser.add_argument("--no-dense", action="store_true", help="leave the dense form out (it needs much memory)")
    arguments = parser.parse_args()
    common.print_machine()
    for name, (vocabulary, width) in HEADS.items():
        for tokens in arguments.tokens:
            given = problem(tokens, vocabulary, width)
            rows = []
            # Blocks of a divisor of the vocabulary: others would be timed with a copy of the head.
            divisors = np.array([d for d in range(1, vocabulary + 1) if vocabulary % d == 0])
            blocks = {}
            for mebibytes in arguments.mebibytes:
                wanted = mebibytes * 2**20 / 4 / min(tokens, 4096)
                blocks.setdefault(int(divisors[np.abs(np.log(divisors / wanted)).argmin()]), f"{mebibytes} MiB")
            for block in [*blocks, *([] if arguments.no_dense else [None])]:
                function = compiled(block, given)
                seconds = median_seconds(function, given, arguments.rounds)
                temporary = function.memory_analysis().temp_size_in_bytes
                label = "dense" if block is None else f"{block} rows ({blocks[block]})"
                rows.append([label, f"{1e3 * seconds:.2f} ms", f"{temporary / 1e6:.0f} MB"])
            print(f"{name}: {tokens} tokens, vocabulary {vocabulary}, width {width}")
            common.print_table(("block", "time", "temporaries"), rows)


if __name__ == "__main__":
    main()
