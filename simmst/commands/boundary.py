"""The one place where errors become a line on standard error and an exit status. A bug keeps its traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
from argparse import ArgumentError
from collections.abc import Callable

from simmst.errors import SimmstError

FAILED = 2
INTERRUPTED = 130  # as a shell reports SIGINT
READER_LEFT = 141  # as a shell reports SIGPIPE
_LONGEST = 1000  # characters of a message


def exit_status(work: Callable[[], None], *, resumes: bool) -> int:
    """Do the work of a command and return its exit status.

    Args:
        work: the command.
        resumes: whether the same command resumes where this one ended.
    """
    hint = "; run the same command again to resume" if resumes else ""
    if sys.stderr is None:  # closed by the calling process
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open until the end
    if sys.stdout is None:
        return _fail("standard output is closed; send it to a file, or to /dev/null")
    try:
        try:
            work()
        finally:
            sys.stdout.flush()  # a failure at interpreter exit would print a traceback
    except BrokenPipeError:
        _drop_output()
        return READER_LEFT
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
        _fail(f"interrupted{hint}")
        return INTERRUPTED
    except Exception as error:
        message = explained(error, hint)
        if message is None:
            raise
        return _fail(message)
    return 0


def explained(error: Exception, hint: str = "") -> str | None:
    """Return one line that says what is wrong; None where the error is a bug.

    Args:
        error: exception that was raised.
        hint: clause on resuming, which is added if the disk is full.
    """
    message = " ".join(str(error).split())
    if len(message) > _LONGEST:  # some libraries quote the whole text that they could not read
        message = f"{message[: _LONGEST - 200]} ... {message[-180:]}"
    # Libraries written in Rust report system errors only in their text.
    if getattr(error, "errno", None) == errno.ENOSPC or f"(os error {errno.ENOSPC})" in message:
        return f"the disk is full ({message}); make room{hint}"
    if isinstance(error, MemoryError) or _torch_out_of_memory(error):
        details = f" ({message})" if message else ""
        return f"out of memory{details}; take a smaller batch_size, fewer cities or fewer workers"
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not text in UTF-8 ({message}); save it in that encoding"
    return message if isinstance(error, (SimmstError, OSError, ArgumentError)) else None


def _torch_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _fail(message: str) -> int:
    sys.stderr.write(f"simmst: {message}\n")
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _drop_output()
    return FAILED


def _drop_output() -> None:
    # The interpreter flushes at exit and must not report an error for output that nobody reads.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
