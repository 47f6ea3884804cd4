"""`python -m benchmarks.scaling measure | simulate | draw --json FILE`: the scaling study.

`measure` writes this machine's costs and some real runs to FILE, `simulate` adds what the
simulation makes of them and prints the tables of docs/scaling.md, `draw` prints its plots (SVG).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import FULL, SHORT, NotMeasured
from common.errors import ConfigError, UserError
from common.run_folder import check_writable

RUN_SECONDS, SHORT_RUN_SECONDS = 20.0, 8.0


def main(words: list[str]) -> int:
    """-> exit code."""
    given = parser().parse_args(words)
    try:
        if given.verb == "measure":
            measure(given.json, given.full)
        elif given.verb == "simulate":
            simulate(given.json)
        else:
            draw(given.json)
    except (UserError, NotMeasured) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description="What actors and learner cost here, and what that says for many more of them.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (
        ("measure", "this machine's costs and real runs with 1 to 4 actors, into FILE"),
        ("simulate", "adds the simulation's results to FILE and prints the tables"),
        ("draw", "prints the plots of FILE as one SVG"),
    ):
        one = verbs.add_parser(verb, help=what, description=what)
        one.add_argument("--json", type=Path, metavar="FILE", required=True)
        if verb == "measure":
            one.add_argument("--full", action="store_true", help="more rounds, longer runs")
    return parser


def measure(path: Path, full: bool) -> None:
    from benchmarks.__main__ import about
    from benchmarks.scaling import costs, real

    check_writable(path)
    form = FULL if full else SHORT
    began = time.monotonic()
    found, rounds = costs.measure(form.rounds, form.seconds / 2)
    record: dict[str, Any] = {"about": about(form), "costs": found, "runs": [], "rounds": rounds}
    write(path, record)
    for run in real.runs(RUN_SECONDS if full else SHORT_RUN_SECONDS):
        record["runs"].append(run)
        write(path, record)
        print(f"{time.monotonic() - began:.0f} s: {run}", file=sys.stderr, flush=True)


def simulate(path: Path) -> None:
    from benchmarks.scaling import studies, tables

    record = read(path, "costs")
    done: dict[str, Any] = {"check": studies.check(record["costs"], record["runs"])}
    for name, rows in studies.answers(studies.questions(record["costs"])):
        done[name] = rows
        print(f"{name}: {len(rows)} runs simulated", file=sys.stderr, flush=True)
    record["simulated"] = done
    write(path, record)
    print(tables.all_tables(record))


def draw(path: Path) -> None:
    from benchmarks.scaling import plots

    print(plots.draw(read(path, "simulated")["simulated"]))


def read(path: Path, needed: str) -> dict[str, Any]:
    """A record that holds this part. Raises ConfigError in a sentence."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {path}: {str(error).rstrip('.')}.") from None
    if not isinstance(record, dict) or needed not in record:
        verb = "measure" if needed == "costs" else "simulate"
        raise ConfigError(
            f'{path} has no "{needed}": run `python -m benchmarks.scaling {verb} --json {path}`.'
        )
    return record


def write(path: Path, record: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(rounded(record), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror}.") from None


def rounded(value: Any) -> Any:
    """Six digits that count are enough, and keep the file small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
