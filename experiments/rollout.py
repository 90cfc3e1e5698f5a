"""Prompts -> groups of sampled, rewarded and weighed completions: one batch for the updates of a step."""

import time
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.questions import completion_texts, padded, score_completions
from experiments.setup import Model
from jaxalign.decoding.sampler import Sampler, SamplingConfig
from jaxalign.losses.aggregation import aggregate
from jaxalign.losses.kl import kl_estimate
from jaxalign.models.scoring import completion_log_probs
from jaxalign.rewards.advantages import advantages, combine_rewards, groups_with_signal
from jaxalign.rewards.gae import kl_penalty
from jaxalign.rewards.runner import RewardRunner
from jaxalign.training.mesh import gather, spread

SHOWN_PER_STEP = 16  # completions a step that go to completions.jsonl


class Groups(NamedTuple):
    """A batch of P prompts with G completions each; every array has the prompts in front."""

    prompts: chex.Array  # [P, S]
    prompt_lengths: chex.Array  # [P]
    completions: chex.Array  # [P, G, T]
    mask: chex.Array  # [P, G, T]
    advantages: chex.Array  # [P, G]
    absent_weight: chex.Array  # [P]; their sum is the loss weight of groups that were left out
    old_log_probs: chex.Array | None  # [P, G, T]; None: the policy of this very update sampled them
    reference_log_probs: chex.Array | None  # [P, G, T]; None: no KL term in the loss


def abstract_groups(config, width: int, *, with_old: bool) -> Groups:
    """The shapes of a step's batch, for prompts of `width` tokens."""
    prompts, group_size = config.rollout.prompts_per_step, config.rollout.group_size
    tokens = jax.ShapeDtypeStruct((prompts, group_size, config.rollout.max_new_tokens), jnp.float32)
    whole = jax.ShapeDtypeStruct(tokens.shape, jnp.int32)
    return Groups(
        prompts=jax.ShapeDtypeStruct((prompts, width), jnp.int32),
        prompt_lengths=jax.ShapeDtypeStruct((prompts,), jnp.int32),
        completions=whole,
        mask=tokens,
        advantages=jax.ShapeDtypeStruct((prompts, group_size), jnp.float32),
        absent_weight=jax.ShapeDtypeStruct((prompts,), jnp.float32),
        old_log_probs=tokens if with_old else None,
        reference_log_probs=tokens if reference_use(config) == "loss" else None,
    )


class Rollout(NamedTuple):
    batch: Groups  # host arrays
    metrics: dict[str, float]
    table: list[dict[str, Any]]  # some of the completions, for people
    problem: str | None  # the first completion that a reward could not score


def reference_use(config) -> str:
    """What the reference policy is for: "loss", "reward", "report" or "" (it is not held at all)."""
    if config.rl.loss.kl_coefficient:
        return "loss"
    if config.reward.kl_coefficient:
        return "reward"
    return "report" if config.rl.report_kl_prompts else ""


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
        self._sampler = Sampler(model.decoder, sampling, slots=slots, tokenizer=model.tokenizer, mesh=model.mesh)
        self._key = jax.random.fold_in(jax.random.key(config.seed), 1)

        @jax.jit
        def log_probs(params, *arrays):
            return completion_log_probs(
                model.decoder,
                params,
                *arrays,
                temperature=config.rollout.temperature,
                share_prompt=config.rl.share_prompt,
            ).log_probs

        def score(params, *arrays):
            return gather(log_probs(params, *spread(arrays, model.mesh, fill=True)))[: len(arrays[0])]

        self._score = score

    def __call__(self, params, reference, examples: list[dict], step: int) -> Rollout:
        """`params` sample, `reference` (or None) scores for the KL. The same step gives the same completions."""
        rl, group_size = self._config.rl, self._config.rollout.group_size
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
        sampled = gather(sampled)
        sampled_at = time.perf_counter()

        repeated = [example for example in examples for _ in range(group_size)]
        texts = completion_texts(self._tokenizer, sampled.ids, sampled.lengths)
        result = score_completions(self._rewards, texts, repeated)
        rewarded_at = time.perf_counter()

        def grouped(x) -> np.ndarray:
            return np.asarray(x).reshape(len(examples), group_size, *np.shape(x)[1:])

        counted = sampled.mask & ~sampled.truncated[:, None] if rl.mask_truncated else sampled.mask
        scored = (prompts, prompt_lengths, grouped(sampled.ids), grouped(counted).astype(np.float32))
        sampled_log_probs = grouped(sampled.log_probs)
        old_log_probs = None
        if rl.epochs * rl.batches_per_epoch > 1:
            rescore = rl.old_log_probs == "scored"
            old_log_probs = self._score(params, *scored) if rescore else sampled_log_probs
        metrics, penalty, reference_log_probs = {}, 0.0, None
        use = reference_use(self._config)
        if use:
            # Where the KL is only reported, the completions of a few prompts are enough.
            known = slice(rl.report_kl_prompts if use == "report" else None)
            found = self._score(reference, *(x[known] for x in scored))
            metrics["kl"] = _token_mean(kl_estimate(sampled_log_probs[known], found, "k3"), scored[3][known])
            if use == "loss":
                reference_log_probs = found
            if self._config.reward.kl_coefficient:
                flat = (x.reshape(-1, x.shape[-1]) for x in (sampled_log_probs, found, scored[3]))
                penalty = kl_penalty(*flat, self._config.reward.kl_coefficient)

        rewards = combine_rewards(
            jnp.asarray(result.rewards),
            jnp.asarray(self._rewards.weights),
            group_size,
            how=self._config.reward.combine,
        )
        weights = advantages(rewards=rewards + penalty, group_size=group_size, **rl.advantages)
        absent_weight = np.zeros(len(examples), np.float32)
        batch = Groups(*scored, grouped(weights), absent_weight, old_log_probs, reference_log_probs)

        metrics |= {
            "reward/mean": _scorable_mean(rewards),
            "reward/std": float(np.nanstd(rewards)),
            "groups_with_signal": float(np.mean(groups_with_signal(rewards, group_size))),
            # A sample estimate over all completions: minus the mean log-prob of what was sampled.
            "entropy": _token_mean(-sampled_log_probs, grouped(sampled.mask)),
            "completion_length": float(sampled.lengths.mean()),
            "truncated": float(sampled.truncated.mean()),
            "rollout/seconds": sampled_at - began,
            "rollout/tokens_per_second": float(sampled.lengths.sum()) / (sampled_at - began),
            "rollout/useful_fraction": float(sampled.useful_fraction),
            "reward/seconds": rewarded_at - sampled_at,
        }
        for name, column in zip(self._rewards.names, result.rewards.T, strict=True):
            metrics[f"reward/{name}"] = _scorable_mean(column)
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


def drop_silent_groups(batch: Groups, multiple: int, aggregation: str, count_empty: bool) -> Groups:
    """The batch without the groups whose advantages are all 0, filled up with empty ones to a multiple of prompts.

    Without a KL and an entropy term such groups add nothing to the loss but their weight, which is kept
    (`absent_weight`): loss and gradient stay the same. The metrics of the loss are then those of the groups left.
    """
    loud = (batch.advantages != 0).any(axis=-1)
    order = np.argsort(~loud, kind="stable")
    size = max(-(-int(loud.sum()) // multiple), 1) * multiple
    if size >= len(order):
        return batch
    kept = jax.tree.map(lambda x: x[order[:size]], batch)
    mask = kept.mask * loud[order[:size], None, None]

    def weight(mask) -> float:
        flat = mask.reshape(-1, mask.shape[-1])
        # The weight of scaled sums is that of plain ones.
        mode = "seq-mean-token-sum" if aggregation == "seq-mean-token-scale" else aggregation
        return float(aggregate(np.zeros_like(flat), flat, mode, count_empty=count_empty)[1])

    absent = (weight(batch.mask) - weight(mask)) / size
    return kept._replace(mask=mask, absent_weight=np.full(size, absent, np.float32))


def _token_mean(values, mask) -> float:
    return float(np.sum(np.where(mask > 0, values, 0)) / max(np.sum(mask > 0), 1))


def _scorable_mean(values) -> float:
    """Mean over what is not NaN; NaN if nothing is."""
    values = np.asarray(values)
    scorable = values[~np.isnan(values)]
    return float(scorable.mean()) if scorable.size else float("nan")
