"""Log-probs and entropies, forward and backward, by the size of the vocabulary's blocks: where the default comes from.

For the heads of SmolLM2-135M and Qwen3-0.6B and two numbers of tokens, in bfloat16: seconds and the compiler's
temporaries with blocks whose logits take 4 to 1,024 MiB, beside the dense form. Nothing else is needed; run it on the
backend in question.
"""

import statistics
import time

import numpy as np

from benchmarks import common, log_probs

HEADS = {"SmolLM2-135M": (49152, 576), "Qwen3-0.6B": (151936, 1024)}
MEBIBYTES = (4, 16, 64, 256, 1024)


def median_seconds(run, rounds: int) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
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
            rows = []
            # Blocks of a divisor of the vocabulary: others would be timed with a copy of the head.
            divisors = np.array([d for d in range(1, vocabulary + 1) if vocabulary % d == 0])
            blocks = {}
            for mebibytes in arguments.mebibytes:
                wanted = mebibytes * 2**20 / 4 / min(tokens, 4096)
                blocks.setdefault(int(divisors[np.abs(np.log(divisors / wanted)).argmin()]), f"{mebibytes} MiB")
            for block in [*blocks, *([] if arguments.no_dense else [None])]:
                form = "dense" if block is None else "streamed"
                side = log_probs.Jax(form, "bfloat16", tokens, shape=(vocabulary, width), block=block)
                seconds, temporary = median_seconds(side.run, arguments.rounds), side.temporary_bytes()
                label = "dense" if block is None else f"{block} rows ({blocks[block]})"
                rows.append([label, f"{1e3 * seconds:.2f} ms", f"{temporary / 1e6:.0f} MB"])
            print(f"{name}: {tokens} tokens, vocabulary {vocabulary}, width {width}")
            common.print_table(("block", "time", "temporaries"), rows)


if __name__ == "__main__":
    main()
