"""Ways to go on from mastery, compared from the same states; for what follows ten good games.

    python -m tuning.branches FOLDER --seeds 301 302 --variant pong --variant \
few:samples_per_insert_mastered=0.2
    python -m tuning.branches --table FOLDER

How long a run takes to mastery differs from seed to seed by more than most settings make of the
hundred games after it. So the preset plays each seed once, until ten games say that it is mastered,
and is stopped there: FOLDER/mastered/seed-N, checkpoint included. Each variant then resumes a copy:
its time includes that start, and actors begin new games at that moment, as many actors as the
preset has from mastery on. A variant cannot change what a checkpoint depends on (n_step, the
network, the policy's average ...): those are for tuning.trials. What FOLDER holds is not run again.
"""

import dataclasses
import math
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import command_line
from common.config import OF_CHECKPOINTS, Config
from common.errors import INTERRUPTED, ConfigError
from tuning.results import Run, games_of, keep, markdown
from tuning.trials import (
    ENDING_SECONDS,
    LAUNCH,
    UNFINISHED,
    check,
    flag_parser,
    last_lines,
    logged,
    place,
    series,
)
from tuning.variants import Variant

MASTERED = Variant("mastered")  # what the others go on from
FIXED = frozenset({*OF_CHECKPOINTS, "preset", "seed", "run_dir", "actors"})
LOOK_SECONDS = 0.5
POOR_SCORE = 19.0  # a game below it


def main(words: list[str]) -> int:
    return series(words, flag_parser("branches", __doc__ or "", minutes=8.0), run_missing, table)


def run_missing(
    folder: Path, variants: Sequence[Variant], seeds: Sequence[int], minutes: float
) -> None:
    """minutes: to mastery at most, and after it.

    Raises ConfigError before the first run when a variant cannot be.
    """
    check(variants)
    for variant in variants:
        if variant.name == MASTERED.name:
            raise ConfigError(f"{variant.name!r} is where all go on from: name it otherwise.")
        for name in FIXED & variant.settings.keys():
            raise ConfigError(f"{name} cannot change within a run: use tuning.trials for it.")
    run_dir = folder / UNFINISHED
    for turn, seed in enumerate(seeds):
        state = place(folder, MASTERED, seed)
        if not state.exists():
            print(f"until mastery, seed {seed}", flush=True)
            if trouble := until_mastered(run_dir, seed, minutes):
                print(f"Left out: {trouble}", flush=True)
                shutil.rmtree(run_dir, ignore_errors=True)
                continue
            state.parent.mkdir(exist_ok=True)
            run_dir.rename(state)
        first = turn % len(variants)  # in turn: what drifts with time hits all
        for variant in [*variants[first:], *variants[:first]]:
            kept = place(folder, variant, seed)
            if (kept / "result.json").exists():
                continue
            print(f"{variant.name}, seed {seed}", flush=True)
            if trouble := go_on(state, run_dir, variant, minutes):
                print(f"It failed and will be tried again next time:\n{trouble}", flush=True)
            else:
                keep(run_dir, kept)
            shutil.rmtree(run_dir, ignore_errors=True)


def until_mastered(run_dir: Path, seed: int, minutes: float) -> str:
    """The preset's run, stopped once ten games say that it is mastered. -> trouble, or ''."""
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    flags = ["--seed", str(seed), "--max-minutes", str(minutes), "--run-dir", str(run_dir)]
    flags += ["--checkpoint-period-seconds", "0", "--log-period-seconds", "1"]
    log, deadline = run_dir / "console.log", time.monotonic() + 60 * minutes + ENDING_SECONDS
    with log.open("w") as console:
        process = subprocess.Popen(
            [sys.executable, str(LAUNCH), *flags], stdout=console, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
                if mastered(run_dir):
                    process.send_signal(signal.SIGINT)
                    break
            code = process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return last_lines("it does not end", log)
        finally:
            process.kill()
    if code not in (0, INTERRUPTED):
        return last_lines(f"exit code {code}", log)
    return "" if mastered(run_dir) else f"not mastered in {minutes:g} minutes"


def mastered(run_dir: Path) -> bool:
    if not (run_dir / "metrics.csv").exists():
        return False
    level = Config.from_file(run_dir / "config.json").mastery_score
    return Run("", "", games_of(run_dir)).mastered(level) is not None


def go_on(state: Path, run_dir: Path, variant: Variant, minutes: float) -> str:
    """A copy of the run, resumed with the variant's settings. -> what went wrong, or ''."""
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(state, run_dir)
    config = Config.from_file(state / "config.json")
    wanted = command_line.parse(variant.flags()).config
    settings = {name: getattr(wanted, name) for name in variant.settings}
    (run_dir / "config.json").write_text(dataclasses.replace(config, **settings).to_json())
    limit = games_of(state)[-1].minutes + minutes
    words = [sys.executable, str(LAUNCH), "--resume", str(run_dir), "--max-minutes", str(limit)]
    return logged(words, run_dir / "console.log", 60 * minutes + ENDING_SECONDS)


HEADS = ("variant", "run", "seconds", "env steps", "games", "below 19", "lowest")


def table(runs: Sequence[Run]) -> str:
    """A Markdown row per variant and seed, from mastery to solved; how many each variant solved,
    and the mean time of those that every variant did."""
    states = {run.name: run for run in runs if run.variant == MASTERED.name}
    rows = []
    seconds: dict[str, dict[str, float]] = {}  # of those that were solved, by variant and run
    for run in runs:
        if run.variant == MASTERED.name or run.name not in states:
            continue
        before = states[run.name].games
        games = run.games[len(before) :]
        took = 60 * (run.games[-1].minutes - before[-1].minutes)
        solved = run.solved() is not None
        seconds.setdefault(run.variant, {}).update({run.name: took} if solved else {})
        counts = (len(games), sum(game.score < POOR_SCORE for game in games))
        lowest = min((game.score for game in games), default=math.nan)
        rows.append(
            [
                *(f"`{run.variant}`", run.name, f"{took:.0f}" if solved else f"> {took:.0f}"),
                f"{run.games[-1].env_steps - before[-1].env_steps:,}",
                *(*map(str, counts), f"{lowest:+.0f}"),
            ]
        )
    lines = [markdown(HEADS, rows), ""]
    shared = set.intersection(*map(set, seconds.values())) if seconds else set()
    for variant, took_by in seconds.items():
        line = f"- `{variant}`: {len(took_by)} of {len(states)} solved"
        if shared:
            mean = statistics.fmean(took_by[name] for name in shared)
            line += f"; of the {len(shared)} that every variant solved a mean of {mean:.1f} s"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
