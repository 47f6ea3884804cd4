"""Whole runs: long, resumed, coupled, distinct."""

import hashlib
import itertools
import os
import time
from pathlib import Path

import numpy as np
import psutil

from actors.player import Player
from common.presets import make_config
from tests.builders import CATCH
from tests.drills.system import System
from tests.running import until


def soak(folder: Path, long: bool) -> dict[int, str]:
    """Row 17: an hour of a cheap game; memory, descriptors and threads must not grow."""
    minutes, warm_up = (60.0, 10.0) if long else (0.3, 0.1)
    if long:
        os.nice(10)  # it may share the machine with the other drills
    flags = {"replay_transitions": "5000", "checkpoint_period_seconds": "30"}
    with System(folder, actors=2, environment={"STAMPED_JOURNAL": ""}, **flags) as system:
        system.until_learning()
        began, seen = time.monotonic(), []
        while (minute := (time.monotonic() - began) / 60) < minutes:
            for name, process in processes(system).items():
                with process.oneshot():
                    megabytes = process.memory_info().rss / 2**20
                    seen.append((name, minute, megabytes, process.num_fds(), process.num_threads()))
            time.sleep(minutes * 60 / 200)
        env_steps = int(system.rows()[-1]["env_steps"])
        assert system.end() == 130, system.text
    told = []
    for name in sorted({row[0] for row in seen}):
        rows = np.array([row[1:] for row in seen if row[0] == name and row[1] > warm_up])
        minute, megabytes, descriptors, threads = rows.T
        # A checkpoint in the making takes its memory for a moment: the floor is what may not rise.
        floor = np.minimum.reduceat(megabytes, np.arange(0, len(megabytes), 8))
        at = np.minimum.reduceat(minute, np.arange(0, len(minute), 8))
        growth = float(np.polyfit(at / 60, floor, 1)[0]) if len(at) > 2 else 0.0
        told.append(f"{name} {growth:+.2f} MB/h at {megabytes.mean():.0f} MB")
        if long:
            assert growth < 1.0, f"{name} grows by {growth:.2f} MB/h"
        half = len(rows) // 2
        for what, values in (("descriptors", descriptors), ("threads", threads)):
            first, last = np.median(values[:half]), np.median(values[half:])
            assert last <= first, f"{name}: {what} grow from {first:.0f} to {last:.0f}"
    return {
        17: f"{minutes:g} min, {env_steps:,} env steps: {', '.join(told)}; descriptors and "
        "threads flat"
    }


def processes(system: System) -> dict[str, psutil.Process]:
    actors = {f"actor {i}": p for i, p in system.actor_processes().items()}
    learner = system.learner
    assert learner
    return {"launch.py": psutil.Process(system.process.pid), "learner": learner, **actors}


def ratio_holds(folder: Path, long: bool) -> dict[int, str]:
    """Row 18: samples per insert over any 60 s (quick: 6 s) within 1 % of the setting."""
    seconds, window, setting = (200, 60.0, 4.0) if long else (10, 6.0, 4.0)
    flags = {"samples_per_insert": str(setting), "samples_per_insert_tolerance": "100"}
    with System(folder, **flags) as system:
        system.until_learning(100)
        time.sleep(seconds)
        assert system.end() == 130, system.text
        batch = system.config.batch_size
        periods = [row for row in system.rows() if row["kind"] == "period"]
    points = [
        (float(row["wall_seconds"]), int(row["env_steps"]), batch * int(row["updates"]))
        for row in periods
        if int(row["updates"]) > 100
    ]
    worst, windows = 0.0, 0
    for a, b in itertools.combinations(points, 2):
        if window <= b[0] - a[0] <= window + 1.0:
            windows += 1
            worst = max(worst, abs((b[2] - a[2]) / (b[1] - a[1]) / setting - 1))
    assert windows > 3
    limit = 0.01 if long else 0.04  # a chunk is 16 transitions, and 6 s are few of them
    assert worst <= limit, f"off by {100 * worst:.2f} %"
    return {18: f"{windows} windows of {window:.0f} s: at most {100 * worst:.2f} % off {setting:g}"}


def resumes_without_a_cliff(folder: Path, long: bool) -> dict[int, str]:
    """Row 19, asynchronous: interrupted and resumed again and again, the score holds."""
    times = 10 if long else 1
    flags = {
        "env": CATCH, "envs_per_actor": "8", "gamma": "0.95", "n_step": "3", "batch_size": "32",
        "replay_transitions": "20000", "learning_starts_transitions": "1000",
        "epsilon_decay_env_steps": "10000", "epsilon_final": "0.01", "learning_rate": "5e-4",
        "samples_per_insert": "2", "target_sync_period_updates": "100", "reward": "100",
        "chunk_transitions": "64", "window_chunks": "16", "max_minutes": "20", "seed": "1",
    }  # fmt: skip
    with System(folder, actors=1, **flags) as system:
        until(lambda: mean_score(system) > 8.5, 240, 0.5)
        learned, lowest = mean_score(system), 100.0
        for _ in range(times):
            assert system.end() == 130, system.text
            games = int(system.rows()[-1]["games"])
            system.resume()
            until(lambda goal=games + 110: int(system.rows()[-1]["games"]) >= goal, 120)  # type: ignore[misc]
            lowest = min(lowest, *(score_of(row) for row in system.rows()[-50:]))
        assert system.end() == 130, system.text
    assert lowest > learned - 1.0, f"the mean fell from {learned:.2f} to {lowest:.2f}"
    return {
        19: f"lock-step: bit for bit (tests/test_checkpoint.py); asynchronous, {times} resumes "
        f"of Catch at a mean of {learned:.2f} of 10: never below {lowest:.2f}"
    }


def score_of(row: dict[str, str]) -> float:
    return float(row["mean_score_100"] or "-10")


def mean_score(system: System) -> float:
    rows = system.rows() if (system.run_dir / "metrics.csv").exists() else []
    return score_of(rows[-1]) if rows and int(rows[-1]["games"]) >= 100 else -10.0


def lives_differ(folder: Path, long: bool) -> dict[int, str]:
    """Row 20: what actors see first on Pong, restarts and resumed runs included."""
    env_steps = 1_000 if long else 150
    config = make_config("pong", envs_per_actor=2, n_actions=6, seed=3)
    lives = [(actor, life, begun) for actor in range(3) for life in (0, 1) for begun in (0, 500)]
    digests = set()
    for actor, life, begun in lives:
        player = Player(config, [config.seed, 0, actor, life, begun])
        sums = [hashlib.sha256() for _ in player.games]
        for _ in range(env_steps):
            for obs, digest in zip(player.obs, sums, strict=True):
                digest.update(obs[-1].tobytes())
            player.step(1.0)
        digests |= {digest.hexdigest() for digest in sums}
        player.close()
    games = len(lives) * config.envs_per_actor
    assert len(digests) == games, f"only {len(digests)} of {games} games differ"
    return {
        20: f"{games} games of {len(lives)} lives of 3 actors, first {env_steps} observations: "
        "pairwise different"
    }
