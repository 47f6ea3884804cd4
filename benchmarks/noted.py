"""`launch.py` with a notebook: the same program and flags, which also writes down moments.

`python -m benchmarks.noted FLAGS` appends lines `WHAT NUMBER NANOSECONDS` to `notes-PID` in the
run folder; CLOCK_MONOTONIC is one clock for all processes of a machine. Noted are

    update 1       the end of the first update
    published V    the end of the update that made weights version V, of one that went out
    played V       the end of an actor's first env step by weights of version V (-1: none yet)
    step N         the same moment, with the env steps that the actor had taken by then
"""

import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import launch

Notes = dict[str, list[tuple[int, int]]]


class Notebook:
    """Where this process writes."""

    def __init__(self, run_dir: Path) -> None:
        self._file = (run_dir / f"notes-{os.getpid()}").open("w", buffering=1)

    def note(self, what: str, number: int, moment: int | None = None) -> None:
        print(what, number, moment or time.monotonic_ns(), file=self._file)


def read(run_dir: Path) -> list[Notes]:
    """(number, nanoseconds) by what was noted, of each process; whole lines only."""
    found = []
    for path in run_dir.glob("notes-*"):
        notes: Notes = defaultdict(list)
        text = path.read_text()
        for line in text[: text.rfind("\n") + 1].splitlines():
            what, number, moment = line.split()
            notes[what].append((int(number), int(moment)))
        found.append(notes)
    return found


def note_learner(book: Notebook) -> None:
    from common.messages import Weights
    from learner import learner

    class NotingLearner(learner.Learner):
        made = 0  # moment, of the newest version

        def update(self) -> None:
            version = self.weights_version
            super().update()
            if self.updates == 1:
                book.note("update", 1)
            if self.weights_version > version:
                self.made = time.monotonic_ns()

        def weights(self) -> Weights:
            weights = super().weights()
            if self.made:  # the first version of all is of no update
                book.note("published", weights.version, self.made)
            return weights

    learner.Learner = NotingLearner  # type: ignore[misc]


def note_actor(book: Notebook) -> None:
    from actors import actor, player
    from common.messages import Chunk

    class NotingPlayer(player.Player):
        noted_version, steps = -2, 0

        def step(self, epsilon: float) -> list[Chunk]:
            chunks = super().step(epsilon)
            self.steps += len(self.games)
            if self.weights_version != self.noted_version:
                self.noted_version = self.weights_version
                book.note("played", self.weights_version)
                book.note("step", self.steps)
            return chunks

    actor.Player = NotingPlayer  # type: ignore[attr-defined]


def main(words: list[str]) -> int:
    launch.command = lambda words: [sys.executable, "-m", "benchmarks.noted", *words]
    if words[0] == "learner":
        note_learner(Notebook(Path(words[1])))
    elif words[0] == "actor":
        note_actor(Notebook(Path(words[1])))
    return launch.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
