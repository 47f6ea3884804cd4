"""The console: lines for the user, which nothing else may depend on."""

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from typing import TextIO

PATIENCE_SECONDS = 1.0  # with a reader that is slow
_stuck: set[int] = set()  # descriptors on which it has run out


def say(text: str, *, error: bool = False) -> None:
    """Print a line now. A console that has gone away, is full, or takes nothing for a second (a
    pager left open, a terminal that was stopped) must not cost a run its save: it loses lines.

    After `| tee` and Ctrl-C the reader of the pipe is dead before its writer has saved.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed before the program began
        return
    try:
        line = _printable(text, stream) + "\n"
        with _not_blocking(stream) as descriptor:
            stream.flush()
            if descriptor is None:
                print(line, end="", file=stream, flush=True)
            else:
                _write(descriptor, line.encode(*_coding(stream)), stream.fileno())
    except OSError as problem:
        if problem.errno in (errno.EPIPE, errno.EIO):  # for good: later lines go nowhere
            _silence(stream)


def let_go() -> None:
    """Call it last: what a full disk has not taken would make the exit code Python's own, 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            _silence(stream)


@contextlib.contextmanager
def _not_blocking(stream: TextIO) -> Iterator[int | None]:
    """Yields another way into the same pipe or terminal, on which nobody waits; None where
    there is none: a file, which takes what it is given, or a system without /proc."""
    descriptor = None
    with contextlib.suppress(OSError, ValueError):  # not a file at all, or one of somebody else's
        number = stream.fileno()
        if not stat.S_ISREG(os.fstat(number).st_mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            descriptor = os.open(f"/proc/self/fd/{number}", flags)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _write(descriptor: int, line: bytes, number: int) -> None:
    """What goes in before patience ends; it is not shown again to one who has used it up."""
    deadline = time.monotonic() + (0.0 if number in _stuck else PATIENCE_SECONDS)
    while line:
        try:
            line = line[os.write(descriptor, line) :]
        except BlockingIOError:
            if time.monotonic() >= deadline:
                _stuck.add(number)
                return
            time.sleep(0.01)
    _stuck.discard(number)


def _printable(text: str, stream: TextIO) -> str:
    """The same, as escapes where the stream could not encode it."""
    encoding, errors = _coding(stream)
    try:
        text.encode(encoding, errors)
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _coding(stream: TextIO) -> tuple[str, str]:
    return stream.encoding or "utf-8", stream.errors or "strict"


def _silence(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
