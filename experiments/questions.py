"""Questions with checkable answers: prompts as ids, and how often a model solves held-out ones."""

from collections.abc import Sequence

import jax
import numpy as np

from experiments.setup import Model
from jaxalign.data.sources import Source, load_source, where
from jaxalign.decoding.sampler import Sampler, SamplingConfig, bucket_length, pad_prompts
from jaxalign.errors import UserError
from jaxalign.evaluation.pass_at_k import pass_at_k
from jaxalign.rewards.runner import Reward, RewardCounts, RewardResult, RewardRunner
from jaxalign.training.mesh import all_processes, gather, join_parts, part_of_process

PROMPT_BUCKET = 8  # prompts are padded to a multiple of this many tokens


class Questions:
    """A source of `prompt_field` (and whatever the rewards read) whose prompts are rendered and encoded.

    Args:
      data: the config group: `prompt_field`, `chat`, `system_prompt`, `max_prompt_tokens`.
      key: the config key that names the source, for messages.

    Raises UserError: an example without the prompt, or with one that is longer than the limit.
    """

    def __init__(self, spec: str, tokenizer, data, key: str):
        self.source: Source = load_source(spec)
        self._tokenizer, self._data, self._key = tokenizer, data, key

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        example = self.source[index]
        field = self._data.prompt_field
        if not isinstance(example.get(field), str):
            raise UserError(
                f"{where(self.source, index)} (config.data.{self._key}) has no text under {field!r}; its fields are "
                f"{', '.join(map(str, example))}. Name the right one by config.data.prompt_field"
            )
        return dict(example, prompt=example[field], prompt_ids=self._encode(example[field], index))

    def _encode(self, prompt: str, index: int) -> list[int]:
        ids = encode_prompt(self._tokenizer, prompt, self._data)
        limit = self._data.max_prompt_tokens
        if len(ids) > limit:
            raise UserError(
                f"{where(self.source, index)} (config.data.{self._key}) has a prompt of {len(ids)} tokens, more than "
                f"config.data.max_prompt_tokens={limit}: {prompt[:60]!r}; raise the limit or drop such prompts"
            )
        return ids


def encode_prompt(tokenizer, prompt: str | list, data) -> list[int]:
    """Token ids of a prompt: as a user message in the chat template if `data.chat`, else as it stands.

    A conversation (a list of messages) always goes through the template.
    """
    if isinstance(prompt, str) and not data.chat:
        return tokenizer.encode(prompt)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if data.system_prompt and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": data.system_prompt})
    return tokenizer.apply_chat(messages, add_generation_prompt=True, **data.template_options)


def prompt_width(questions: Questions, sample: int = 4096) -> int:
    """The padded width that fits the first `sample` prompts, so that nearly all batches share one compiled program."""
    lengths = [len(questions[index]["prompt_ids"]) for index in range(min(len(questions), sample))]
    return bucket_length(lengths, PROMPT_BUCKET)


def padded(prompt_ids: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids and lengths, at least `width` wide; a longer prompt widens the batch to its own bucket."""
    ids, lengths = pad_prompts(prompt_ids, PROMPT_BUCKET)
    return np.pad(ids, ((0, 0), (0, max(width - ids.shape[1], 0)))), lengths


def completion_texts(tokenizer, ids, lengths) -> list[str]:
    """Texts of completion ids [N, T] of `lengths` [N], special tokens left out."""
    return [tokenizer.decode(row[:n].tolist()) for row, n in zip(np.asarray(ids), np.asarray(lengths), strict=True)]


def make_rewards(reward) -> RewardRunner:
    """The rewards of the config group `reward`: `names`, `weights`, `options` by name, `time_limit`."""
    if len(reward.names) != len(reward.weights):
        raise UserError(
            f"config.reward.names has {len(reward.names)} entries and config.reward.weights {len(reward.weights)}; "
            "give one weight per reward"
        )
    unknown = set(reward.options) - set(reward.names)
    if unknown:
        raise UserError(f"config.reward.options.{min(unknown)} names no reward of config.reward.names={reward.names}")
    runner = RewardRunner(
        [
            Reward(name, weight=weight, options=dict(reward.options.get(name, {})), time_limit=reward.time_limit)
            for name, weight in zip(reward.names, reward.weights, strict=True)
        ]
    )
    runner.start()  # a function that cannot be imported is found now, not after the first rollout
    return runner


def score_completions(rewards: RewardRunner, texts: Sequence[str], examples: Sequence[dict]) -> RewardResult:
    """`rewards` of completions [N], one example each; every process scores its part and all get all.

    The first problem is that of this process.
    """
    mine = part_of_process(len(texts))
    prompts = [example["prompt"] for example in examples[mine]]
    result = rewards(prompts, texts[mine], examples[mine])
    counts = np.array([tuple(result.counts[name]) for name in rewards.names])
    totals = all_processes(counts).sum(axis=0)
    return RewardResult(
        join_parts(result.rewards, len(texts)),
        {name: RewardCounts(*map(int, row)) for name, row in zip(rewards.names, totals, strict=True)},
        result.first_problem,
    )


class HeldOut:
    """Completions of held-out questions, greedy and sampled, scored by the first of the rewards.

    Args:
      questions: at most `evaluation.max_questions` of them are taken, from the first on.
      rewards: the runner; its first reward is the verifier. What it cannot score counts 0.
      evaluation: the config group with `max_questions`, `max_new_tokens` (budgets in tokens), `samples`, `pass_at`,
        `slots`.

    Raises UserError: pass@k of fewer than k samples.
    """

    def __init__(self, model: Model, questions: Questions, rewards: RewardRunner, evaluation):
        count = min(len(questions), evaluation.max_questions)
        self.questions = [questions[index] for index in range(count)]
        self.budgets = tuple(evaluation.max_new_tokens)
        self._tokenizer, self._rewards = model.tokenizer, rewards
        self._prompts, self._lengths = pad_prompts([q["prompt_ids"] for q in self.questions], PROMPT_BUCKET)
        self._samples, self._pass_at = evaluation.samples, tuple(evaluation.pass_at)
        if self._samples and not all(1 <= k <= self._samples for k in self._pass_at):
            raise UserError(
                f"config.evaluation.pass_at={self._pass_at} must be numbers from 1 to "
                f"config.evaluation.samples={self._samples}"
            )

        def sampler(temperature: float) -> Sampler:
            stop = tuple(model.tokenizer.eos_ids)
            sampling = SamplingConfig(max(self.budgets), temperature=temperature, stop_token_ids=stop)
            return Sampler(model.decoder, sampling, slots=evaluation.slots or None, mesh=model.mesh)

        self._greedy, self._random = sampler(0.0), sampler(1.0)

    def __call__(self, params) -> dict[int, np.ndarray]:
        """Scores [questions] by token budget, all from one decode of the largest.

        A greedy completion of n tokens is the beginning of the one of more, so the smaller budgets cost nothing.
        """
        found = self._greedy.sample(params, self._prompts, self._lengths, jax.random.key(0))
        ids, lengths = gather((found.ids, found.lengths))
        return {budget: self._scores(ids, np.minimum(lengths, budget), self.questions) for budget in self.budgets}

    def _scores(self, ids, lengths, questions: Sequence[dict]) -> np.ndarray:
        texts = completion_texts(self._tokenizer, ids, lengths)
        return np.nan_to_num(score_completions(self._rewards, texts, questions).rewards[:, 0])

    def pass_rates(self, params) -> dict[int, np.ndarray]:
        """pass@k [questions] by k: the chance that one of k completions, sampled at temperature 1, is right."""
        if not self._samples:
            return {}
        found = self._random.sample(
            params, self._prompts, self._lengths, jax.random.key(1), samples_per_prompt=self._samples
        )
        ids, lengths = gather((found.ids, found.lengths))
        repeated = [question for question in self.questions for _ in range(self._samples)]
        right = (self._scores(ids, lengths, repeated).reshape(-1, self._samples) > 0).sum(axis=1)
        return {k: pass_at_k(self._samples, right, k) for k in self._pass_at}

    def metrics(self, params) -> dict[str, float]:
        """Mean score by budget, for the log."""
        return {f"solve_rate_{budget}_tokens": float(scores.mean()) for budget, scores in self(params).items()}

    def record(self, session, params, when: str) -> None:
        """Evaluates and hands the scores to the session's table, unless it holds them already (after a resume)."""
        names = {budget: f"held-out solve rate, greedy, {budget} new tokens" for budget in self.budgets}
        sampled = {k: f"held-out pass@{k}, {self._samples} samples" for k in self._pass_at if self._samples}
        if all(session.has(name, when) for name in (*names.values(), *sampled.values())):
            return
        session.print(f"  evaluating {when} training: {len(self.questions)} held-out questions ...")
        for budget, scores in self(params).items():
            session.record(names[budget], when, scores)
        for k, rates in self.pass_rates(params).items():
            session.record(sampled[k], when, rates)
