import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from jaxalign.training.signals import stop_on_signals

ROOT = Path(__file__).resolve().parents[2]

LOOP = """
    import sys, time
    from jaxalign.training.signals import stop_on_signals
    with stop_on_signals() as stop:
        print("ready", flush=True)
        for step in range(2000):
            time.sleep(0.01)
            if sys.argv[1] == "polite" and stop():
                print("saved", flush=True)
                sys.exit(0)
"""


def loop(manner):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOOP), manner],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_the_loop_after_its_step(number):
    process = loop("polite")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == "saved\n"
    assert f"{number.name}: finishing this step" in err


def test_a_second_ctrl_c_stops_at_once():
    process = loop("deaf")
    process.send_signal(signal.SIGTERM)
    process.stderr.readline()
    assert "SIGTERM" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err


def test_the_earlier_handlers_return():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def stopped_run():
        with stop_on_signals() as stop:
            assert signal.getsignal(signal.SIGTERM) not in before
            assert not stop()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop()
            assert stop.signal == signal.SIGTERM
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stopped_run()
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_outside_the_main_thread_it_does_nothing():
    answers = []

    def work():
        with stop_on_signals() as stop:
            answers.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
