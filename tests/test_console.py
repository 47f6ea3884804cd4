"""A console costs a run nothing, whatever has become of it."""

import contextlib
import io
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TextIO

import pytest

from common import console
from common.console import let_go, say
from tests.running import ROOT


@contextlib.contextmanager
def unread(end: str) -> Iterator[tuple[int, TextIO]]:
    """A pipe, a terminal or a socket that nobody reads: its other side, and the stream into it."""
    if end == "socket":
        reader, writer = (one.detach() for one in socket.socketpair())
    else:
        reader, writer = os.pipe() if end == "pipe" else os.openpty()
    with open(writer, "w", encoding="utf-8") as stream:
        yield reader, stream
        os.close(reader)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("end", ["pipe", "terminal", "socket"])
def test_a_reader_who_stands_still_costs_lines_and_no_more_than_one_wait(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    class Poll:
        """The system's, on that clock."""

        def __init__(self) -> None:
            self._poll = real()
            self.register = self._poll.register

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            if not (ready := self._poll.poll(0)):
                sleep(milliseconds / 1000)
            return ready

    real = select.poll
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(console.select, "poll", Poll)
    with unread(end) as (reader, stream):
        monkeypatch.setattr(sys, "stdout", stream)
        while not clock[0]:  # where it blocks, this test hangs
            say("a line of a hundred characters" + "." * 70)
        for _ in range(3):
            say("forty lines of a traceback\n" * 400)
        assert console.PATIENCE_SECONDS <= clock[0] < 1.1 * console.PATIENCE_SECONDS
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(reader, 1 << 16)
        say("read again")  # on a line of its own, whatever was cut before
        assert os.read(reader, 100).strip() == b"read again"
        assert os.get_blocking(stream.fileno())  # who else writes there is not to notice
        monkeypatch.undo()


def test_a_slow_reader_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, got = [0.0], []
    with unread("pipe") as (reader, stream):

        def sleep(seconds: float) -> None:
            """Longer than patience in all, but never without a byte."""
            clock[0] += 0.9 * console.PATIENCE_SECONDS
            got.append(os.read(reader, 1 << 13))

        times = SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep)
        monkeypatch.setattr(console, "time", times)
        monkeypatch.setattr(sys, "stdout", stream)
        say("x" * (1 << 18))
        say("after it")
        monkeypatch.undo()
        assert clock[0] > 3 * console.PATIENCE_SECONDS
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                got.append(os.read(reader, 1 << 16))
    assert b"".join(got) == b"x" * (1 << 18) + b"\nafter it\n"


def test_what_a_console_cannot_show_is_shown_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(shown, encoding="ascii"))
    say("a folder \udcff of 训", error=True)
    assert shown.getvalue() == b"a folder \\udcff of \\u8bad\n"


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_console_that_was_closed_before_the_program_began_takes_nothing(
    closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, closed, None)
    say("a line", error=closed == "stderr")
    let_go()


def test_the_exit_code_is_the_programs_own_with_closed_consoles() -> None:
    words = [sys.executable, str(ROOT / "launch.py"), "--preset", "nope"]
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *words], cwd=ROOT)
    assert done.returncode == 2
