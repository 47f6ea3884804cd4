"""Rows 9, 12 and 13: the whole program, run as a user runs it."""

import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from benchmarks import noted
from benchmarks.acting import precision_here
from benchmarks.measure import (
    ENV_STEPS,
    UPDATES,
    Form,
    Goal,
    NotMeasured,
    Row,
    Side,
    alternate,
    fastest,
)
from benchmarks.peers.environment import Peers
from benchmarks.worker import ROOT, the_error_in
from common.config import Config
from common.lifeline import die_with_parent
from common.machine import cores

Answer = TypeVar("Answer")
START_SECONDS = 120.0  # on a busy machine
SETTLE_SECONDS = 4.0  # what the actors may run ahead by is used up
SMALL_REPLAY = ("--replay-transitions", "20000", "--learning-starts-transitions", "1000")
MOSTLY_GREEDY = ("--epsilon-start", "0.05", "--epsilon-final", "0.05")


class Run:
    """`launch.py FLAGS` in a folder of its own, from its command to its end.

    door: the words that start the program. began: the moment of the command, monotonic ns.
    """

    def __init__(self, *flags: str, door: tuple[str, ...] = ("launch.py",)) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="volley-bench-")
        self.run_dir = Path(self._folder.name) / "run"
        common = ("--run-dir", str(self.run_dir), "--checkpoint-period-seconds", "0")
        self._log = Path(self._folder.name) / "console.log"
        self.began = time.monotonic_ns()
        with self._log.open("w") as console:
            self._process = subprocess.Popen(
                [sys.executable, *door, *common, "--log-period-seconds", "1", *flags],
                cwd=ROOT,
                stdout=console,
                stderr=subprocess.STDOUT,
                preexec_fn=partial(die_with_parent, os.getpid()),  # it would train for ever
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)  # saves what it has, which is little
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its children die with it
            self._process.wait()
        self._folder.cleanup()

    def until(self, what: Callable[[], Answer], seconds: float = START_SECONDS) -> Answer:
        """The first truthy answer. Raises NotMeasured when there is none in time."""
        deadline = time.monotonic() + seconds
        while not (answer := what()):
            if self._process.poll() is not None:
                code, said = self._process.returncode, self._log.read_text()
                raise NotMeasured(f"the run ended with exit code {code}: {the_error_in(said)}")
            if time.monotonic() > deadline:
                raise NotMeasured(f"the run was not that far after {seconds:.0f} s")
            time.sleep(0.05)
        return answer

    def periods(self) -> list[dict[str, float]]:
        """Rows of metrics.csv, one a second: wall_seconds, env_steps, updates."""
        path = self.run_dir / "metrics.csv"
        text = path.read_text() if path.exists() else ""
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        names = ("wall_seconds", "env_steps", "updates")
        return [{n: float(row[n]) for n in names} for row in rows if row["kind"] == "period"]

    def notes(self) -> list[noted.Notes]:
        return noted.read(self.run_dir)


# -- row 9 ----------------------------------------------------------------------------------------


def ours(*flags: str) -> Side:
    """Env steps/s and updates/s of a run that is learning and has settled; each call is a run of
    its own.

    flags: on top of those that all runs have.
    """

    def measure(seconds: float) -> dict[str, float]:
        with Run(*SMALL_REPLAY, *MOSTLY_GREEDY, *flags) as run:
            run.until(lambda: [row for row in run.periods() if row["updates"] > 20])
            time.sleep(SETTLE_SECONDS + seconds + 1)
            learning = [row for row in run.periods() if row["updates"] > 20]
        settled = learning[0]["wall_seconds"] + SETTLE_SECONDS
        first = next(row for row in learning if row["wall_seconds"] >= settled)
        last = learning[-1]
        elapsed = last["wall_seconds"] - first["wall_seconds"]
        return {
            ENV_STEPS: (last["env_steps"] - first["env_steps"]) / elapsed,
            UPDATES: (last["updates"] - first["updates"]) / elapsed,
        }

    return measure


def learning(form: Form, peers: Peers) -> Iterator[Row]:
    """Row 9: the whole system against others that train as often per env step."""
    preset, goal = Config(), Goal(2.5)
    others = {
        "Stable-Baselines3 DQN": "stable_baselines:system_sides",
        "CleanRL-style DQN": "plain:system_sides",
    }
    for network, precision in systems(form):
        what = (
            f"whole system, {preset.samples_per_insert} samples per insert, {network}, {precision}"
        )
        sides = {"ours": ours("--network", network, "--precision", precision)}
        with ExitStack() as stack:
            for name, maker in others.items():
                try:
                    threads, side = best_threads(stack, maker, peers, form, network)
                    sides[f"{name}, {threads} thread(s)"] = side
                except NotMeasured as why:
                    yield Row(9, what, ENV_STEPS, name, goal, note=str(why))
            rounds, seconds = (5, 15.0) if form.full else (1, 20 * form.seconds)
            seen = alternate(sides, rounds, seconds)
        for name in list(sides)[1:]:
            for unit in (ENV_STEPS, UPDATES):
                figures, references = ([f[unit] for f in seen[n]] for n in ("ours", name))
                yield Row(9, what, unit, name, goal, figures, references)


def systems(form: Form) -> list[tuple[str, str]]:
    """Networks and precisions of ours; the others calculate in float32."""
    here, network = precision_here(), Config().network
    if not form.full:
        return [(network, here)]
    return [(n, p) for n in (network, "nature") for p in sorted({here, "float32"})]


def best_threads(
    stack: ExitStack, maker: str, peers: Peers, form: Form, network: str
) -> tuple[int, Side]:
    """A peer with one thread or with all cores, whichever learns faster here."""
    preset, sides = Config(), {}
    for threads in {1, cores()}:
        worker = peers.start(
            maker,
            environment={"OMP_NUM_THREADS": str(threads)},
            network=network,
            batch=preset.batch_size,
            samples_per_insert=preset.samples_per_insert,
        )
        sides[threads] = stack.enter_context(worker).sides["learn"]
    rates = {threads: partial(env_steps_per_second, side) for threads, side in sides.items()}
    best = fastest(rates, 2 * form.seconds)
    return best, sides[best]


def env_steps_per_second(side: Side, seconds: float) -> float:
    figures: dict[str, float] = side(seconds)
    return figures[ENV_STEPS]


# -- row 12 ---------------------------------------------------------------------------------------


def weights_in_use(form: Form, peers: Peers) -> list[Row]:
    """Row 12: from the end of an update to actions by it in every one of 8 actors."""
    actors = 8
    delays, allowed = [], []
    for _ in range(5 if form.full else 1):
        with Run("--actors", str(actors), *SMALL_REPLAY, door=("-m", "benchmarks.noted")) as run:
            run.until(lambda: len(having("played", run.notes())) == actors)
            run.until(lambda: having("published", run.notes()))
            time.sleep(10 * form.seconds)
            delay, chunk_seconds = lag(run.notes())
        delays.append(delay)
        allowed.append(chunk_seconds + 0.05)
    what = f"update to use in all of {actors} actors, {cores()} cores"
    against = "one chunk's time + 50 ms"
    return [Row(12, what, "s", against, Goal(1.0, at_most=True), delays, allowed)]


def having(what: str, notes: list[noted.Notes]) -> list[noted.Notes]:
    """Of the processes that have noted such a thing."""
    return [of_one for of_one in notes if of_one[what]]


def lag(notes: list[noted.Notes]) -> tuple[float, float]:
    """-> seconds until the last actor acts by a version, median over versions; seconds per chunk.

    An actor that went on to a later version has that one in use.
    """
    actors, (learner,) = having("played", notes), having("published", notes)
    since = max(actor["played"][0][1] for actor in actors)  # when the last of them had begun
    lags = []
    for version, updated in learner["published"]:
        first = [
            min((at for played, at in actor["played"] if played >= version), default=None)
            for actor in actors
        ]
        if updated > since and None not in first:
            lags.append((max(at for at in first if at) - updated) / 1e9)
    if not lags:
        raise NotMeasured("no version reached every actor in that time")
    rates = [steps_per_second(actor["step"]) for actor in actors]
    return statistics.median(lags), Config().chunk_transitions / statistics.median(rates)


def steps_per_second(steps: list[tuple[int, int]]) -> float:
    (first, began), (last, ended) = steps[0], steps[-1]
    return (last - first) / max((ended - began) / 1e9, 1e-9)


# -- row 13 ---------------------------------------------------------------------------------------


def start(form: Form, peers: Peers) -> list[Row]:
    """Row 13: from the command to the first env step and the first update.

    Warm-up is left out by learning from the first full batch on (--learning-starts-transitions).
    """
    batch = str(Config().batch_size)

    def volley(_: float) -> dict[str, float]:
        with Run("--learning-starts-transitions", batch, door=("-m", "benchmarks.noted")) as run:
            run.until(lambda: any(notes["update"] for notes in run.notes()))
            notes = run.notes()
        first = {what: min(at for n in notes for _, at in n[what]) for what in ("step", "update")}
        return {what: (moment - run.began) / 1e9 for what, moment in first.items()}

    def torch(_: float) -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        return time.monotonic() - began

    sides: dict[str, Side] = {"volley": volley, "torch": torch}
    seen = alternate(sides, form.rounds, 0.0)
    what = {"step": "from command to first env step", "update": "from command to first update"}
    against, goal = '`python -c "import torch"`', Goal(1.5, at_most=True)
    return [
        Row(13, what[name], "s", against, goal, [f[name] for f in seen["volley"]], seen["torch"])
        for name in what
    ]
