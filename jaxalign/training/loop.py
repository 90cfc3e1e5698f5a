"""The loop around a step: when to evaluate, save, stop and give up. It knows no loss, model or data.

An experiment supplies `advance(state, step) -> Advance`, which does whatever one step of it is. Everything that
`advance` uses and that changes lives in `state` or follows from `step`, so a run that is stopped and started again
equals a straight one.
"""

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxalign.errors import UserError


class Advance(NamedTuple):
    """What one step gave: the new state, scalars for the log, and completions (dicts) for the table."""

    state: Any
    metrics: dict[str, float]
    completions: list[dict]
    batch: Any = None  # kept only to be dumped if the step was skipped


def fit(
    state,
    advance: Callable[[Any, int], Advance],
    *,
    start: int,
    train,
    workdir: str | Path,
    checkpointer,
    log: Callable[[int, dict[str, float], list[dict]], None],
    stop: Callable[[], bool],
    data_state: Callable[[int], dict],
    evaluate: Callable[[Any, int], None] | None = None,
):
    """Steps `start` .. `train.steps` - 1. Returns (state, number of steps done in all, whether stopped early).

    `train` is the config group of that name. A checkpoint after n steps is saved under n; it holds `state` and the data
    position `data_state(n)`. A step whose loss or gradient was not finite leaves `state` as it was and is counted;
    after `train.max_skipped_in_a_row` such steps the batch is written to workdir/skipped_batch.pkl, a checkpoint is
    saved and UserError is raised.
    """
    done = start
    for step in range(start, train.steps):
        began = time.perf_counter()
        state, metrics, completions, batch = advance(state, step)
        done = step + 1
        metrics = {name: float(value) for name, value in metrics.items()}
        metrics["seconds"] = time.perf_counter() - began
        log(done, metrics, completions)
        skipped = metrics.get("skipped_in_a_row", 0)
        if skipped and skipped >= train.max_skipped_in_a_row:
            path = Path(workdir) / "skipped_batch.pkl"
            if jax.process_index() == 0:  # of several processes the first one's part
                path.write_bytes(pickle.dumps(jax.tree.map(np.asarray, batch)))
            checkpointer.save(done, state, data_state(done))
            checkpointer.wait()
            raise UserError(
                f"{train.max_skipped_in_a_row} steps in a row had a loss or gradient that was not finite; the last "
                f"batch is in {path}, the unchanged weights are in the checkpoint of step {done}. Lower "
                "config.optimizer.learning_rate, or look at the rewards and log-probs of that batch"
            )
        stopped = stop()
        last = done == train.steps
        if evaluate is not None and not last and train.evaluate_every and done % train.evaluate_every == 0:
            evaluate(state, done)
        if stopped or last or (train.save_every and done % train.save_every == 0):
            checkpointer.save(done, state, data_state(done))
        if stopped:
            return state, done, not last
    return state, done, False
