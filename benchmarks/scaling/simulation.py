"""A run of N actors and one learner, simulated: chunks, credit, acknowledgements, weights.

    actor ─▶ [its link, the learner's link in] ─▶ ZeroMQ's thread ─▶ transport thread ─▶ training
    actor ◀─ [the learner's link out, its link] ◀─ ZeroMQ's thread ◀─┘

Each part follows the code that it stands for and names it; what a part costs is measured
(`benchmarks/scaling/costs.py`). An event is a chunk, a message or an update, never an env step.

Left out: games that end inside a chunk, checkpoints, Python's lock (the learner's two Python
threads work side by side here), lost packets, actors that crash.
"""

import math
from dataclasses import dataclass
from functools import partial

from benchmarks.scaling.actor_model import Actor
from benchmarks.scaling.events import Action, Clock, Shared
from benchmarks.scaling.learner_model import Router, Trainer
from benchmarks.scaling.scenario import Scenario
from common.sessions import Sessions


class Run:
    """All parts of one scenario, and what they did.

    versions: of each version of the weights, when it was published and after how many updates.
    gathering: small messages of actors that hear a broadcast; None: there is none.
    """

    def __init__(self, scenario: Scenario) -> None:
        config, cores = scenario.config, scenario.cores
        self.scenario, self.chunk = scenario, config.chunk_transitions
        self.clock, self.latency = Clock(), scenario.network.latency_seconds
        bandwidth = scenario.network.bytes_per_second
        self.link_in, self.link_out = Shared(self.clock, bandwidth), Shared(self.clock, bandwidth)
        if cores:
            self.actor_cores = self.io = learner = Shared(self.clock, cores, each=1.0)
        else:
            self.actor_cores = Shared(self.clock, scenario.actors, each=1.0)
            self.io, learner = Shared(self.clock, 1.0), Shared(self.clock, 2.0, each=1.0)
        self.versions = [(0.0, 0)]
        self.sessions = Sessions(self.chunk, config.window_chunks)
        self.trainer, self.router = Trainer(self, learner), Router(self, learner)
        self.actors = [
            Actor(self, self.sessions.open(i, i, b"", "")) for i in range(scenario.actors)
        ]
        self.gathering: list[partial[None]] | None = None
        self.produced = 0  # chunks
        self.resent = self.duplicates = self.dropped = self.reconnects = 0
        self.use_ages = 0.0  # of the weights, summed over the chunks produced
        self._begin()

    def played(self, version: int) -> None:
        """An actor has finished a chunk, by these weights."""
        self.produced += 1
        self.use_ages += self.clock.now - self.versions[version][0]

    def broadcast(self, answers: list[Action]) -> None:
        """One small message to each of many actors whose connections are idle.

        What they answer at once is gathered, so that a crowd takes few events.
        """

        def written() -> None:
            self.link_out.begin(costs.message_bytes, crossed, count)

        def crossed() -> None:
            self.clock.after(self.latency, arrived)

        def arrived() -> None:
            self.gathering = []
            for answer in answers:
                answer()
            gathered, self.gathering = self.gathering, None
            if gathered:
                self._answered(gathered)

        costs, count = self.scenario.costs, len(answers)
        self.io.begin(costs.io_message, written, count)

    def _answered(self, handles: list[partial[None]]) -> None:
        def crossed() -> None:
            self.clock.after(self.latency, read)

        def read() -> None:
            self.io.begin(costs.io_message, arrived, count)

        def arrived() -> None:
            for handle in handles:
                self.router.message(handle)

        costs, count = self.scenario.costs, len(handles)
        self.link_in.begin(costs.message_bytes, crossed, count)

    def _begin(self) -> None:
        """Warm-up is over and every actor is welcome; they start one after the other."""
        scenario, trainer = self.scenario, self.trainer
        if scenario.learning:
            ahead = scenario.ahead * scenario.tolerance_samples / scenario.config.samples_per_insert
            trainer.inserted = scenario.config.learning_starts_transitions + int(ahead)
        self.router.taken = trainer.inserted
        self.router.insert_limit = trainer.insert_limit()
        self.sessions.grant(self.router.insert_limit - self.router.taken)
        step = self.chunk * scenario.costs.actor_step / scenario.actors
        for i, actor in enumerate(self.actors):
            actor.granted = actor.session.granted_seq
            self.clock.at(i * step, actor.start)
        trainer.begin()

    def figures(self) -> dict[str, float]:
        """Since the beginning."""
        trainer = self.trainer
        figures = {
            "env_steps": trainer.stored * self.chunk,
            "produced": self.produced * self.chunk,
            "updates": trainer.updates,
            "versions": self.router.version,
            ACTORS: self.actor_cores.done_work(),
            LINK_IN: self.link_in.done_work(),
            LINK_OUT: self.link_out.done_work(),
            IO: self.io.done_work(),
            ROUTER: self.router.busy_seconds(),
            TRAINING: trainer.busy_seconds(),
            "resent": self.resent,
            "dropped": self.dropped,
            "reconnects": self.reconnects,
            "use_ages": self.use_ages,
        }
        return {name: float(figure) for name, figure in figures.items()}


ACTORS, ROUTER, TRAINING, IO = "actors", "transport thread", "training thread", "ZeroMQ's thread"
LINK_IN, LINK_OUT = "link in", "link out"
PARTS = (ACTORS, LINK_IN, IO, ROUTER, TRAINING, LINK_OUT)


@dataclass(frozen=True)
class Result:
    """What a simulated run reached, once it had settled.

    used: share of each part that was busy. resent: chunks sent again, per chunk stored.
    weights_age: how old the weights were by which a transition was played; data_age: from playing
    a transition to storing it, None where nothing arrives; both means, in seconds. dropped:
    messages per second that found an actor's queue full; reconnects: per second, of actors that
    heard nothing for 8 s.
    """

    actors: int
    env_steps_per_second: float
    updates_per_second: float
    versions_per_second: float
    used: dict[str, float]
    weights_age: float
    data_age: float | None
    resent: float
    dropped: float
    reconnects: float


def simulate(scenario: Scenario, seconds: float, settle: float) -> Result:
    """settle: seconds that do not count, before those that do."""
    run = Run(scenario)
    run.clock.run(settle)
    before = run.figures()
    run.clock.run(settle + seconds)
    after = run.figures()
    gained = {name: (after[name] - before[name]) / seconds for name in before}
    capacity = dict.fromkeys(PARTS, 1.0) | {
        ACTORS: float(scenario.cores or scenario.actors),
        LINK_IN: scenario.network.bytes_per_second,
        LINK_OUT: scenario.network.bytes_per_second,
    }
    # Of each game a chunk is in the making, half done in the mean.
    making = scenario.actors * scenario.config.games_per_actor * run.chunk / 2
    held = [making + figures["produced"] - figures["env_steps"] for figures in (before, after)]
    steps, played = gained["env_steps"], gained["produced"] / run.chunk
    return Result(
        actors=scenario.actors,
        env_steps_per_second=steps,
        updates_per_second=gained["updates"],
        versions_per_second=gained["versions"],
        used={part: gained[part] / capacity[part] for part in PARTS},
        weights_age=gained["use_ages"] / played if played else 0.0,
        data_age=sum(held) / 2 / steps if steps else None,
        resent=gained["resent"] * run.chunk / steps if steps else 0.0,
        dropped=gained["dropped"],
        reconnects=gained["reconnects"],
    )


def capacities(scenario: Scenario) -> dict[str, float]:
    """Env steps per second that each part could carry if it were the only limit.

    Weights are sent as often as the updates ask for, or every publish_seconds if that is less.
    """
    config, costs, actors = scenario.config, scenario.costs, scenario.actors
    chunk, bandwidth = config.chunk_transitions, scenario.network.bytes_per_second
    updates = config.samples_per_insert / config.batch_size if scenario.learning else 0.0
    copies = actors * updates / config.publish_period_updates  # of the weights, per env step
    most_copies = actors / scenario.publish_seconds  # per second
    step = {  # seconds of the part for one env step
        ACTORS: (costs.actor_step + costs.actor_chunk / chunk) / actors,
        LINK_IN: costs.chunk_bytes / chunk / bandwidth,
        IO: (costs.io_chunk + costs.io_message) / chunk,
        ROUTER: costs.router_chunk / chunk,
        TRAINING: costs.store / chunk + updates * costs.update,
        LINK_OUT: costs.message_bytes / chunk / bandwidth,
    }
    copy = dict.fromkeys(PARTS, 0.0) | {  # and for one copy of the weights
        IO: costs.io_weights,
        ROUTER: costs.router_weights + costs.router_ack,
        LINK_OUT: costs.weights_bytes / bandwidth,
    }
    return {
        part: max(
            _rate(1.0, step[part] + copies * copy[part]),
            _rate(1.0 - most_copies * copy[part], step[part]),
        )
        for part in PARTS
    }


def _rate(seconds: float, each: float) -> float:
    """How many of them fit into these seconds, of which none may be left."""
    if seconds <= 0.0:
        return 0.0
    return seconds / each if each else math.inf
