from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simmst.errors import SimmstError
from simmst.foundation.workers import in_workers


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_comes_back(workers, ordered):
    made = list(in_workers(abs, [-3, 2, -1], workers, ordered=ordered))
    assert (made if ordered else sorted(made, reverse=True)) == [3, 2, 1]


def test_an_error_is_the_caller_s():
    with pytest.raises(TypeError, match="bad operand"):
        list(in_workers(abs, [1, "a"], 2))


def test_a_worker_that_dies_is_told():
    with pytest.raises(SimmstError, match="a worker process was killed or ran out of memory"):
        list(in_workers(os._exit, [1, 1], 2))


def test_workers_end_with_the_process_that_started_them():
    """This holds even if it is killed and cannot tell them."""
    code = """
import os, time
from simmst.foundation.workers import in_workers
if __name__ == '__main__':
    list(in_workers(time.sleep, [600, 600], 2))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(workers := children(process.pid)) < 3 and time.monotonic() < deadline:  # including the resource tracker
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
