"""What transport costs each thread of both sides: real endpoints in two processes, loopback TCP.

CPU time is read per thread before and after a known number of chunks, pings or versions.
"""

import socket
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.acting import greedy
from benchmarks.experience import played
from benchmarks.measure import Side
from benchmarks.transport import PreparedSender, Receiver
from benchmarks.worker import Worker
from common import messages
from common.address import endpoint
from common.config import Config
from common.keys import create_keys
from common.messages import Ack, Chunk, Header, Type
from common.network import network_for, state_size
from common.presets import make_config
from launch import learner_environment

Figures = dict[str, float]
SENDERS = 8
CHUNKS, PINGS, VERSIONS = 24, 400, 12  # of each sender, in one round
PINGS_AT_ONCE = 8  # fewer than ZeroMQ's queues hold; and so are the versions


def transport(rounds: int, keys: bool) -> dict[str, list[float]]:
    """CPU seconds by thread of a chunk, a ping with its answer, a version: over loopback TCP."""
    seen: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="volley-bench-") as folder, ExitStack() as stack:
        key_folder = ""
        if keys:
            create_keys(Path(folder) / "keys")
            key_folder = str(Path(folder) / "keys")
        bind = f"tcp://127.0.0.1:{free_port()}"
        where: dict[str, Any] = {"folder": folder, "bind": bind, "keys": key_folder}
        learners = learner_environment(make_config("pong", learner_threads=1))
        router = stack.enter_context(
            Worker("benchmarks.scaling.transport_costs:router_sides", environment=learners, **where)
        )
        senders = stack.enter_context(
            Worker("benchmarks.scaling.transport_costs:sender_sides", **where)
        )

        def spent(what: str, units: int, work: Callable[[], object]) -> None:
            """Enter what every thread spent on a unit of this work."""
            clocks = (router.sides["threads"], senders.sides["threads"])
            before = [clock(0.0) for clock in clocks]
            work()
            after = [clock(0.0) for clock in clocks]
            for side_before, side_after in zip(before, after, strict=True):
                for thread, cpu in side_after.items():
                    each = (cpu - side_before[thread]) / units
                    seen.setdefault(f"{what}: {thread}", []).append(each)

        def chunks() -> None:
            senders.begin("send", 0.0)
            router.sides["take"](0.0)
            senders.answer(0.0)

        def announce() -> None:
            for _ in range(VERSIONS):
                router.sides["publish"](0.0)

        def versions() -> None:
            for _ in range(VERSIONS):
                senders.sides["fetch"](router.sides["publish"](0.0))

        for i in range(rounds + 1):
            senders.sides["prepare"](0.0)
            spent("chunk", SENDERS * CHUNKS, chunks)
            spent("ping", SENDERS * PINGS, lambda: senders.sides["ping"](0.0))
            spent("announcement", SENDERS * VERSIONS, announce)
            senders.sides["fetch"](router.sides["publish"](0.0))
            spent("version", SENDERS * VERSIONS, versions)
            if i == 0:
                seen.clear()  # memory is touched for the first time
    return seen


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- sides -----------------------------------------------------------------------------------------


def router_sides(folder: str, bind: str, keys: str) -> dict[str, Side]:
    """The learner's endpoint: `threads` tells the CPU seconds that each thread has used."""
    receiver = Receiver(transport_config(bind, keys), Path(folder))
    (router,) = (thread for thread in threading.enumerate() if thread.name == "transport")

    def threads(_: float) -> Figures:
        assert router.ident
        its = time.clock_gettime(time.pthread_getcpuclockid(router.ident))
        main = time.thread_time()
        return {"router": its, "main": main, "io": time.process_time() - its - main}

    def take(_: float) -> None:
        """A round of chunks from every sender."""
        goal = receiver.taken + SENDERS * CHUNKS * receiver.config.chunk_transitions
        while receiver.taken < goal:
            receiver.welcome()
            receiver.take()

    def publish(_: float) -> int:
        """A version, announced when this returns."""
        version = receiver.publish()
        time.sleep(0.02)
        return version

    return {"threads": threads, "take": take, "publish": publish}


def sender_sides(folder: str, bind: str, keys: str) -> dict[str, Side]:
    """The endpoints of some actors, and what they do when told."""
    config = transport_config(bind, keys)
    size = state_size(network_for(config))
    address = endpoint(config, Path(folder))
    full = full_chunks(config)
    senders = [Teller(config, address, i, size) for i in range(SENDERS)]
    pool = ThreadPoolExecutor(SENDERS)
    list(pool.map(Teller.handshake, senders))
    list(pool.map(Teller.first_weights, senders))

    def prepare(_: float) -> None:
        for sender in senders:
            sender.prepare([full[i % len(full)] for i in range(CHUNKS)])

    def send(_: float) -> None:
        list(pool.map(Teller.send_prepared, senders))

    def ping(_: float) -> None:
        list(pool.map(Teller.ping, senders))

    def fetch(version: float) -> None:
        """Hear what was announced, ask for it, and wait until it is here."""
        list(pool.map(partial(Teller.fetch, version=int(version)), senders))

    def threads(_: float) -> Figures:
        return {"process": time.process_time()}

    return {"prepare": prepare, "send": send, "ping": ping, "fetch": fetch, "threads": threads}


def transport_config(bind: str, keys: str) -> Config:
    return greedy(8, actors=SENDERS, bind=bind, keys=keys)


class Teller(PreparedSender):
    """An actor's endpoint that pings when told, and counts the answers."""

    answers = 0

    def ping(self) -> None:
        """As many at a time as the learner's queue of answers holds: they come in turns, as in a
        crowd."""
        for _ in range(0, PINGS, PINGS_AT_ONCE):
            goal = self.answers + PINGS_AT_ONCE
            for _ in range(PINGS_AT_ONCE):
                self._transmit(messages.encode(Header(Type.PING, self.session)))
            while self.answers < goal:
                self._receive(200)

    def fetch(self, version: int) -> None:
        """Hear what was announced, ask for it, and wait until it is here."""
        while self.first_weights().version < version:
            pass

    def _on_ack(self, ack: Ack) -> None:
        super()._on_ack(ack)
        self.answers += 1


def full_chunks(config: Config) -> list[Chunk]:
    return [c for c in played(config, 2_000) if len(c) == config.chunk_transitions]
