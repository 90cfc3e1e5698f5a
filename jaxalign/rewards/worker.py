"""The process in which a user's reward runs: started by `jaxalign.rewards.pool`.

A script of its own that needs the standard library only, so that it starts in a tenth of a second and
knows nothing of the training process: no JAX, no thread, no lock is inherited, and the training script
is not run again.

Protocol, over one connection: the first message is the set-up; then
("load", name, path, options) -> (True, "") or (False, why), and
("call", name, prompt, completion, example) -> (True, value) or (False, why).
"""

import functools
import importlib
import math
import multiprocessing.connection
import os
import sys
import threading
import time


def load_function(path: str):
    """The function that "package.module:function" names. Raises ImportError or AttributeError."""
    module, _, name = path.partition(":")
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def to_number(value) -> float:
    """A reward's return value as a float; None and NaN mean "not scorable" and become NaN.

    Raises TypeError for what is no number (text too, even "0.5": a reward that returns text has a
    mistake in it) and ValueError for an infinite one.
    """
    if value is None:
        return math.nan
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"returned {type(value).__name__} {str(value)[:60]!r}, expected a number")
    number = float(value)
    if abs(number) > 3.4e38:  # no float32 either
        raise ValueError(f"returned {number}, expected a finite number")
    return number


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _exit_with(parent: int) -> None:
    """Ends this process when the training process is gone, even while a reward hangs."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def _serve(connection) -> None:
    setup = connection.recv()
    sys.path[:] = setup["sys_path"]
    threading.Thread(target=_exit_with, args=(setup["parent"],), daemon=True).start()
    functions = {}
    answer: tuple[bool, float | str]
    while True:
        try:
            action, name, *arguments = connection.recv()
        except EOFError:
            return
        except Exception as error:  # the example holds something that cannot be unpickled here
            connection.send((False, describe(error)))
            continue
        try:
            if action == "load":
                path, options = arguments
                functions[name] = functools.partial(load_function(path), **options)
                answer = (True, "")
            else:
                answer = (True, to_number(functions[name](*arguments)))
        except (Exception, SystemExit) as error:
            answer = (False, describe(error))
        connection.send(answer)


if __name__ == "__main__":
    _serve(multiprocessing.connection.Connection(int(sys.argv[1])))
