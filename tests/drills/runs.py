"""Whole runs: long, resumed, coupled, distinct."""

import hashlib
import itertools
import os
import time
from pathlib import Path

import numpy as np
import psutil

from actors.actor import life_seed
from actors.player import Player
from common.presets import make_config
from tests.builders import CATCH
from tests.drills.system import System
from tests.running import Awake, until


def soak(folder: Path, long: bool) -> dict[int, str]:
    """Row 17: an hour of a cheap game; memory, descriptors and threads must not grow."""
    minutes, warm_up = (60.0, 10.0) if long else (0.1, 0.03)
    if long:
        os.nice(10)  # it may share the machine with the other drills
    flags = {"replay_transitions": "5000", "checkpoint_period_seconds": "30"}
    environment = {"STAMPED_JOURNAL": ""} if long else None  # it would grow for an hour
    with System(folder, actors=2, environment=environment, **flags) as system:
        system.until_learning()
        until(lambda: len(system.actor_processes()) == 2 if long else system.all_play(), 30)
        watched = of_the_run(system)
        began, seen = time.monotonic(), []
        while (minute := (time.monotonic() - began) / 60) < minutes:
            for name, process in watched.items():
                with process.oneshot():
                    megabytes = process.memory_info().rss / 2**20
                    seen.append((name, minute, megabytes, process.num_fds(), process.num_threads()))
            time.sleep(0.2 if long else 0.05)
        env_steps = int(system.rows()[-1]["env_steps"])
        assert of_the_run(system) == watched, "a process was replaced"
        assert system.end() == 130, system.text
    told = []
    for name in sorted({row[0] for row in seen}):
        rows = np.array([row[1:] for row in seen if row[0] == name and row[1] > warm_up])
        minute, megabytes, descriptors, threads = rows.T
        # Batches and checkpoints take their memory for moments, some 10 MB: single looks differ by
        # as much, medians of many do not.
        looks = np.stack([minute / 60, megabytes])
        windows = np.array_split(looks, min(50, len(rows)), axis=1)
        hours, medians = zip(*(np.median(window, axis=1) for window in windows), strict=True)
        growth = float(np.polyfit(hours, medians, 1)[0])
        grows = f"{growth:+.2f} MB/h at " if long else ""
        told.append(f"{name} {grows}{megabytes.mean():.0f} MB")
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


def of_the_run(system: System) -> dict[str, psutil.Process]:
    actors = {f"actor {i}": p for i, p in system.actor_processes().items()}
    learner = system.learner
    assert learner
    return {"launch.py": psutil.Process(system.process.pid), "learner": learner, **actors}


def ratio_holds(folder: Path, long: bool) -> dict[int, str]:
    """Row 18: samples per insert over any 60 s (quick: 5 s) within 1 % of the setting."""
    if long:  # Pong as by default, but for the lower ratio once it is mastered
        seconds, window = 240, 60.0
        flags = {
            "env": "PongNoFrameskip-v4", "envs_per_actor": "8", "chunk_transitions": "64",
            "window_chunks": "16", "batch_size": "32", "samples_per_insert": "1.8",
            "learning_starts_transitions": "10000", "log_period_seconds": "1",
        }  # fmt: skip
    else:
        seconds, window = 7, 5.0
        flags = {"samples_per_insert": "4", "samples_per_insert_tolerance": "100"}
    with System(folder, **flags) as system:
        system.until_learning(100)
        Awake().sleep(seconds)
        assert system.end() == 130, system.text
        config = system.config
        periods = [row for row in system.rows() if row["kind"] == "period"]
    points = [
        (float(row["wall_seconds"]), int(row["env_steps"]), config.batch_size * int(row["updates"]))
        for row in periods
        if int(row["updates"]) > 100
    ]
    ratio, worst, windows = config.samples_per_insert, 0.0, 0
    # Of a few seconds one chunk and one batch may be more than a hundredth.
    step = 0.0 if long else ratio * config.chunk_transitions + config.batch_size
    for a, b in itertools.combinations(points, 2):
        if window <= b[0] - a[0] <= window + 1.0:
            windows += 1
            due = ratio * (b[1] - a[1])
            worst = max(worst, (abs(b[2] - a[2] - due) - step) / due)
    assert windows > 3
    assert worst <= 0.01, f"off by {100 * worst:.2f} %"
    return {
        18: f"{windows} windows of {window:.0f} s: at most {100 * max(worst, 0):.2f} % off "
        f"{ratio:g}{f' (beyond {step:.0f} samples)' if step else ''}; no accepted setting "
        "deadlocks: tests/test_limiter.py",
    }


def resumes_without_a_cliff(folder: Path, long: bool) -> dict[int, str]:
    """Row 19, asynchronous: interrupted and resumed again and again, the score holds."""
    times, learned = (10 if long else 1), 8.0
    flags = {
        "env": CATCH, "envs_per_actor": "8", "gamma": "0.95", "n_step": "3", "batch_size": "32",
        "replay_transitions": "20000", "learning_starts_transitions": "1000",
        "epsilon_decay_env_steps": "10000", "epsilon_final": "0.01", "learning_rate": "5e-4",
        "samples_per_insert": "2", "target_sync_period_updates": "100", "reward": "100",
        "chunk_transitions": "64", "window_chunks": "16", "max_minutes": "20", "seed": "1",
    }  # fmt: skip
    with System(folder, actors=1, **flags) as system:
        until(lambda: mean_of_last(system, 100) > learned, 150, 0.5)
        before, after = [], []
        for _ in range(times):
            assert system.end() == 130, system.text
            before.append(mean_of_last(system, FIRST_GAMES))
            games = len(scores(system)) + FIRST_GAMES
            system.resume()
            until(lambda goal=games: len(scores(system)) >= goal, 120)  # type: ignore[misc]
            after.append(float(np.mean(scores(system)[games - FIRST_GAMES : games])))
        assert system.end() == 130, system.text
    falls = [b - a for b, a in zip(before, after, strict=True)]
    assert max(falls) < 2.0, f"the score fell by {max(falls):.1f} at a resume"
    return {
        19: f"lock-step: bit for bit (tests/test_checkpoint.py); asynchronous, {times} resumes of "
        f"Catch (random play -7, perfect 10): the {FIRST_GAMES} games before each had a mean of "
        f"{min(before):.1f} to {max(before):.1f}, the first {FIRST_GAMES} after it "
        f"{min(after):.1f} to {max(after):.1f}"
    }


FIRST_GAMES = 20


def scores(system: System) -> list[float]:
    """Of all games of the run, in the order in which they ended."""
    rows = system.rows() if (system.run_dir / "metrics.csv").exists() else []
    return [float(row["score"]) for row in rows if row["kind"] == "game"]


def mean_of_last(system: System, games: int) -> float:
    """Random play's score while there are not so many."""
    last = scores(system)[-games:]
    return float(np.mean(last)) if len(last) == games else -7.0


def lives_differ(folder: Path, long: bool) -> dict[int, str]:
    """Row 20: what actors see first on Pong, restarts and resumed runs included."""
    env_steps = 1_000 if long else 300
    config = make_config("pong", envs_per_actor=2, n_actions=6, seed=3)
    actors = 3 if long else 2
    lives = [
        (actor, life, begun) for actor in range(actors) for life in (0, 1) for begun in (0, 500)
    ]
    digests = set()
    for actor, life, begun in lives:
        player = Player(config, life_seed(config, actor, life, begun))
        sums = [hashlib.sha256() for _ in range(config.games_per_actor)]
        for _ in range(env_steps):
            for obs, digest in zip(player.obs, sums, strict=False):  # the second joins later
                digest.update(obs[-1].tobytes())
            player.step(1.0)
        digests |= {digest.hexdigest() for digest in sums}
        player.close()
    games = len(lives) * config.games_per_actor
    assert len(digests) == games, f"only {len(digests)} of {games} games differ"
    return {
        20: f"{games} games of {len(lives)} lives of {actors} actors, all they saw in "
        f"{env_steps} env steps: pairwise different"
    }
