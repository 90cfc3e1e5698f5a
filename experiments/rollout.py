"""Prompts -> groups of sampled, rewarded and weighed completions: one batch for the updates of a step."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.critic import Critic
from experiments.given_answers import COMPARED, draw_answers, with_given
from experiments.groups import Groups, has_critic, reference_use, without_smallest
from experiments.questions import completion_texts, padded, score_completions
from experiments.setup import Model
from jaxalign.decoding.sampler import Sampler, SamplingConfig
from jaxalign.losses.kl import kl_estimate
from jaxalign.models.scoring import completion_log_probs
from jaxalign.placement import under_mesh
from jaxalign.rewards.advantages import advantages, combine_rewards, groups_with_signal
from jaxalign.rewards.gae import kl_penalty
from jaxalign.rewards.inference_aware import calibrate, transform
from jaxalign.rewards.runner import RewardResult, RewardRunner
from jaxalign.rewards.shaping import overlong_penalty
from jaxalign.training.mesh import gather, spread

SHOWN_PER_STEP = 16  # completions a step that go to completions.jsonl


@functools.cache
def compiled(function: Callable, **options) -> Callable:
    """`function` with these options as one program: on arrays that are there each of its operations would be one."""
    return jax.jit(functools.partial(function, **options))


class Plan(NamedTuple):
    """What a step knows of its N prompts beforehand; None where the method has no use for it."""

    completions: np.ndarray | None = None  # [N] how many each gets; None: the group size
    baseline: np.ndarray | None = None  # [N] taken off the rewards of each
    reference_rewards: np.ndarray | None = None  # [N, K] of the reference policy, to calibrate by


class Completed(NamedTuple):
    """M completions of N prompts, those of a prompt next to each other."""

    sampled: Any  # jaxalign.decoding.sampler.Completions on the host
    texts: list[str]
    result: RewardResult
    prompts: np.ndarray  # [N, S] or, with different numbers of completions, [M, S]
    prompt_lengths: np.ndarray
    owner: np.ndarray  # [M] which of the N prompts
    place: np.ndarray  # [M] which of its completions
    sampling_seconds: float
    reward_seconds: float

    def matrix(self, values, width: int) -> np.ndarray:
        """[M] values as [N, width]; NaN where a prompt has no such completion."""
        found = np.full((self.owner[-1] + 1, width), np.nan, np.float32)
        found[self.owner, self.place] = values
        return found

    def table(self, examples: Sequence[dict], rewards, weights) -> list[dict[str, Any]]:
        """Some of the completions, for people."""
        columns = {
            "prompt": [examples[index]["prompt"] for index in self.owner],
            "completion": self.texts,
            "reward": rewards.tolist(),
            "advantage": weights.tolist(),
            "tokens": self.sampled.lengths.tolist(),
            "truncated": self.sampled.truncated.tolist(),
        }
        shown = range(0, len(self.texts), max(len(self.texts) // SHOWN_PER_STEP, 1))
        return [{name: values[index] for name, values in columns.items()} for index in shown]


class Rollout(NamedTuple):
    batch: Groups  # host arrays
    metrics: dict[str, float]
    table: list[dict[str, Any]]  # some of the completions, for people
    problem: str | None  # the first completion that a reward could not score
    owner: np.ndarray  # [rows of the batch] which of the N prompts
    outcomes: np.ndarray  # [N, G] of the first reward, the verifier; NaN = not scorable or no such completion
    advantages: np.ndarray  # [N, G]
    signal: np.ndarray  # [N] whether the rewards of a group differ


def make_sampler(config, model: Model) -> Sampler:
    """The sampler of the completions that `config.rollout` asks for."""
    options = {name: config.rollout[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p")}
    sampling = SamplingConfig(
        **options,
        stop_token_ids=tuple(model.tokenizer.eos_ids),
        stop_strings=tuple(config.rollout.stop_strings),
    )
    slots = config.rollout.slots or None
    return Sampler(model.decoder, sampling, slots=slots, tokenizer=model.tokenizer, mesh=model.mesh)


def make_score(config, decoder):
    """The compiled (params, prompts, prompt_lengths, completions, mask) -> log-probs [P, G, T] of the completions."""

    @jax.jit
    def score(params, *arrays):
        return completion_log_probs(
            decoder,
            params,
            *arrays,
            temperature=config.rollout.temperature,
            share_prompt=config.rl.share_prompt,
        ).log_probs

    return score


class RolloutWorker:
    """Samples completions of each prompt, rewards them and turns the rewards into advantages.

    Args:
      width: to which prompts are padded at least (see `prompt_width`).
    """

    def __init__(self, config, model: Model, rewards: RewardRunner, width: int):
        self._config, self._tokenizer, self._rewards, self._width = config, model.tokenizer, rewards, width
        self._sampler = make_sampler(config, model)
        self._critic = Critic(config, model) if has_critic(config) else None
        self._key = jax.random.fold_in(jax.random.key(config.seed), 1)
        score = make_score(config, model.decoder)

        def score_whole(params, *arrays):
            with under_mesh(model.mesh):
                return gather(score(params, *spread(arrays, model.mesh, fill=True)))[: len(arrays[0])]

        self.score = score_whole  # (params, prompts, prompt_lengths, completions, mask) -> log-probs [P, G, T]

    def complete(self, params, examples: Sequence[dict], key, step: int, counts: np.ndarray) -> Completed:
        """`counts` [N] completions of each example, with their rewards."""
        began = time.perf_counter()
        prompts, prompt_lengths = padded([example["prompt_ids"] for example in examples], self._width)
        owner = np.repeat(np.arange(len(examples)), counts)
        place = np.concatenate([np.arange(count) for count in counts])
        equal = counts.min() == counts.max()
        if not equal:  # the total is fixed where the numbers are not, so that there is one program for all steps
            prompts, prompt_lengths = prompts[owner], prompt_lengths[owner]
        sampled = self._sampler.sample(
            params,
            prompts,
            prompt_lengths,
            key,
            samples_per_prompt=int(counts[0]) if equal else 1,
            weight_version=step,
        )
        sampled = gather(sampled)
        sampled_at = time.perf_counter()
        repeated = [examples[index] for index in owner]
        texts = completion_texts(self._tokenizer, sampled.ids, sampled.lengths)
        result = score_completions(self._rewards, texts, repeated)
        seconds = (sampled_at - began, time.perf_counter() - sampled_at)
        return Completed(sampled, texts, result, prompts, prompt_lengths, owner, place, *seconds)

    def combined(self, result: RewardResult, group_size: int) -> np.ndarray:
        """[M]: the rewards of each completion as one."""
        how = self._config.reward.combine
        combine = compiled(combine_rewards, group_size=group_size, how=how)
        return np.asarray(combine(result.rewards, np.asarray(self._rewards.weights, np.float32)))

    def __call__(self, params, reference, examples: list[dict], step: int, plan: Plan = Plan()) -> Rollout:  # noqa: B008
        """`params` sample, `reference` (or None) scores for the KL. The same step gives the same completions."""
        config, rl, allocated = self._config, self._config.rl, plan.completions is not None
        counts = plan.completions if allocated else np.full(len(examples), config.rollout.group_size)
        done = self.complete(params, examples, jax.random.fold_in(self._key, step), step, counts)
        if allocated and len(done.prompts) == len(examples):  # equal by chance: the layout stays that of the others
            done = done._replace(prompts=done.prompts[done.owner], prompt_lengths=done.prompt_lengths[done.owner])
        sampled, rows = done.sampled, len(done.prompts)
        width = config.prompts.allocation.most if allocated else config.rollout.group_size

        def grouped(x) -> np.ndarray:
            return np.asarray(x).reshape(rows, -1, *np.shape(x)[1:])

        counted = sampled.mask & ~sampled.truncated[:, None] if rl.mask_truncated else sampled.mask
        scored = (done.prompts, done.prompt_lengths, grouped(sampled.ids), grouped(counted).astype(np.float32))
        sampled_log_probs = grouped(sampled.log_probs)
        old_log_probs = None
        if rl.epochs * rl.batches_per_epoch > 1:
            rescore = rl.old_log_probs == "scored"
            old_log_probs = self.score(params, *scored) if rescore else sampled_log_probs
        metrics, shaping = {}, np.zeros(len(done.owner), np.float32)
        found = reference_log_probs = None
        use = reference_use(config)
        if use:
            # Where the KL is only reported, the completions of a few prompts are enough.
            known = slice(rl.report_kl_prompts if use == "report" else None)
            found = self.score(reference, *(x[known] for x in scored))
            metrics["kl"] = _token_mean(kl_estimate(sampled_log_probs[known], found, "k3"), scored[3][known])
            if use == "loss":
                reference_log_probs = found
            if config.reward.kl_coefficient and self._critic is None:  # a critic takes it off token by token
                flat = (x.reshape(-1, x.shape[-1]) for x in (sampled_log_probs, found, scored[3]))
                shaping = shaping + kl_penalty(*flat, config.reward.kl_coefficient)
        if config.reward.overlong_buffer:
            shaping = shaping + overlong_penalty(
                sampled.lengths, config.rollout.max_new_tokens, config.reward.overlong_buffer
            )

        rewards = self.combined(done.result, 1 if allocated else width)
        matrix = done.matrix(rewards, width)
        signal = np.asarray(compiled(groups_with_signal, group_size=width)(matrix.reshape(-1)))
        if plan.reference_rewards is not None:
            calibrated = calibrate(matrix, plan.reference_rewards)
            metrics["win_rate"] = _scorable_mean(calibrated)  # against the reference policy
            matrix = np.asarray(transform(calibrated, **config.reward.transform))
        matrix = matrix + done.matrix(shaping, width)
        if plan.baseline is not None:
            matrix = matrix - plan.baseline[:, None]
        given = graded = None
        if config.data.answer_fields:
            given = draw_answers(config, self._tokenizer, examples, step)
            graded = grouped(done.result.rewards[:, 0])
            if rl.objective in COMPARED:
                graded = matrix
                answered = score_completions(self._rewards, given.texts, examples)
                given = given._replace(rewards=self.combined(answered, 1))
            matrix = np.concatenate([matrix, given.rewards[:, None]], axis=1)
        targets = None
        if self._critic is None:
            found_by = compiled(advantages, group_size=matrix.shape[1], **rl.advantages)
            weights = np.asarray(found_by(rewards=matrix.reshape(-1))).reshape(matrix.shape)
        else:
            scored[3][:] *= ~np.isnan(matrix)[..., None]  # not scorable: nothing to learn from
            targets = self._critic(params, scored, matrix, sampled_log_probs, found)
            weights = targets.advantages.sum(-1) / np.maximum(scored[3].sum(-1), 1)
        own = weights[done.owner, done.place]

        absent_weight = np.zeros(rows, np.float32)
        batch = Groups(*scored, grouped(own), absent_weight, old_log_probs, reference_log_probs, graded)
        if targets is not None:
            batch = batch._replace(advantages=targets.advantages, old_values=targets.values, returns=targets.returns)
        if rl.leave_out:
            batch = without_smallest(batch, weights, matrix, rl.leave_out)
        if given is not None:
            batch = with_given(batch, given, weights[:, -1])

        metrics |= {
            "reward/mean": _scorable_mean(rewards),
            "reward/std": float(np.nanstd(rewards)),
            "groups_with_signal": float(np.mean(signal)),
            # A sample estimate over all completions: minus the mean log-prob of what was sampled.
            "entropy": _token_mean(-sampled_log_probs, grouped(sampled.mask)),
            "completion_length": float(sampled.lengths.mean()),
            "truncated": float(sampled.truncated.mean()),
            "rollout/seconds": done.sampling_seconds,
            "rollout/tokens_per_second": float(sampled.lengths.sum()) / done.sampling_seconds,
            "rollout/useful_fraction": float(sampled.useful_fraction),
            "reward/seconds": done.reward_seconds,
        }
        for name, column in zip(self._rewards.names, done.result.rewards.T, strict=True):
            metrics[f"reward/{name}"] = _scorable_mean(column)
            failed = sum(done.result.counts[name])
            if failed:
                metrics[f"reward/{name}/not_scored"] = float(failed)
        table = done.table(examples, rewards, own)
        owner = done.owner if allocated else np.arange(len(examples))
        outcomes = done.matrix(done.result.rewards[:, 0], width)
        return Rollout(batch, metrics, table, done.result.first_problem, owner, outcomes, weights, signal)


def over_draws(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the rollouts of a step, of which dynamic sampling has several; times are sums."""
    if len(metrics) == 1:
        return metrics[0]
    names = dict.fromkeys(name for one in metrics for name in one)
    columns = {name: [one[name] for one in metrics if name in one] for name in names}
    means = {name: sum(x) if name.endswith("/seconds") else sum(x) / len(x) for name, x in columns.items()}
    return means | {"rollout/draws": float(len(metrics))}


def _token_mean(values, mask) -> float:
    return float(np.sum(np.where(mask > 0, values, 0)) / max(np.sum(mask > 0), 1))


def _scorable_mean(values) -> float:
    """Mean over what is not NaN; NaN if nothing is."""
    values = np.asarray(values)
    scorable = values[~np.isnan(values)]
    return float(scorable.mean()) if scorable.size else float("nan")
