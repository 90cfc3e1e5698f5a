"""How much longer `import jaxalign` and its parts take than `import jax`, in fresh interpreters, in turns."""

import statistics
import subprocess
import sys
import time

from benchmarks import common

SIDES = {
    "jax": "import jax",
    "jaxalign": "import jax, jaxalign",
    "losses and rewards": "import jaxalign.losses.policy_gradient, jaxalign.rewards.advantages",
    "everything that an experiment uses": "import experiments.rl",
}


def main() -> None:
    arguments = common.parser(__doc__, rounds=5).parse_args()
    common.print_machine()
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(arguments.rounds + 1):
        for name, code in SIDES.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], cwd=common.ROOT, check=True)
            if turn:  # the first one fills the disk's cache
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [[name, f"{value:.2f} s", f"{value - medians['jax']:+.2f} s"] for name, value in medians.items()]
    common.print_table(("", "median", "beyond jax"), rows)
    common.print_target("import jaxalign beyond jax", medians["jaxalign"] - medians["jax"], 2, "s")


if __name__ == "__main__":
    main()
