"""The runner against rewards that hang, raise, crash, return nonsense or cannot be imported."""

import os
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.rewards.runner import Reward, RewardRunner

MODULE = """
import os, subprocess, sys, time

def half(prompt, completion, example):
    return 0.5

def length(prompt, completion, example, scale=1.0):
    return len(completion) * scale

def naughty(prompt, completion, example):
    print("noise on stdout")
    if completion == "spin":
        while True:
            pass
    if completion == "child":
        child = subprocess.Popen(["sleep", "60"])
        open(example["file"], "w").write(str(child.pid))
        child.wait()
    if completion == "raise":
        raise KeyError("lost")
    if completion == "exit":
        sys.exit(1)
    if completion == "die":
        os._exit(3)
    if completion == "input":
        return input()
    return {"nan": float("nan"), "none": None, "text": "0.5", "inf": float("inf"),
            "pid": os.getpid(), "bool": True}.get(completion, len(completion))

def platform(prompt, completion, example):
    return "jax" in sys.modules or os.environ["JAX_PLATFORMS"] != "cpu"
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
    (tmp_path / "user_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "slow_rewards.py").write_text("import time\ntime.sleep(30)\n")
    monkeypatch.syspath_prepend(tmp_path)


def run(runner, completions, example=None):
    n = len(completions)
    return runner(["p"] * n, completions, [example or {"answer": "12"}] * n)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_each_misfortune_costs_its_own_sample_only(capfd):
    # fmt: off
    completions = ["ab", "spin", "raise", "exit", "die", "input", "nan", "none", "text", "inf",
                   "bool", "abc"]
    # fmt: on
    rewards = [
        "last_integer",
        Reward("user_rewards:naughty", time_limit=1.5),
        Reward("user_rewards:half", weight=2.0),
    ]
    with RewardRunner(rewards, workers=2) as runner:
        assert runner.names == ["last_integer", "naughty", "half"]
        np.testing.assert_array_equal(runner.weights, [1, 1, 2])
        result = run(runner, completions)
        nan = np.nan
        assert result.rewards.dtype == np.float32
        np.testing.assert_array_equal(result.rewards[:, 1], [2] + [nan] * 9 + [1, 3])
        np.testing.assert_array_equal(result.rewards[:, 2], 0.5)
        np.testing.assert_array_equal(result.rewards[:, 0], 0)
        counts = result.counts["naughty"]
        assert counts._asdict() == {"not_scorable": 2, "raised": 5, "timed_out": 1, "crashed": 1}
        assert result.counts["half"] == (0, 0, 0, 0)
        assert "'naughty', sample 1: no answer within 1.5 s" in result.first_problem
        assert "completion 'spin'" in result.first_problem
        again = run(runner, ["abc", "raise"])  # the pool is as good as new
        np.testing.assert_array_equal(again.rewards[:, 1], [3, nan])
        assert "sample 1: KeyError: 'lost'" in again.first_problem
        assert run(runner, ["abc"]).first_problem is None
        assert "returned str '0.5'" in run(runner, ["text"]).first_problem
    assert "noise" not in capfd.readouterr().out


def test_workers_are_lazy_kept_and_ended():
    runner = RewardRunner(["last_integer"])
    runner.start()
    np.testing.assert_array_equal(run(runner, ["12", "13"]).rewards, [[1], [0]])
    assert not runner._pool._idle  # a trusted reward never starts a process

    runner = RewardRunner([Reward("user_rewards:naughty")], workers=1)
    assert not runner._pool._idle
    first, second = (int(run(runner, ["pid"]).rewards[0, 0]) for _ in range(2))
    assert first == second != os.getpid()
    runner.close()
    assert not is_alive(first)
    assert run(runner, ["abc"]).rewards[0, 0] == 3  # works again after close
    runner.close()


@pytest.mark.filterwarnings("error")
def test_a_worker_is_another_world():
    jax.block_until_ready(jax.numpy.ones(3) + 1)  # its threads run; a fork would now be warned of
    with RewardRunner(["user_rewards:platform"]) as runner:
        assert run(runner, ["x"]).rewards[0, 0] == 0


def test_killing_reaches_the_children_of_a_reward(tmp_path):
    file = tmp_path / "pid"
    with RewardRunner([Reward("user_rewards:naughty", time_limit=1.0)]) as runner:
        result = run(runner, ["child"], {"file": str(file)})
    assert result.counts["naughty"].timed_out == 1
    pid = int(file.read_text())
    deadline = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_a_worker_that_died_while_idle_costs_nothing():
    with RewardRunner(["user_rewards:naughty"], workers=1) as runner:
        pid = int(run(runner, ["pid"]).rewards[0, 0])
        os.kill(pid, 9)
        runner._pool._idle[0]._process.wait()
        result = run(runner, ["abc", "ab"])
        np.testing.assert_array_equal(result.rewards[:, 0], [3, 2])
        assert result.counts["naughty"] == (0, 0, 0, 0)


def test_workers_end_with_the_training_process(tmp_path):
    """Even while a reward hangs, and even if the training process was killed."""
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from jaxalign.rewards.runner import Reward, RewardRunner
        runner = RewardRunner([Reward("user_rewards:naughty", time_limit=300)], workers=2)
        print(*(int(runner(["p"], ["pid"], [{{}}]).rewards[0, 0]) for _ in range(1)), flush=True)
        runner(["p"], ["spin"], [{{}}])
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    pid = int(process.stdout.readline())
    time.sleep(0.3)  # it hangs by now
    assert is_alive(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(pid)


def test_options_names_and_functions():
    import user_rewards

    rewards = [
        Reward("user_rewards:length", options={"scale": 0.5}, name="outside"),
        Reward("user_rewards:length", options={"scale": 2.0}, trusted=True, name="inside"),
        Reward(user_rewards.length),
        Reward(lambda p, c, e: 1 / 0, trusted=True, name="zero"),
        Reward("last_integer", trusted=False, options={"field": "solution"}),
    ]
    with RewardRunner(rewards) as runner:
        result = run(runner, ["is 7"], {"solution": "7"})
    np.testing.assert_array_equal(result.rewards, [[2, 8, 4, np.nan, 1]])
    assert result.counts["zero"].raised == 1 and "ZeroDivisionError" in result.first_problem


def test_an_example_that_cannot_be_sent_is_counted():
    with RewardRunner(["user_rewards:half"]) as runner:
        result = runner(["p", "p"], ["a", "b"], [{"f": lambda: 0}, {}])
    np.testing.assert_array_equal(result.rewards[:, 0], [np.nan, 0.5])
    assert result.counts["half"].raised == 1


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "no reward is given"),
        (["last_intger"], "'last_intger' is not known"),
        ([":f"], "package.module:function"),
        (["last_integer", "last_integer"], "two rewards are named 'last_integer'"),
        ([Reward("user_rewards:half", time_limit=0)], "time_limit=0"),
        ([Reward("last_integer", options={"x": 1})], "no option 'x'"),
        ([Reward(lambda p, c, e: 1.0)], "cannot be imported by a worker"),
        ([Reward("user_rewards:nothing", trusted=True)], "user_rewards:nothing"),
    ],
)
def test_bad_rewards(rewards, message):
    with pytest.raises(UserError, match=message):
        RewardRunner(rewards)


@pytest.mark.parametrize(
    ("path", "why", "limit"),
    [
        ("user_rewards:nothing", "nothing", 60.0),
        ("no_such_module:f", "no_such_module", 60.0),
        ("broken_rewards:f", "no_such_package_at_all", 60.0),
        ("slow_rewards:f", "not imported within 1 s", 1.0),
    ],
)
def test_a_reward_that_cannot_be_imported_stops_the_start(path, why, limit):
    with RewardRunner([path], start_limit=limit) as runner, pytest.raises(UserError, match=why):
        runner.start()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 prompts, 2 completions"):
        RewardRunner(["last_integer"])(["p"], ["a", "b"], [{}])
