"""Worker processes: freshly started, one thread each, and ended with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from simmst.errors import SimmstError

Item = TypeVar("Item")
Made = TypeVar("Made")


def available_cores() -> int:
    """Return the number of cores that this process may use.

    Example:
        >>> available_cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0))


def in_workers(
    function: Callable[[Item], Made], items: Iterable[Item], workers: int, *, chunk: int = 1, ordered: bool = True
) -> Iterator[Made]:
    """Call a function on every item, here or in worker processes, and yield each result when it is ready.

    Worker processes are freshly started ("spawn"), so a script that asks for more than one must guard its main part
    with ``if __name__ == "__main__":``; starting them takes a few seconds. They end with the process that started them,
    however that process ends.

    Args:
        function: function to call; the function, its argument and its result travel between processes.
        items: items to call it on.
        workers: number of processes; with 1, or a single item, no process is started.
        chunk: number of items that travel together, if the results come in order.
        ordered: whether to yield the results in the order of the items, not as they are ready.

    Raises:
        SimmstError: a worker process ended before its work was done.

    Example:
        >>> list(in_workers(abs, [-1, 2], 1))
        [1, 2]
    """
    items = list(items)
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    # Imported only here, because they take long to import.
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=context, initializer=_start) as pool:
        try:
            if ordered:
                yield from pool.map(function, items, chunksize=chunk)
            else:
                yield from (future.result() for future in as_completed([pool.submit(function, item) for item in items]))
        except BrokenProcessPool as error:
            raise SimmstError(
                "a worker process was killed or ran out of memory before its work was done; start fewer workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start() -> None:
    """Prepare a worker: one thread for its linear algebra, no traceback on Ctrl-C, and an end with its parent."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # for libraries that are not imported yet
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
