"""The whole program on the stamped game, run and watched from outside."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

import psutil

from common.config import Config
from common.lifeline import Heartbeats
from learner.checkpoint import load_newest
from learner.learner import make_sampler
from learner.replay import Replay
from tests.running import ROOT, all_rows, last_row, processes_of, until, words_of
from tests.stamped import Life, check_chunk, produced

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
    "--batch-size": "16",
    "--log-period-seconds": "0.5",
    "--publish-period-updates": "10",
}


class System:
    """One run of launch.py in `folder`/run, its console read, its games journalled."""

    def __init__(
        self, folder: Path, actors: int = 2, environment: dict[str, str] | None = None, **flags: str
    ) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        self.journal = folder / "journal"
        self.journal.mkdir(exist_ok=True)
        given = {"--" + name.replace("_", "-"): value for name, value in flags.items()}
        words = ["--actors", str(actors), "--run-dir", str(self.run_dir)]
        for flag, value in (SMALL | given).items():
            words += [flag, value]
        self.actors = actors
        self.environment = {"STAMPED_JOURNAL": str(self.journal), **(environment or {})}
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
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stream:
            for line in stream:
                self._lines.append(line)

    def resume(self, **flags: str) -> None:
        words = ["--resume", str(self.run_dir)]
        for name, value in flags.items():
            words += ["--" + name.replace("_", "-"), value]
        self._start(words)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for process in processes_of(self.run_dir):
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
        return Config.from_json(self.run_dir / "config.json")

    @property
    def learner(self) -> psutil.Process | None:
        return next((p for p in processes_of(self.run_dir) if "learner" in words_of(p)), None)

    def actor_processes(self) -> dict[int, psutil.Process]:
        """By actor id."""
        found = [p for p in processes_of(self.run_dir) if "actor" in words_of(p)]
        return {int(words_of(p)[-2]): p for p in found}

    def plays(self, actor: psutil.Process) -> bool:
        """Has this process taken a step?"""
        return any(path.stat().st_size for path in self.journal.glob(f"{actor.pid}-*"))

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

    def wall_seconds_at(self, env_steps: int) -> float:
        """Of the run, when it had taken so many env steps, as its records tell."""
        rows = [row for row in all_rows(self.run_dir) if int(row["env_steps"]) <= env_steps]
        return float(rows[-1]["wall_seconds"]) if rows else 0.0

    # -- the oracle -----------------------------------------------------------------------------

    def held(self) -> dict[int, Life]:
        """What the newest checkpoint holds of each life, every chunk of it checked."""
        config = self.config
        replay = Replay(config, make_sampler(config))
        load_newest(self.run_dir / "checkpoints", replay, check=lambda state: None, log=print)
        assert replay.first_id == 0, "the ring is too small for this drill: it has turned over"
        lives: dict[int, Life] = {}
        for stored in replay.chunks:
            chunk = replay.read_chunk(stored)
            check_chunk(chunk, lives, config.n_step, config.gamma)
        return lives

    def account(self) -> str:
        """Produced = held + at most the window and the chunk in the making, for every process."""
        config, held = self.config, self.held()
        making = config.envs_per_actor * (config.chunk_transitions + config.n_step)
        most = (config.window_chunks + 1) * config.chunk_transitions + making
        lives_by_pid = produced(self.journal)
        played = {life: steps for lives in lives_by_pid.values() for life, steps in lives.items()}
        assert set(held) <= set(played), "transitions that nobody played"
        worst = 0
        for lives in lives_by_pid.values():
            lost = sum(steps - held.get(life, Life()).taken for life, steps in lives.items())
            assert all(held.get(life, Life()).taken <= n for life, n in lives.items())
            worst = max(worst, lost)
        assert worst <= most, f"{worst} transitions of one process are missing, at most {most} may"
        kept = sum(life.taken for life in held.values())
        return (
            f"{sum(played.values()):,} produced by {len(lives_by_pid)} processes, {kept:,} held, "
            f"each once and in order; at most {worst} of one process were under way (limit {most})"
        )


def checkpoints(system: System) -> list[Path]:
    return list((system.run_dir / "checkpoints").glob("step-*"))


class LearnerWatch:
    """The longest time between two signs of life of the learner."""

    def __init__(self, system: System) -> None:
        self._beats = Heartbeats.open(system.run_dir / "heartbeats")
        self._slot = system.actors
        self.longest_seconds = 0.0

    def watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.longest_seconds = max(self.longest_seconds, self._beats.age_seconds(self._slot))
            time.sleep(0.02)


def chooser(seed: int) -> random.Random:
    """Of victims and moments: the same ones each time."""
    return random.Random(seed)
