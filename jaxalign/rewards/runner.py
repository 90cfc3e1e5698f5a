"""Runs reward functions on completions so that none of them can stop or poison the training.

A reward is a function (prompt, completion, example) -> float. Those that are trusted (the built-in
verifiers) run where they are. Others run in worker processes under a time limit for each call: a call
that hangs costs its own sample, the worker is killed and replaced. A call that raises costs its own
sample too. Such samples are NaN, "not scorable", which `jaxalign.rewards.advantages.combine_rewards`
leaves out; they are counted, and the first is reported.
"""

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxalign.errors import UserError
from jaxalign.rewards import verifiers
from jaxalign.rewards.pool import Function, Task, WorkerPool, cannot_load
from jaxalign.rewards.worker import describe, load_function, to_number


@dataclasses.dataclass(frozen=True)
class Reward:
    """One reward and how it is to be run.

    Args:
        function: name of a built-in verifier ("last_integer"), "package.module:function", or the
            function itself.
        weight: in the weighted sum of all rewards.
        options: keyword arguments bound to the function.
        time_limit: seconds for one call in a worker. Importing the module is not counted.
        trusted: run in the training process, without a time limit. None: true for built-in
            verifiers only.
        name: in metrics and messages; follows from the function if empty.
    """

    function: str | Callable[..., float]
    weight: float = 1.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    time_limit: float = 10.0
    trusted: bool | None = None
    name: str = ""


class RewardCounts(NamedTuple):
    """What happened to the samples of one reward in one call, besides being scored."""

    not_scorable: int  # NaN or None returned
    raised: int  # or returned what is no finite number
    timed_out: int
    crashed: int  # the worker process died


class RewardResult(NamedTuple):
    rewards: np.ndarray  # float32 [N, K]; NaN = not scorable
    counts: dict[str, RewardCounts]  # by reward
    first_problem: str | None  # one line: which reward, which sample, what happened


class RewardRunner:
    """Scores completions by K rewards. Call `close()`, or use it in a `with` statement.

    Workers are started when a reward first needs them (or by `start()`), at most `workers` of them, and
    kept. They are fresh Python processes, so JAX threads are never forked and the training script is not
    imported again; they see `JAX_PLATFORMS=cpu`, because a reward must not claim the accelerator. POSIX
    only.

    Attributes:
        names: of the rewards, in the order of the columns.
        weights: float32 [K].

    Raises UserError: two rewards of one name, a bad path, an unknown verifier or option, a time limit that
    is not positive, a function that a worker cannot import (from `start()` or the first call).
    """

    def __init__(
        self,
        rewards: Sequence[Reward | str],
        *,
        workers: int | None = None,
        start_limit: float = 120.0,
    ):
        settings = [reward if isinstance(reward, Reward) else Reward(reward) for reward in rewards]
        if not settings:
            raise UserError("no reward is given; name at least one, e.g. 'last_integer'")
        self._rewards = [_Prepared.of(reward) for reward in settings]
        self.names = [reward.name for reward in self._rewards]
        repeated = [name for name, count in collections.Counter(self.names).items() if count > 1]
        if repeated:
            raise UserError(f"two rewards are named {repeated[0]!r}; give one of them another name")
        self.weights = np.asarray([reward.weight for reward in settings], np.float32)
        outside = [reward for reward in self._rewards if reward.call is None]
        self._pool = WorkerPool(
            [Function(reward.name, reward.path, reward.options) for reward in outside],
            workers or min(4, os.cpu_count() or 1),
            start_limit,
        )
        self._needs_workers = bool(outside)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Ends the worker processes. The runner may be used again; it then starts new ones."""
        self._pool.close()

    def start(self) -> None:
        """Starts one worker now, if any reward needs one: a bad import path is then found early."""
        if self._needs_workers:
            self._pool.start()

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        examples: Sequence[Mapping[str, Any]],
    ) -> RewardResult:
        """Scores N completions; the three sequences have one entry per completion."""
        if not len(prompts) == len(completions) == len(examples):
            raise ValueError(
                f"{len(prompts)} prompts, {len(completions)} completions and {len(examples)} "
                "examples: expected as many of each"
            )
        samples = list(zip(prompts, completions, examples, strict=True))
        rewards = np.full((len(samples), len(self._rewards)), np.nan, np.float32)
        tallies: list[collections.Counter[str]] = [collections.Counter() for _ in self._rewards]
        problems: list[tuple[int, int, str]] = []  # (sample, reward, message)

        def record(tag: tuple[int, int], outcome: str, value: float | str) -> None:
            index, column = tag
            if outcome == "scored":
                rewards[index, column] = value
                if not np.isnan(value):
                    return
                outcome, value = "not_scorable", "returned NaN or None"
            tallies[column][outcome] += 1
            problems.append((index, column, str(value)))

        tasks = []
        for column, reward in enumerate(self._rewards):
            for index, sample in enumerate(samples):
                tag = (index, column)
                if reward.call is None:
                    tasks.append(Task(tag, reward.name, sample, reward.time_limit))
                    continue
                try:
                    record(tag, "scored", to_number(reward.call(*sample)))
                except Exception as error:  # whatever it is, it is counted and reported
                    record(tag, "raised", describe(error))
        self._pool.run(tasks, record)
        return RewardResult(
            rewards,
            {
                name: RewardCounts(*(tally[key] for key in RewardCounts._fields))
                for name, tally in zip(self.names, tallies, strict=True)
            },
            self._report(min(problems), samples) if problems else None,
        )

    def _report(self, problem: tuple[int, int, str], samples: list) -> str:
        index, column, message = problem
        prompt, completion, _ = samples[index]
        return (
            f"reward {self.names[column]!r}, sample {index}: {message} "
            f"(prompt {_excerpt(prompt)}, completion {_excerpt(completion)})"
        )


class _Prepared(NamedTuple):
    name: str
    call: Callable[..., float] | None  # to run here; None = in a worker
    path: str  # for the worker
    options: dict
    time_limit: float

    @classmethod
    def of(cls, reward: Reward) -> "_Prepared":
        function, options = reward.function, dict(reward.options)
        if reward.time_limit <= 0:
            raise UserError(f"reward {function!r}: time_limit={reward.time_limit} must be more than 0 seconds")
        built_in = False
        bound: Callable[..., float] | None
        if isinstance(function, str) and ":" not in function:
            built_in = True
            bound = verifiers.get_verifier(function, **options)
            path, name = f"{verifiers.__name__}:{verifiers.VERIFIERS[function].__name__}", function
        elif isinstance(function, str):
            module, _, name = function.partition(":")
            if not (module and name):
                raise UserError(f"reward {function!r} is not of the form 'package.module:function'")
            bound, path = None, function
        else:
            name = str(getattr(function, "__qualname__", type(function).__name__))
            path = f"{getattr(function, '__module__', '')}:{name}"
            bound = function
        trusted = built_in if reward.trusted is None else reward.trusted
        if not trusted and callable(function) and (path.startswith("__main__:") or "<" in name):
            raise UserError(
                f"reward {name!r} cannot be imported by a worker process; put it into a module and "
                "name it 'module:function', or set trusted=True to run it without a time limit"
            )
        call = None
        if trusted:
            if bound is None:
                try:
                    bound = load_function(path)
                except Exception as error:
                    raise cannot_load(path, describe(error)) from error
            call = bound if built_in or not options else _bind(bound, options)
        return cls(reward.name or name, call, path, options, reward.time_limit)


def _bind(function: Callable[..., float], options: dict) -> Callable[..., float]:
    return lambda prompt, completion, example: function(prompt, completion, example, **options)


def _excerpt(text: str, width: int = 80) -> str:
    text = str(text)
    return repr(text if len(text) <= width else text[: width - 3] + "...")
