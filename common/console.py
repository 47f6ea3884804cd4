"""The console: lines for the user, which nothing else may depend on."""

import contextlib
import errno
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from typing import TextIO

PATIENCE_SECONDS = 1.0  # with a reader that is slow
# Descriptors on which it has run out, and what ends the line that was cut there.
_stuck: dict[int, bytes] = {}


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
            if descriptor is not None:
                _write(descriptor, line.encode(*_coding(stream)), stream.fileno())
            elif _takes_a_line(stream):
                print(line, end="", file=stream, flush=True)
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
    """Yields another way into the same pipe or terminal, on which nobody waits; None for a file,
    which takes what it is given, and where there is no other way: into a socket, into somebody
    else's terminal, without /proc."""
    descriptor = None
    with contextlib.suppress(OSError, ValueError):
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
    """What goes in before nothing has for as long as patience lasts."""
    patience = 0.0 if number in _stuck else PATIENCE_SECONDS
    begun = _stuck.get(number, b"")
    left = begun + line
    deadline = time.monotonic() + patience
    while left:
        try:
            left = left[os.write(descriptor, left) :]
            deadline = time.monotonic() + patience
        except BlockingIOError:
            if time.monotonic() >= deadline:
                _stuck[number] = b"\n" if begun or len(left) < len(line) else b""
                return
            time.sleep(0.01)
    _stuck.pop(number, None)


def _takes_a_line(stream: TextIO) -> bool:
    """Whether a line of usual length could be written now, or before patience ends."""
    poll = select.poll()
    try:
        number = stream.fileno()
        poll.register(number, select.POLLOUT)
    except (OSError, ValueError):  # not a file at all
        return True
    if poll.poll(0.0 if number in _stuck else 1000 * PATIENCE_SECONDS):
        _stuck.pop(number, None)
        return True
    _stuck[number] = b""
    return False


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
