"""`python -m tests.drills [NAME ...]`: the long form of all drills, or of those named, as a table.

The soak runs beside the others, at low priority. About an hour on two cores. Exit code 1 when a
promise was broken.
"""

import multiprocessing
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.drills import DRILLS


def attempt(name: str) -> list[tuple[int, str, str]]:
    """-> rows (number, drill, what it saw); number 0: it failed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="volley-drill-") as folder:
        try:
            seen = DRILLS[name](Path(folder), True)
        except BaseException as error:
            traceback.print_exc()
            seen = {0: f"FAILED: {type(error).__name__}: {error}"}
    print(f"{name}: {time.monotonic() - began:.0f} s: {seen}", file=sys.stderr, flush=True)
    return [(number, name, text) for number, text in seen.items()]


def main(names: list[str]) -> int:
    chosen = names or list(DRILLS)
    rows: list[tuple[int, str, str]] = []
    # Not forked: the drills start processes and threads of their own.
    with multiprocessing.get_context("spawn").Pool(1) as beside:
        soak = beside.apply_async(attempt, ["soak"]) if "soak" in chosen else None
        for name in chosen:
            if name != "soak":
                rows += attempt(name)
        rows += soak.get() if soak else []
    print("| # | drill | seen |\n|---|---|---|")
    for number, name, text in sorted(rows):
        print(f"| {number or '-'} | `{name}` | {text} |")
    return 1 if any(number == 0 for number, _, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
