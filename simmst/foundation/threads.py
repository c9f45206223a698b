"""Threads: pieces of work side by side, each on one thread of torch, and fewer threads for little work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch

from simmst.foundation.extras import import_extra

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_threads(
    function: Callable[[Item], Made], items: Iterable[Item], device: torch.device | str = "cpu"
) -> list[Made]:
    """Call a function on every item, in as many threads as torch has, with one thread of torch in each.

    Torch itself would share out every single operation. Its threads would wait for each other after each one, hundreds
    of times a batch, and all of them whenever another process holds one of their cores. Threads with whole items wait
    for each other only once, at the end, and an item's result does not depend on the number of threads. Torch is set to
    one thread meanwhile, and its setting is restored afterwards.

    Args:
        function: function to call, from several threads at once. The function itself must set what torch keeps for each
            thread, such as `torch.no_grad`.
        items: items to call it on, some milliseconds of work each.
        device: device of the work; a GPU gets the items one after the other.

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
    """Let torch use at most `threads` threads, but at least one, inside the block, then restore its setting.

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


@contextmanager
def one_openmp_thread() -> Iterator[None]:
    """Let the calling thread's OpenMP regions, of any library, run on one thread inside the block.

    scikit-learn brings an OpenMP runtime of its own. Its threads wait for each other after each tree level, and spin
    meanwhile, so on a busy machine two threads take many times as long as one.

    Raises:
        MissingExtraError: threadpoolctl, which comes with scikit-learn, is not installed.
    """
    with _openmp().limit(limits=1, user_api="openmp"):
        yield


@cache
def _openmp() -> Any:
    """Return the control of the OpenMP runtimes that are loaded, scikit-learn's among them."""
    import_extra("sklearn.ensemble", extra="forecast")
    return import_extra("threadpoolctl", extra="forecast").ThreadpoolController()
