"""Rows 5 and 6: from actors to the replay."""

import atexit
import itertools
import math
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.acting import connected, greedy, trained_vector
from benchmarks.experience import played
from benchmarks.measure import AHEAD, ENV_STEPS, Form, Goal, NotMeasured, Row, Side, alternate, rate
from benchmarks.peers.environment import Peers
from benchmarks.worker import ROOT, Worker
from common import messages
from common.address import endpoint
from common.config import GAMES_EACH, Config
from common.dealer import ActorEndpoint
from common.keys import load_actor_keys, load_learner_keys
from common.lifeline import Heartbeats
from common.machine import cores
from common.messages import Chunk, Spec, Weights
from common.network import network_for, state_size
from common.router import LearnerEndpoint
from launch import command, learner_environment
from learner.learner import make_sampler
from learner.process import PUBLISH_SECONDS
from learner.replay import Replay

SENDERS = 8
CHUNKS_PER_SENDER = 48  # in one burst: some 200 MB in all
FLOOR = 60_000.0  # env steps/s of one core
PAUSE_SECONDS = 3600.0  # a side that waits for its turn is not dead
QUIET_SECONDS = 0.3


class Receiver:
    """The learner's endpoint and its replay, which take everything that comes."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.taken = config, 0
        address = endpoint(config, folder)
        keys = load_learner_keys(Path(config.keys)) if config.keys else None
        self.endpoint = LearnerEndpoint(config, address, keys, silent_seconds=PAUSE_SECONDS)
        atexit.register(self.endpoint.stop)
        self._versions, self._vector = itertools.count(1), trained_vector()
        self.publish()
        self.replay = Replay(config, make_sampler(config))
        self.endpoint.start(0)

    def publish(self) -> int:
        """A new version of the same weights. -> its number."""
        version = next(self._versions)
        self.endpoint.publish(Weights(version, self._vector))
        return version

    def take(self, at_most_seconds: float = 1.0) -> int:
        """Store what has arrived, waiting for a first chunk. -> transitions."""
        self.endpoint.wait(at_most_seconds)
        chunks = self.endpoint.drain()
        for chunk in chunks:
            self.replay.add(chunk)
        self.taken += (count := sum(map(len, chunks)))
        return count

    def welcome(self) -> None:
        """Let the actors go on: credit for more than they can have under way."""
        windows = max(self.config.actor_count, 1) * self.config.window_chunks
        room = 2 * windows * self.config.chunk_transitions
        self.endpoint.set_insert_limit(self.taken + room, self.taken)

    def arrive(self, seconds: float, publish_seconds: float = math.inf) -> float:
        """Env steps/s that arrive and are stored; the actors are idle before and after.

        publish_seconds: from one version of the weights to the next.
        """
        due = time.monotonic() + publish_seconds

        def step() -> int:
            nonlocal due
            if time.monotonic() >= due:
                self.publish()
                due = time.monotonic() + publish_seconds
            self.welcome()
            return self.take(min(1.0, max(0.0, due - time.monotonic())))

        figure = rate(step, seconds)
        while self.take(QUIET_SECONDS):
            pass  # what they still had credit for
        if not figure:
            raise NotMeasured("the actors fell silent")
        return figure


def connected_sides(actors: int, games: int) -> dict[str, Side]:
    """`launch.py actor` processes, and in this one what receives their chunks."""
    config = greedy(games, actors=actors, frames_per_env_step=4)
    folder = temporary_folder()
    (folder / "config.json").write_text(config.to_json())
    beats = Heartbeats.create(folder / "heartbeats", actors + 1)
    receiver = Receiver(config, folder)
    words = ["actor", str(folder), str(os.getpid())]
    players = [
        subprocess.Popen(
            command([*words, str(i), "0"]),
            cwd=ROOT,
            env=actor_environment(config),
            stdout=subprocess.DEVNULL,
        )
        for i in range(actors)
    ]
    atexit.register(beats.close)
    deadline = time.monotonic() + 120
    joined = 2 * games * config.chunk_transitions  # by then all games of an actor have joined
    while sum(n >= joined for n in receiver.endpoint.steps_by_actor.values()) < actors:
        receiver.welcome()
        receiver.take()
        if any(player.poll() is not None for player in players) or time.monotonic() > deadline:
            raise NotMeasured("the actors did not come up")
    while receiver.take(QUIET_SECONDS):
        pass
    learning = partial(receiver.arrive, publish_seconds=PUBLISH_SECONDS)
    return {"arrive": receiver.arrive, "arrive, new weights": learning}


def actor_environment(config: Config) -> dict[str, str]:
    """This process's own, less what it has because it is a learner's."""
    others = {n: v for n, v in os.environ.items() if n not in learner_environment(config)}
    return others | {"OMP_NUM_THREADS": "1"}


def temporary_folder() -> Path:
    """Until this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="volley-bench-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


# -- ingest ---------------------------------------------------------------------------------------


def ingest_sides(folder: str) -> dict[str, Side]:
    """Env steps per second of this process's CPU time, its I/O threads' included."""
    burst = SENDERS * CHUNKS_PER_SENDER * Config().chunk_transitions
    # Of two bursts, so that the ring is soon full and its memory the process's own, as in a run.
    config = greedy(8, actors=SENDERS, replay_transitions=2 * burst)
    receiver = Receiver(config, Path(folder))
    chunk_bytes = messages.max_message_bytes(Spec.of(config)) - messages.MAX_META_BYTES
    here = np.ones((CHUNKS_PER_SENDER * SENDERS, chunk_bytes), np.uint8)
    there = np.ones_like(here)

    def ingest(_: float) -> float:
        goal, began = receiver.taken + burst, time.process_time()
        while receiver.taken < goal:
            receiver.welcome()
            receiver.take()
        return burst / (time.process_time() - began)

    def copy(_: float) -> float:
        began = time.process_time()
        there[:] = here
        return burst / (time.process_time() - began)

    return {"ingest": ingest, "copy": copy}


def sender_sides(folder: str) -> dict[str, Side]:
    """Connected senders of full chunks: `prepare` encodes a burst of them, `send` sends it."""
    config = greedy(8, actors=SENDERS)
    spec, size = Spec.of(config), state_size(network_for(config))
    address = endpoint(config, Path(folder))
    full = [c for c in played(config, 2_000) if len(c) == spec.chunk_transitions]
    pool = ThreadPoolExecutor(SENDERS)
    senders = [PreparedSender(config, address, i, size) for i in range(SENDERS)]
    list(pool.map(PreparedSender.handshake, senders))

    def prepare(_: float) -> None:
        for sender in senders:
            sender.prepare([full[i % len(full)] for i in range(CHUNKS_PER_SENDER)])

    def send(_: float) -> None:
        list(pool.map(PreparedSender.send_prepared, senders))

    return {"prepare": prepare, "send": send}


class PreparedSender(ActorEndpoint):
    """An actor's endpoint whose chunks are encoded before their time."""

    def __init__(self, config: Config, address: str, actor_id: int, weights_size: int) -> None:
        super().__init__(
            config,
            address,
            actor_id,
            weights_size,
            load_actor_keys(Path(config.keys)) if config.keys else None,
            silent_seconds=PAUSE_SECONDS,
            reconnect_seconds=PAUSE_SECONDS,
        )
        self._ready: list[bytes] = []

    def prepare(self, chunks: list[Chunk]) -> None:
        self._ready = [
            messages.encode_chunk(self.session, seq, chunk)
            for seq, chunk in enumerate(chunks, self._seq + 1)
        ]

    def send_prepared(self) -> None:
        """All of it, until it is acknowledged."""
        for message in self._ready:
            self._seq += 1
            self._window.append((self._seq, message))
            self._receive(0)
            while self._seq > self._granted_seq or len(self._window) > self.config.window_chunks:
                self._receive(200)
        while self.unacknowledged:
            self._receive(200)


# -- rows -----------------------------------------------------------------------------------------


def arriving(form: Form, peers: Peers) -> list[Row]:
    """Row 5: actors that are connected against as many that are not; and what new weights cost."""
    rows, games = [], GAMES_EACH
    most = max(1, cores() - 1)  # one core receives
    for actors in [n for n in (1, 2, 4, 8, 15) if n <= most]:
        alone = Worker("benchmarks.acting:unconnected_sides", games=games)
        with alone, connected(games, actors) as together:
            seen = alternate(
                {**together.sides, "alone": alone.sides["play"]}, form.rounds, form.seconds
            )
        references = [actors * figure for figure in seen["alone"]]
        what = f"arriving in the replay, {actors} actor(s) of {games} games"
        against = f"{actors} times one actor not connected"
        rows.append(Row(5, what, ENV_STEPS, against, Goal(0.97), seen["arrive"], references))
        what += f", new weights every {PUBLISH_SECONDS:g} s"
        rows.append(Row(5, what, ENV_STEPS, against, None, seen["arrive, new weights"], references))
    return rows


def ingest(form: Form, peers: Peers) -> list[Row]:
    """Row 6: what one core of a learner can take in."""
    with tempfile.TemporaryDirectory(prefix="volley-bench-") as folder, ExitStack() as stack:
        learner = stack.enter_context(
            Worker(
                "benchmarks.transport:ingest_sides",
                environment=learner_environment(greedy(8, actors=SENDERS).resolved()),
                folder=folder,
            )
        )
        senders = stack.enter_context(Worker("benchmarks.transport:sender_sides", folder=folder))

        def burst(seconds: float) -> float:
            senders.sides["prepare"](seconds)
            senders.begin("send", seconds)
            figure: float = learner.sides["ingest"](seconds)
            senders.answer(seconds)
            return figure

        sides = {"ingest": burst, "copy": learner.sides["copy"]}
        alternate(sides, 3, form.seconds)  # memory is touched for the first time
        seen = alternate(sides, form.rounds, form.seconds)
    what, unit = f"ingest from {SENDERS} senders, per core", ENV_STEPS
    floor = [FLOOR] * form.rounds
    return [
        Row(6, what, unit, "absolute floor", AHEAD, seen["ingest"], floor),
        Row(6, what, unit, "memory copy of the same bytes", None, seen["ingest"], seen["copy"]),
    ]
