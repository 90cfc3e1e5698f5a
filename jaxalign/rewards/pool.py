"""Worker processes for calls that may hang, crash or raise: one call at a time each, under a time limit.

POSIX only (process groups).
"""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxalign.errors import UserError
from jaxalign.rewards.worker import describe


class Function(NamedTuple):
    """What every worker imports: "package.module:function", with keyword arguments bound."""

    name: str
    path: str
    options: dict


class Task(NamedTuple):
    tag: Any  # handed back with the outcome
    name: str  # of the function
    arguments: tuple
    time_limit: float  # seconds


# (tag, "scored" | "raised" | "timed_out" | "crashed", value or message)
Record = Callable[[Any, str, float | str], None]


class WorkerPool:
    """At most `size` workers, started when there is work for them and kept until `close`.

    A worker that hangs is killed, with the processes that it started, and replaced when there is more to
    do; so is one that died. Each worker has one call at a time, so that this costs one call.

    Raises UserError if a function cannot be imported within `start_limit` seconds.
    """

    def __init__(self, functions: Sequence[Function], size: int, start_limit: float):
        self._functions, self._size, self._start_limit = functions, size, start_limit
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts one worker now, if there is none."""
        with self._lock:
            self._idle.append(self._worker())

    def close(self) -> None:
        """Ends the workers. The pool may be used again; it then starts new ones."""
        while self._idle:
            self._idle.pop().kill()

    def _worker(self) -> "_Worker":
        return self._idle.pop() if self._idle else _Worker(self._functions, self._start_limit)

    def run(self, tasks: Sequence[Task], record: Record) -> None:
        """Runs all tasks, in any order, and calls `record` here with each outcome."""
        waiting = collections.deque(tasks)
        busy: dict[_Worker, Task] = {}
        with self._lock:
            try:
                while waiting or busy:
                    while waiting and len(busy) < self._size:
                        self._hand_out(waiting, busy, record)
                    for worker in _Worker.wait(busy):
                        outcome, value = worker.outcome()
                        task = busy.pop(worker)
                        if outcome in ("timed_out", "crashed"):
                            worker.kill()
                        else:
                            self._idle.append(worker)
                        record(task.tag, outcome, value)
            finally:
                for worker in busy:  # after an interrupt: their answers would be taken for the next call's
                    worker.kill()

    def _hand_out(self, waiting: collections.deque, busy: dict, record: Record) -> None:
        worker = self._worker()
        task = waiting.popleft()
        try:
            worker.send(("call", task.name, *task.arguments), task.time_limit)
            busy[worker] = task
        except OSError:  # it died while idle: the task is not at fault
            worker.kill()
            waiting.appendleft(task)
        except Exception as error:  # the arguments cannot be pickled
            self._idle.append(worker)
            record(task.tag, "raised", describe(error))


class _Worker:
    """One worker process, with its connection and the deadline of the call that it is busy with."""

    def __init__(self, functions: Sequence[Function], start_limit: float):
        self._connection, theirs = multiprocessing.Pipe()
        script = pathlib.Path(__file__).with_name("worker.py")
        # -P: the folder of the script, with its modules' plain names, stays off sys.path.
        command = [sys.executable, "-P", str(script), str(theirs.fileno())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # What a reward prints would tear the progress bar; its stderr still comes through.
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            # Own session: Ctrl-C is the training's to handle, and a kill reaches the reward's children too.
            start_new_session=True,
        )
        theirs.close()
        self._finalizer = weakref.finalize(self, _kill, self._process)  # also at exit
        self.deadline = time.monotonic() + start_limit
        try:
            self._connection.send({"sys_path": [str(path) for path in sys.path], "parent": os.getpid()})
            for function in functions:
                self._connection.send(("load", *function))
                if not self._connection.poll(max(0.0, self.deadline - time.monotonic())):
                    raise cannot_load(function.path, f"not imported within {start_limit:g} s")
                loaded, why = self._connection.recv()
                if not loaded:
                    raise cannot_load(function.path, why)
        except (EOFError, OSError) as error:
            self.kill()
            raise UserError(
                f"a reward worker process ended while it imported its rewards: {describe(error)}"
            ) from error
        except BaseException:
            self.kill()
            raise

    def send(self, message: tuple, time_limit: float) -> None:
        self._connection.send(message)
        self.deadline, self._limit = time.monotonic() + time_limit, time_limit

    @staticmethod
    def wait(workers: Mapping["_Worker", Any]) -> list["_Worker"]:
        """Blocks until some of the workers have answered, died or passed their deadline; returns those."""
        now = time.monotonic()
        timeout = max(0.0, min(worker.deadline for worker in workers) - now) if workers else 0.0
        ready = multiprocessing.connection.wait([worker._connection for worker in workers], timeout)
        now = time.monotonic()
        return [w for w in workers if w._connection in ready or w.deadline <= now]

    def outcome(self) -> tuple[str, float | str]:
        """("scored", value) or (what went wrong, message)."""
        if not self._connection.poll():
            return "timed_out", f"no answer within {self._limit:g} s; the worker was replaced"
        try:
            scored, value = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            return "crashed", f"the worker process ended with code {code} and was replaced"
        return ("scored" if scored else "raised"), value

    def kill(self) -> None:
        self._finalizer()
        self._connection.close()


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # its group: what the reward started goes with it
    process.wait()


def cannot_load(path: str, why: str) -> UserError:
    return UserError(f"reward {path!r} cannot be imported ({why}); check the name and that it is on the Python path")
