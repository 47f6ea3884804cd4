"""The console: lines for the user, which nothing else may depend on."""

import errno
import os
import sys
from typing import TextIO


def say(text: str, *, error: bool = False) -> None:
    """Print a line now. A console that has gone away, or is full, must not cost a run its save.

    After `| tee` and Ctrl-C the reader of the pipe is dead before its writer has saved.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as problem:
        if problem.errno in (errno.EPIPE, errno.EIO):  # for good: later lines go nowhere
            _silence(stream)


def let_go() -> None:
    """Call it last: what a full disk has not taken would make the exit code Python's own, 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _silence(stream)


def _silence(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
