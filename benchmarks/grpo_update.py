"""A GRPO update of SmolLM2-135M on completions that are there: policy, reference and old log-probs, against torch.

4 prompts of 64 tokens with 8 completions of 16 to 64 tokens; clipped ratio against given old log-probs, a k3 penalty
against a reference that is scored in the step, entropy reported. Our side is the loss of `experiments.rl` (completions
behind one copy of their prompt, products in bfloat16 over float32 masters). The other side is the same in transformers
with the `selective_log_softmax` and `entropy_from_logits` of TRL, one forward pass over 32 whole sequences, float32 or
autocast. Losses of two steps are shown first: of the first step, and of the one after its update.
"""

import tempfile

import numpy as np

from benchmarks import common
from benchmarks.comparisons import compare_steps

PROMPTS, GROUP, PROMPT, NEW, BETA, CLIP, RATE = 4, 8, 64, 64, 0.04, 0.2, 1e-5


def problem() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    lengths = random.integers(16, NEW + 1, (PROMPTS, GROUP))
    return {
        "prompts": random.integers(1000, 40_000, (PROMPTS, PROMPT)).astype(np.int32),
        "completions": random.integers(1000, 40_000, (PROMPTS, GROUP, NEW)).astype(np.int32),
        "mask": (np.arange(NEW) < lengths[..., None]).astype(np.float32),
        "advantages": random.normal(size=(PROMPTS, GROUP)).astype(np.float32),
        # Of random tokens under the model, about; what matters is that both sides are given the same.
        "old_log_probs": random.normal(-14.0, 0.1, (PROMPTS, GROUP, NEW)).astype(np.float32),
    }


class Jax:
    def __init__(self):
        import jax

        from experiments.groups import Groups
        from experiments.objectives import make_loss
        from jaxalign.models.decoder import Decoder
        from jaxalign.models.loading import EMBEDDED, load
        from jaxalign.models.scoring import completion_log_probs, frozen_copy
        from jaxalign.training.optimizers import make_optimizer
        from jaxalign.training.state import create_state
        from jaxalign.training.step import make_train_step

        model = load(EMBEDDED)
        decoder = Decoder(model.config)
        optimizer = make_optimizer("adamw", RATE)
        self._reference = frozen_copy(decoder, model.params)
        self._score = jax.jit(lambda *arrays: completion_log_probs(decoder, *arrays).log_probs)
        options = dict(kl_coefficient=BETA, clip_low=CLIP, clip_high=CLIP, aggregation="token-mean")
        loss_fn = make_loss(decoder, temperature=1.0, share_prompt=True, **options)
        self._step = make_train_step(loss_fn, optimizer)
        self._state = create_state(model.params, optimizer, jax.random.key(0))
        given = problem()
        self._batch = Groups(
            prompt_lengths=np.full(PROMPTS, PROMPT, np.int32),
            absent_weight=np.zeros(PROMPTS, np.float32),
            reference_log_probs=given["mask"],  # replaced in each step
            **given,
        )

    def run(self) -> float:
        reference = self._score(self._reference, *self._batch[:4])
        self._state, metrics = self._step(self._state, self._batch._replace(reference_log_probs=reference))
        return float(metrics["loss"])

    def temporary_bytes(self) -> int:
        """Of the two programs, the larger."""
        programs = (self._step.lower(self._state, self._batch), self._score.lower(self._reference, *self._batch[:4]))
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
        given = problem()
        prompts = np.repeat(given["prompts"], GROUP, axis=0)
        rows = {name: torch.from_numpy(given[name].reshape(PROMPTS * GROUP, -1)) for name in given if name != "prompts"}
        self._rows = rows
        self._ids = torch.cat([torch.from_numpy(prompts), rows["completions"]], dim=1).long()
        ones = torch.ones(len(prompts), PROMPT)
        self._visible = torch.cat([ones, rows["mask"]], dim=1).long()
        self._form = form

    def _scored(self, model, entropy: bool = False):
        from trl.trainer.utils import entropy_from_logits, selective_log_softmax

        found = model(self._ids, attention_mask=self._visible, use_cache=False, logits_to_keep=NEW + 1)
        logits = found.logits[:, :-1]
        log_probs = selective_log_softmax(logits, self._ids[:, -NEW:]).float()
        if not entropy:
            return log_probs
        import torch

        with torch.no_grad():
            self._entropy = (entropy_from_logits(logits.detach()) * self._rows["mask"]).sum()
        return log_probs

    def run(self) -> float:
        import torch

        mask, advantages = self._rows["mask"], self._rows["advantages"]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._form == "autocast"):
            with torch.no_grad():
                reference = self._scored(self._reference)
            log_probs = self._scored(self._policy, entropy=True)
        ratio = torch.exp(log_probs - self._rows["old_log_probs"])
        clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
        difference = reference - log_probs
        losses = -torch.min(ratio * advantages, clipped * advantages)
        losses = losses + BETA * (torch.exp(difference) - difference - 1)
        loss = (losses * mask).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._policy.parameters(), 1e9)  # the norm is reported by both sides
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss)


def main() -> None:
    arguments = common.parser(__doc__, rounds=5).parse_args()
    common.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, tuple[str, dict]] = {"jaxalign": ("Jax", {})}
        if common.has_peer(arguments.peer_python, "torch", "transformers", "trl"):
            common.export_model(folder)
            for form in ("float32", "autocast"):
                sides[f"torch, {form}"] = ("Torch", dict(form=form, folder=folder))
        compare_steps("benchmarks.grpo_update", sides, arguments, int(problem()["mask"].sum()))


if __name__ == "__main__":
    main()
