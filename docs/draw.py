"""Draw the learning curves of kept runs as one SVG: python docs/draw.py RUN... > curves.svg

RUN: a folder with metrics.csv. Thin lines: single games; thick: the mean of the last 100.
"""

import csv
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 380, 48, 16, 36
COLOURS = ("#3366cc", "#dc3912", "#109618", "#990099", "#ff9900", "#0099c6")


def games(run: Path) -> list[tuple[float, float, float]]:
    """(minutes, score, mean of the last 100) of every finished game."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            (float(r["wall_seconds"]) / 60, float(r["score"]), float(r["mean_score_100"]))
            for r in csv.DictReader(file)
            if r["kind"] == "game" and r["mean_score_100"]  # a killed run's last row may be torn
        ]


def draw(runs: list[Path]) -> str:
    curves = [games(run) for run in runs]
    if not (curves and all(curves)):
        sys.exit("draw.py RUN ...: each with a metrics.csv in which a game has finished")
    longest = max(curve[-1][0] for curve in curves)

    def x(minutes: float) -> float:
        return LEFT + minutes / longest * (WIDTH - LEFT - 12)

    def y(score: float) -> float:
        return TOP + (21 - score) / 42 * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for score in (-21, -10, 0, 10, 19.5):
        parts.append(
            f'<path d="M{LEFT} {y(score):.1f}H{WIDTH - 12}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(score) + 4:.1f}" text-anchor="end">{score:g}</text>'
        )
    apart = next((minutes for minutes in (1, 5, 10, 30) if longest < 15 * minutes), 60)
    for minute in range(0, int(longest) + 1, apart):
        parts.append(
            f'<text x="{x(minute):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{minute}</text>'
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 1}" text-anchor="middle">minutes</text>')
    for i, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        for column, width, opacity in ((1, 0.6, 0.3), (2, 2.2, 1.0)):
            points = " ".join(f"{x(game[0]):.1f},{y(game[column]):.1f}" for game in curve)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" '
                f'stroke-width="{width}" opacity="{opacity}"/>'
            )
        parts.append(
            f'<text x="{LEFT + 10}" y="{TOP + 16 + 16 * i}" fill="{colour}">{run.name}</text>'
        )
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    print(draw([Path(word) for word in sys.argv[1:]]))
