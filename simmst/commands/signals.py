"""Signals that end a command when what it is doing is finished."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Flag that a signal handler sets while the thread that it interrupts waits for it.

    A handler runs in the main thread between any two of its instructions. It must not set a `threading.Event`, whose
    lock this thread may hold just then in `wait`: it would wait for itself for ever. A byte in a socket needs no lock.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()

    def set(self) -> None:
        """Set the flag, for good."""
        self._sender.send(b"\0")

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, `timeout` seconds at most, and return whether it is."""
        readable, _, _ = select.select([self._receiver], [], [], timeout)
        return bool(readable)

    def close(self) -> None:
        """Give the sockets back; the flag is of no use any more."""
        self._receiver.close()
        self._sender.close()


@contextmanager
def until_a_signal(*numbers: signal.Signals) -> Iterator[Stop]:
    """Yield a flag that each of the signals sets; the same signal again ends the process at once."""
    stop = Stop()

    def end(received: int, frame: object) -> None:
        signal.signal(received, signal.SIG_DFL)
        stop.set()

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()
