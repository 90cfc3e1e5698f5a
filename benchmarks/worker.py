"""One side of a benchmark in a process of its own: `python -m benchmarks.worker module:Class '{"option": value}'`.

Reads one JSON object a line from stdin, {"method": name, "arguments": {...}}, and answers each with one line on the
stdout it was given: {"value": what the method returned, "seconds": wall, "cpu_seconds": of all its threads}, or
{"error": traceback}. What libraries print goes to stderr. Needs nothing but the standard library, so that it runs in
interpreters without JAX.
"""

import contextlib
import importlib
import json
import os
import sys
import time
import traceback


class Memory:
    """Peak memory between two calls: of the process, or of the GPU where the side computes on one."""

    def memory_start(self) -> None:
        self._before = self._reset()

    def memory_growth(self) -> int:
        """Bytes by which the peak since `memory_start` lies above what was in use then."""
        return self.memory_peak() - self._before

    def _reset(self) -> int:
        with open("/proc/self/clear_refs", "w") as file:  # Linux: the kernel's high-water mark
            file.write("5")
        return self._status("VmRSS")

    def memory_peak(self) -> int:
        """Bytes of the peak since `memory_start`, or since the process began."""
        return self._status("VmHWM")

    def _status(self, field: str) -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


class TorchGpuMemory(Memory):
    def _reset(self) -> int:
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def memory_peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated()


class JaxGpuMemory(Memory):
    """JAX cannot reset the peak: what is said is the peak since the process began, never too little."""

    def _reset(self) -> int:
        return self._statistics()["bytes_in_use"]

    def memory_peak(self) -> int:
        return self._statistics()["peak_bytes_in_use"]

    def _statistics(self) -> dict:
        import jax

        return jax.local_devices()[0].memory_stats()


def memory() -> Memory:
    """For what the side has imported by now."""
    if "jax" in sys.modules:
        return Memory() if sys.modules["jax"].default_backend() == "cpu" else JaxGpuMemory()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return TorchGpuMemory()
    return Memory()


def claim_priority() -> None:
    """Asks the kernel to let this process run before others; silently nothing where that is not allowed."""
    with contextlib.suppress(OSError):
        os.nice(-15)
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
        file.write("-15")


def main() -> None:
    module, name = sys.argv[1].split(":")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    options = json.loads(sys.argv[2])
    if options.pop("priority", False):
        claim_priority()
    try:
        sides = [getattr(importlib.import_module(module), name)(**options)]
        sides.append(memory())
        answers.write(json.dumps({"value": "ready"}) + "\n")
    except Exception:
        answers.write(json.dumps({"error": traceback.format_exc()}) + "\n")
        return
    for line in sys.stdin:
        request = json.loads(line)
        try:
            method = next(getattr(side, request["method"]) for side in sides if hasattr(side, request["method"]))
            wall, cpu = time.perf_counter(), time.process_time()
            value = method(**request["arguments"])
            answer = {
                "value": value,
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
            }
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
