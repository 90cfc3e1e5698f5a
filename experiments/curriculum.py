"""What is remembered of every prompt, and what follows from it (SPO, GDRO, InfAlign).

Which prompts come next, what their rewards are measured against, how many completions they get and how much they
weigh: each is a switch of `config.prompts`. The memory is a dict of arrays in the TrainState, so it is checkpointed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.groups import Groups
from experiments.rollout import Plan, Rollout, RolloutWorker, compiled
from jaxalign.controllers import difficulty_classes, policy_drift, prompt_gdro, prompt_statistics, rollout_gdro
from jaxalign.controllers.policy_drift import drift, retention
from jaxalign.controllers.prompt_sampling import sample_prompts, sampling_probabilities
from jaxalign.controllers.prompt_statistics import recent_rate, success_rate
from jaxalign.errors import UserError


class Known(NamedTuple):
    """What a step knew of its N prompts before it sampled."""

    indices: np.ndarray  # [N] in the data set
    classes: np.ndarray | None  # [N] difficulty classes
    arms: np.ndarray | None  # [C] the number of completions of each class, as an index


class Curriculum:
    """Args: `config`, and how many prompts the data set has."""

    def __init__(self, config, prompts: int):
        self._config, self._options, self._prompts = config, config.prompts, prompts
        options = config.prompts
        self._classified = bool(options.weighting.enabled or options.allocation.enabled)
        self._outcomes = bool(options.baseline or options.sampling.enabled or self._classified)
        self._calibrated = config.reward.reference_completions > 0
        self._arms = tuple(range(options.allocation.least, options.allocation.most + 1))
        self._key = jax.random.fold_in(jax.random.key(config.seed), 2)
        self.trials = max(options.trials if self._outcomes else 0, config.reward.reference_completions)

    @property
    def active(self) -> bool:
        return self._outcomes or self._calibrated

    def start(self, trials: np.ndarray | None = None) -> dict[str, Any]:
        """The memory before the first step; `trials` [2, X, K] are combined and verifier rewards (see `try_out`)."""
        options, size, memory = self._options, self._prompts, {}
        if self._calibrated:
            shape = (size, self._config.reward.reference_completions)
            memory["reference_rewards"] = jnp.zeros(shape) if trials is None else jnp.asarray(trials[0, :, : shape[1]])
        if self._outcomes:
            right = jnp.zeros(size)
            if trials is not None and options.trials:
                right = jnp.asarray((np.nan_to_num(trials[1, :, : options.trials]) > 0).sum(axis=1), jnp.float32)
            if options.baseline or options.sampling.enabled:
                strength = 1 / (1 - options.forgetting.low)
                memory["statistics"] = prompt_statistics.from_trials(
                    right, options.trials, strength=strength, window=options.window
                )
            else:
                memory["statistics"] = prompt_statistics.init(size, window=options.window)
        if options.baseline:
            memory["last"] = policy_drift.init(size, self._config.rollout.max_new_tokens)
        if self._classified:
            memory["classes"] = difficulty_classes.init(size)
        if options.weighting.enabled:
            memory["weighting"] = prompt_gdro.init(len(options.edges) + 1)
        if options.allocation.enabled:
            memory["allocation"] = rollout_gdro.init(len(options.edges) + 1, len(self._arms))
        return memory

    def choose(self, memory, step: int) -> np.ndarray | None:
        """Indices of the prompts of a step; None leaves the order to the data."""
        if not self._options.sampling.enabled:
            return None
        probabilities = sampling_probabilities(
            memory["statistics"], exponent=self._options.sampling.exponent, floor=self._options.sampling.floor
        )
        key = jax.random.fold_in(self._key, step)
        return np.asarray(sample_prompts(key, probabilities, self._config.rollout.prompts_per_step))

    def plan(self, memory, indices) -> tuple[dict, Known, Plan]:
        options, memory, indices = self._options, dict(memory), np.asarray(indices)
        classes = arms = counts = baseline = reference_rewards = None
        if self._calibrated:
            reference_rewards = np.asarray(memory["reference_rewards"])[indices]
        if options.baseline:
            baseline = np.asarray(success_rate(memory["statistics"]))[indices]
        if self._classified:
            rates = recent_rate(memory["statistics"])[indices]
            classify = compiled(difficulty_classes.update, edges=tuple(options.edges), hysteresis=options.hysteresis)
            memory["classes"], classes = classify(memory["classes"], indices, rates)
            classes = np.asarray(classes)
        if options.allocation.enabled:
            state = jax.tree.map(np.asarray, memory["allocation"])
            first = not state.plays.any()  # nothing is known: everybody gets the same
            chosen = options.allocation
            log_probs = rollout_gdro.arm_log_probs(
                state, step_size=chosen.step_size, mixing=chosen.mixing, score=chosen.score
            )
            of_class = np.bincount(classes, minlength=len(log_probs))
            mean = self._config.rollout.group_size
            arms = np.full(len(log_probs), self._arms.index(mean))
            if not first:
                arms, _ = rollout_gdro.choose_arms(log_probs, of_class, self._arms, mean * len(indices))
            counts = np.asarray(self._arms)[arms][classes]
        return memory, Known(indices, classes, arms), Plan(counts, baseline, reference_rewards)

    def weigh(self, memory, known: Known, found: Rollout) -> tuple[dict, Groups, dict[str, float]]:
        """The batch with prompts weighed by difficulty class, and what the step showed of the classes."""
        options, memory, batch, metrics = self._options, dict(memory), found.batch, {}
        error = 1 - _outcomes(found, "mean")
        if options.weighting.enabled:
            losses = error if options.weighting.signal == "error" else -np.nanmean(found.advantages, axis=1)
            settings = {name: x for name, x in options.weighting.items() if name not in ("enabled", "signal")}
            weigh = compiled(prompt_gdro.update, **settings)
            memory["weighting"], weights = weigh(memory["weighting"], known.classes, losses)
            weights = np.asarray(weights)
            batch = batch._replace(advantages=batch.advantages * weights[found.owner][:, None])
            metrics["prompts/largest_weight"] = float(weights.max())
        if options.allocation.enabled:
            state = jax.tree.map(np.asarray, memory["allocation"])
            of_class = np.bincount(known.classes, minlength=len(known.arms))
            numbers = np.asarray(self._arms)[known.arms]
            losses, variances = (
                _class_means(x, known.classes, len(numbers)) for x in (error, _variances(found.outcomes))
            )
            earned = rollout_gdro.utility(options.allocation.utility, losses, variances, numbers)
            memory["allocation"], metrics["prompts/price"] = rollout_gdro.update(
                state,
                known.arms,
                of_class,
                earned,
                self._arms,
                self._config.rollout.group_size,
                price_step=options.allocation.price_step,
            )
            metrics["prompts/most_completions"] = float(numbers[known.classes].max())
        if known.classes is not None:
            metrics["prompts/mean_class"] = float(known.classes.mean())
        return memory, batch, metrics

    def learn(self, memory, known: Known, found: Rollout, params, worker: RolloutWorker) -> tuple[dict, dict]:
        """The memory after the update that led to `params`; metrics."""
        options, memory, metrics = self._options, dict(memory), {}
        if not self._outcomes:
            return memory, metrics
        outcomes = _outcomes(found, options.outcome)
        inside = outcomes[~np.isnan(outcomes)]
        if ((inside < 0) | (inside > 1)).any():
            raise UserError(
                f"config.prompts remembers how often prompts are answered right, but config.reward.names[0] gave "
                f"{inside[(inside < 0) | (inside > 1)][0]:g}; put a reward within [0, 1] first"
            )
        kept: Any = 1.0
        if options.baseline:
            last, batch, index = memory["last"], found.batch, known.indices
            then, lengths = np.asarray(last.log_probs)[index], np.asarray(last.lengths)[index]
            budget = then.shape[1]
            own = batch.mask[:, 0]
            ids = np.stack([np.asarray(last.ids)[index], batch.completions[:, 0]], axis=1)
            old_mask = (np.arange(budget) < lengths[:, None]).astype(np.float32)
            scored = worker.score(params, batch.prompts, batch.prompt_lengths, ids, np.stack([old_mask, own], axis=1))
            moved = compiled(drift)(then, scored[:, 0], old_mask)
            kept = compiled(retention, **options.forgetting)(moved)
            memory["last"], first = compiled(policy_drift.update)(
                last,
                index,
                batch.completions[:, 0],
                own.sum(axis=1).astype(np.int32),
                np.where(own > 0, scored[:, 1], 0),
            )
            before = np.asarray(success_rate(memory["statistics"]))[index]
            metrics |= {
                "prompts/drift": float(np.mean(moved)),
                "prompts/retention": float(np.mean(kept)),
                "prompts/first_visits": float(np.mean(first)),
                "prompts/brier_score": float(np.nanmean((before - outcomes) ** 2)),
            }
        memory["statistics"], rates = prompt_statistics.update(memory["statistics"], known.indices, outcomes, kept)
        metrics["prompts/success_rate"] = float(np.mean(rates))
        return memory, metrics


def try_out(worker: RolloutWorker, params, questions, count: int, chunk: int, key) -> np.ndarray:
    """[2, X, count]: combined and first rewards of `count` completions of every question under `params`."""
    found = []
    for start in range(0, len(questions), chunk):
        # The last chunk is filled up with questions from its beginning, so that all have one shape.
        wanted = [index % len(questions) for index in range(start, start + chunk)]
        done = worker.complete(
            params, [questions[index] for index in wanted], jax.random.fold_in(key, start), 0, np.full(chunk, count)
        )
        rewards = np.stack([worker.combined(done.result, count), done.result.rewards[:, 0]])
        found.append(rewards.reshape(2, chunk, count))
    return np.concatenate(found, axis=1)[:, : len(questions)]


def _outcomes(found: Rollout, how: str) -> np.ndarray:
    """[N] mean outcome of each group, or whether any is right; NaN where nothing is scorable."""
    mean = _mean(found.outcomes)
    return mean if how == "mean" else np.where(np.isnan(mean), np.nan, mean > 0).astype(np.float32)


def _mean(values: np.ndarray) -> np.ndarray:
    """[N] row means over what is not NaN; NaN for a row without any."""
    known = ~np.isnan(values)
    number = known.sum(axis=1)
    return np.where(number > 0, np.where(known, values, 0).sum(axis=1) / np.maximum(number, 1), np.nan)


def _variances(values: np.ndarray) -> np.ndarray:
    """[N] row variances with ddof 1; NaN below two values."""
    number = (~np.isnan(values)).sum(axis=1)
    squares = _mean((values - _mean(values)[:, None]) ** 2)
    return np.where(number > 1, squares * number / np.maximum(number - 1, 1), np.nan)


def _class_means(values: np.ndarray, classes: np.ndarray, size: int) -> np.ndarray:
    """[size] means over what is not NaN; NaN for a class without any."""
    known = ~np.isnan(values)
    count = np.bincount(classes[known], minlength=size)
    return np.where(count > 0, np.bincount(classes[known], values[known], size) / np.maximum(count, 1), np.nan)
