"""Bytes that no honest peer sends, and peers who should not be let in."""

import contextlib
import os
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from common import messages
from common.address import check_bind
from common.dealer import ActorEndpoint, LearnerGone
from common.errors import ConfigError, Refused
from common.keys import (
    ActorKeys,
    LearnerKeys,
    create_keys,
    load_actor_keys,
    load_learner_keys,
)
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
from tests.builders import chunk_of
from tests.drills.endpoint import WEIGHTS_SIZE
from tests.drills.peers import SMALL, SPEC, HonestActor, RemoteLearner
from tests.drills.system import chooser
from tests.running import Awake, free_address, until

RATE = 40.0  # chunks per second of the honest actor beside
TINY = Spec(SPEC.n_actions, 1, SPEC.gamma, 1)


def samples() -> list[bytes]:
    """An honest message of every kind."""
    stats = EpisodeStats(1.0, 2)
    chunk = chunk_of(TINY, 1, 0)
    return [
        messages.encode_chunk(1, 1, chunk),
        messages.encode_chunk(1, 1, type(chunk)(chunk.frames, chunk.transitions, 1, stats)),
        messages.encode_hello(1, Hello(3, SMALL.agreement())),
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
    with (
        RemoteLearner(folder) as learner,
        HonestActor(learner.address, rate=RATE) as actor,
        Awake() as awake,
    ):
        until(lambda: learner.taken_of(0) > 40, 30)
        memory = learner.stats["rss"]
        junk_began, refused = awake.seconds, learner.stats["refused"]
        taken = learner.taken_of(0)
        send_junk(learner.address, live, choose)
        while awake.seconds - junk_began < 6:  # fewer chunks would not tell 95 % from 100
            send_junk(learner.address, 1_000, choose)
        nested = messages.encode(Header(Type.HELLO, 7), [3, "abc", {"env": nest(1_000)}])
        send_one(learner.address, nested)
        until(lambda: learner.stats["refused"] - refused >= live // 2, 120)
        beside = (learner.taken_of(0) - taken) / (awake.seconds - junk_began)
        until(settled(learner), 60)
        grown = learner.most_rss - memory
        chunks = actor.finish()
        until(lambda: learner.taken_of(0) == chunks, 10)
    assert beside >= 0.95 * RATE, f"{beside:.1f} chunks/s beside the junk, {RATE:g} were sent"
    assert grown < 50 << 20, f"memory grew by {grown:,} B"
    return {
        9: f"{decoded:,} damaged messages decoded: 0 crashes, 0 believed; {live:,} sent to a live "
        f"socket, half with a checksum that holds: none taken, honest ingest "
        f"{100 * beside / RATE:.0f} %, memory +{max(grown, 0) / 2**20:.1f} MB"
    }


def nest(depth: int) -> list[Any]:
    """Lists in lists, too deep to be shown."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def send_one(address: str, message: bytes) -> None:
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


def strangers(folder: Path, long: bool) -> dict[int, str]:
    """Row 10: no, unknown and wrong keys, raw junk, half-open connections, endless multipart."""
    create_keys(folder / "keys")
    create_keys(folder / "other")
    good, other = load_actor_keys(folder / "keys"), load_actor_keys(folder / "other")
    half_open = 500 if long else 100
    with RemoteLearner(folder, keys=str(folder / "keys")) as learner:
        host, _, port = learner.address.removeprefix("tcp://").rpartition(":")
        place = host, int(port)
        with HonestActor(learner.address, rate=RATE, keys=good) as actor, Awake() as awake:
            until(lambda: learner.taken_of(0) > 40, 30)
            memory = learner.stats["rss"]
            began, taken = awake.seconds, learner.taken_of(0)
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
            time.sleep(max(1.0, began + 6 - awake.seconds))
            beside = (learner.taken_of(0) - taken) / (awake.seconds - began)
            grown = learner.most_rss - memory
            for link in idle:
                link.close()
            chunks = actor.finish()
            until(lambda: learner.taken_of(0) == chunks, 10)
        reached = learner.stats["refused"]
    assert reached == 0, f"{reached} messages of strangers reached the decoder"
    assert grown < 20 << 20, f"memory grew by {grown:,} B"
    assert beside >= 0.95 * RATE, f"{beside:.1f} chunks/s beside strangers, {RATE:g} were sent"
    return {
        10: f"no, unknown and wrong keys (exit code 4 each), {half_open} junk and {half_open} "
        f"half-open connections, an endless multipart ({endless_bytes >> 10:,} kB before it was "
        f"cut off): 0 reached the decoder, memory +{max(grown, 0) / 2**20:.1f} MB, honest ingest "
        f"{100 * beside / RATE:.0f} %"
    }


def refused_with_4(address: str, keys: ActorKeys | None, name: str) -> None:
    with contextlib.closing(ActorEndpoint(SMALL, address, 9, WEIGHTS_SIZE, keys)) as endpoint:
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


def locks_on_the_door(folder: Path, long: bool) -> dict[int, str]:
    """Row 11: beyond loopback without keys; a secret others can read; no authenticator."""
    for address in ("tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://192.0.2.1:5555"):
        assert "launch.py keys" in error_of(check_bind, address, "")
    create_keys(folder / "keys")
    for name, read in (("learner", load_learner_keys), ("actor", load_actor_keys)):
        secret = folder / "keys" / f"{name}.secret"
        secret.chmod(0o640)
        assert "Others can read" in error_of(read, folder / "keys")
        secret.chmod(0o600)
    keys = load_learner_keys(folder / "keys")
    never = LearnerEndpoint(SMALL, free_address(), HandlerLess(keys.secret, keys.authorized))
    died = LearnerEndpoint(SMALL, free_address(), keys)
    for learner in (never, died):
        learner.start(0)
    assert let_in(died, folder / "keys", 20.0)
    assert died._authenticator
    died._authenticator.stop()
    for learner in (never, died):
        assert not let_in(learner, folder / "keys", 3.0), "let in with no authenticator"
        learner.stop()
    return {
        11: "three binds beyond loopback and secrets of mode 640 refused with what to do; with an "
        "authenticator that never ran or has died even an authorised key is not let in"
    }


def let_in(learner: LearnerEndpoint, keys: Path, seconds: float) -> bool:
    actor = ActorEndpoint(SMALL, learner.address, 0, WEIGHTS_SIZE, load_actor_keys(keys))
    with contextlib.closing(actor):
        try:
            actor.handshake(seconds)
        except (LearnerGone, Refused):
            return False
    return True


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
