"""What a checkpoint costs the training: ten supervised steps of SmolLM2-135M with one save, against ten without.

The state is the whole of a full fine-tune (weights and two moments in float32, 1.6 GB). Saved as on a CPU, before the
next step begins, and behind the training, as elsewhere. Shown are the time that the training thread spends in `save`,
and how much longer the ten steps take in all: on a CPU what writes behind the training competes with it.
"""

import tempfile
import time

from benchmarks import common
from benchmarks.train_step import Jax

STEPS = 10


class Side(Jax):
    """`form`: "none", "synchronous" or "asynchronous"."""

    def __init__(self, form: str):
        super().__init__()
        self._saves, self._form, self._folder = 0, form, None
        self.checkpointer = None
        if form != "none":
            from jaxalign.training.checkpoints import Checkpointer

            self._folder = tempfile.TemporaryDirectory()
            self.checkpointer = Checkpointer(self._folder.name, keep=1, asynchronous=form == "asynchronous")

    def steps(self) -> float:
        """Seconds of the call of `save`; the ten steps are timed from outside."""
        seconds = 0.0
        for number in range(STEPS):
            self.run()
            if number == 0 and self.checkpointer is not None:
                self._saves += 1
                began = time.perf_counter()
                self.checkpointer.save(self._saves, self._state, {})
                seconds = time.perf_counter() - began
        return seconds

    def size(self) -> int:
        import jax

        return sum(leaf.nbytes for leaf in jax.tree.leaves((self._state.params, self._state.opt_state)))

    def close(self) -> None:
        if self.checkpointer is not None:
            self.checkpointer.close()
            self._folder.cleanup()


def main() -> None:
    arguments = common.parser(__doc__, rounds=3).parse_args()
    common.print_machine()
    forms = ("none", "synchronous", "asynchronous")
    workers = {
        form: common.Worker("benchmarks.save_cost:Side", form=form, priority=arguments.priority) for form in forms
    }
    try:
        for worker in workers.values():
            worker.call("run")
        print(f"  state: {workers['none'].call('size') / 1e6:.0f} MB")
        sides = {form: (lambda worker=worker: worker.timed("steps")) for form, worker in workers.items()}
        calls = common.in_turns(sides, arguments.rounds)
        found = {form: common.summarise(some) for form, some in calls.items()}
        rows = [
            common.timing_row(
                form, summary, f"{sorted(call.value for call in calls[form])[arguments.rounds // 2]:.2f} s"
            )
            for form, summary in found.items()
        ]
        common.print_table((*common.TIMING, "in save()"), rows)
        whole = found["none"].seconds
        for form in forms[1:]:
            inside = sorted(call.value for call in calls[form])[arguments.rounds // 2]
            common.print_target(f"{form}: of the training thread's time", 100 * inside / whole, 5, "%")
            print(f"         {form}: the ten steps take {100 * (found[form].seconds / whole - 1):.1f} % longer")
        for worker in workers.values():
            worker.call("close")
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
