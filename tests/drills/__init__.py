"""Fault drills on real processes: what README and docs/reliability.md promise, tried.

`python -m tests.drills` runs the long form and prints the table; tests/test_drills.py runs the
quick form of each. A drill is a function of an empty folder and `long`; it raises AssertionError
where a promise is broken and returns what it saw, by the row of docs/reliability.md.
"""

import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tests.drills import network, outsiders, processes, runs, storage

torch.set_num_threads(1)  # two cores serve processes here, not threads

DRILLS: dict[str, Callable[[Path, bool], dict[int, str]]] = {
    drill.__name__: drill
    for drill in (
        processes.actors_die_and_stop,
        processes.learner_stalls,
        processes.learner_dies,
        storage.saving_crashes,
        storage.checkpoints_rot,
        storage.no_room,
        network.bad_links,
        outsiders.fuzzed,
        outsiders.strangers,
        outsiders.locks_on_the_door,
        network.mismatches,
        processes.told_to_end,
        processes.launcher_dies,
        processes.games_break,
        network.crowd,
        runs.soak,
        runs.ratio_holds,
        runs.resumes_without_a_cliff,
        runs.lives_differ,
    )
}


def attempt(name: str, long: bool) -> list[tuple[int, str, str]]:
    """One drill. -> rows (number, drill, what it saw); number 0: it failed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="volley-drill-", ignore_cleanup_errors=True) as folder:
        try:
            seen = DRILLS[name](Path(folder), long)
        except Exception as error:
            traceback.print_exc()
            seen = {0: f"FAILED: {type(error).__name__}: {error}"}
    print(f"{name}: {time.monotonic() - began:.0f} s: {seen}", file=sys.stderr, flush=True)
    return [(number, name, text) for number, text in seen.items()]
