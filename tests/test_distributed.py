"""Which rank holds which columns; the exchange between processes is tested where it is used."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest
import torch

from simmst.distributed import ProcessGroup, RankError, process_group


def test_shards_cover_every_column_once():
    for total in (1, 2, 7, 12):
        ranks = [ProcessGroup(number, 3) for number in range(3)]
        index = torch.arange(total)
        assert sorted(torch.cat([rank.select(index) for rank in ranks]).tolist()) == index.tolist()
        for rank in ranks:
            own = rank.select(index)
            assert rank.shard_size(total) == len(own)
            assert rank.local(own).tolist() == list(range(len(own)))
            assert torch.equal(rank.shard(index), own)


def test_blocks_follow_each_other_and_begin_at_whole_bytes():
    for total in (1, 8, 21, 64, 100):
        for count in (1, 2, 3, 7):
            blocks = [ProcessGroup(number, count).block(total) for number in range(count)]
            whole_bytes = [ProcessGroup(number, count).block(-(-total // 8), unit=1) for number in range(count)]
            assert [index for block in blocks for index in range(total)[block]] == list(range(total))
            assert all(block.start % 8 == 0 or block.start == total for block in blocks)
            for block, packed in zip(blocks, whole_bytes, strict=True):
                assert (-(-block.start // 8), -(-block.stop // 8)) == (packed.start, packed.stop)


_MEETS = """
import sys, time
from simmst.distributed import RankError, process_group
before = time.monotonic()
try:
    with process_group("cpu", timeout_seconds=2):
        print("met")
except RankError as error:
    print(f"{time.monotonic() - before:.1f}", error)
"""
# Joins the store, and is killed before it publishes its address.
_IS_KILLED = """
import os, signal, sys, torch
torch.distributed.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), 2, is_master=False, wait_for_workers=False)
os.kill(os.getpid(), signal.SIGKILL)
"""


def ranks(tmp_path, *codes: str | None, **environment: str) -> list[str]:
    """Return what two ranks print; None is a rank that is never started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            **{"cwd": tmp_path, "env": {**given, "RANK": str(rank)}, "stdout": subprocess.PIPE, "text": True},
            stderr=subprocess.DEVNULL,  # torch writes down its own stack
        )
        for rank, code in enumerate(codes)
        if code is not None
    ]
    return [process.communicate(timeout=60)[0].strip() for process in started]


@pytest.mark.parametrize(
    ("codes", "number"),
    [((_MEETS, None), 0), ((None, _MEETS), 1), ((_MEETS, _IS_KILLED), 0)],
    ids=["the second never came", "the first never came", "the second was killed between"],
)
def test_a_rank_does_not_wait_for_ever_for_one_that_is_gone(tmp_path, codes, number):
    waited, _, said = ranks(tmp_path, *codes)[0].partition(" ")
    assert float(waited) < 20
    assert re.fullmatch(
        rf"rank {number} of 2 did not reach the other ranks at 127\.0\.0\.1:\d+ \(.+\); it waits 2 s: "
        "start every rank with torchrun, and read the output of the missing ones",
        said,
    )


def test_ranks_that_all_come_meet(tmp_path):
    assert ranks(tmp_path, _MEETS.replace("=2", "=30"), _MEETS.replace("=2", "=30")) == ["met", "met"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("WORLD_SIZE", "two", "of two did not reach.*'two'"), ("MASTER_PORT", "80000", "127.0.0.1:80000 .*80000")],
)
def test_a_wrong_environment_of_ranks_is_named(monkeypatch, name, value, message):
    for key, given in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", name: value}.items():
        monkeypatch.setenv(key, given)
    with pytest.raises(RankError, match=message), process_group("cpu", timeout_seconds=2):
        pass
