"""Small checkpoints, and processes that die while they save them.

`serve` runs in a process of its own, which has no threads and so may fork: a child per line on its
standard input. A child goes on from the newest checkpoint of a folder.
"""

import io
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from common.messages import Spec
from learner.checkpoint import Checkpointer, Snapshot, list_checkpoints, load_newest
from learner.replay import Replay, UniformSampler
from tests.builders import chunk_of, config
from tests.running import ROOT

SMALL = config(replay_transitions=256, learning_starts_transitions=64)
SPEC = Spec.of(SMALL)
CRASHED = 9  # exit code of a child that died where it was told to

_SERVER = "from tests.drills.saver import serve; serve()"


def empty_replay() -> Replay:
    return Replay(SMALL, UniformSampler(np.random.default_rng(0)))


def add_chunk(replay: Replay) -> None:
    replay.add(chunk_of(SPEC, 16, 20 * (replay.end_id // 16 + 1)))


def save(folder: Path, replay: Replay, number: int) -> None:
    """Checkpoint `number`, of so many chunks."""
    tensors = {"online.w": torch.full((20_000,), float(number))}
    chunks = list(replay.chunks)
    checkpointer = Checkpointer(folder, replay, keep=2)
    checkpointer.base = next(iter(list_checkpoints(folder)), None)  # the one before
    checkpointer.save_now(Snapshot(number, tensors, {"number": number}, chunks))
    if checkpointer.error:
        raise checkpointer.error


def load(folder: Path) -> tuple[int, Replay]:
    """-> number of the checkpoint that a resume would use, its contents checked; its replay."""
    replay = empty_replay()
    _, tensors, state = load_newest(folder, replay, check=lambda state: None, log=lambda text: None)
    number = int(state["number"])
    assert tensors["online.w"].eq(number).all()
    assert replay.end_id == 16 * number, "the replay belongs to another checkpoint"
    return number, replay


def filled(folder: Path, saves: int) -> None:
    """So many checkpoints, numbered from 1."""
    folder.mkdir()
    replay = empty_replay()
    for number in range(1, saves + 1):
        add_chunk(replay)
        save(folder, replay, number)


# -- processes that die ---------------------------------------------------------------------------


class Server:
    """`serve`, running."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def crash(self, folder: Path, call: int, again: bool) -> bool:
        """A save that dies at its call number `call` (from 0). -> did it? Else it was done."""
        status = self._ask(f"crash {folder} {call} {int(again)}")
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, CRASHED), "saving failed"
        return os.WEXITSTATUS(status) == CRASHED

    def kill(self, folder: Path, seconds: float) -> None:
        """One save after another, until it is killed after so long."""
        status = self._ask(f"kill {folder} {seconds}")
        assert os.WIFSIGNALED(status), "it ended before it was killed"

    def _ask(self, line: str) -> int:
        assert self._process.stdin and self._process.stdout
        print(line, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def serve() -> None:
    """Answers each line with what waitpid says of the child."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        what, folder, *numbers = line.split()
        pid = os.fork()
        if not pid:
            in_child(crash if what == "crash" else save_for_ever, Path(folder), numbers)
        if what == "kill":
            while not any(Path(folder).glob("step-*2")):  # begun with the first: 1
                time.sleep(0.001)
            time.sleep(float(numbers[0]))
            os.kill(pid, signal.SIGKILL)
        print(os.waitpid(pid, 0)[1], flush=True)


def in_child(work: Callable[..., None], folder: Path, numbers: list[str]) -> None:
    try:
        work(folder, *numbers)
    except BaseException:
        os._exit(1)
    os._exit(0)


def crash(folder: Path, call: str, again: str) -> None:
    number, replay = load(folder)
    if again == "0":
        add_chunk(replay)
        number += 1
    DiesAt(int(call))
    save(folder, replay, number)


def save_for_ever(folder: Path, _: str) -> None:
    number, replay = load(folder)
    for later in itertools.count(number + 1):
        add_chunk(replay)
        save(folder, replay, later)


class DiesAt:
    """Ends the process at the nth call of anything that changes the disk; a write half done."""

    CALLS = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "open")

    def __init__(self, call: int) -> None:
        self._left = call
        for name in self.CALLS:
            setattr(os, name, self._wrap(getattr(os, name)))
        self._real_open = io.open
        io.open = self._open  # type: ignore[assignment]  # which Path.open calls

    def count(self) -> None:
        self._left -= 1
        if self._left < 0:
            os._exit(CRASHED)

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*args: Any, **kwargs: Any) -> Any:
            self.count()
            return real(*args, **kwargs)

        return dying

    def _open(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = self._real_open(path, mode, *args, **kwargs)
        return _HalfWritten(file, self.count) if mode == "wb" else file


class _HalfWritten:
    """A file that may end in the middle of what was to be written."""

    def __init__(self, file: Any, between: Callable[[], None]) -> None:
        self._file, self._between = file, between

    def write(self, content: bytes) -> None:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        self._between()
        self._file.write(content[len(content) // 2 :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
