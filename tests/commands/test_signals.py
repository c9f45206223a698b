"""A signal at any moment of a wait ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from simmst.commands.signals import Stop, until_a_signal

ROUNDS = 5_000  # with `threading.Event`, one of the first hundred stood still

BOMBARDED = """
import random, signal
from simmst.commands import signals
random.seed(0)
for _ in range({rounds}):
    with signals.until_a_signal(signal.SIGALRM) as stop:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-4))
        while not stop.wait(1e-6):
            assert not stop.is_set() or stop.wait(0)
        assert stop.is_set() and stop.wait(0)
print("ended")
"""


def test_a_signal_at_any_moment_of_the_wait():
    code = BOMBARDED.format(rounds=ROUNDS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("ended\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with until_a_signal(signal.SIGTERM, signal.SIGINT) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(10)
        assert signal.getsignal(number) is signal.SIG_DFL, "the second one ends the process"
    assert signal.getsignal(number) is before


def test_the_wait_takes_as_long_as_it_was_told():
    with contextlib.closing(Stop()) as stop:
        start = time.monotonic()
        assert not stop.wait(0.05)
        assert time.monotonic() - start >= 0.05
        timer = threading.Timer(0.05, stop.set)
        timer.start()
        assert stop.wait(10)
        assert stop.is_set()
        assert stop.wait()
        timer.join()
