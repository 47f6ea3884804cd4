"""What the simulation is asked: real runs again, many actors, and what would help them."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import ENV_STEPS
from benchmarks.scaling.costs import with_keys
from benchmarks.scaling.scenario import Costs, Network, Scenario, ethernet, preset
from benchmarks.scaling.simulation import Result, capacities, simulate

Row = dict[str, Any]
CROWDS = (64, 1_000, 10_000)
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000, 2_000, 4_000, 10_000)
GIGABITS, USUAL_GIGABITS = (10.0, 25.0, 100.0), 25.0
LATENCIES, USUAL_LATENCY = (0.1e-3, 0.5e-3), 0.1e-3
LOOPBACK = Network(bytes_per_second=4e9, latency_seconds=20e-6)  # of no account at 4 actors
CORES_OF_CHECK = 2
SETTLE_SECONDS, SECONDS = 10.0, 10.0  # of simulated time

# Assumptions, none of them measured.
GPU_UPDATES = 400.0  # per second; tuning/gpu_run.py counts on 250 and chose the settings
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


def settled(scenario: Scenario, seconds: float = SECONDS, settle: float = SETTLE_SECONDS) -> Result:
    """After a while. It begins with actors that have run ahead of training as far as they may:
    those that are slower than it lose that lead at once, and the others would gain it slowly."""
    return simulate(dataclasses.replace(scenario, ahead=1.0), seconds, settle)


def balance(scenario: Scenario, result: Result) -> float:
    """Samples that the inserts ask for, as a share of those taken."""
    asked = result.env_steps_per_second * scenario.config.samples_per_insert
    taken = result.updates_per_second * scenario.config.batch_size
    return asked / taken if taken else 0.0


def check(record: dict[str, float], runs: list[Row]) -> list[Row]:
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
        seen = {"simulated": simulated, "simulated_updates": figure.updates_per_second}
        rows.append({**run, **seen, "error": simulated / real - 1})
    return rows


@dataclass(frozen=True)
class Crowd:
    """One scenario of a study. changes: to the scenario; remedy: what it tries, if anything."""

    learner: Learner
    actors: int
    costs: Costs
    network: Network
    changes: dict[str, Any] = field(default_factory=dict)
    remedy: str = ""

    @property
    def scenario(self) -> Scenario:
        return self.learner.scenario(self.actors, self.costs, self.network, **self.changes)

    def row(self, result: Result) -> Row:
        """As a row of its study."""
        return {
            "learner": self.learner.name,
            "remedy": self.remedy,
            "gigabits": self.network.bytes_per_second * 8 / 1e9,
            "latency": self.network.latency_seconds,
            **dataclasses.asdict(result),
            "balance": balance(self.scenario, result),
            "limits": capacities(self.scenario),
            **price(self.learner, result),
        }


def price(learner: Learner, result: Result) -> Row:
    """Of a billion frames, all cores and the GPU paid for all the time; None: nothing arrives."""
    cores = result.actors + LEARNER_CORES
    steps = 1e9 / FRAMES_PER_ENV_STEP
    if not result.env_steps_per_second:
        return dict.fromkeys(("hours", "core_hours", "dollars"))
    hours = steps / result.env_steps_per_second / 3600
    gpu = GPU_HOUR_DOLLARS if learner.gpu else 0.0
    dollars = hours * (cores * CORE_HOUR_DOLLARS + gpu)
    return {"hours": hours, "core_hours": hours * cores, "dollars": dollars}


def questions(record: dict[str, float]) -> dict[str, list[Crowd]]:
    """What each study asks, by its name."""
    costs = Costs.of(record)
    usual = ethernet(USUAL_GIGABITS, USUAL_LATENCY)
    networks = [ethernet(gigabits, USUAL_LATENCY) for gigabits in GIGABITS]
    slow = ethernet(USUAL_GIGABITS, LATENCIES[1])
    secret = Costs.of(with_keys(record))
    return {
        "curve": [Crowd(who, n, costs, usual) for who in LEARNERS for n in CURVE],
        "networks": [
            Crowd(who, n, costs, network)
            for who in LEARNERS
            for n in CROWDS
            for network in networks
        ],
        "latency": [Crowd(who, n, costs, slow) for who in LEARNERS for n in CROWDS[:2]],
        "keys": [Crowd(who, n, secret, usual) for who in LEARNERS for n in CROWDS[:2]],
        "remedies": [
            Crowd(GPU, n, remedy(costs), usual, changes, name)
            for n in CROWDS[1:]
            for name, remedy, changes in REMEDIES
        ],
    }


def answers(asked: dict[str, list[Crowd]]) -> Iterator[tuple[str, list[Row]]]:
    """Each study's rows, as soon as they are there; on all cores, what they share only once."""
    with ProcessPoolExecutor() as pool:
        every = {crowd.scenario: None for crowds in asked.values() for crowd in crowds}
        largest_first = sorted(every, key=lambda scenario: -scenario.actors)
        running = {
            scenario: pool.submit(settled, scenario, SECONDS, SETTLE_SECONDS)
            for scenario in largest_first
        }
        for name, crowds in asked.items():
            yield name, [crowd.row(running[crowd.scenario].result()) for crowd in crowds]


def half_precision(costs: Costs) -> Costs:
    return dataclasses.replace(
        costs, weights_bytes=costs.weights_bytes / 2, io_weights=costs.io_weights / 2
    )


def relayed(costs: Costs) -> Costs:
    """The learner sends weights to one process per machine, which hands them on."""
    fewer = {name: getattr(costs, name) / MACHINE for name in WEIGHTS_OUT}
    return dataclasses.replace(costs, **fewer)


def sharded(costs: Costs) -> Costs:
    """Several processes take chunks in: sockets, checksums and storing in parallel."""
    fewer = {name: getattr(costs, name) / SHARDS for name in INGEST}
    return dataclasses.replace(costs, **fewer)


def unchanged(costs: Costs) -> Costs:
    return costs


def everything(costs: Costs) -> Costs:
    return sharded(relayed(costs))


MACHINE, SHARDS, SECONDS_PER_VERSION = 64, 4, 2.0
WEIGHTS_OUT = ("weights_bytes", "io_weights", "router_weights")
INGEST = ("router_chunk", "router_ping", "router_ack", "io_chunk", "io_message", "store")
SELDOM = {"publish_seconds": SECONDS_PER_VERSION}
REMEDIES: list[tuple[str, Callable[[Costs], Costs], dict[str, Any]]] = [
    ("as it is", unchanged, {}),
    ("weights in half precision", half_precision, {}),
    (f"a version every {SECONDS_PER_VERSION:g} s", unchanged, SELDOM),
    (f"a relay for {MACHINE} actors", relayed, {}),
    (f"the last two, and {SHARDS} ingest processes", everything, SELDOM),
]
