"""What a run of Pong showed, read off its metrics.csv and result.json alone; tables of many runs.

A level is reached when the mean of the last 100 (or 10) finished games first exceeds it; a mean of
fewer games does not count.
"""

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import Config
from common.metrics import COLUMNS
from common.run_folder import replace_file

LEVELS = (-15.0, 0.0, 15.0, 19.5)
LOWEST, HIGHEST = -21.0, 21.0
SLOW, FAST = 100, 10  # games of a mean: what "solved" is defined by, and what shows change sooner
_GAME_COLUMNS = frozenset(COLUMNS[: COLUMNS.index("epsilon")])
_NEVER = math.inf


@dataclass(frozen=True)
class Game:
    """A finished game: when, and its raw score."""

    minutes: float
    env_steps: int
    score: float


@dataclass(frozen=True)
class Run:
    """One run. env_steps, updates: in all."""

    variant: str
    seed: int
    games: Sequence[Game]
    env_steps: int
    updates: int

    def reached(self, level: float, window: int) -> tuple[float, float]:
        """(minutes, env steps) at which the mean of `window` games first exceeded the level."""
        for game, mean in zip(self.games[window - 1 :], self._means(window), strict=False):
            if mean > level:
                return game.minutes, game.env_steps
        return _NEVER, _NEVER

    def score_at(self, minutes: float) -> float:
        """Mean of the last 10 games finished by then, or by the run's end; -21 before 10 are."""
        done = sum(game.minutes <= minutes for game in self.games)
        return self._means(FAST)[done - FAST] if done >= FAST else LOWEST

    def area(self, minutes: float) -> float:
        """Under the curve of the 10-game mean over so many minutes: 0 all lost, 1 all won 21:0.

        The curve starts at -21 and keeps its last value when the run ends, solved, before time.
        """
        score, since, area = LOWEST, 0.0, 0.0
        for game, mean in zip(self.games[FAST - 1 :], self._means(FAST), strict=False):
            now = min(game.minutes, minutes)
            area += (score - LOWEST) * (now - since)
            score, since = mean, now
        area += (score - LOWEST) * (minutes - since)
        return area / minutes / (HIGHEST - LOWEST)

    def _means(self, window: int) -> list[float]:
        """Of the last `window` scores, from the first game that has so many."""
        scores = [game.score for game in self.games]
        ends = range(window, len(scores) + 1)
        return [statistics.fmean(scores[end - window : end]) for end in ends]


# -- files ----------------------------------------------------------------------------------------


def keep(run_dir: Path, kept: Path) -> None:
    """Copy what tells the run's story, made small; result.json last, as the mark of a whole copy.

    metrics.csv keeps every game (its score, not the rest) and one period row a minute.
    """
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(thinned(_rows(run_dir)))
    config = Config.from_json(run_dir / "config.json").portable()
    (kept / "config.json").write_text(config.to_json())
    replace_file(kept / "result.json", (run_dir / "result.json").read_bytes())


def thinned(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows worth keeping, and of the games' what nothing else tells."""
    kept, next_minute = [], 1
    for row in rows:
        if row["kind"] == "game":
            kept.append({name: row[name] for name in row if name in _GAME_COLUMNS})
        elif float(row["wall_seconds"]) >= 60 * next_minute:
            kept.append(row)
            next_minute = int(float(row["wall_seconds"]) / 60) + 1
    return kept


def runs_in(folder: Path) -> list[Run]:
    """Those kept below, by variant and seed: folder/<variant>/<any name>/, or folder/<any name>/,
    where the preset counts as the variant."""
    runs = []
    for path in sorted(folder.rglob("result.json")):
        run_dir, result = path.parent, json.loads(path.read_text())
        named = run_dir.parent != folder and run_dir != folder
        variant = run_dir.parent.name if named else result["preset"]
        games = [
            Game(float(row["wall_seconds"]) / 60, int(row["env_steps"]), float(row["score"]))
            for row in _rows(run_dir)
            if row["kind"] == "game"
        ]
        runs.append(Run(variant, result["seed"], games, result["env_steps"], result["updates"]))
    return sorted(runs, key=lambda run: (run.variant, run.seed))


def _rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# -- the table ------------------------------------------------------------------------------------


def table(runs: Sequence[Run], minutes: float) -> str:
    """A Markdown row per run and, where a variant has several, one of their medians.

    minutes: what the area is taken over.
    """
    means = [(window, level) for window in (FAST, SLOW) for level in LEVELS]
    heads = ["variant", "seed", *(f"{window} games > {level:g}" for window, level in means)]
    heads += ["at 5 min", f"area of {minutes:g} min", "updates", "env steps"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for variant in dict.fromkeys(run.variant for run in runs):
        measured = [_measures(run, means, minutes) for run in runs if run.variant == variant]
        seeds = [str(run.seed) for run in runs if run.variant == variant]
        lines += [_line([variant, seed], row) for seed, row in zip(seeds, measured, strict=True)]
        if len(seeds) > 1:
            middle = [statistics.median(column) for column in zip(*measured, strict=True)]
            lines.append(_line([f"**{variant}**", "**median**"], middle))
    lines.append("")
    lines.append("Games > S: minutes and thousands of env steps until that mean exceeded S.")
    return "\n".join(lines)


def _measures(run: Run, means: list[tuple[int, float]], minutes: float) -> list[float]:
    moments = [part for window, level in means for part in run.reached(level, window)]
    return [*moments, run.score_at(5.0), run.area(minutes), run.updates, run.env_steps]


def _line(heads: list[str], measures: list[float]) -> str:
    *moments, score, area, updates, env_steps = measures
    cells = [
        f"{at:.3g} / {steps / 1000:.0f} k" if math.isfinite(at) else "-"
        for at, steps in zip(moments[::2], moments[1::2], strict=True)
    ]
    last = [f"{score:+.1f}", f"{area:.3f}", f"{updates:,.0f}", f"{env_steps:,.0f}"]
    return "| " + " | ".join([*heads, *cells, *last]) + " |"
