"""`kill -9` at any moment, in the middle of a save too, costs at most the steps since the last save."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = 400
KILLS = int(os.environ.get("JAXALIGN_KILLS", "5"))  # 20 of 20 were survived by hand; each costs some seconds

# Saves after every step, so that a random moment often lies within a save.
RUN = """
    import sys
    import jax
    from jaxalign.training.checkpoints import Checkpointer
    from jaxalign.training.loop import Advance, fit
    from jaxalign.training.state import create_state
    from jaxalign.training.step import make_train_step
    from ml_collections import ConfigDict
    from tests.training import toy

    steps = int(sys.argv[1])
    optimizer = toy.optimizer()
    make = lambda: create_state(toy.params(width=64, vocabulary=4096), optimizer, jax.random.key(1))
    step = make_train_step(toy.noisy_loss_fn, optimizer)

    def advance(state, number):
        state, metrics = step(state, toy.batch(seed=number))
        print("step", number + 1, flush=True)
        return Advance(state, metrics, [])

    for folder in sys.argv[2:]:
        with Checkpointer(folder + "/checkpoints", keep=2) as checkpointer:
            restored = checkpointer.restore_latest(make())
            state, start = (restored.state, restored.step) if restored else (make(), 0)
            print("start", start, flush=True)
            fit(
                state, advance, start=start, workdir=folder, checkpointer=checkpointer,
                train=ConfigDict({"steps": steps, "save_every": 1, "evaluate_every": 0, "max_skipped_in_a_row": 5}),
                log=lambda *unused: None, stop=lambda: False, data_state=lambda done: {"position": done},
            )
    print("finished", flush=True)
"""


def start(*folders: Path, steps: int = STEPS) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN), str(steps), *map(str, folders)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def leaves(folder: Path, step: int) -> dict:
    return json.loads((folder / "checkpoints" / str(step) / "about" / "metadata").read_text())["leaves"]


def test_kills_are_survived_and_change_nothing(tmp_path):
    moments = random.Random(0)
    halves = 0  # saves in whose middle a kill fell
    begun = done = 0  # where the newest process began; the last step known to be done
    for _ in range(KILLS):
        process = start(tmp_path / "killed")
        assert process.stdout is not None
        wanted = moments.randint(1, 8)  # steps, after which it still runs for a random while
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step"):
                wanted -= 1
                if not wanted:
                    break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, 0.06))
        process.send_signal(signal.SIGKILL)
        rest, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, (lines, rest, err)
        lines += rest.splitlines()
        begun = next(int(line.split()[1]) for line in lines if line.startswith("start"))
        halves += sum("is a half-written checkpoint; removed" in line for line in lines)
        # A step that was announced was saved before the next one was.
        assert begun >= done - 1, (begun, done)
        done = max(int(line.split()[1]) for line in lines if line.startswith("step"))
    assert done >= KILLS
    assert halves
    process = start(tmp_path / "killed", tmp_path / "straight", steps=done + 3)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "finished" in out
    assert leaves(tmp_path / "killed", done + 3) == leaves(tmp_path / "straight", done + 3)
