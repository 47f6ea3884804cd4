"""The learner's side of the transport: one ROUTER, owned by a thread that never stops polling.

Every chunk is taken exactly once and in order: numbered per session, sent again by the actor until
acknowledged, dropped here when it comes again. Credit is explicit: an actor sends chunk s only when
it was granted. ZeroMQ lives here, in `common/dealer.py` and in `common/keys.py` only.
"""

import collections
import contextlib
import math
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import zmq

from common import messages
from common.config import Config
from common.errors import MISMATCH, ConfigError
from common.keys import LearnerKeys
from common.lifeline import AWAY_SECONDS
from common.messages import (
    Ack,
    BadMessage,
    Chunk,
    Header,
    Hello,
    OtherProtocol,
    Reject,
    Spec,
    Type,
    Weights,
)
from common.sessions import Session, Sessions

_RETRY_MILLISECONDS = 20  # to tell an actor what its full queue did not take
_SEARCH_SECONDS = 1.0  # between two searches, through all of them, for silent actors
_REPLACED = "this actor was silent too long, or another with its number took its place"


@dataclass
class TransportStats:
    """Counters since the start; the learner differentiates them."""

    bytes_in: int = 0
    refused: int = 0
    duplicates: int = 0
    last_refusal: str = ""


class TransportDied(RuntimeError):
    """The I/O thread ended by an exception, which is this one's cause: no chunk comes any more."""


class LearnerEndpoint:
    """What the training thread holds: `drain`, `publish`, `set_insert_limit`, `wait`.

    keys: where it uses CURVE; silent_seconds: after which an actor that is not heard is forgotten.
    Raises ConfigError where it cannot listen on the address.
    """

    def __init__(
        self,
        config: Config,
        address: str,
        keys: LearnerKeys | None = None,
        silent_seconds: float = 35.0,
    ) -> None:
        self.config, self.address = config, address
        self.spec = Spec.of(config)
        self.stats = TransportStats()
        self.steps_by_actor: dict[int, int] = {}
        self._silent_seconds = silent_seconds
        self._sessions = Sessions(config.chunk_transitions, config.window_chunks)
        self._inbox: collections.deque[Chunk] = collections.deque()
        self._arrived = threading.Event()
        self._taken = 0  # transitions received since the start of the run
        self._insert_limit = 0.0
        self._after_grant = 0, self._sessions.demand  # transitions taken, and the demand, by then
        self._env_steps = 0
        self._weights: Weights | None = None
        self._encoded_weights: tuple[int, bytes] = (-1, b"")
        self._announced_version = -1
        self._unsent_acks: set[int] = set()  # to sessions whose queue was full
        self._stopping = False
        self._failure: BaseException | None = None
        self._context = zmq.Context()
        self._authenticator = keys.start(self._context) if keys else None
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.MAXMSGSIZE, messages.max_message_bytes(self.spec))
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.IPV6, "[" in address)
        self._router.setsockopt(zmq.RCVHWM, 64)
        self._router.setsockopt(zmq.SNDHWM, 16)  # an actor that never reads holds so many weights
        if keys:
            keys.apply(self._router)
        try:
            self._router.bind(address)
        except zmq.ZMQError as error:
            if self._authenticator:
                self._authenticator.stop()
            self._context.destroy(linger=0)
            instead = "choose another --bind"
            if address.startswith("ipc:"):
                instead = "choose --bind tcp://127.0.0.1:5555, or for a new run another --run-dir"
            why = zmq.strerror(error.errno or 0)
            raise ConfigError(f"Cannot listen on {address}: {why}; {instead}.") from None
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="transport", daemon=True)

    # -- called by the training thread ----------------------------------------------------------

    def start(self, taken_transitions: int) -> None:
        """taken_transitions: what the run had inserted before (0, or a resumed run's count)."""
        self._taken = self._env_steps = taken_transitions
        self._thread.start()

    def drain(self) -> list[Chunk]:
        """All chunks that arrived, in order. Raises TransportDied when no more can come."""
        if self._failure and not self._inbox:
            raise TransportDied("the transport thread died") from self._failure
        self._arrived.clear()
        chunks = []
        while self._inbox:
            chunks.append(self._inbox.popleft())
        return chunks

    def wait(self, timeout_seconds: float) -> None:
        """Until a chunk arrives or the time is up."""
        self._arrived.wait(timeout_seconds)

    def publish(self, weights: Weights) -> None:
        """Offer these weights from now on; every actor is told, and asks when it is ready."""
        self._weights = weights
        self._wake()

    def set_insert_limit(self, transitions: float, env_steps: int) -> None:
        """Grant no more than so many transitions in all; env_steps is told to the actors.

        A limit may fall, where more is to be learned from what there is; what was granted stays.
        Most updates raise the limit by less than a chunk. The I/O thread, which takes the
        interpreter from this one, is woken only where somebody without credit can now have some:
        the others hear of theirs when their next chunk is acknowledged.
        """
        self._env_steps = env_steps
        self._insert_limit = transitions
        taken, demand = self._after_grant
        if demand.without_credit and demand.met_by(self._insert_limit - taken):
            self._wake()

    @property
    def alive(self) -> int:
        """Actors that are being heard."""
        return len(self._sessions)

    @property
    def reports(self) -> dict[int, dict[str, float]]:
        """Where the time of each actor goes, by actor id."""
        return {session.actor_id: session.report for session in self._sessions}

    @property
    def restarts(self) -> int:
        """Actors that came back with a new session."""
        return self._sessions.restarts

    def stop(self) -> None:
        """Say goodbye to every actor and close; a second call does nothing."""
        if self._stopping:
            return
        self._stopping = True
        self._wake()
        for _ in range(5):  # one of them may pass while the whole process stands still
            if self._thread.is_alive():
                self._thread.join(timeout=1)
        if self._authenticator:
            self._authenticator.stop()
        self._context.destroy(linger=200)
        if self.address.startswith("ipc://"):
            with contextlib.suppress(OSError):  # the end is not for a disk that is gone to stop
                Path(self.address.removeprefix("ipc://")).unlink()
        self._wake_reader.close()
        self._wake_writer.close()

    # -- the I/O thread -------------------------------------------------------------------------

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has plenty of wake-ups to read already
            self._wake_writer.send(b"!")

    def _run(self) -> None:
        try:
            poller = zmq.Poller()
            poller.register(self._router, zmq.POLLIN)
            poller.register(self._wake_reader.fileno(), zmq.POLLIN)
            looked = searched = time.monotonic()
            while not self._stopping:
                ready = dict(poller.poll(_RETRY_MILLISECONDS if self._unsent_acks else 1000))
                before, looked = looked, time.monotonic()
                if looked - before > AWAY_SECONDS:
                    self._sessions.excuse(looked - before)
                if self._wake_reader.fileno() in ready:
                    self._wake_reader.recv(4096)
                    self._announce()
                all_heard = self._router not in ready or self._receive_all()
                if all_heard and looked - searched >= _SEARCH_SECONDS:
                    searched = looked
                    self._sessions.fence_silent(time.monotonic() - self._silent_seconds)
                self._grant()
                self._retry_acks()
            for session in self._sessions:
                bye = messages.encode(Header(Type.BYE, session.id))
                self._send(session.route, bye)
        except BaseException as error:
            self._failure = error
            self._arrived.set()

    def _receive_all(self, at_most: int = 64) -> bool:
        """Handle what has arrived; False when more may wait (wake-ups get their turn)."""
        for _ in range(at_most):
            try:
                parts = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return True
            if len(parts) != 2:
                self._count_refused(f"a message of {len(parts) - 1} frames, expected 1")
                continue
            route = parts[0].bytes
            try:
                self._handle(route, parts[1].buffer, _user_id(parts[1]))
            except OtherProtocol as error:
                self._count_refused(str(error))
                reject = Reject(f"{error}: install the same version of Volley on both", MISMATCH)
                self._send(route, messages.encode_reject(error.session, reject, error.version))
            except BadMessage as error:
                self._count_refused(str(error))
            except Exception as error:  # whatever one actor sends, the others are served
                self._count_refused(f"a message that could not be handled ({error!r})")
        return False

    def _handle(self, route: bytes, frame: memoryview, user: str) -> None:
        header = messages.decode_header(frame)
        if header.type == Type.HELLO:
            self._on_hello(route, header.session, messages.decode_hello(frame), user)
            return
        session = self._sessions.get(header.session)
        if session is None or session.user != user:
            self._count_refused("a message of an unknown or replaced session")
            if self._sessions.was_fenced(header.session):
                self._send_reject(route, header.session, _REPLACED, 1)
            return
        session.route, session.last_heard = route, time.monotonic()
        if header.type == Type.CHUNK:
            self._on_chunk(session, header, frame)
        elif header.type == Type.GET_WEIGHTS:
            self._send_weights(route)
        elif header.type == Type.PING:
            self._send_ack(session)
        elif header.type == Type.REPORT:
            session.report = messages.decode_report(frame)
        else:
            raise BadMessage(f"{header.type.name} is not for the learner")

    def _announce(self) -> None:
        """Newer weights are worth a word at once: the next chunk's ACK may be long in coming."""
        if self._weights and self._weights.version > self._announced_version:
            self._announced_version = self._weights.version
            for session in self._sessions:
                self._send_ack(session)

    def _send_weights(self, route: bytes) -> None:
        """Encoded once per version, and only if somebody asks for it."""
        weights = self._weights
        if weights is None:
            return
        if self._encoded_weights[0] != weights.version:
            self._encoded_weights = (weights.version, messages.encode_weights(weights))
        self._send(route, self._encoded_weights[1])

    def _on_hello(self, route: bytes, session_id: int, hello: Hello, user: str) -> None:
        ours, theirs = self.config.agreement(), hello.agreement
        if (other := theirs.get("run_id")) != ours["run_id"]:
            # Its own learner found this address taken, and is about to say so.
            self._count_refused(f"an actor of another run (run_id {other!r})")
            return
        if theirs != ours:
            name = next((k for k in ours if theirs.get(k) != ours[k]), "a setting too many")
            reason = (
                f"{name} is {theirs.get(name)!r} at the actor, {ours.get(name)!r} at the learner"
            )
            self._count_refused(reason)
            self._send_reject(route, session_id, reason, MISMATCH)
            return
        session = self._sessions.get(session_id)
        if session is None:
            if self._sessions.was_fenced(session_id):
                self._send_reject(route, session_id, _REPLACED, 1)
                return
            session = self._sessions.open(session_id, hello.actor_id, route, user)
        elif session.user != user:
            self._count_refused("a session is bound to its key")
            return
        session.route, session.last_heard = route, time.monotonic()
        self._grant()
        self._send_ack(session, Type.WELCOME)

    def _on_chunk(self, session: Session, header: Header, frame: memoryview) -> None:
        """Takes it if it is the next one. One that is further on is left: what lies between was
        lost, and its sender sends all of it again when no acknowledgement comes."""
        if header.seq <= session.acked_seq:
            self.stats.duplicates += 1
        elif header.seq == session.acked_seq + 1 and header.seq <= session.granted_seq:
            try:
                chunk = messages.decode_chunk(frame, self.spec)
            except BadMessage as error:  # its sender would only send it again
                self._send_reject(
                    session.route, session.id, f"a chunk was refused: {error}", MISMATCH
                )
                self._sessions.fence(session)
                raise
            self._sessions.took(session)
            self._taken += len(chunk)
            self.stats.bytes_in += len(frame)
            steps = self.steps_by_actor
            steps[session.actor_id] = steps.get(session.actor_id, 0) + len(chunk)
            self._inbox.append(chunk)
            self._arrived.set()
            self._grant()
        self._send_ack(session)

    def _grant(self) -> None:
        """Grants what the insert limit allows, and again if it has moved meanwhile.

        `set_insert_limit` goes by the demand that this last left: a rise that saw an older one did
        not wake this thread.
        """
        limit = math.nan
        while limit != self._insert_limit:
            limit = self._insert_limit
            for session in self._sessions.grant(limit - self._taken):
                self._send_ack(session)  # it may be blocked: tell it now
            self._after_grant = self._taken, self._sessions.demand

    def _send_ack(self, session: Session, kind: Type = Type.ACK) -> None:
        version = self._weights.version if self._weights else -1
        ack = Ack(session.acked_seq, session.granted_seq, version, self._env_steps)
        if not self._send(session.route, messages.encode_ack(kind, session.id, ack)):
            self._unsent_acks.add(session.id)

    def _retry_acks(self) -> None:
        """An actor that was away a moment finds its queue full of old ACKs, and would not hear of
        its newest credit before it asks: it is told as soon as there is room."""
        unsent, self._unsent_acks = self._unsent_acks, set()
        for session_id in unsent:
            if session := self._sessions.get(session_id):
                self._send_ack(session)

    def _send_reject(self, route: bytes, session_id: int, reason: str, exit_code: int) -> None:
        self._send(route, messages.encode_reject(session_id, Reject(reason, exit_code)))

    def _count_refused(self, reason: str) -> None:
        self.stats.refused += 1
        self.stats.last_refusal = reason

    def _send(self, route: bytes, message: bytes) -> bool:
        """-> False where the actor's queue is full. Every answer is repeated when it asks again."""
        try:
            self._router.send_multipart([route, message], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError:  # it is gone
            pass
        return True


def _user_id(part: zmq.Frame) -> str:
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        return ""
