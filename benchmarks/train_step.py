"""A supervised step of SmolLM2-135M, 8 rows of 128 tokens, AdamW, against the same in torch.

Our side: products in bfloat16, float32 masters and moments, rematerialised layers, chunked log-probs. Torch: float32,
bfloat16 autocast over float32 masters, and pure bfloat16 (weights and moments too, the cheapest and least exact form).
The losses of the first step are shown first. A 2,048 x 2,048 product (bfloat16 in, float32 out) is timed between the
calls: the machine's peak at that moment. The step's products are counted as 6 operations per weight and token, plus 2
for the recomputed forward pass.
"""

import tempfile
import time

import numpy as np

from benchmarks import common

ROWS, LENGTH = 8, 128


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(1000, 40_000, (ROWS, LENGTH + 1)).astype(np.int32)


class Jax:
    def __init__(self):
        import jax
        import jax.numpy as jnp

        from experiments.sft import make_loss
        from jaxalign.data.packing import PackedRows
        from jaxalign.models.decoder import Decoder
        from jaxalign.models.loading import EMBEDDED, load
        from jaxalign.training.optimizers import make_optimizer
        from jaxalign.training.state import create_state
        from jaxalign.training.step import make_train_step

        model = load(EMBEDDED)
        decoder = Decoder(model.config)
        optimizer = make_optimizer("adamw", 1e-5)
        self._step = make_train_step(make_loss(decoder), optimizer)
        self._state = create_state(model.params, optimizer, jax.random.key(0))
        ids = tokens()
        ones = np.ones((ROWS, LENGTH), np.float32)
        positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
        self._batch = PackedRows(ids[:, :-1], positions, np.ones((ROWS, LENGTH), np.int32), ones, ids[:, 1:], ones)
        square = jnp.ones((2048, 2048), jnp.bfloat16)
        product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
        self._probe = lambda: jax.block_until_ready(product(square))
        self._probe()

    def run(self) -> float:
        self._state, metrics = self._step(self._state, self._batch)
        return float(metrics["loss"])

    def probe(self) -> float:
        """GFLOP/s, best of five."""
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            self._probe()
            seconds.append(time.perf_counter() - began)
        return 2 * 2048**3 / min(seconds) / 1e9


class Torch:
    """`form`: "float32", "autocast" or "bfloat16"."""

    def __init__(self, form: str, folder: str):
        import torch
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
        self._device = common.torch_device()
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train().to(self._device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-5, weight_decay=0.0)
        self._ids, self._form = torch.from_numpy(tokens()).long().to(self._device), form

    def run(self) -> float:
        import torch

        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._form == "autocast"):
            logits = self._model(input_ids=self._ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), self._ids[:, 1:].reshape(-1)
        )
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        return float(loss.detach())


def main() -> None:
    arguments = common.parser(__doc__, rounds=4).parse_args()
    peer = common.has_peer(arguments.peer_python, "torch", "transformers")
    common.print_machine()
    count = ROWS * LENGTH
    workers = {"jaxalign": common.Worker("benchmarks.train_step:Jax", priority=arguments.priority)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            if peer:
                common.export_model(folder)
            for form in ("float32", "autocast", "bfloat16") if peer else ():
                workers[f"torch, {form}"] = common.Worker(
                    "benchmarks.train_step:Torch",
                    python=arguments.peer_python,
                    form=form,
                    folder=folder,
                    priority=arguments.priority,
                )
            losses = {name: worker.call("run") for name, worker in workers.items()}
        print("loss of the first step: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        for worker in workers.values():
            worker.call("run")
        peaks = []

        def ours():
            peaks.append(workers["jaxalign"].call("probe"))
            return workers["jaxalign"].timed("run")

        sides = {name: (lambda worker=worker: worker.timed("run")) for name, worker in workers.items()}
        calls = common.in_turns(sides | {"jaxalign": ours}, arguments.rounds)
        found = {name: common.summarise(some) for name, some in calls.items()}
        rows = [common.timing_row(name, summary, f"{count / summary.seconds:.0f}") for name, summary in found.items()]
        common.print_table((*common.TIMING, "tokens/s"), rows)
        peak = float(np.median(peaks))
        operations = 8 * 134.5e6 * count
        share = operations / found["jaxalign"].seconds / 1e9 / peak
        print(
            f"  products: {operations / 1e12:.2f} TFLOP a step, {100 * share:.0f} % of the peak of {peak:.0f} GFLOP/s"
        )
        common.print_target("tokens/s", count / found["jaxalign"].seconds, 500, "tokens/s", at_most=False)
        if peer:
            for form, limit in (("float32", 1), ("autocast", 1), ("bfloat16", 1)):
                ratio = found[f"torch, {form}"].seconds / found["jaxalign"].seconds
                common.print_target(f"speed of torch, {form}", ratio, limit, "x", at_most=False)
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
