import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from jaxalign.errors import UserError
from jaxalign.training.profiling import Profiler


def run(steps, folder, number):
    profiler = Profiler(steps, folder)
    for step in range(1, number + 1):
        with profiler.step(step):
            jax.jit(lambda x: x @ x + 1)(jnp.ones((64, 64))).block_until_ready()
    return profiler


def steps_of(folder):
    (trace,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sorted({event["args"]["step_num"] for event in events if event.get("name") == "step"})


@pytest.mark.parametrize(("steps", "expected"), [("2", ["2"]), ("2-4", ["2", "3", "4"]), ("5-9", ["5", "6"])])
def test_the_steps_asked_for_are_traced(tmp_path, steps, expected):
    run(steps, tmp_path, 6).close()
    assert steps_of(tmp_path) == expected


def test_nothing_is_written_where_nothing_is_asked_for(tmp_path):
    run("", tmp_path, 3).close()
    run("7", tmp_path, 3).close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", ["x", "3-", "0", "5-3", "-1"])
def test_other_forms_are_refused(tmp_path, steps):
    with pytest.raises(UserError, match=r"config\.profile=.*'3-5'"):
        Profiler(steps, tmp_path)
