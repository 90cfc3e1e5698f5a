"""Greedy decoding with SmolLM2-135M-Instruct: new tokens a second of the sampler and of transformers' `generate`.

Both sides complete the same prompts (64 tokens, windows of this repository's licence) by 64 tokens, with a key and
value cache and without stopping. The other side loads what ours exports, in float32, and is cast like for like. First
the ids are compared, then both are timed in turns. Loading and compilation are not part of the times.
"""

import tempfile

import numpy as np

from benchmarks import common

PROMPT, NEW = 64, 64


class Jaxalign:
    def __init__(self):
        from jaxalign.models.loading import EMBEDDED, load

        self._model = load(EMBEDDED)

    def export(self, folder: str) -> None:
        common.export_model(folder)

    def prompts(self, rows: int) -> list[list[int]]:
        ids = self._model.tokenizer.encode((common.ROOT / "LICENSE").read_text())
        starts = np.linspace(0, len(ids) - PROMPT, rows).astype(int)
        return [ids[start : start + PROMPT] for start in starts]

    def generate(self, prompts: list[list[int]], dtype: str) -> list[list[int]]:
        import jax

        from jaxalign.decoding.sampler import Sampler, SamplingConfig
        from jaxalign.models.decoder import Decoder

        decoder = Decoder(self._model.config, compute_dtype=dtype)
        sampler = Sampler(decoder, SamplingConfig(NEW, temperature=0.0))
        lengths = np.full(len(prompts), PROMPT, np.int32)
        done = sampler.sample(self._model.params, np.array(prompts, np.int32), lengths, jax.random.key(0))
        return np.asarray(done.ids).tolist()


class Transformers:
    def __init__(self, folder: str):
        import torch
        from transformers import AutoModelForCausalLM

        self._device = common.torch_device()
        self._models = {
            dtype: AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(self._device)
            for dtype in ("float32", "bfloat16")
        }

    def generate(self, prompts: list[list[int]], dtype: str) -> list[list[int]]:
        import torch

        ids = torch.tensor(prompts, device=self._device)
        with torch.inference_mode():
            out = self._models[dtype].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=NEW,
                eos_token_id=None,
                pad_token_id=0,
                use_cache=True,
            )
        return out[:, PROMPT:].tolist()


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="batch sizes (default 8 32)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of the products")
    arguments = parser.parse_args()
    common.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        workers = {"jaxalign": common.Worker("benchmarks.decode:Jaxalign", priority=arguments.priority)}
        try:
            if common.has_peer(arguments.peer_python, "torch", "transformers"):
                workers["jaxalign"].call("export", folder=folder)
                workers["transformers"] = common.Worker(
                    "benchmarks.decode:Transformers",
                    python=arguments.peer_python,
                    folder=folder,
                    priority=arguments.priority,
                )
            for dtype in arguments.dtypes:
                for rows in arguments.rows:
                    compare(workers, dtype, rows, arguments.rounds)
        finally:
            for worker in workers.values():
                worker.close()


def compare(workers: dict[str, common.Worker], dtype: str, rows: int, rounds: int) -> None:
    print(f"{dtype}, {rows} rows, {PROMPT} + {NEW} tokens")
    given = dict(prompts=workers["jaxalign"].call("prompts", rows=rows), dtype=dtype)
    ids = {name: np.array(worker.call("generate", **given)) for name, worker in workers.items()}  # also the warm-up
    if len(ids) > 1:
        same = ids["jaxalign"] == ids["transformers"]
        # After a row's first difference the two complete different texts.
        agreeing = np.cumprod(same, axis=1)
        print(f"  equal rows {same.all(axis=1).mean():.0%}, tokens before the first difference {agreeing.mean():.1%}")
    calls = common.in_turns(
        {name: lambda worker=worker: worker.timed("generate", **given) for name, worker in workers.items()}, rounds
    )
    found = {name: common.summarise(some) for name, some in calls.items()}
    rates = {name: rows * NEW / summary.seconds for name, summary in found.items()}
    common.print_table(
        (*common.TIMING, "new tokens/s"),
        [common.timing_row(name, summary, f"{rates[name]:.0f}") for name, summary in found.items()],
    )
    if len(rates) > 1:
        common.print_target("against transformers", rates["jaxalign"] / rates["transformers"], 2, "x", at_most=False)


if __name__ == "__main__":
    main()
