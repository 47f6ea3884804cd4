"""The console: lines for the user, which nothing else may depend on."""

import errno
import os
import select
import sys
from typing import TextIO

PATIENCE_MILLISECONDS = 1000.0  # with a reader that is slow
_stuck: set[TextIO] = set()


def say(text: str, *, error: bool = False) -> None:
    """Print a line now. A console that has gone away, is full, or takes nothing for a second (a
    pager left open, a terminal that was stopped) must not cost a run its save: it loses lines.

    After `| tee` and Ctrl-C the reader of the pipe is dead before its writer has saved.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None or not _takes_a_line(stream):
        return
    try:
        print(_printable(text, stream), file=stream, flush=True)
    except OSError as problem:
        if problem.errno in (errno.EPIPE, errno.EIO):  # for good: later lines go nowhere
            _silence(stream)


def let_go() -> None:
    """Call it last: what a full disk has not taken would make the exit code Python's own, 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed before the program began
            continue
        try:
            stream.flush()
        except OSError:
            _silence(stream)


def _takes_a_line(stream: TextIO) -> bool:
    """Waits for it, but not a second time for one that did not come round."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # no file; or a closed one
        return True
    if poll.poll(0.0 if stream in _stuck else PATIENCE_MILLISECONDS):
        _stuck.discard(stream)
        return True
    _stuck.add(stream)
    return False


def _printable(text: str, stream: TextIO) -> str:
    """What the stream cannot encode, as escapes."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _silence(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
