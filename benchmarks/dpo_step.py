"""A DPO step of SmolLM2-135M with a live reference: 8 pairs, prompts of 64, completions of 192 tokens; against torch.

Our side is the step of `experiments.preference`: both completions stand behind one copy of their prompt, products in
bfloat16 over float32 masters, rematerialised layers. The other side is the same step in transformers with the
`selective_log_softmax` of TRL: one forward pass of policy and reference over the 16 whole sequences, in float32 or
autocast. Losses of two steps are shown first: of the first step, and of the
one after its update.
"""

import tempfile

import numpy as np

from benchmarks import common
from benchmarks.comparisons import compare_steps

PAIRS, PROMPT, NEW, BETA, RATE = 8, 64, 192, 0.1, 1e-5


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Prompts [P, S] and completions [P, 2, T]."""
    random = np.random.default_rng(0)
    shapes = ((PAIRS, PROMPT), (PAIRS, 2, NEW))
    return tuple(random.integers(1000, 40_000, shape).astype(np.int32) for shape in shapes)


class Jax:
    def __init__(self):
        import jax

        from experiments.pairs import Measure, PairBatch, make_loss, make_score
        from jaxalign.models.decoder import Decoder
        from jaxalign.models.loading import EMBEDDED, load
        from jaxalign.models.scoring import frozen_copy
        from jaxalign.training.configuration import load_config
        from jaxalign.training.optimizers import make_optimizer
        from jaxalign.training.state import create_state
        from jaxalign.training.step import make_train_step

        config = load_config("configs/dpo_smollm.py")
        config.loss.beta = BETA
        model = load(EMBEDDED)
        decoder = Decoder(model.config)
        optimizer = make_optimizer("adamw", RATE)
        self._reference = frozen_copy(decoder, model.params, exact=True)
        self._score = jax.jit(make_score(decoder, config.preference))
        self._step = make_train_step(make_loss(decoder, config.preference, Measure(config)), optimizer)
        self._state = create_state(model.params, optimizer, jax.random.key(0))
        prompts, completions = tokens()
        self._batch = PairBatch(
            prompts,
            np.full(PAIRS, PROMPT, np.int32),
            completions,
            np.ones(completions.shape, np.float32),
            np.zeros(PAIRS, np.float32),
        )

    def run(self) -> float:
        reference = self._score(self._reference, self._batch).log_probs
        self._state, metrics = self._step(self._state, self._batch._replace(reference=reference))
        return float(metrics["loss"])

    def temporary_bytes(self) -> int:
        """Of the two programs, the larger."""
        batch = self._batch._replace(reference=np.zeros((PAIRS, 2), np.float32))
        programs = (self._step.lower(self._state, batch), self._score.lower(self._reference, self._batch))
        return max(program.compile().memory_analysis().temp_size_in_bytes for program in programs)


class Torch:
    """`form`: "float32" or "autocast"."""

    def __init__(self, form: str, folder: str):
        import torch
        from transformers import AutoModelForCausalLM

        self._policy, self._reference = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2)
        )
        self._reference.eval().requires_grad_(False)
        self._policy.train()
        self._optimizer = torch.optim.AdamW(self._policy.parameters(), lr=RATE, weight_decay=0.0)
        prompts, completions = tokens()
        whole = np.concatenate([np.repeat(prompts[:, None], 2, axis=1), completions], axis=-1)
        self._ids = torch.from_numpy(whole.reshape(2 * PAIRS, -1)).long()
        self._form = form

    def _sums(self, model):
        from trl.trainer.utils import selective_log_softmax

        logits = model(self._ids, use_cache=False, logits_to_keep=NEW + 1).logits[:, :-1]
        return selective_log_softmax(logits, self._ids[:, -NEW:]).float().sum(-1).reshape(PAIRS, 2)

    def run(self) -> float:
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._form == "autocast"):
            with torch.no_grad():
                reference = self._sums(self._reference)
            ratios = self._sums(self._policy) - reference
        loss = -torch.nn.functional.logsigmoid(BETA * (ratios[:, 0] - ratios[:, 1])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._policy.parameters(), 1e9)  # the norm is reported by both sides
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss)


def main() -> None:
    arguments = common.parser(__doc__, rounds=3).parse_args()
    common.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, tuple[str, dict]] = {"jaxalign": ("Jax", {})}
        if common.has_peer(arguments.peer_python, "torch", "transformers", "trl"):
            common.export_model(folder)
            for form in ("float32", "autocast"):
                sides[f"torch, {form}"] = ("Torch", dict(form=form, folder=folder))
        compare_steps("benchmarks.dpo_step", sides, arguments, 2 * PAIRS * (PROMPT + NEW))


if __name__ == "__main__":
    main()
