"""The arithmetic of a comparison: sides measured in turn, one ratio per round, rows of a table.

Machines are shared and noisy, ratios within one run are not: so the sides of a row alternate
(A, B, A, B ...), every round gives one ratio, and a row tells their median, least and most.
Only the standard library: peers measure themselves with this too, in their own environment.
"""

import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

Figure = TypeVar("Figure")
Name = TypeVar("Name")
Side = Callable[[float], Any]
"""Measures for about so many seconds. -> its figure, in the unit of the row."""
Step = Callable[[], float]
"""Does a little work. -> how much of it, in env steps, updates or whatever the row counts."""

ENV_STEPS, UPDATES = "env steps/s", "updates/s"


class NotMeasured(Exception):
    """Why a figure cannot be had on this machine, in one sentence."""


@dataclass(frozen=True)
class Form:
    """How thorough a run is: rounds of each row, seconds per side and round, extras or not."""

    rounds: int
    seconds: float
    full: bool


SHORT = Form(rounds=3, seconds=1.0, full=False)
FULL = Form(rounds=5, seconds=3.0, full=True)


def rate(step: Step, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Work per second over `seconds`, after a fifth of that time that does not count.

    Python's collector runs as in real life, but starts each slice with nothing to collect.
    """
    gc.collect()
    repeat(step, seconds / 5, clock)
    done, elapsed = repeat(step, seconds, clock)
    return done / elapsed


def repeat(
    step: Step, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """-> work done, seconds it took."""
    began, done = clock(), 0.0
    while (elapsed := clock() - began) < seconds:
        done += step()
    return done, elapsed


def steadily(step: Step) -> Side:
    """The side whose figure is the rate of `step`."""
    return lambda seconds: rate(step, seconds)


def growth(
    work: Callable[[float], object],
    counts: Callable[[], dict[str, float]],
    clock: Callable[[], float] = time.perf_counter,
) -> Side:
    """The side whose figures are how fast several counts grow, per second, while `work` goes on.

    work: goes on for so many seconds.
    """

    def measure(seconds: float) -> dict[str, float]:
        gc.collect()
        work(seconds / 5)
        began, before = clock(), counts()
        work(seconds)
        elapsed, after = clock() - began, counts()
        return {name: (after[name] - before[name]) / elapsed for name in before}

    return measure


def alternate(
    sides: Mapping[Name, Callable[[float], Figure]], rounds: int, seconds: float
) -> dict[Name, list[Figure]]:
    """A, B, C, A, B, C, ... -> every side's figures, round by round."""
    figures: dict[Name, list[Figure]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            figures[name].append(side(seconds))
    return figures


def fastest(sides: Mapping[Name, Callable[[float], float]], seconds: float) -> Name:
    """The side with the highest figure: the median of three rounds."""
    tried = alternate(sides, rounds=3, seconds=seconds)
    return max(tried, key=lambda name: statistics.median(tried[name]))


@dataclass(frozen=True)
class Goal:
    """What the ratio should reach, or stay under."""

    bound: float
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


AHEAD = Goal(1.0)


@dataclass(frozen=True)
class Row:
    """One comparison. figures and references are of the same rounds, in `unit`.

    number: of the table in docs/performance.md. Without figures the row was not measured, and the
    note says why.
    """

    number: int
    what: str
    unit: str
    against: str
    goal: Goal | None = None
    figures: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.figures, self.references, strict=True)]

    @property
    def met(self) -> str:
        if self.goal is None or not self.figures:
            return "-"
        return "yes" if self.goal.met(statistics.median(self.ratios)) else "no"

    def cells(self) -> list[str]:
        """As the table shows it; medians, and the ratios' least and most."""
        goal = "-" if self.goal is None else str(self.goal)
        if not self.figures:
            why = f"not measured: {self.note}"
            return [str(self.number), self.what, why, self.against, "-", goal, "-"]
        what = f"{self.what} ({self.note})" if self.note else self.what
        ratio = f"{statistics.median(self.ratios):.2f}"
        if len(self.ratios) > 1:
            ratio += f" ({min(self.ratios):.2f} to {max(self.ratios):.2f})"
        measured = f"{shown(statistics.median(self.figures))} {self.unit}"
        against = f"{self.against}: {shown(statistics.median(self.references))}"
        return [str(self.number), what, measured, against, ratio, goal, self.met]

    def record(self) -> dict[str, Any]:
        """For --json: every round, and what follows from them."""
        summary: dict[str, Any] = {"met": self.met}
        if self.figures:
            summary |= {"ratio": statistics.median(self.ratios), "rounds": len(self.ratios)}
            summary |= {"least": min(self.ratios), "most": max(self.ratios)}
        return dataclasses.asdict(self) | summary


HEAD = ["#", "what", "measured", "against", "ratio", "goal", "met?"]


def shown(value: float) -> str:
    """Three digits that count: 12,346 or 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_markdown(rows: list[Row]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def as_table(rows: list[Row]) -> str:
    """For a console: columns in line."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in lines
    )


def as_json(rows: list[Row], about: Mapping[str, Any]) -> str:
    """about: machine, date and form."""
    return json.dumps({**about, "rows": [row.record() for row in rows]}, indent=2) + "\n"


def from_json(text: str) -> list[Row]:
    """The rows that `as_json` wrote."""
    rows = []
    for record in json.loads(text)["rows"]:
        fields = {one.name: record[one.name] for one in dataclasses.fields(Row)}
        fields["goal"] = fields["goal"] and Goal(**fields["goal"])
        rows.append(Row(**fields))
    return rows
