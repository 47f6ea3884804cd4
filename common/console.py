"""The console: lines for the user, which nothing else may depend on."""

import errno
import os
import sys


def say(text: str, *, error: bool = False) -> None:
    """Print a line now. A console that has gone away, or is full, must not cost a run its save.

    After `| tee` and Ctrl-C the reader of the pipe is dead before its writer has saved.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as problem:
        if problem.errno in (errno.EPIPE, errno.EIO):  # for good: later lines go nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
