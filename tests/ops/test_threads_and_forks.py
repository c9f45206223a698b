"""Operators in worker processes, after a fork, in several threads at once, alongside gloo, and while Python exits."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

_SETUP = """
    import os, sys, threading
    import torch
    from simmst import ops

    def call(seed):
        generator = torch.Generator().manual_seed(seed)
        query, key, value = (torch.randn(1, 4, 200, 32, generator=generator) for _ in range(3))
        found = ops.prob_sparse_attention(query, key, value, sample=torch.arange(30), backend="cpu")
        planes, point = torch.randn(8, 5000, generator=generator), torch.randn(5000, generator=generator)
        return found, ops.cutting_plane_values(planes, torch.zeros(8), point, backend="cpu")

    def same(one, other):
        return all(torch.equal(a, b) for a, b in zip(one, other))

    torch.set_num_threads(2)
    wanted = [call(seed) for seed in range(4)]
"""

_CASES = {
    "workers of a DataLoader, forked after use": """
        class Calls(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, seed):
                return call(seed)

        loader = torch.utils.data.DataLoader(Calls(), batch_size=None, num_workers=2, multiprocessing_context="fork")
        for seed, found in enumerate(loader):
            assert same(found, wanted[seed]), seed
    """,
    "a fork after use, on one thread": """
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os._exit(0 if all(same(call(seed), wanted[seed]) for seed in range(4)) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert same(call(0), wanted[0])
    """,
    "threads of Python at once": """
        wrong = []
        def work(number):
            torch.set_num_threads(2)
            for turn in range(25):
                seed = (number + turn) % 4
                if not same(call(seed), wanted[seed]):
                    wrong.append((number, turn))
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not wrong, wrong
    """,
    "gloo and its threads": """
        import torch.distributed as dist
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        for turn in range(25):
            total = torch.ones(1000)
            waiting = dist.all_reduce(total, async_op=True)
            assert same(call(turn % 4), wanted[turn % 4])
            waiting.wait()
            assert torch.equal(total, torch.ones(1000))
        dist.destroy_process_group()
    """,
    # Not a daemon thread: CPython before 3.14 stops those at once, which aborts inside any extension, even torch.
    "the end of the interpreter, with a thread at work": """
        def work():
            for turn in range(20):
                assert same(call(turn % 4), wanted[turn % 4])
        threading.Thread(target=work).start()
    """,
}


@pytest.mark.parametrize("name", _CASES)
def test_operators_work(name):
    code = textwrap.dedent(_SETUP) + textwrap.dedent(_CASES[name])
    # From Python 3.12 on, a fork of any process with threads is warned of.
    command = [sys.executable, "-W", "ignore:This process (pid=:DeprecationWarning", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
