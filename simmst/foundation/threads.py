"""Threads: pieces of work side by side, each on one thread of torch, and fewer threads where there is little work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_threads(
    function: Callable[[Item], Made], items: Iterable[Item], device: torch.device | str = "cpu"
) -> list[Made]:
    """Call a function on every item, in as many threads as torch has, each of which computes alone.

    Torch shares out every single operation instead: its threads meet after each, hundreds of times a batch, and where
    another process holds one of their cores all wait for it each time. Whole pieces meet once, at the end, and an
    item's result does not depend on the number of threads. Torch's setting is one thread meanwhile, and is then given
    back.

    Args:
        function: what to call; it must bear being called by several threads at once. What belongs to a thread, such as
            `torch.no_grad`, it sets itself.
        items: what to call it on, some milliseconds of work each.
        device: where the work is done; a GPU gets the items one after the other.

    Returns:
        The results, in the order of the items.

    Example:
        >>> in_threads(lambda item: item + 1, range(3))
        [1, 2, 3]
    """
    items, threads = list(items), torch.get_num_threads()
    if threads == 1 or len(items) < 2 or torch.device(device).type != "cpu":
        return [function(item) for item in items]
    pool = ThreadPoolExecutor(min(threads, len(items)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Let torch use no more than so many threads inside the block, at least one; its setting is given back after it.

    Example:
        >>> before = torch.get_num_threads()
        >>> with at_most(0):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads()
    if threads >= before:
        yield
        return
    torch.set_num_threads(max(threads, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
