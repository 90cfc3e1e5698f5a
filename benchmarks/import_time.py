"""How long `import jaxalign` takes beyond JAX's own import; also for the modules that a run needs."""

import json
import statistics
import subprocess
import sys

from benchmarks import common

MODULES = (
    "jaxalign",
    "jaxalign.losses.policy_gradient",
    "jaxalign.decoding.sampler",
    "jaxalign.models.loading",
    "jaxalign.training.loop",
)
CODE = """
import importlib, json, sys, time
start = time.perf_counter(), time.process_time()
import jax
middle = time.perf_counter(), time.process_time()
importlib.import_module(sys.argv[1])
end = time.perf_counter(), time.process_time()
print(json.dumps([b - a for pair in ((start, middle), (middle, end)) for a, b in zip(*pair)]))
"""


def measure(module: str) -> list[float]:
    """Wall and processor seconds of `import jax`, then those of the module, in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, module], cwd=common.ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = common.parser(__doc__, rounds=5)
    arguments = parser.parse_args()
    common.print_machine()
    measure(MODULES[-1])  # compiles bytecode, fills the file cache
    rounds = [[measure(module) for module in MODULES] for _ in range(arguments.rounds)]
    rows, beyond = [], {}
    for module, calls in zip(MODULES, zip(*rounds, strict=True), strict=True):
        _, _, wall, cpu = (statistics.median(column) for column in zip(*calls, strict=True))
        beyond[module] = wall
        rows.append([module, f"{wall:.2f} s", f"{cpu:.2f}"])
    jax_alone = statistics.median(call[0] for calls in rounds for call in calls)
    common.print_table(("beyond jax", "wall", "cpu-s"), rows)
    print(f"  import jax alone: {jax_alone:.2f} s")
    common.print_target("import jaxalign beyond jax", beyond["jaxalign"], 2, "s")


if __name__ == "__main__":
    main()
