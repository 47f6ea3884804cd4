"""The whole program on the stamped game, run and watched from outside."""

import contextlib
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
import psutil

from common.config import Config
from common.lifeline import Heartbeats
from common.messages import Chunk
from learner.checkpoint import load_newest
from learner.learner import make_sampler
from learner.replay import Replay
from tests.running import ROOT, Awake, all_rows, last_row, processes_of, until, words_of
from tests.stamped import check_chunk, check_gapless, life_of, produced, sent_record

SMALL = {
    "--env": "tests.stamped:Stamped-v0",
    "--network": "nips",
    "--learner-threads": "1",
    "--envs-per-actor": "2",
    "--chunk-transitions": "16",
    "--window-chunks": "4",
    "--learning-starts-transitions": "300",
    "--replay-transitions": "150000",
    "--samples-per-insert": "8",
    "--samples-per-insert-mastered": "0",
    "--batch-size": "16",
    "--log-period-seconds": "0.5",
    "--publish-period-updates": "10",
}


class System:
    """One run of launch.py in `folder`/run, its console read, its games journalled.

    prepare: called in the new process before it becomes launch.py.
    """

    def __init__(
        self,
        folder: Path,
        actors: int = 1,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
        **flags: str,
    ) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        self.journal = folder / "journal"
        self.journal.mkdir(exist_ok=True)
        given = {"--" + name.replace("_", "-"): value for name, value in flags.items()}
        words = ["--actors", str(actors), "--run-dir", str(self.run_dir)]
        for flag, value in (SMALL | given).items():
            words += [flag, value]
        self.actors = int(flags.get("actors_mastered", actors))  # in all
        self.environment = {"STAMPED_JOURNAL": str(self.journal), **(environment or {})}
        self._prepare = prepare
        self._start(words)

    def _start(self, words: list[str]) -> None:
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={**os.environ, **self.environment},
            preexec_fn=self._prepare,
        )
        assert self.process.stdout
        self._reader = threading.Thread(
            target=_read, args=[self.process.stdout, self._lines], daemon=True
        )
        self._reader.start()

    def resume(self) -> None:
        self._start(["--resume", str(self.run_dir)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for process in processes_of(self.run_dir):
            with contextlib.suppress(psutil.NoSuchProcess):  # it dies with its parent
                process.kill()
        self._reader.join(10)

    @property
    def text(self) -> str:
        """What the console has shown since the last start."""
        if self.process.poll() is not None:
            self._reader.join(10)
        return "".join(self._lines)

    @property
    def config(self) -> Config:
        return Config.from_file(self.run_dir / "config.json")

    @property
    def learner(self) -> psutil.Process | None:
        return next((p for p in processes_of(self.run_dir) if "learner" in words_of(p)), None)

    def actor_processes(self) -> dict[int, psutil.Process]:
        """By actor id."""
        found = [p for p in processes_of(self.run_dir) if "actor" in words_of(p)]
        return {int(words_of(p)[-2]): p for p in found}

    def plays(self, actor: psutil.Process) -> bool:
        """Has this process taken a step?"""
        return self._games(actor) > 0

    def all_play(self) -> bool:
        """Has every actor taken a step in each of its games?"""
        games = [self._games(actor) for actor in self.actor_processes().values()]
        return len(games) == self.actors and min(games) == self.config.games_per_actor

    def _games(self, actor: psutil.Process) -> int:
        """Those that this process has taken a step in."""
        return sum(path.stat().st_size > 0 for path in self.journal.glob(f"{actor.pid}-*"))

    def silent_seconds(self) -> list[float]:
        """How long ago each process that has died took its last step."""
        alive = {actor.pid for actor in self.actor_processes().values()}
        last: dict[int, float] = {}
        for path in self.journal.glob("*-*"):
            if path.stat().st_size:  # launch.py makes a game too, and never plays it
                pid = int(path.name.split("-")[0])
                last[pid] = max(last.get(pid, 0.0), path.stat().st_mtime)
        return [time.time() - at for pid, at in last.items() if pid not in alive]

    def updates(self) -> int:
        return int(last_row(self.run_dir)["updates"])

    def until_learning(self, more_updates: int = 20, seconds: float = 90) -> None:
        goal = self.updates() + more_updates
        until(lambda: self.updates() >= goal or self._dead(), seconds)

    def _dead(self) -> bool:
        assert self.process.poll() is None, f"it ended: {self.text[-3000:]}"
        return False

    def end(self, signum: int = signal.SIGINT, seconds: float = 60) -> int:
        """Ask the run to end and wait. -> exit code."""
        self.process.send_signal(signum)
        return self.process.wait(seconds)

    def left(self) -> list[str]:
        """What should be gone once the run is over: processes and sockets."""
        sockets = [str(path) for path in (self.run_dir / "ipc").glob("*")]
        return [" ".join(words_of(p)) for p in processes_of(self.run_dir)] + sockets

    def rows(self) -> list[dict[str, str]]:
        return all_rows(self.run_dir)

    def longest_idle_seconds(self) -> float:
        """Longest time without an update, once there was one, as far as the rows can tell."""
        rows = [row for row in self.rows() if row["kind"] == "period" and int(row["updates"])]
        points = [(float(row["wall_seconds"]), int(row["updates"])) for row in rows]
        since, longest = points[0][0], 0.0
        for (_, before), (now, updates) in itertools.pairwise(points):
            longest = max(longest, now - since)
            since = now if updates > before else since
        return longest

    def seconds_since(self, env_steps: int) -> float:
        """Of the run, since it had taken so many env steps, as its records tell twice a second:
        where they fell silent for longer, the machine stood still."""
        rows = self.rows()
        until_then = [row for row in rows if int(row["env_steps"]) <= env_steps]
        times = [float(row["wall_seconds"]) for row in until_then[-1:] + rows[len(until_then) :]]
        return sum(min(now - before, 1.0) for before, now in itertools.pairwise(times))

    # -- the oracle -----------------------------------------------------------------------------

    def held(self) -> Iterator[Chunk]:
        """What the newest checkpoint holds, in the order in which it was taken."""
        config = self.config
        replay = Replay(config, make_sampler(config))
        load_newest(self.run_dir / "checkpoints", replay, check=lambda state: None, log=print)
        assert replay.first_id == 0, "the ring is too small for this drill: it has turned over"
        for stored in replay.chunks:
            yield replay.read_chunk(stored)

    def account(self) -> str:
        """Of every process: what was acknowledged is held, each chunk once, in order and as it was
        played; what is missing was under way: the window and what was in the making."""
        config, made = self.config, produced(self.journal)
        pid_of = {life: pid for pid, one in made.items() for life in one.actions}
        held: dict[int, list[Any]] = {pid: [] for pid in made}
        for chunk in self.held():
            pid = pid_of[life_of(chunk)]  # a KeyError: transitions that nobody played
            check_chunk(chunk, made[pid].actions[life_of(chunk)], config.n_step, config.gamma)
            held[pid].append(sent_record(len(held[pid]) + 1, chunk)[0])
        chunks_missing, steps_missing = [], []
        for pid, one in made.items():
            count = len(held[pid])
            ours = np.array(held[pid], one.sent.dtype)
            assert np.array_equal(ours, one.sent[:count]), "lost, repeated or out of order"
            assert count >= one.acked, f"{one.acked} were acknowledged, {count} are held"
            check_gapless(one)
            chunks_missing.append(len(one.sent) - count)
            steps_missing.append(one.steps - int(one.sent["length"][:count].sum()))
        making = config.games_per_actor * (config.chunk_transitions + config.n_step)
        most = (config.window_chunks + 1) * config.chunk_transitions + making
        assert max(chunks_missing) <= config.window_chunks + 1, "more was under way than the window"
        assert max(steps_missing) <= most, f"{max(steps_missing)} are missing, at most {most} may"
        steps = sum(one.steps for one in made.values())
        return (
            f"{steps:,} produced by {len(made)} processes, {steps - sum(steps_missing):,} held, "
            f"each once and in order, of {sum(one.acked for one in made.values()):,} acknowledged "
            f"chunks none missing; at most {max(steps_missing)} of one process were under way "
            f"(limit {most})"
        )


def _read(stream: TextIO, lines: list[str]) -> None:
    with stream:
        lines.extend(stream)


def checkpoints(system: System) -> list[Path]:
    return list((system.run_dir / "checkpoints").glob("step-*"))


class LearnerWatch:
    """The longest time between two signs of life of the learner."""

    def __init__(self, system: System) -> None:
        self._beats = Heartbeats.open(system.run_dir / "heartbeats")
        self._slot = system.actors
        self._awake = Awake()
        self._last_beat, self._silent_since = -math.inf, 0.0
        self.longest_seconds = 0.0

    def watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            beat = time.monotonic() - self._beats.age_seconds(self._slot)
            now = self._awake.look()
            if beat > self._last_beat + 0.001:
                self._last_beat, self._silent_since = beat, now
            self.longest_seconds = max(self.longest_seconds, now - self._silent_since)
            time.sleep(0.01)


@dataclass
class Successor:
    """Of an actor that has just been killed: when it was there, had imported all, and played."""

    system: System
    actor_id: int
    killed_pid: int

    def __post_init__(self) -> None:
        self._awake = Awake()
        self._beats = Heartbeats.open(self.system.run_dir / "heartbeats")
        self.born_seconds = self.import_seconds = self.back_seconds = 0.0

    def look(self) -> bool:
        """Call often. -> does it play?"""
        before, now = self._awake.seconds, self._awake.look()
        new = self.system.actor_processes().get(self.actor_id)
        if new is None or new.pid == self.killed_pid:
            return False
        self.born_seconds = self.born_seconds or now
        age = self._beats.age_seconds(self.actor_id)
        if not self.import_seconds and age < math.inf:  # its first beat comes after the imports
            self.import_seconds = max(now - age, before) - self.born_seconds
        if not self.back_seconds and self.system.plays(new):
            self.back_seconds = now
        return self.back_seconds > 0


def chooser(seed: int) -> random.Random:
    """Of victims and moments: the same ones each time."""
    return random.Random(seed)
