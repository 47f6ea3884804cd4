"""Bad links, bad bytes, strangers, crowds."""

import contextlib
import itertools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from common import messages
from common.address import check_bind
from common.config import Config
from common.dealer import ActorEndpoint, LearnerGone
from common.errors import ConfigError, Refused
from common.keys import (
    ActorKeys,
    LearnerKeys,
    create_keys,
    load_actor_keys,
    load_learner_keys,
)
from common.lifeline import Heartbeats
from common.messages import (
    Ack,
    BadMessage,
    EpisodeStats,
    Header,
    Hello,
    Reject,
    Spec,
    Type,
    Weights,
)
from common.router import LearnerEndpoint
from tests.builders import chunk_of, config
from tests.drills.endpoint import WEIGHTS_SIZE, numbered
from tests.drills.system import System, chooser
from tests.running import ROOT, free_address, until

SMALL = config(samples_per_insert=1.0, window_chunks=8, samples_per_insert_tolerance=2_000.0)
SPEC = Spec.of(SMALL)
TINY = Spec(SPEC.n_actions, 1, SPEC.gamma, 1)


START = "import sys; from tests.drills.endpoint import main; main(*sys.argv[1:])"


class RemoteLearner:
    """tests/drills/endpoint.py, running."""

    def __init__(
        self, folder: Path, settings: Config = SMALL, keys: str = "", slow: float = 0.0
    ) -> None:
        self.address = free_address()
        path = folder / "endpoint.json"
        path.write_text(settings.to_json())
        words = [str(path), self.address, keys, str(slow)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stats: dict[str, Any] = {}
        self.most_rss = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: self.stats, 60)

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.stats = json.loads(line)
            self.most_rss = max(self.most_rss, self.stats["rss"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        code = self.process.wait(20)
        self._reader.join(10)
        self.process.stdout.close()
        if not failed[0]:
            assert code == 0, "a chunk was lost, repeated or out of order"

    def taken_of(self, actor_id: int) -> int:
        return int(self.stats["by_actor"].get(str(actor_id), 0))


class HonestActor:
    """Sends numbered chunks from a thread, so many per second (0: as many as it can)."""

    def __init__(
        self, address: str, actor_id: int = 0, rate: float = 0.0, keys: ActorKeys | None = None
    ) -> None:
        self.actor_id, self.rate, self.sent = actor_id, rate, 0
        self.error: BaseException | None = None
        self.endpoint = ActorEndpoint(SMALL, address, actor_id, WEIGHTS_SIZE, keys)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self.endpoint.close()

    def _run(self) -> None:
        try:
            self.endpoint.handshake(30)
            began = time.monotonic()
            for number in itertools.count():
                self.endpoint.send(numbered(SPEC, self.actor_id, number))
                self.sent = number + 1
                while self.rate and number + 1 > self.rate * (time.monotonic() - began):
                    self.endpoint.poll()
                    time.sleep(0.002)
                if self._stop.is_set():
                    break
            until(lambda: self.endpoint.poll() or not self.endpoint.unacknowledged, 30)
        except BaseException as error:
            self.error = error

    def finish(self) -> int:
        """Send no more, wait until all is acknowledged. -> chunks sent."""
        self._stop.set()
        self._thread.join(60)
        if self.error:
            raise self.error
        assert not self._thread.is_alive(), "not everything was acknowledged"
        return self.sent


class Proxy:
    """A TCP link that can be cut, or hold back everything (hole), or only answers (deaf)."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self.target = host, int(port)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.server.getsockname()[1]}"
        self.hole, self.deaf = threading.Event(), threading.Event()
        self._links: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
                far = socket.create_connection(self.target)
            except OSError:
                return
            self._links += [near, far]
            for a, b, stops in ((near, far, [self.hole]), (far, near, [self.hole, self.deaf])):
                threading.Thread(target=self._pump, args=(a, b, stops), daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, stops: list[threading.Event]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                while any(stop.is_set() for stop in stops):
                    time.sleep(0.01)
                sink.sendall(data)
        for one in (source, sink):
            one.close()

    def cut(self) -> None:
        """Reset every connection."""
        links, self._links = self._links, []
        for link in links:
            with contextlib.suppress(OSError):
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.shutdown(socket.SHUT_RDWR)
                link.close()

    def close(self) -> None:
        self.hole.clear()
        self.deaf.clear()
        self.server.close()
        self.cut()


def bad_links(folder: Path, long: bool) -> dict[int, str]:
    """Row 8: resets every 0.4 s, lost answers, a black hole, a replacement beside a hole."""
    reset_seconds, hole_seconds = (60, 30) if long else (8, 10)
    with RemoteLearner(folder) as learner, contextlib.closing(Proxy(learner.address)) as proxy:
        with HonestActor(proxy.address, rate=200) as actor:
            end, cuts = time.monotonic() + reset_seconds, 0
            while time.monotonic() < end:
                time.sleep(0.4)
                proxy.cut()
                cuts += 1
            sent_by_then = actor.sent
            until(lambda: actor.sent > sent_by_then + 20, 30)  # connected again
            proxy.deaf.set()  # what arrives is not acknowledged: it is sent again, for nothing
            time.sleep(3)
            proxy.deaf.clear()
            proxy.hole.set()
            time.sleep(hole_seconds)
            proxy.hole.clear()
            before = actor.sent
            until(lambda: actor.sent > before + 20, 60)
            sent = actor.finish()
            until(lambda: learner.taken_of(0) == sent, 10)
        with HonestActor(proxy.address, actor_id=1):
            until(lambda: learner.taken_of(1), 10)
            proxy.hole.set()
            began = time.monotonic()
            with HonestActor(learner.address, actor_id=2):
                until(lambda: learner.taken_of(2), 10, 0.01)
                served = time.monotonic() - began
            proxy.hole.clear()
        duplicates = learner.stats["duplicates"]
    assert sent_by_then > 0 and duplicates > 0, "the link was not as bad as it should have been"
    assert served < 1.0, f"a replacement waited {served:.1f} s"
    return {
        8: f"{cuts} resets, 3 s of lost answers and a {hole_seconds} s hole: {sent:,} chunks sent, "
        f"{sent:,} taken, each once and in order ({duplicates} that came again were recognised); "
        f"beside a hole a replacement was served after {served:.2f} s"
    }


# -- bytes ------------------------------------------------------------------------------------


def samples() -> list[bytes]:
    """An honest message of every kind."""
    stats = EpisodeStats(1.0, 2, 0.5, 3)
    chunk = chunk_of(TINY, 1, 0)
    return [
        messages.encode_chunk(1, 1, chunk),
        messages.encode_chunk(1, 1, type(chunk)(chunk.frames, chunk.transitions, 1, stats)),
        messages.encode_hello(1, Hello(3, "abc", SMALL.agreement())),
        messages.encode_ack(Type.ACK, 1, Ack(1, 2, 3, 4)),
        messages.encode_reject(1, Reject("why", 3)),
        messages.encode_report(1, {"play": 0.5}),
        messages.encode_weights(Weights(1, np.zeros(WEIGHTS_SIZE, np.float32))),
        messages.encode(Header(Type.PING, 1)),
    ]


def mutated(raw: bytes, choose: random.Random) -> bytes:
    """Never the same as `raw`."""
    out = bytearray(raw)
    kind = choose.randrange(5)
    if kind == 0:
        del out[choose.randrange(len(out)) :]
    elif kind == 1:
        out += os.urandom(choose.randint(1, 64))
    elif kind == 2:
        out = bytearray(os.urandom(choose.randint(0, 200)))
    else:
        for _ in range(choose.randint(1, 8)):
            at = choose.randrange(len(out) if kind == 3 else min(len(out), 120))
            out[at] ^= choose.randint(1, 255)
    return bytes(out) if out != raw else raw + b"?"


def sealed(raw: bytes) -> bytes:
    """The same with a checksum that holds, as a malicious sender would make it."""
    at = struct.calcsize("<4sHBxQQI")
    if len(raw) < at + 4:
        return raw
    checksum = zlib.crc32(raw[at + 4 :], zlib.crc32(raw[:at]))
    return raw[:at] + struct.pack("<I", checksum) + raw[at + 4 :]


DECODERS: list[Callable[[memoryview], object]] = [
    lambda frame: messages.decode_chunk(frame, TINY),
    lambda frame: messages.decode_chunk(frame, TINY),
    messages.decode_hello,
    messages.decode_ack,
    messages.decode_reject,
    messages.decode_report,
    lambda frame: messages.decode_weights(frame, WEIGHTS_SIZE),
    messages.decode_meta,
]  # one for each of `samples`


def decoder_fuzzed(count: int, choose: random.Random) -> int:
    """-> mutated messages whose header was believed (there should be none)."""
    believed = 0
    honest = samples()
    for i in range(count):
        raw = mutated(honest[i % len(honest)], choose)
        try:
            messages.decode_header(memoryview(raw))
            believed += 1
        except BadMessage:
            pass
        frame = memoryview(sealed(raw))  # past the checksum: nothing but BadMessage may come of it
        with contextlib.suppress(BadMessage):
            messages.decode_header(frame)
            DECODERS[i % len(DECODERS)](frame)
    return believed


def fuzzed(folder: Path, long: bool) -> dict[int, str]:
    """Row 9: the decoder, then a live socket beside an honest actor."""
    decoded, live = (1_000_000, 100_000) if long else (20_000, 10_000)
    choose = chooser(9)
    believed = decoder_fuzzed(decoded, choose)
    assert believed == 0, f"{believed} damaged messages were believed"
    with RemoteLearner(folder) as learner, HonestActor(learner.address, rate=40) as actor:
        until(lambda: learner.taken_of(0) > 40, 30)
        memory = learner.stats["rss"]
        alone = rate_of(learner, 3.0)
        junk_began, refused = time.monotonic(), learner.stats["refused"]
        taken = learner.taken_of(0)
        send_junk(learner.address, live, choose)
        nested = messages.encode(Header(Type.HELLO, 7), [3, "abc", {"env": nest(1_000)}])
        send_one(learner.address, nested)
        until(lambda: learner.stats["refused"] - refused >= live // 2, 120)
        until(settled(learner), 60)
        beside = (learner.taken_of(0) - taken) / (time.monotonic() - junk_began)
        grown = learner.most_rss - memory
        chunks = actor.finish()
        until(lambda: learner.taken_of(0) == chunks, 10)
    assert beside >= 0.95 * alone, f"{beside:.1f} chunks/s beside the junk, {alone:.1f} alone"
    assert grown < 50 << 20, f"memory grew by {grown:,} B"
    return {
        9: f"{decoded:,} damaged messages decoded: 0 crashes, 0 believed; {live:,} sent to a live "
        f"socket, half with a checksum that holds: none taken, honest ingest "
        f"{100 * beside / alone:.0f} %, memory +{max(grown, 0) / 2**20:.1f} MB"
    }


def rate_of(learner: RemoteLearner, seconds: float) -> float:
    """Chunks per second of actor 0."""
    before, began = learner.taken_of(0), time.monotonic()
    time.sleep(seconds)
    return (learner.taken_of(0) - before) / (time.monotonic() - began)


def nest(depth: int) -> list[Any]:
    """Lists in lists, too deep to be shown."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def send_one(address: str, message: bytes) -> None:
    import zmq

    context = zmq.Context()
    with context.socket(zmq.DEALER) as stranger:
        stranger.connect(address)
        stranger.send(message)
        stranger.close(linger=10_000)
    context.term()


def settled(learner: RemoteLearner) -> Callable[[], bool]:
    """Has the number of refused messages stood still for a second?"""
    seen: list[tuple[float, int]] = []

    def still() -> bool:
        seen.append((time.monotonic(), learner.stats["refused"]))
        return any(t < seen[-1][0] - 1.0 and n == seen[-1][1] for t, n in seen)

    return still


def send_junk(address: str, count: int, choose: random.Random) -> None:
    """From a socket of its own, some 5,000 per second: the honest actor shares these cores."""
    import zmq

    honest = samples()
    context = zmq.Context()
    with context.socket(zmq.DEALER) as stranger:
        stranger.connect(address)
        for i in range(count):
            junk = mutated(honest[i % len(honest)], choose)
            stranger.send(sealed(junk) if i % 2 else junk)
            if i % 50 == 0:
                time.sleep(0.01)
        stranger.close(linger=20_000)
    context.term()


# -- strangers --------------------------------------------------------------------------------


def strangers(folder: Path, long: bool) -> dict[int, str]:
    """Row 10: no, unknown and wrong keys, raw junk, half-open connections, endless multipart."""
    create_keys(folder / "keys")
    create_keys(folder / "other")
    good, other = load_actor_keys(folder / "keys"), load_actor_keys(folder / "other")
    half_open = 500 if long else 100
    with RemoteLearner(folder, keys=str(folder / "keys")) as learner:
        host, _, port = learner.address.removeprefix("tcp://").rpartition(":")
        place = host, int(port)
        with HonestActor(learner.address, rate=40, keys=good) as actor:
            until(lambda: learner.taken_of(0) > 40, 30)
            memory, alone = learner.stats["rss"], rate_of(learner, 3.0)
            began, taken = time.monotonic(), learner.taken_of(0)
            for name, keys in (
                ("no key", None),
                ("unknown key", ActorKeys(other.secret, other.public, good.learner)),
                ("wrong server key", ActorKeys(good.secret, good.public, other.learner)),
            ):
                refused_with_4(learner.address, keys, name)
            idle = [socket.create_connection(place) for _ in range(half_open)]
            choose = chooser(10)
            for _ in range(half_open):
                with socket.create_connection(place) as link, contextlib.suppress(OSError):
                    link.sendall(choose.randbytes(choose.randint(1, 5_000)))
            endless_bytes = endless_multipart(place, seconds=10 if long else 2)
            time.sleep(1)
            beside = (learner.taken_of(0) - taken) / (time.monotonic() - began)
            grown = learner.most_rss - memory
            for link in idle:
                link.close()
            chunks = actor.finish()
            until(lambda: learner.taken_of(0) == chunks, 10)
        reached = learner.stats["refused"]
    assert reached == 0, f"{reached} messages of strangers reached the decoder"
    assert grown < 20 << 20, f"memory grew by {grown:,} B"
    assert beside >= 0.95 * alone, f"{beside:.1f} chunks/s beside strangers, {alone:.1f} alone"
    return {
        10: f"no, unknown and wrong keys (exit code 4 each), {half_open} junk and {half_open} "
        f"half-open connections, an endless multipart ({endless_bytes >> 10:,} kB before it was "
        f"cut off): 0 reached the decoder, memory +{max(grown, 0) / 2**20:.1f} MB, honest ingest "
        f"{100 * beside / alone:.0f} %"
    }


def refused_with_4(address: str, keys: ActorKeys | None, name: str) -> None:
    with closing_endpoint(ActorEndpoint(SMALL, address, 9, WEIGHTS_SIZE, keys)) as endpoint:
        try:
            endpoint.handshake(30)
        except Refused as refused:
            assert refused.exit_code == 4, f"{name}: {refused}"
        else:
            raise AssertionError(f"{name} was let in")


def endless_multipart(place: tuple[str, int], seconds: float) -> int:
    """ZMTP 3.0 without security, and a message that never ends. -> bytes the learner took."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    part = b"\x03" + struct.pack(">Q", 1 << 16) + bytes(1 << 16)  # long frame, more to follow
    sent, end = 0, time.monotonic() + seconds
    with socket.create_connection(place) as link:
        link.settimeout(1.0)
        with contextlib.suppress(OSError):
            link.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
            while time.monotonic() < end:
                sent += link.send(part)
    return sent


@contextlib.contextmanager
def closing_endpoint(endpoint: ActorEndpoint) -> Iterator[ActorEndpoint]:
    with contextlib.closing(endpoint):
        yield endpoint


def locks_on_the_door(folder: Path, long: bool) -> dict[int, str]:
    """Row 11: beyond loopback without keys; a secret others can read; no authenticator."""
    for address in ("tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://192.0.2.1:5555"):
        assert "launch.py keys" in error_of(check_bind, address, "")
    create_keys(folder / "keys")
    secret = folder / "keys" / "learner.secret"
    secret.chmod(0o640)
    assert "Others can read" in error_of(load_learner_keys, folder / "keys")
    secret.chmod(0o600)
    keys = load_learner_keys(folder / "keys")
    handlerless = HandlerLess(keys.secret, keys.authorized)
    address = free_address()
    endpoint = LearnerEndpoint(SMALL, address, handlerless)
    endpoint.start(0)
    actor = ActorEndpoint(SMALL, address, 0, WEIGHTS_SIZE, load_actor_keys(folder / "keys"))
    with contextlib.closing(actor):
        try:
            actor.handshake(2.0)
        except (LearnerGone, Refused):
            pass
        else:
            raise AssertionError("let in with no authenticator")
    endpoint.stop()
    return {
        11: "three binds beyond loopback and a secret of mode 640 refused with what to do; with no "
        "authenticator running even an authorised key is not let in"
    }


class HandlerLess(LearnerKeys):
    """Keys whose authenticator never runs."""

    def start(self, context: Any) -> Any:
        return None


def error_of(work: Callable[..., object], *args: object) -> str:
    try:
        work(*args)
    except ConfigError as error:
        return str(error)
    raise AssertionError("it was accepted")


def mismatches(folder: Path, long: bool) -> dict[int, str]:
    """Row 12: real actor processes of another game, n, gamma, action count and version; NaN."""
    run_dir = folder / "run"
    run_dir.mkdir()
    with RemoteLearner(folder) as learner, HonestActor(learner.address, actor_id=1, rate=20):
        ours = config(samples_per_insert=1.0, window_chunks=8, bind=learner.address)
        cases: list[tuple[dict[str, Any], int, str]] = [
            ({"env": "tests.stamped:Stamped-v0"}, 1, "env is"),
            ({"n_actions": 4}, 1, "n_actions is 4"),
            ({"n_step": 2}, 1, "n_step is 2"),
            ({"gamma": 0.5}, 1, "gamma is 0.5"),
            ({}, 2, "protocol version 2, expected 1"),
        ]
        for other, version, named in cases if long else cases[2:]:
            settings = type(ours)(**{**vars_of(ours), **other})
            (run_dir / "config.json").write_text(settings.to_json())
            code, said = actor_process(run_dir, version)
            assert code == 3, said
            assert named in said and "Traceback" not in said, said
        before = learner.taken_of(1)
        until(lambda: learner.taken_of(1) > before + 10, 10)
    nan_and_stale(folder)
    place = folder / "nan"
    place.mkdir()
    faults = {"STAMPED_FAULT": "nan", "STAMPED_FAULT_STEPS": "50"}
    with System(place, actors=1, environment=faults) as system:
        assert system.process.wait(90) == 3, system.text
        assert "a return is not finite" in system.text
        assert "it is not restarted" in system.text and "Traceback" not in system.text
    return {
        12: f"{len(cases if long else cases[2:])} mismatches refused by name, exit code 3; a game "
        "that rewards NaN and weights that are NaN: the same, not restarted; a stale version is "
        "not taken; the learner went on"
    }


def vars_of(settings: Config) -> dict[str, Any]:
    return json.loads(settings.to_json())  # type: ignore[no-any-return]


def actor_process(run_dir: Path, version: int) -> tuple[int, str]:
    """`launch.py actor` as the supervisor would start it, speaking another protocol version."""
    code = (
        "import sys, common.messages as m, launch\n"
        f"m.PROTOCOL = m.encode.__kwdefaults__['protocol'] = {version}\n"
        f"sys.exit(launch.main(['actor', {str(run_dir)!r}, {str(os.getpid())!r}, '0', '0']))"
    )
    with contextlib.closing(Heartbeats.create(run_dir / "heartbeats", 2)):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    return done.returncode, done.stdout + done.stderr


def nan_and_stale(folder: Path) -> None:
    """Weights in one process: NaN is refused by name, an older version is not taken."""
    learner = LearnerEndpoint(SMALL, free_address())
    learner.set_insert_limit(1_000, 0)
    learner.start(0)
    actor = ActorEndpoint(SMALL, learner.address, 0, WEIGHTS_SIZE)
    with contextlib.closing(actor):
        actor.handshake(10)
        learner.publish(Weights(5, np.ones(WEIGHTS_SIZE, np.float32)))
        assert until(actor.poll, 10).version == 5
        learner.publish(Weights(4, np.zeros(WEIGHTS_SIZE, np.float32)))
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert actor.poll() is None, "an older version was taken"
        learner.publish(Weights(6, np.full(WEIGHTS_SIZE, np.nan, np.float32)))
        try:
            until(lambda: actor.poll() and False, 10)
        except Refused as refused:
            assert refused.exit_code == 3 and "weights version 6 are not finite" in str(refused)
    learner.stop()


def crowd(folder: Path, long: bool) -> dict[int, str]:
    """Row 16: 64 actors against a learner ten times too slow."""
    seconds = 60 if long else 10
    settings = config(samples_per_insert=1.0, window_chunks=8, actors=64)
    chunk_bytes = (settings.chunk_transitions + 3 + settings.n_step) * 7056
    with RemoteLearner(folder, settings, slow=0.01) as learner:
        memory = learner.stats["rss"]
        with contextlib.ExitStack() as stack:
            for i in range(64):
                stack.enter_context(HonestActor(learner.address, actor_id=i))
            until(lambda: len(learner.stats["by_actor"]) == 64, 60)
            at_first = learner.stats["by_actor"]
            time.sleep(seconds)
            served = {i: n - at_first[i] for i, n in learner.stats["by_actor"].items()}
            grown = learner.most_rss - memory
            learner.process.stdin.close()  # type: ignore[union-attr]
    windows = 64 * settings.window_chunks * chunk_bytes
    fairness = min(served.values()) / max(served.values())
    assert grown <= 1.1 * windows, f"memory grew by {grown:,} B, the windows are {windows:,} B"
    assert fairness >= 0.5, f"served {min(served.values())} to {max(served.values())} chunks"
    return {
        16: f"64 actors, {sum(served.values()):,} chunks in {seconds} s: memory "
        f"+{grown / 2**20:.0f} MB (windows {windows / 2**20:.0f} MB), least over most served "
        f"{fairness:.2f}"
    }
