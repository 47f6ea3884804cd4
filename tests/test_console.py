"""A console costs a run nothing, whatever has become of it."""

import contextlib
import io
import os
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
    """A pipe or a terminal that nobody reads: its other side, and the stream into it."""
    reader, writer = os.pipe() if end == "pipe" else os.openpty()
    with open(writer, "w", encoding="utf-8") as stream:
        yield reader, stream
        os.close(reader)


@pytest.mark.parametrize("end", ["pipe", "terminal"])
def test_a_reader_who_stands_still_costs_lines_and_no_more_than_one_wait(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
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
        say("read again")
        assert os.read(reader, 100).strip() == b"read again"
        assert os.get_blocking(stream.fileno())  # who else writes there is not to notice
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
