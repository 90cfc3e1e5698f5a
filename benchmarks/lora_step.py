"""A LoRA step of SmolLM2-135M against a step that trains all weights: time, bytes of the optimizer, of a checkpoint.

Both sides are ours, with the same rows, loss, precision and rematerialisation: 8 rows of 128 tokens, AdamW, adapters of
rank 8 on all linear layers. The losses of the first step are shown first: an adapter starts as its base.
"""

import tempfile
from pathlib import Path

from benchmarks import common
from benchmarks.train_step import LENGTH, ROWS, Jax


class Side(Jax):
    """The step of `benchmarks.train_step`, over all weights (kind "none") or an adapter."""

    def __init__(self, kind: str, rank: int):
        super().__init__()
        if kind == "none":
            return
        import functools

        import jax

        from experiments.setup import frozen_base
        from experiments.sft import make_loss
        from jaxalign.models.decoder import Decoder
        from jaxalign.models.loading import EMBEDDED, load
        from jaxalign.models.lora import LoraConfig, attach, init_adapter
        from jaxalign.training.optimizers import make_optimizer
        from jaxalign.training.state import create_state
        from jaxalign.training.step import make_train_step

        model, config = load(EMBEDDED), LoraConfig(kind=kind, rank=rank, alpha=2.0 * rank)
        decoder, optimizer = Decoder(model.config), make_optimizer("adamw", 1e-5)
        base = frozen_base(decoder, model.params)
        step = make_train_step(make_loss(decoder), optimizer, attach=functools.partial(attach, config=config))
        self._state = create_state(init_adapter(jax.random.key(0), base, config), optimizer, jax.random.key(0))
        self._step = lambda state, batch: step(state, batch, base)

    def sizes(self) -> dict[str, int]:
        """Bytes of the optimizer's arrays, and of a checkpoint on disk."""
        import jax

        from jaxalign.training.checkpoints import Checkpointer

        with tempfile.TemporaryDirectory() as folder:
            with Checkpointer(folder) as checkpointer:
                checkpointer.save(1, self._state, {})
            checkpoint = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        return {"optimizer": sum(x.nbytes for x in jax.tree.leaves(self._state.opt_state)), "checkpoint": checkpoint}


def main() -> None:
    parser = common.parser(__doc__, rounds=6)
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    common.print_machine()
    names = {"all weights": "none", "LoRA": "lora", "DoRA": "dora"}
    workers = {
        name: common.Worker("benchmarks.lora_step:Side", kind=kind, rank=arguments.rank, priority=arguments.priority)
        for name, kind in names.items()
    }
    try:
        losses = {name: worker.call("run") for name, worker in workers.items()}
        print("loss of the first step: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        for worker in workers.values():
            worker.call("run")
        sides = {name: (lambda worker=worker: worker.timed("run")) for name, worker in workers.items()}
        found = {name: common.summarise(some) for name, some in common.in_turns(sides, arguments.rounds).items()}
        sizes = {name: worker.call("sizes") for name, worker in workers.items()}
        rows = []
        for name, summary in found.items():
            megabytes = [f"{sizes[name][what] / 1e6:.1f} MB" for what in ("optimizer", "checkpoint")]
            rows.append(common.timing_row(name, summary, f"{ROWS * LENGTH / summary.seconds:.0f}", *megabytes))
        common.print_table((*common.TIMING, "tokens/s", "optimizer", "checkpoint"), rows)
        for name in ("LoRA", "DoRA"):
            ratio = found[name].seconds / found["all weights"].seconds
            common.print_target(f"step time of {name}", 100 * ratio, 75, "% of all weights'")
            for what in ("optimizer", "checkpoint"):
                share = sizes[name][what] / sizes["all weights"][what]
                common.print_target(f"{what} bytes of {name}", 100 * share, 3, "% of all weights'")
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
