"""What the simulation is asked: real runs again, many actors, and what would help them."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.costs import with_keys
from benchmarks.measure import ENV_STEPS
from benchmarks.scenario import Costs, Network, Scenario, ethernet, preset
from benchmarks.simulation import Result, simulate

CROWDS = (64, 1_000, 10_000)
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000, 2_000, 4_000, 10_000)
GIGABITS, USUAL_GIGABITS = (10.0, 25.0, 100.0), 25.0
LATENCIES, USUAL_LATENCY = (0.1e-3, 0.5e-3), 0.1e-3
LOOPBACK = Network(bytes_per_second=4e9, latency_seconds=20e-6)  # of no account at 4 actors
CORES_OF_CHECK = 2
BALANCED = 0.03

# Assumptions, none of them measured.
GPU_UPDATES = 400.0  # per second; tuning/gpu_run.py expects 250 to 500 and chose the settings
GPU_SETTINGS = {"batch_size": 128, "samples_per_insert": 1.6, "publish_period_updates": 80}
CORE_HOUR_DOLLARS, GPU_HOUR_DOLLARS = 0.04, 1.0
LEARNER_CORES = 3  # training, transport, ZeroMQ
FRAMES_PER_ENV_STEP = 4


@dataclass(frozen=True)
class Learner:
    """Who learns: its settings, and the seconds of an update; None: as measured."""

    name: str
    settings: dict[str, Any]
    update_seconds: float | None
    gpu: bool

    def scenario(self, actors: int, costs: Costs, network: Network, **changes: Any) -> Scenario:
        if self.update_seconds is not None:
            costs = dataclasses.replace(costs, update=self.update_seconds)
        return Scenario(actors, costs, network, preset(**self.settings), **changes)


CPU = Learner("CPU", {}, None, gpu=False)
GPU = Learner("GPU", GPU_SETTINGS, 1 / GPU_UPDATES, gpu=True)
LEARNERS = (CPU, GPU)


def settled(scenario: Scenario) -> Result:
    """Once samples and inserts keep their ratio.

    Actors that are faster than training have run ahead of it as far as they may, others not at
    all: so the run is begun the first way and, where the ratio does not hold then, the second.
    """
    seconds = (8.0, 12.0) if scenario.actors <= CROWDS[1] else (10.0, 10.0)
    result = simulate(dataclasses.replace(scenario, ahead=1.0), *seconds)
    if abs(balance(scenario, result) - 1) <= BALANCED:
        return result
    return simulate(dataclasses.replace(scenario, ahead=0.0), *seconds)


def balance(scenario: Scenario, result: Result) -> float:
    """Samples that the inserts ask for, as a share of those taken."""
    asked = result.env_steps_per_second * scenario.config.samples_per_insert
    taken = result.updates_per_second * scenario.config.batch_size
    return asked / taken if taken else 0.0


def check(record: dict[str, float], runs: list[dict[str, float]]) -> list[dict[str, float]]:
    """The real runs once more, simulated: both figures, and the error as a share."""
    costs, rows = Costs.of(record), []
    for run in runs:
        scenario = Scenario(
            int(run["actors"]),
            costs,
            LOOPBACK,
            preset(),
            cores=CORES_OF_CHECK,
            learning=bool(run["learning"]),
            ahead=1.0,
        )
        figure = simulate(scenario, seconds=30.0, settle=10.0)
        real, simulated = run[ENV_STEPS], figure.env_steps_per_second
        rows.append({**run, "simulated": simulated, "error": simulated / real - 1})
    return rows
