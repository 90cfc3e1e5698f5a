"""What a run prints: on a terminal one line that is rewritten, in a log file one line per step."""

import io
import os
import pty
import subprocess
import sys
import time

import pytest

from jaxalign.training.progress import Progress, format_duration, process_started_at, startup_summary


class Clock:
    """Seconds that the test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(stream, durations, metrics=(), **options):
    """Steps that take `durations` seconds each."""
    clock = Clock()
    progress = Progress(stream=stream, clock=clock, **{"total_steps": len(durations)} | options)
    start = options.get("start_step", 0)
    for number, seconds in enumerate(durations, start=start + 1):
        clock.now += seconds
        progress.update(number, dict(metrics))
    progress.close()
    return stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (7, "7 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3600, "1 h 00 min"), (11_400, "3 h 10 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_a_log_has_a_line_per_step_in_a_fixed_order():
    metrics = {"seconds": 1.234, "loss": 0.12345, "other": 9.0, "reward/mean": 0.5, "tokens_per_second": 12345.6}
    lines = run(io.StringIO(), [5, 1, 1], metrics).splitlines()
    assert lines[0].startswith("  first step done ")
    assert lines[0].endswith(" after the command was given")
    assert lines[1] == "1/3  reward 0.500  loss 0.1235  tok/s 12,346  step 1.23 s"
    assert lines[2] == lines[1].replace("1/3", "2/3") + "  1 s left"
    assert lines[3] == lines[1].replace("1/3", "3/3"), "at the end nothing is left"
    assert len(lines) == 4


def test_the_first_step_says_nothing_about_the_others():
    """It compiles. The rest is estimated from the second on, with a moving mean."""
    lines = run(io.StringIO(), [100, 2, 2, 7], total_steps=10).splitlines()
    assert "left" not in lines[1]
    assert lines[2].endswith("16 s left")
    assert lines[3].endswith("14 s left")
    assert lines[4].endswith("18 s left")  # 2 + 0.2 (7 - 2) = 3 s for each of 6


def test_a_resumed_run_counts_from_where_it_starts():
    lines = run(io.StringIO(), [1, 1], start_step=97, total_steps=100).splitlines()
    assert lines[1] == " 98/100"
    assert lines[2] == " 99/100  1 s left"


def test_a_terminal_rewrites_its_line_and_cuts_it_to_the_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = run(Terminal(), [1, 1, 1, 1], {"loss": 1.0, "kl": 2.0, "seconds": 3.0})
    assert text.endswith("\n")
    assert text.count("\n") == 2, "the note about the first step, and the end"
    shown = [part for part in text.replace("\n", "\r").split("\r") if part]
    lines = [part.removeprefix("\x1b[2K") for part in shown]
    assert all(len(line) < 30 for line in lines[1:])
    assert lines[-1].startswith("4/4 " + "━" * 16 + "  loss")


def test_a_note_keeps_the_line_below_it():
    stream = Terminal()
    progress = Progress(3, stream=stream)
    progress.update(1, {})
    progress.note("checkpoint saved")
    assert stream.getvalue().endswith("\r\x1b[2Kcheckpoint saved\n1/3 " + "━" * 5 + "─" * 11)
    progress.close()
    progress.close()
    assert stream.getvalue().count("\n") == 3


def test_a_real_terminal_is_recognised():
    script = "from jaxalign.training.progress import Progress; p = Progress(1); p.update(1, {'loss': 1.0}); p.close()"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, env=os.environ | {"COLUMNS": "80"})
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\r\x1b[2K1/1 " + "━" * 16 + "  loss 1.0000" in shown


def test_the_summary_is_aligned():
    text = startup_summary({"model": "SmolLM2", "mesh": None, "data": "first\nsecond", "steps": 3})
    assert text == "  model  SmolLM2\n  data   first\n         second\n  steps  3"
    assert startup_summary({}) == ""


def test_when_the_process_was_started():
    script = "from jaxalign.training.progress import process_started_at; print(process_started_at())"
    before = time.time()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert before - 1 < float(done.stdout) < time.time()
    assert process_started_at() < before
