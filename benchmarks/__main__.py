"""`python -m benchmarks [ROW ...]`, and `launch.py bench`: measures, and prints a table."""

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import FULL, SHORT, Form, NotMeasured, Row, as_json, as_markdown, as_table
from benchmarks.peers.environment import Peers, default_folder
from common.run_folder import check_writable

BUG = "a bug of the benchmark"
ROWS = {
    1: "acting:emulation",
    2: "acting:other_games",
    3: "acting:whole_actor",
    4: "acting:plain_actor",
    5: "transport:arriving",
    6: "transport:ingest",
    7: "learning:updates",
    8: "learning:peers_updates",
    9: "system:learning",
    10: "replay:memory",
    11: "replay:sampling",
    12: "system:weights_in_use",
    13: "system:start",
    14: "gpu:updates",
    15: "gpu:env_steps",
    16: "gpu:idle",
}


def main(words: list[str]) -> int:
    """-> exit code."""
    given = parser().parse_args(words)
    form, peers = FULL if given.full else SHORT, Peers(given.peers)
    rows: list[Row] = []
    code = 0
    if given.json:
        check_writable(given.json)
    try:
        for number in given.rows or ROWS:
            began = time.monotonic()
            for row in measured(number, form, peers):
                rows.append(row)
                code = 1 if row.note.startswith(BUG) else code
                if given.json:  # each at once: what there is, is worth having
                    code = max(code, written(given.json, as_json(rows, about(form))))
            print(f"Row {number}: {time.monotonic() - began:.0f} s.", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        code = 130
    print("\n".join(f"{name}: {value}" for name, value in about(form).items()), end="\n\n")
    print(as_markdown(rows) if given.markdown else as_table(rows))
    return code


def written(path: Path, text: str) -> int:
    """-> exit code: a disk that fills up must not cost the rows that are still to be shown."""
    try:
        path.write_text(text)
    except OSError as error:
        print(f"Cannot write {path}: {error.strerror}.", file=sys.stderr, flush=True)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    known = ", ".join(map(str, ROWS))
    parser = argparse.ArgumentParser(
        prog="launch.py bench",
        description="Measures Volley against this machine's limits and against its peers, which "
        "are installed into an environment of their own when first needed (some gigabytes). All "
        "rows take some 10 minutes on two cores, with --full 50.",
        epilog="What each row means: benchmarks/README.md.",
    )
    parser.add_argument(
        "rows", nargs="*", type=int, choices=ROWS, metavar="ROW", help=f"of {known}; default: all"
    )
    parser.add_argument("--full", action="store_true", help="more rounds, longer, all cases")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round, machine and date")
    parser.add_argument("--markdown", action="store_true", help="print as docs/performance.md does")
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        default=default_folder(),
        help="the peers' virtual environment (default: %(default)s)",
    )
    return parser


def measured(number: int, form: Form, peers: Peers) -> Iterator[Row]:
    """The row's comparisons as they come; a line that says why when there are no more."""
    module, _, function = ROWS[number].partition(":")
    measure = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    try:
        yield from measure(form, peers)
    except NotMeasured as why:
        yield Row(number, title(measure), "", "", note=str(why))
    except Exception as bug:  # the other rows can be measured all the same
        traceback.print_exc()
        yield Row(number, title(measure), "", "", note=f"{BUG}, {type(bug).__name__}: {bug}")


def title(measure: Callable[..., object]) -> str:
    """What a row's function says it measures."""
    return (measure.__doc__ or "").splitlines()[0].partition(": ")[2].rstrip(".")


def about(form: Form) -> dict[str, str]:
    import torch

    from common.provenance import provenance

    return {
        **provenance("cuda" if torch.cuda.is_available() else "cpu"),
        "form": "full" if form.full else "short",
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
