"""One supervised step of SmolLM2-135M on 8 x 128 tokens: forward, backward and Adam; tokens a second.

Ours computes in bfloat16 with float32 masters. The other side is transformers in torch: float32, pure bfloat16 (weights
and moments too) and bfloat16 autocast. First the losses of three steps on the same tokens are compared, then all are
timed in turns, together with a product of two 2048 x 2048 bfloat16 matrices as the measure of what the machine gives.
"""

import tempfile

import numpy as np

from benchmarks import common

ROWS, LENGTH, RATE = 8, 128, 1e-5
VOCABULARY = 49152
PROBE = 2048


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)


class Jaxalign:
    def __init__(self, dtype: str):
        import jax
        import jax.numpy as jnp

        from jaxalign.losses.log_probs import token_log_probs
        from jaxalign.losses.supervised import supervised_loss
        from jaxalign.models.decoder import Decoder
        from jaxalign.models.loading import EMBEDDED, load
        from jaxalign.training.optimizers import make_optimizer
        from jaxalign.training.state import create_state
        from jaxalign.training.step import make_train_step

        model = load(EMBEDDED)
        decoder = Decoder(model.config, compute_dtype=dtype)

        def loss_fn(params, batch, key, extra):
            ids = batch["tokens"]
            positions = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
            hidden = decoder.hidden(params, ids[:, :-1], positions, jnp.ones_like(positions))
            scored = token_log_probs(hidden, decoder.head(params), ids[:, 1:], compute_dtype=dtype)
            return supervised_loss(scored.log_probs, jnp.ones_like(scored.log_probs))

        optimizer = make_optimizer("adamw", RATE)
        self._batch = {"tokens": jnp.asarray(tokens())}
        self._state = create_state(model.params, optimizer, jax.random.key(0))
        self._step = make_train_step(loss_fn, optimizer).lower(self._state, self._batch).compile()
        square = jnp.ones((PROBE, PROBE), jnp.bfloat16)
        self._probe = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32)), square
        self.probe()
        # Layers' products, not the embedding table, which is the head's product here.
        self._multiplies = sum(leaf.size for leaf in jax.tree.leaves(model.params) if leaf.ndim >= 2)

    def export(self, folder: str) -> None:
        common.export_model(folder)

    def run(self) -> float:
        self._state, metrics = self._step(self._state, self._batch)
        return float(metrics["loss"])

    def probe(self) -> None:
        self._probe[0](self._probe[1]).block_until_ready()

    def flops(self) -> int:
        """Of the products of one step: forward 2, backward 4, and 2 for what the backward pass computes again."""
        return 8 * self._multiplies * ROWS * LENGTH

    def temporary_bytes(self) -> int:
        return self._step.memory_analysis().temp_size_in_bytes


class Torch:
    """`mode` is "float32", "bfloat16" or "autocast"."""

    def __init__(self, folder: str, mode: str):
        import torch
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=RATE, weight_decay=0.0)
        self._ids, self._autocast = torch.from_numpy(tokens()).long(), mode == "autocast"

    def run(self) -> float:
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._autocast):
            logits = self._model(input_ids=self._ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), self._ids[:, 1:].flatten())
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()


def main() -> None:
    arguments = common.parser(__doc__, rounds=5).parse_args()
    common.print_machine()
    ours = {"jaxalign bfloat16": "bfloat16"}
    theirs = {"torch float32": "float32", "torch bfloat16": "bfloat16", "torch autocast": "autocast"}
    with tempfile.TemporaryDirectory() as folder:
        workers = {
            name: common.Worker("benchmarks.train_step:Jaxalign", dtype=dtype, priority=arguments.priority)
            for name, dtype in ours.items()
        }
        jaxalign = workers["jaxalign bfloat16"]
        try:
            if common.has_peer(arguments.peer_python, "torch", "transformers"):
                jaxalign.call("export", folder=folder)
                for name, mode in theirs.items():
                    workers[name] = common.Worker(
                        "benchmarks.train_step:Torch",
                        python=arguments.peer_python,
                        folder=folder,
                        mode=mode,
                        priority=arguments.priority,
                    )
            print("losses of three steps on the same tokens")
            losses = {name: [worker.call("run") for _ in range(3)] for name, worker in workers.items()}
            common.print_table(("", "1", "2", "3"), [[n, *(f"{x:.4f}" for x in v)] for n, v in losses.items()])
            sides = {name: lambda worker=worker: worker.timed("run") for name, worker in workers.items()}
            sides["probe"] = lambda: jaxalign.timed("probe")
            found = {name: common.summarise(calls) for name, calls in common.in_turns(sides, arguments.rounds).items()}
            report(found, jaxalign)
        finally:
            for worker in workers.values():
                worker.close()


def report(found: dict[str, common.Summary], jaxalign: common.Worker) -> None:
    print(f"a step of {ROWS} x {LENGTH} tokens (medians)")
    probe = found.pop("probe")
    rates = {name: ROWS * LENGTH / summary.seconds for name, summary in found.items()}
    rows = [common.timing_row(name, summary, f"{rates[name]:.0f}") for name, summary in found.items()]
    common.print_table((*common.TIMING, "tokens/s"), rows)
    flops, peak = jaxalign.call("flops"), 2 * PROBE**3 / probe.seconds
    reached = flops / found["jaxalign bfloat16"].seconds
    print(
        f"  {PROBE}^3 bfloat16 product: {peak / 1e9:.0f} GFLOP/s. Our step: {flops / 1e9:.0f} GFLOP of products "
        f"(recomputation included), {reached / 1e9:.0f} GFLOP/s, {reached / peak:.0%} of it; temporaries "
        f"{jaxalign.call('temporary_bytes') / 1e6:.0f} MB"
    )
    common.print_target("rate", rates["jaxalign bfloat16"], 500, "tokens/s", at_most=False)
    if "torch bfloat16" in rates:
        ratio = rates["jaxalign bfloat16"] / rates["torch bfloat16"]
        common.print_target("against torch in pure bfloat16", ratio, 1, "x", at_most=False)


if __name__ == "__main__":
    main()
