"""The loop around a step: when it saves, evaluates, stops and gives up; with a real step and real checkpoints."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxalign.errors import UserError
from jaxalign.training.checkpoints import Checkpointer
from jaxalign.training.loop import Advance, fit
from tests.training import toy


class Session:
    """What an experiment hands to `fit`, and a record of what comes back."""

    def __init__(self, workdir, *, bad_steps=(), stop_after=None, evaluates=True, **train):
        self.workdir, self.bad_steps, self.stop_after, self.evaluates = workdir, bad_steps, stop_after, evaluates
        self.train = ConfigDict(dict(steps=8, save_every=0, evaluate_every=0, max_skipped_in_a_row=3) | train)
        self.run = toy.Run()
        self.logged, self.evaluated = [], []

    def advance(self, state, step):
        batch = toy.batch(seed=step)
        if step in self.bad_steps:
            batch["targets"][:] = np.inf
        state, metrics = self.run.step(state, batch)
        return Advance(state, metrics, [{"completion": f"of step {step}"}], batch)

    def log(self, done, metrics, completions):
        self.logged.append((done, metrics, completions))

    def fit(self, start=0, state=None):
        """Returns (state, steps done, stopped early); checkpoints are in workdir/checkpoints."""
        with Checkpointer(self.workdir / "checkpoints", keep=99) as checkpointer:
            if start:
                restored = checkpointer.restore_latest(self.run.start())
                assert (restored.step, restored.data_state) == (start, {"position": 10 * start})
                state = restored.state
            return fit(
                self.run.start() if state is None else state,
                self.advance,
                start=start,
                train=self.train,
                workdir=self.workdir,
                checkpointer=checkpointer,
                log=self.log,
                stop=lambda: self.stop_after is not None and self.logged[-1][0] >= self.stop_after,
                data_state=lambda done: {"position": 10 * done},
                evaluate=(lambda state, done: self.evaluated.append((done, int(state.step))))
                if self.evaluates
                else None,
            )

    def saved(self):
        return sorted(int(p.name) for p in (self.workdir / "checkpoints").iterdir() if p.name.isdigit())


def same_bits(actual, expected):
    def check(a, b):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize(
    ("train", "saved", "evaluated"),
    [
        ({}, [8], []),
        ({"save_every": 3, "evaluate_every": 2}, [3, 6, 8], [2, 4, 6]),
        ({"save_every": 4, "evaluate_every": 8}, [4, 8], []),
        ({"save_every": 100, "evaluate_every": 100}, [8], []),
    ],
)
def test_when_it_saves_and_evaluates(train, saved, evaluated, tmp_path):
    """At the end it always saves and never evaluates: the experiment does that itself, before and after."""
    session = Session(tmp_path, **train)
    state, done, stopped = session.fit()
    assert (done, stopped, int(state.step)) == (8, False, 8)
    assert session.saved() == saved
    assert session.evaluated == [(step, step) for step in evaluated]


def test_every_step_is_logged_with_plain_numbers(tmp_path):
    session = Session(tmp_path, steps=3, evaluates=False, evaluate_every=1)
    session.fit()
    assert [done for done, _, _ in session.logged] == [1, 2, 3]
    for done, metrics, completions in session.logged:
        assert all(type(value) is float for value in metrics.values())
        assert {"loss", "grad_norm", "seconds"} <= metrics.keys()
        assert 0 < metrics["seconds"] < 60
        assert completions == [{"completion": f"of step {done - 1}"}]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path):
    straight, _, _ = Session(tmp_path / "straight").fit()
    first = Session(tmp_path / "cut", stop_after=5)
    _, done, stopped = first.fit()
    assert (done, stopped) == (5, True)
    assert first.saved() == [5]
    second = Session(tmp_path / "cut")
    state, done, stopped = second.fit(start=5)
    assert (done, stopped) == (8, False)
    assert [step for step, _, _ in second.logged] == [6, 7, 8]
    same_bits(state, straight)


def test_stopped_at_the_last_step_is_finished(tmp_path):
    session = Session(tmp_path, stop_after=8)
    assert session.fit()[1:] == (8, False)
    assert session.saved() == [8]


def test_a_finished_run_has_nothing_to_do(tmp_path):
    Session(tmp_path).fit()
    again = Session(tmp_path)
    assert again.fit(start=8)[1:] == (8, False)
    assert again.logged == []


def test_too_many_bad_steps_in_a_row_end_the_run_and_leave_the_evidence(tmp_path):
    session = Session(tmp_path, bad_steps=[1, 3, 4, 5], max_skipped_in_a_row=3)
    good, _ = session.run.advance(session.run.start(), 0, 1)  # steps 0 and 2 are good, 1 is skipped
    good, _ = session.run.step(good.replace(step=jnp.int32(2)), toy.batch(seed=2))
    good = jax.tree.map(np.asarray, (good.params, good.opt_state))
    with pytest.raises(
        UserError, match=r"3 steps in a row had a loss or gradient that was not finite.*checkpoint of step 6"
    ):
        session.fit()
    assert [metrics["skipped_in_a_row"] for _, metrics, _ in session.logged] == [0, 1, 0, 1, 2, 3]
    batch = pickle.loads((tmp_path / "skipped_batch.pkl").read_bytes())
    np.testing.assert_array_equal(batch["tokens"], toy.batch(seed=5)["tokens"])
    assert np.isinf(batch["targets"]).all()
    assert session.saved() == [6]
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        state = checkpointer.restore_latest(session.run.start()).state
    same_bits((state.params, state.opt_state), good)
    assert int(state.skipped) == 4


def test_metrics_without_a_count_of_skipped_steps_are_fine(tmp_path):
    session = Session(tmp_path, steps=2)
    session.advance = lambda state, step: Advance({"w": state["w"] + 1}, {"loss": 1}, [])
    state, done, _ = session.fit(state={"w": jnp.zeros(2)})
    assert done == 2
    np.testing.assert_array_equal(state["w"], 2)
