"""Metric files: one whole line per step, whatever happens, and no step twice after a resume."""

import glob
import importlib.util
import json
import math
import os
import resource
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.training.writers import (
    CompletionsWriter,
    JsonlWriter,
    MultiWriter,
    keep_rows,
    make_writer,
    read_rows,
)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(workdir, steps, last_step=None):
    writer = JsonlWriter(workdir, last_step)
    for step in steps:
        writer.write_scalars(step, {"loss": step / 10})
    writer.close()
    return writer.path


def test_a_line_per_step_that_is_there_at_once(tmp_path):
    writer = JsonlWriter(tmp_path / "made" / "for" / "it")
    writer.write_scalars(1, {"loss": jnp.float32(0.5), "count": np.int64(3), "flag": True})
    assert rows(writer.path) == [{"step": 1, "loss": 0.5, "count": 3, "flag": 1}]
    writer.write_scalars(np.int32(3), {"loss": jnp.bfloat16(2)})
    assert rows(writer.path)[1] == {"step": 3, "loss": 2.0}
    writer.flush()
    writer.close()


def test_what_is_not_finite_is_null(tmp_path):
    writer = JsonlWriter(tmp_path)
    writer.write_scalars(1, {"a": math.nan, "b": jnp.inf, "c": np.float32(-np.inf), "d": 1})
    writer.close()
    assert rows(writer.path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 1}]


def test_a_second_call_for_a_step_adds_to_its_line(tmp_path):
    """Evaluations come after the step's own scalars; a longer and a shorter line replace the old one alike."""
    writer = JsonlWriter(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_scalars(2, {"loss": 0.123456789})
    writer.write_scalars(2, {"eval/rate": 0.5})
    writer.write_scalars(2, {"loss": 1})
    assert rows(writer.path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1, "eval/rate": 0.5}]
    writer.close()
    writer = JsonlWriter(tmp_path, last_step=2)  # in a resumed run too
    writer.write_scalars(2, {"after": 1})
    writer.close()
    assert rows(writer.path)[1] == {"step": 2, "loss": 1, "eval/rate": 0.5, "after": 1}


def test_steps_do_not_go_back(tmp_path):
    writer = JsonlWriter(tmp_path)
    writer.write_scalars(5, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"metrics.jsonl: step 4 comes after step 5; steps must not go back"):
        writer.write_scalars(4, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"has shape \(2,\): reduce it to one number first"):
        writer.write_scalars(6, {"loss": jnp.ones(2)})
    writer.close()
    assert rows(writer.path) == [{"step": 5, "loss": 1.0}]


def test_resuming_removes_the_steps_that_come_again(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    path = write(tmp_path, [3, 4], last_step=2)
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4]
    path = write(tmp_path, [5], last_step=4)
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4, 5]
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl"]


def test_a_run_from_the_start_moves_the_old_file_aside(tmp_path):
    write(tmp_path, [1, 2, 3])
    path = write(tmp_path, [1])
    assert [row["step"] for row in rows(path)] == [1]
    assert [row["step"] for row in rows(path.with_name("metrics.jsonl.previous"))] == [1, 2, 3]


def test_a_torn_last_line_is_left_out(tmp_path):
    path = write(tmp_path, [1, 2])
    with open(path, "ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    write(tmp_path, [3], last_step=2)
    assert rows(path) == [{"step": step, "loss": step / 10} for step in (1, 2, 3)]
    assert read_rows(tmp_path / "nothing") == []
    keep_rows(tmp_path / "nothing", 3)


def test_a_full_disk_is_an_error_and_the_lines_before_stay(tmp_path):
    """The limit on the size of a file stands for the end of the disk."""
    writer = JsonlWriter(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    completions = CompletionsWriter(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
    try:
        with pytest.raises(OSError, match=r"metrics.jsonl: only a part of a line could be written; is the disk full"):
            writer.write_scalars(2, {"a long name for a metric": 1.0})
        with pytest.raises(OSError, match=r"completions.jsonl: only a part of a line"):
            completions.write(2, [{"completion": "x" * 100}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()
    completions.close()
    assert read_rows(writer.path) == [{"step": 1, "loss": 1.0}]


def test_completions_are_kept_as_they_are(tmp_path):
    writer = CompletionsWriter(tmp_path)
    row = {"prompt": "a\n<b> é", "completion": "\u2028 👍", "reward": jnp.float32(0.5), "truncated": True, "note": None}
    writer.write(1, [row, {"completion": "", "reward": math.nan}])
    writer.write(2, [])
    writer.write(np.int64(3), [{"completion": "c", "count": np.int32(4)}])
    writer.close()
    assert read_rows(writer.path) == [
        {"step": 1} | row | {"reward": 0.5},
        {"step": 1, "completion": "", "reward": None},
        {"step": 3, "completion": "c", "count": 4},
    ]
    CompletionsWriter(tmp_path, last_step=1).close()
    assert {row["step"] for row in read_rows(writer.path)} == {1}


def events(folder):
    """(step, tag, value) of the scalars in TensorBoard's files, and the tags of texts."""
    from tensorboardX.proto import event_pb2

    scalars, texts = [], []
    for path in sorted(glob.glob(f"{folder}/events*")):
        data, at = Path(path).read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.append((event.step, value.tag, value.simple_value))
                else:
                    texts.append(value.tag)
    return scalars, texts


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="then clu's own writer serves")
def test_all_writers_of_a_run(tmp_path):
    writer = make_writer(tmp_path)
    writer.write_hparams({"a|b": 1})
    writer.write_scalars(1, {"loss": 0.5, "bad": math.nan})
    writer.write_texts(1, {"sample": "text"})
    writer.flush()
    writer.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5, "bad": None}]
    scalars, texts = events(tmp_path / "tensorboard")
    assert scalars == [(1, "loss", 0.5)]
    assert len(texts) == 2


def test_tensorboard_can_be_switched_off(tmp_path):
    make_writer(tmp_path, tensorboard=False).close()
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_several_writers_get_every_call_in_order(tmp_path):
    first, second = JsonlWriter(tmp_path / "a"), JsonlWriter(tmp_path / "b")
    writer = MultiWriter([first, second])
    writer.write_scalars(1, {"x": 1})
    writer.write_texts(1, {"t": "text"})
    writer.write_hparams({"h": 1})
    writer.flush()
    writer.close()
    assert read_rows(first.path) == read_rows(second.path) == [{"step": 1, "x": 1}]
