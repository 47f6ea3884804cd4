"""The scaling study's plots, over the number of actors, as one SVG."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.scaling.simulation import PARTS
from benchmarks.scaling.studies import CPU, GPU, USUAL_GIGABITS, Row

WIDTH, PANEL, LEFT, TOP, BOTTOM, RIGHT = 760, 300, 64, 34, 40, 190
COLOURS = dict(
    zip(PARTS, ("#3366cc", "#109618", "#990099", "#dc3912", "#000000", "#ff9900"), strict=True)
)
TICKS = (1, 10, 100, 1_000, 10_000)


@dataclass(frozen=True)
class Line:
    """A curve over the number of actors, broken where there is no value. dashed: not simulated, or
    of the second of two kinds."""

    name: str
    colour: str
    points: Sequence[tuple[float, float | None]]
    dashed: bool = False

    def pieces(self) -> Iterator[list[tuple[float, float]]]:
        """Its unbroken parts."""
        for missing, points in itertools.groupby(self.points, lambda point: point[1] is None):
            if not missing:
                yield [(actors, value) for actors, value in points if value is not None]


@dataclass(frozen=True)
class Axis:
    """A vertical one, logarithmic from low to high; marks: (value, label)."""

    low: float
    high: float
    marks: list[tuple[float, str]]

    def share(self, value: float) -> float:
        """How far up."""
        value = min(max(value, self.low), self.high)
        return math.log(value / self.low) / math.log(self.high / self.low)


def draw(done: dict[str, list[Row]]) -> str:
    """done: the results by study."""
    by_learner = {
        who.name: [row for row in done["curve"] if row["learner"] == who.name] for who in (CPU, GPU)
    }
    network = f"{USUAL_GIGABITS:g} Gbit/s"
    panels = [
        (f"env steps/s, {network}; thin: each part's own limit, GPU learner", *rates(by_learner)),
        (f"share of each part that is busy, GPU learner, {network}", *uses(by_learner["GPU"])),
        (f"age in seconds, {network}", *ages(by_learner)),
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{PANEL * len(panels)}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for i, (title, axis, lines) in enumerate(panels):
        parts += [f'<g transform="translate(0 {i * PANEL})">', *panel(title, axis, lines), "</g>"]
    return "\n".join([*parts, "</svg>"])


def curve(rows: list[Row], name: str) -> Sequence[tuple[float, float | None]]:
    return [(row["actors"], row[name]) for row in rows]


def rates(by_learner: dict[str, list[Row]]) -> tuple[Axis, list[Line]]:
    gpu = by_learner["GPU"]
    lines = [
        Line(f"limit: {part}", COLOURS[part], [(r["actors"], r["limits"][part]) for r in gpu], True)
        for part in PARTS
    ]
    lines += [
        Line("GPU learner", "#dc3912", curve(gpu, "env_steps_per_second")),
        Line("CPU learner", "#3366cc", curve(by_learner["CPU"], "env_steps_per_second")),
    ]
    marks = [(10.0**i, f"{10**i:,}") for i in range(2, 7)]
    return Axis(100, 1e6, marks), lines


def uses(rows: list[Row]) -> tuple[Axis, list[Line]]:
    lines = [
        Line(part, COLOURS[part], [(row["actors"], row["used"][part]) for row in rows])
        for part in PARTS
    ]
    return Axis(0.01, 1.0, [(0.01, "1 %"), (0.1, "10 %"), (1.0, "100 %")]), lines


def ages(by_learner: dict[str, list[Row]]) -> tuple[Axis, list[Line]]:
    lines = []
    for name, colour in (("GPU", "#dc3912"), ("CPU", "#3366cc")):
        rows = by_learner[name]
        lines += [
            Line(f"weights in use, {name}", colour, curve(rows, "weights_age")),
            Line(f"data when stored, {name}", colour, curve(rows, "data_age"), True),
        ]
    return Axis(0.01, 1e4, [(10.0**i, f"{10.0**i:g}") for i in range(-2, 5)]), lines


def panel(title: str, axis: Axis, lines: list[Line]) -> list[str]:
    wide, high = WIDTH - LEFT - RIGHT, PANEL - TOP - BOTTOM

    def x(actors: float) -> float:
        return LEFT + math.log(actors / TICKS[0]) / math.log(TICKS[-1] / TICKS[0]) * wide

    def y(value: float) -> float:
        return TOP + (1 - axis.share(value)) * high

    parts = [f'<text x="{LEFT}" y="{TOP - 14}" font-weight="bold">{title}</text>']
    for value, label in axis.marks:
        parts.append(
            f'<path d="M{LEFT} {y(value):.1f}h{wide}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for actors in TICKS:
        middle = f'x="{x(actors):.1f}" y="{PANEL - BOTTOM + 16}" text-anchor="middle"'
        parts.append(f"<text {middle}>{actors:,}</text>")
    parts.append(f'<text x="{LEFT + wide / 2}" y="{PANEL - 8}" text-anchor="middle">actors</text>')
    for i, line in enumerate(lines):
        form = 'stroke-width="1" stroke-dasharray="5 3"' if line.dashed else 'stroke-width="2"'
        for piece in line.pieces():
            points = " ".join(f"{x(actors):.1f},{y(value):.1f}" for actors, value in piece)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" {form}/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 12 + 17 * i}" fill="{line.colour}">'
            f"{line.name}</text>"
        )
    return parts
