"""Running the program as a user does, and watching it: for tests and drills."""

import csv
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

ROOT = Path(__file__).parent.parent
T = TypeVar("T")


def launch(*words: str, cwd: Path | None = None, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        **options,
    )


def run(*words: str, cwd: Path | None = None, timeout: float = 120) -> tuple[int, str]:
    with launch(*words, cwd=cwd) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()  # or leaving the block would wait for it; its children follow
            raise
        return process.returncode, output


@contextmanager
def hearing_hangups() -> Iterator[None]:
    """What is started meanwhile hears SIGHUP, also where the tests themselves run under nohup."""
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, inherited)


def processes_of(run_dir: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(run_dir) in (process.info["cmdline"] or []):
            found.append(process)
    return found


def words_of(process: psutil.Process) -> list[str]:
    """Its command line, as `processes_of` saw it: it may be gone by now."""
    return list(process.info["cmdline"])


def until(what: Callable[[], T], seconds: float, period_seconds: float = 0.05) -> T:
    """The first truthy answer; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(period_seconds)
    return answer


class Awake:
    """Seconds that a watch has seen pass: where the whole machine stood still, it did too.

    Look often: of the time between two looks at most a quarter of a second counts. In a `with`, a
    thread looks.
    """

    def __init__(self) -> None:
        self.seconds, self._looked = 0.0, time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.look()

    def look(self) -> float:
        before, self._looked = self._looked, time.monotonic()
        self.seconds += min(self._looked - before, 0.25)
        return self.seconds

    def sleep(self, seconds: float) -> None:
        end = self.look() + seconds
        while self.look() < end:
            time.sleep(0.05)


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def all_rows(run_dir: Path) -> list[dict[str, str]]:
    """Complete rows only: the file may be in the middle of being written."""
    text = (run_dir / "metrics.csv").read_text()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def last_row(run_dir: Path) -> dict[str, str]:
    rows = all_rows(run_dir) if (run_dir / "metrics.csv").exists() else []
    return rows[-1] if rows else {"env_steps": "0", "updates": "0"}


def updates(run_dir: Path) -> int:
    return int(last_row(run_dir)["updates"])
