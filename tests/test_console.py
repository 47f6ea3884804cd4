"""A console costs a run nothing, whatever has become of it."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from common import console
from common.console import let_go, say
from tests.running import ROOT


@contextlib.contextmanager
def full_pipe() -> Iterator[tuple[int, TextIO]]:
    """Its two ends; nothing fits in."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    with open(writer, "w") as stream:
        yield reader, stream
        os.close(reader)
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def test_a_reader_who_stands_still_costs_lines_and_no_more_than_one_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    class Poll:
        """The system's, without the waiting."""

        def __init__(self) -> None:
            self._poll = real()

        def register(self, descriptor: int, events: int) -> None:
            self._poll.register(descriptor, events)

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            waits.append(milliseconds)
            return self._poll.poll(0)

    real = console.select.poll
    monkeypatch.setattr(console.select, "poll", Poll)
    with full_pipe() as (reader, stream):
        monkeypatch.setattr(sys, "stdout", stream)
        for line in ("one", "two", "three"):
            say(line)  # where it blocked, this test would hang
        assert waits == [console.PATIENCE_MILLISECONDS, 0.0, 0.0]
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(reader, 1 << 16)
        say("read again")
        assert os.read(reader, 100) == b"read again\n"
        monkeypatch.undo()


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
