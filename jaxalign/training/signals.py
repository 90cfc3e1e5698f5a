"""SIGTERM and Ctrl-C as a question that the training loop asks between two steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Called: whether to stop. With several processes the answer is the same everywhere.

    All processes must then ask equally often, because asking is a collective operation.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # the first signal that this process received

    def __call__(self) -> bool:
        asked = self.signal is not None
        if jax.process_count() == 1:
            return asked
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.array(asked)).any())


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While active, the first SIGTERM or SIGINT is only noted, so that the loop can finish and save.

    A further SIGINT raises KeyboardInterrupt at once; further SIGTERMs change nothing. The earlier
    handlers return at the end. Outside the main thread, where Python sets no handlers, it does nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number, frame):
        del frame
        if stop.signal is None:
            stop.signal = signal.Signals(number)
            text = f"{stop.signal.name}: finishing this step, then saving"
            hint = " (Ctrl-C again stops at once, unsaved)" if number == signal.SIGINT else ""
            # Not print: the signal may have interrupted a print, which must not be entered twice.
            os.write(2, f"\n{text}{hint}\n".encode())
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    earlier = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
