"""What a run of Pong showed, read off its metrics.csv and result.json alone; tables of many runs.

A level is reached when the mean of the last 100 finished games first exceeds it, the game mastered
when that of the last ten first is at the solved level; a mean of fewer games does not count. Where
greedy games had to confirm that a run is solved, it is so when they were asked to and did.
"""

import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Config
from common.metrics import COLUMNS, PROGRESS_GAMES, SOLVED_GAMES, rows_of
from common.run_folder import replace_file

SOLVED = 19.5
LEVELS = (-15.0, 0.0, 15.0)
_GAME_COLUMNS = frozenset(COLUMNS[: COLUMNS.index("epsilon")])


@dataclass(frozen=True)
class Game:
    """A finished game: when, after how much of everything, and its raw score."""

    minutes: float
    env_steps: int
    updates: int
    score: float


@dataclass(frozen=True)
class Run:
    """One run. name: of its folder. unconfirmed_seconds: so long it was not solved, or greedy games
    did not confirm it; 0 where they did not have to."""

    variant: str
    name: str
    games: Sequence[Game]
    unconfirmed_seconds: float = 0.0

    def reached(self, level: float) -> Game | None:
        """The game with which the mean of the last 100 first exceeded the level."""
        return next((game for game, mean in self._means(SOLVED_GAMES) if mean > level), None)

    def solved(self) -> Game | None:
        """The game with which it was."""
        # Both are rounded: to six digits the one, to milliseconds the other.
        since = self.unconfirmed_seconds * (1 - 1e-5) - 0.002
        for game, mean in self._means(SOLVED_GAMES):
            if mean > SOLVED and 60 * game.minutes > since:
                return game
        return None

    def mastered(self, level: float = SOLVED) -> Game | None:
        """The game with which the mean of the last ten first was at the level."""
        return next((game for game, mean in self._means(PROGRESS_GAMES) if mean >= level), None)

    def mean_at_end(self) -> float:
        """Of the last 100 games, or of all if there are fewer."""
        return statistics.fmean(game.score for game in self.games[-SOLVED_GAMES:])

    def _means(self, window: int) -> Iterator[tuple[Game, float]]:
        """Every game with which there are so many, and the mean of the last so many."""
        scores = [game.score for game in self.games]
        for end in range(window, len(scores) + 1):
            yield self.games[end - 1], statistics.fmean(scores[end - window : end])


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
    config = Config.from_file(run_dir / "config.json").portable()
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
    """Those kept below, by variant and name: folder/<variant>/<any name>/, or folder/<any name>/,
    where the preset counts as the variant."""
    runs = []
    for path in sorted(folder.rglob("result.json")):
        run_dir, result = path.parent, json.loads(path.read_text())
        named = run_dir.parent != folder and run_dir != folder
        variant = run_dir.parent.name if named else result["preset"]
        unconfirmed = _unconfirmed_seconds(run_dir, result)
        run = Run(variant, run_dir.name, games_of(run_dir), unconfirmed)
        if unconfirmed and (solved := run.solved()):  # what came in later has no time of its own
            run = dataclasses.replace(run, games=run.games[: run.games.index(solved) + 1])
        runs.append(run)
    return sorted(runs, key=lambda run: (run.variant, run.name))


def _unconfirmed_seconds(run_dir: Path, result: dict[str, Any]) -> float:
    path = run_dir / "config.json"  # which early runs were kept without
    settings = json.loads(path.read_text()) if path.exists() else {}
    if not settings.get("confirm_games") or settings["reward"] != SOLVED:
        return 0.0
    return float(result["wall_seconds"]) if result["solved"] else math.inf


def games_of(run_dir: Path) -> list[Game]:
    """Those that a run, over or not, has told of so far."""
    return [
        Game(
            float(row["wall_seconds"]) / 60,
            int(row["env_steps"]),
            int(row["updates"]),
            float(row["score"]),
        )
        for row in _rows(run_dir)
        if row["kind"] == "game"
    ]


def _rows(run_dir: Path) -> list[dict[str, str]]:
    return rows_of(run_dir / "metrics.csv")


# -- the table ------------------------------------------------------------------------------------


HEADS = ("variant", "run", "> -15", "> 0", "> 15", "ten games", "solved", "mean at the end")
RATES = ("updates/s", "env steps/s")
KEY = """\
Minutes / thousands of env steps from the command on: until the mean of 100 games exceeded -15, 0
and 15, until that of ten games was at 19.5, and until that of 100 exceeded it, confirmed by greedy
games where they had to. Rates are until ten games were at 19.5, or to the last game."""


def table(runs: Sequence[Run]) -> str:
    """A Markdown row per run that finished a game, each variant's median, what the columns are."""
    lines = [markdown(HEADS + RATES, (_row(run) for run in runs if run.games)), "", KEY, ""]
    for variant in dict.fromkeys(run.variant for run in runs):
        lines.append(f"- `{variant}`: {_solved([run for run in runs if run.variant == variant])}")
    return "\n".join(lines)


def _solved(runs: Sequence[Run]) -> str:
    """How many of them, and after how long the middle one."""
    solved = [run.solved() for run in runs]
    minutes = statistics.median(game.minutes if game else math.inf for game in solved)
    middle = f", median {minutes:.1f} minutes" if math.isfinite(minutes) else ""
    return f"{sum(map(bool, solved))} of {len(runs)} solved{middle}"


def _row(run: Run) -> list[str]:
    levels = [run.reached(level) for level in LEVELS]
    mastered = run.mastered()
    last = mastered or run.games[-1]
    seconds = 60 * last.minutes
    moments = [_moment(game) for game in (*levels, mastered, run.solved())]
    rates = [f"{count / seconds:,.0f}" for count in (last.updates, last.env_steps)]
    return [f"`{run.variant}`", run.name, *moments, f"{run.mean_at_end():+.1f}", *rates]


def _moment(game: Game | None) -> str:
    return f"{game.minutes:.1f} / {game.env_steps / 1000:,.0f}" if game else "-"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([_cells(heads), "|" + "---|" * len(heads), *map(_cells, rows)])


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
