"""Prompts -> groups of sampled, rewarded and weighed completions: one batch for the updates of a step."""

import time
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.questions import completion_texts, padded
from experiments.setup import Model
from jaxalign.decoding.sampler import Sampler, SamplingConfig
from jaxalign.losses.kl import kl_estimate
from jaxalign.models.scoring import completion_log_probs
from jaxalign.rewards.advantages import advantages, combine_rewards, groups_with_signal
from jaxalign.rewards.runner import RewardRunner

SHOWN_PER_STEP = 16  # completions a step that go to completions.jsonl


class Groups(NamedTuple):
    """A batch of P prompts with G completions each; every array has the prompts in front."""

    prompts: chex.Array  # [P, S]
    prompt_lengths: chex.Array  # [P]
    completions: chex.Array  # [P, G, T]
    mask: chex.Array  # [P, G, T]
    advantages: chex.Array  # [P, G]
    old_log_probs: chex.Array | None  # [P, G, T]; None: the policy of this very update sampled them
    reference_log_probs: chex.Array | None  # [P, G, T]


class Rollout(NamedTuple):
    batch: Groups  # host arrays
    metrics: dict[str, float]
    table: list[dict[str, Any]]  # some of the completions, for people
    problem: str | None  # the first completion that a reward could not score


class RolloutWorker:
    """Samples G completions of each prompt, rewards them and turns the rewards into advantages.

    Args:
      width: to which prompts are padded at least (see `prompt_width`).
    """

    def __init__(self, config, model: Model, rewards: RewardRunner, width: int):
        self._config, self._tokenizer, self._rewards, self._width = config, model.tokenizer, rewards, width
        options = {name: config.rollout[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p")}
        sampling = SamplingConfig(
            **options,
            stop_token_ids=tuple(model.tokenizer.eos_ids),
            stop_strings=tuple(config.rollout.stop_strings),
        )
        slots = config.rollout.slots or None
        self._sampler = Sampler(model.decoder, sampling, slots=slots, tokenizer=model.tokenizer)
        self._key = jax.random.fold_in(jax.random.key(config.seed), 1)

        @jax.jit
        def score(params, *arrays):
            return completion_log_probs(
                model.decoder,
                params,
                *arrays,
                temperature=config.rollout.temperature,
                share_prompt=config.rl.share_prompt,
            ).log_probs

        self._score = score

    def __call__(self, params, reference, examples: list[dict], step: int) -> Rollout:
        """`params` sample; `reference` (or None) scores for the KL. The same step gives the same completions."""
        config, group_size = self._config, self._config.rollout.group_size
        began = time.perf_counter()
        prompts, prompt_lengths = padded([example["prompt_ids"] for example in examples], self._width)
        sampled = self._sampler.sample(
            params,
            prompts,
            prompt_lengths,
            jax.random.fold_in(self._key, step),
            samples_per_prompt=group_size,
            weight_version=step,
        )
        sampled = jax.device_get(sampled)
        sampled_at = time.perf_counter()

        repeated = [example for example in examples for _ in range(group_size)]
        texts = completion_texts(self._tokenizer, sampled.ids, sampled.lengths)
        result = self._rewards([example["prompt"] for example in repeated], texts, repeated)
        rewarded_at = time.perf_counter()

        def grouped(x) -> np.ndarray:
            return np.asarray(x).reshape(len(examples), group_size, *np.shape(x)[1:])

        counted = sampled.mask & ~sampled.truncated[:, None] if config.rl.mask_truncated else sampled.mask
        scored = (prompts, prompt_lengths, grouped(sampled.ids), grouped(counted).astype(np.float32))
        old_log_probs = None
        if config.rl.epochs * config.rl.batches_per_epoch > 1:
            rescore = config.rl.old_log_probs == "scored"
            old_log_probs = np.asarray(self._score(params, *scored)) if rescore else grouped(sampled.log_probs)
        reference_log_probs = None if reference is None else np.asarray(self._score(reference, *scored))

        rewards = combine_rewards(
            jnp.asarray(result.rewards), jnp.asarray(self._rewards.weights), group_size, how=config.reward.combine
        )
        if config.reward.kl_coefficient:
            kl = kl_estimate(grouped(sampled.log_probs), reference_log_probs, "k1")
            rewards = rewards - config.reward.kl_coefficient * jnp.where(scored[3] > 0, kl, 0).sum(-1).reshape(-1)
        weights = advantages(rewards=rewards, group_size=group_size, **config.rl.advantages)
        batch = Groups(*scored, grouped(weights), old_log_probs, reference_log_probs)

        metrics = {
            "reward/mean": mean_scorable(rewards),
            "reward/std": float(np.nanstd(rewards)),
            "groups_with_signal": float(np.mean(groups_with_signal(rewards, group_size))),
            "completion_length": float(sampled.lengths.mean()),
            "truncated": float(sampled.truncated.mean()),
            "rollout/seconds": sampled_at - began,
            "rollout/tokens_per_second": float(sampled.lengths.sum()) / (sampled_at - began),
            "rollout/useful_fraction": float(sampled.useful_fraction),
            "reward/seconds": rewarded_at - sampled_at,
        }
        for name, column in zip(self._rewards.names, result.rewards.T, strict=True):
            metrics[f"reward/{name}"] = mean_scorable(column)
            failed = sum(result.counts[name])
            if failed:
                metrics[f"reward/{name}/not_scored"] = float(failed)
        columns = {
            "prompt": [example["prompt"] for example in repeated],
            "completion": texts,
            "reward": np.asarray(rewards).tolist(),
            "advantage": np.asarray(weights).tolist(),
            "tokens": sampled.lengths.tolist(),
            "truncated": sampled.truncated.tolist(),
        }
        shown = range(0, len(texts), max(len(texts) // SHOWN_PER_STEP, 1))
        table = [{name: values[index] for name, values in columns.items()} for index in shown]
        return Rollout(batch, metrics, table, result.first_problem)


def mean_scorable(values) -> float:
    """Mean over what is not NaN; NaN if nothing is."""
    values = np.asarray(values)
    scorable = values[~np.isnan(values)]
    return float(scorable.mean()) if scorable.size else float("nan")
