"""`python -m tests.drills [NAME ...]`: the long form of all drills, or of those named, as a table.

The soak runs beside the others, at low priority. About an hour on two cores. Exit code 1 when a
promise was broken.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from tests.drills import DRILLS, attempt


def main(names: list[str]) -> int:
    chosen = names or list(DRILLS)
    rows: list[tuple[int, str, str]] = []
    # Not forked: the drills start processes and threads of their own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        soak = beside.submit(attempt, "soak") if "soak" in chosen else None
        for name in chosen:
            if name != "soak":
                rows += attempt(name)
        rows += soak.result() if soak else []
    print("| # | drill | seen |\n|---|---|---|")
    for number, name, text in sorted(rows):
        print(f"| {number or '-'} | `{name}` | {text} |")
    return 1 if any(number == 0 for number, _, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
