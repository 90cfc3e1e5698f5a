"""Questions with checkable answers: prompts as ids, and the greedy solve rate of a model on held-out ones."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxalign.decoding.sampler import Sampler, SamplingConfig, pad_prompts
from jaxalign.errors import UserError

PROMPT_BUCKET = 8  # prompts are padded to a multiple of this many tokens


def encode_prompt(tokenizer, example: dict, data) -> list[int]:
    """Token ids of an example's prompt: as a user message in the chat template if `data.chat`, else as it stands.

    Raises UserError if the prompt is longer than data.max_prompt_tokens (where the config has that limit).
    """
    prompt = example[data.prompt_field]
    if data.chat:
        messages = [{"role": "user", "content": prompt}]
        if data.system_prompt:
            messages.insert(0, {"role": "system", "content": data.system_prompt})
        ids = tokenizer.apply_chat(messages, add_generation_prompt=True)
    else:
        ids = tokenizer.encode(prompt)
    limit = data.get("max_prompt_tokens", None)
    if limit is not None and len(ids) > limit:
        raise UserError(
            f"a prompt of config.data.source has {len(ids)} tokens, more than config.data.max_prompt_tokens={limit}: "
            f"{prompt[:80]!r}; raise the limit or drop such prompts"
        )
    return ids


def decode_completions(tokenizer, ids, lengths) -> list[str]:
    """Texts of completion ids [N, T] of `lengths` [N]; special tokens are left out."""
    return [tokenizer.decode(row[:n].tolist()) for row, n in zip(np.asarray(ids), np.asarray(lengths), strict=True)]


def sampling_config(tokenizer, **options) -> SamplingConfig:
    return SamplingConfig(stop_token_ids=tuple(tokenizer.eos_ids), **options)


@dataclasses.dataclass
class SolveRate:
    """Share of questions whose greedy completion the verifier accepts, per question and in the mean."""

    max_new_tokens: int
    correct: np.ndarray  # [questions] in [0, 1]
    seconds: float
    texts: list[str]

    @property
    def rate(self) -> float:
        return float(self.correct.mean())


class HeldOut:
    """Greedy evaluation on a fixed set of questions; `budgets` reads one decode at several token budgets."""

    def __init__(self, decoder, tokenizer, examples: Sequence[dict], data, verifier: Callable, slots: int):
        self.decoder, self.tokenizer, self.examples, self.verifier = decoder, tokenizer, list(examples), verifier
        self.slots = slots
        self.prompts, self.lengths = pad_prompts(
            [encode_prompt(tokenizer, example, data) for example in self.examples], PROMPT_BUCKET
        )
        self.data = data

    def __call__(self, params, budgets: Sequence[int]) -> list[SolveRate]:
        """Solve rates at each of `budgets` new tokens, from one greedy decode of the largest budget.

        A greedy completion of n tokens is the start of the one of more, so the smaller budgets cost nothing.
        """
        start = time.perf_counter()
        sampling = sampling_config(self.tokenizer, max_new_tokens=max(budgets), temperature=0.0)
        sampler = Sampler(self.decoder, sampling, slots=self.slots)
        completions = sampler.sample(params, self.prompts, self.lengths, jax.random.key(0))
        ids, lengths = np.asarray(completions.ids), np.asarray(completions.lengths)
        seconds = time.perf_counter() - start
        results = []
        for budget in budgets:
            texts = decode_completions(self.tokenizer, ids, np.minimum(lengths, budget))
            correct = [
                float(self.verifier(example[self.data.prompt_field], text, example))
                for example, text in zip(self.examples, texts, strict=True)
            ]
            results.append(SolveRate(budget, np.array(correct, np.float32), seconds, texts))
        return results
