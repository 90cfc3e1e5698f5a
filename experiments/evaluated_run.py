"""A run that measures what it trains: before the first step, during the steps and after the last one.

An experiment says what its first weights are, what a batch is, what a step does and what is measured; the rest is
`train`: a run resumes or begins, keeps its position in the data, times its steps and fills the table of its report.
"""

import abc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.session import Session
from experiments.setup import evaluated_params
from jaxalign.data.order import Batches, BatchIterator
from jaxalign.training.loop import Advance
from jaxalign.training.state import TrainState

Order = Batches | Mapping[str, Batches]


class Evaluation(abc.ABC):
    """Something that is measured on held-out examples.

    Attributes: doing: what is printed while it is measured before and after training; "" prints nothing.
    """

    doing = ""

    @abc.abstractmethod
    def values(self, params: Any) -> dict[str, np.ndarray]:
        """Of every query, by the name of what is measured; their means are logged as `eval/<name>`."""

    def title(self, name: str) -> tuple[str, str | None]:
        """How the values of that name are called in the table of the run, and their unit (None: rates)."""
        return name, None

    def metrics(self, params: Any) -> dict[str, float]:
        return {name: float(x.mean()) for name, x in self.values(params).items()}

    def record(self, session: Session, params: Any, when: str) -> None:
        """Hands the values to the table of the session, as those "before" or "after" training."""
        if self.doing:
            session.print(f"  {self.doing} {when} training ...")
        for name, values in self.values(params).items():
            title, unit = self.title(name)
            session.record(title, when, values, unit)


def train(
    session: Session,
    abstract: TrainState,
    order: Order,
    *,
    first: Callable[[], Any],
    state_of: Callable[[Any], TrainState],
    batch_at: Callable[[int], dict[str, Any]],
    take_step: Callable[[TrainState, dict, int], tuple[TrainState, Mapping[str, Any]]],
    evaluations: Sequence[Evaluation] = (),
    weights: Callable[[TrainState], Any] = evaluated_params,
    counted: str = "rows",
) -> None:
    """All steps of a run, from its newest checkpoint or from the beginning, and its end.

    Args:
      abstract: the shapes of a state, to restore one onto.
      order: of the examples; where there are several, their positions are saved by name.
      first: the first weights; asked for only where there is no checkpoint.
      state_of: the state before the first step, from these weights, which are given away.
      batch_at: the batch of a step on the host, "valid" telling its rows (those of this process).
      take_step: (state, batch, step) -> (state, metrics).
      weights: what the evaluations read of a state; at the beginning they read the first weights.
      counted: what rows are called in the metric `<counted>_per_second`.
    """

    def measure(params: Any, when: str) -> None:
        if not session.measured(when):  # else they are those of a run that ended here before
            for evaluation in evaluations:
                evaluation.record(session, params, when)

    restored = session.restore(abstract, lambda saved: _check_position(order, saved))
    if restored is not None:
        state, start = restored
    else:
        found = first()
        measure(found, "before")
        state, start = state_of(found), 0
        del found

    def advance(state: TrainState, step: int) -> Advance:
        began, batch = time.perf_counter(), batch_at(step)
        state, metrics = take_step(state, batch, step)
        metrics = {name: float(value) for name, value in metrics.items()}
        rows = len(batch["valid"]) * jax.process_count()
        metrics[f"{counted}_per_second"] = rows / (time.perf_counter() - began)
        return Advance(state, metrics, [], batch)

    def evaluate(state: TrainState, done: int) -> dict[str, float]:
        del done
        params = weights(state)
        return {name: value for one in evaluations for name, value in one.metrics(params).items()}

    state, done = session.fit(
        state,
        advance,
        start=start,
        data_state=lambda done: _position(order, done),
        evaluate=evaluate if evaluations else None,
    )
    if not session.stopped:
        measure(weights(state), "after")
    session.finish(done)


def _position(order: Order, done: int) -> dict:
    if isinstance(order, Mapping):
        return {name: _position(one, done) for name, one in order.items()}
    return BatchIterator(order, done).get_state()


def _check_position(order: Order, saved: Mapping) -> None:
    if isinstance(order, Mapping):
        for name, one in order.items():
            _check_position(one, saved[name])
    else:
        BatchIterator(order).set_state(dict(saved))
