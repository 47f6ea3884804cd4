"""`python -m tests.drills [--quick] [NAME ...]`: all drills, or those named, and a table of them.

The long form takes about an hour on two cores; its soak runs beside the others, at low priority.
Exit code 1 when a promise was broken.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from tests.drills import DRILLS, attempt


def main(names: list[str]) -> int:
    long = "--quick" not in names
    chosen = [name for name in names if name != "--quick"] or list(DRILLS)
    if unknown := [name for name in chosen if name not in DRILLS]:
        sys.exit(f"No such drill: {', '.join(unknown)}; there are {', '.join(DRILLS)}.")
    rows: list[tuple[int, str, str]] = []
    # Not forked: the drills start processes and threads of their own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        soak = beside.submit(attempt, "soak", long) if "soak" in chosen else None
        for name in chosen:
            if name != "soak":
                rows += attempt(name, long)
        rows += soak.result() if soak else []
    print("| # | drill | seen |\n|---|---|---|")
    for number, name, text in sorted(rows):
        print(f"| {number or '-'} | `{name}` | {text} |")
    return 1 if any(number == 0 for number, _, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
