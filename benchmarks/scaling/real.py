"""Real runs of 1 to 4 actors on this machine, to check the simulation against."""

import time
from collections.abc import Iterator

from benchmarks.measure import ENV_STEPS, UPDATES
from benchmarks.scaling.costs import EPSILON
from benchmarks.system import Run, ours
from common.config import GAMES_EACH

ACTOR_COUNTS = (1, 2, 3, 4)
COLLECTING_REPLAY = "200000"  # transitions, and the first update after as many: never here
EXPLORING = ("--epsilon-start", str(EPSILON), "--epsilon-final", str(EPSILON))

Figures = dict[str, float]


def runs(seconds: float) -> Iterator[Figures]:
    """Each run alone on the machine, for so many seconds once it has settled."""
    for actors in ACTOR_COUNTS:
        seen = ours(*as_many(actors))(seconds)
        yield {"actors": actors, "learning": 1, **seen}
    for actors in ACTOR_COUNTS:
        yield {"actors": actors, "learning": 0, **collecting(actors, seconds)}


def as_many(actors: int) -> tuple[str, ...]:
    """Flags; games of each as in the simulation, whose actors are one of many."""
    return ("--actors", str(actors), "--envs-per-actor", str(GAMES_EACH))


def collecting(actors: int, seconds: float) -> Figures:
    """Env steps/s of actors whose learner only stores."""
    late = ("--learning-starts-transitions", COLLECTING_REPLAY)
    replay = ("--replay-transitions", COLLECTING_REPLAY)
    with Run(*as_many(actors), *late, *replay, *EXPLORING) as run:
        all_begun = 2 * 1_000 * actors  # env steps: by then every one of them plays
        run.until(lambda: [row for row in run.periods() if row["env_steps"] > all_begun])
        time.sleep(seconds + 1)
        rows = [row for row in run.periods() if row["env_steps"] > all_begun]
    first, last = rows[0], rows[-1]
    elapsed = last["wall_seconds"] - first["wall_seconds"]
    return {ENV_STEPS: (last["env_steps"] - first["env_steps"]) / elapsed, UPDATES: 0.0}
