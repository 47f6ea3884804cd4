"""The one ROUTER of the learner and the one DEALER of each actor. ZeroMQ lives here only.

Nothing sent is lost, nothing arrives twice: chunks are numbered per session, kept by the actor
until acknowledged, taken by the learner only in order. Credit is explicit: an actor sends chunk s
only when the learner has granted it. Weights are fetched when an ACK names a newer version.
"""

import collections
import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from common import messages
from common.config import Config, ConfigError
from common.keys import ActorKeys, LearnerKeys
from common.messages import Ack, BadMessage, Chunk, Header, Hello, Reject, Spec, Type, Weights

_IPC_PATH_LIMIT = 100  # sun_path holds 107 characters; leave room for libzmq's suffixes
_EXIT_MISMATCH = 3
_REPLACED = "this actor was silent too long, or another with its number took its place"


class Refused(Exception):
    """The learner refused this actor. `exit_code` is what the actor process should end with."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class LearnerGone(Exception):
    """The learner said goodbye, or nothing was heard of it for too long."""


def ipc_endpoint(folder: Path) -> str:
    """ipc address of the socket file in `folder`, which becomes private (0700).

    A socket's path is limited to 107 characters; a longer one is reached through /proc/self/fd.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    path = folder / "learner.sock"
    if len(str(path)) > _IPC_PATH_LIMIT:
        if not Path("/proc/self/fd").is_dir():
            raise ConfigError(
                f"The run folder's path is too long for a socket ({path}): choose a shorter "
                "--run-dir, or --bind tcp://127.0.0.1:5555."
            )
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        path = Path(f"/proc/self/fd/{descriptor}/learner.sock")
    return f"ipc://{path}"


def endpoint(config: Config, run_dir: Path) -> str:
    return config.bind or ipc_endpoint(run_dir / "ipc")


@dataclass(slots=True)
class Session:
    """What the learner knows of one life of one actor."""

    id: int
    actor_id: int
    route: bytes
    user: str  # key that CURVE authenticated, "" without CURVE
    acked_seq: int = 0
    granted_seq: int = 0
    last_heard: float = field(default_factory=time.monotonic)


@dataclass
class TransportStats:
    """Counters since the start; the learner differentiates them."""

    chunks: int = 0
    bytes_in: int = 0
    refused: int = 0
    duplicates: int = 0
    last_refusal: str = ""
    restarts: int = 0


class LearnerEndpoint:
    """The ROUTER and the I/O thread that owns it and never stops polling.

    The training thread talks to it through `drain`, `publish`, `set_insert_limit` and `wait`.
    grants: a chunk is granted only while transitions taken or under way stay within the insert
    limit, so the limiter's promise holds however many actors there are.
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
        self.reports: dict[int, dict[str, float]] = {}  # actor id -> where its time goes
        self._silent_seconds = silent_seconds
        self._sessions: dict[int, Session] = {}
        self._seen_actors: set[int] = set()
        self._fenced: collections.deque[int] = collections.deque(maxlen=4096)
        self._inbox: collections.deque[Chunk] = collections.deque()
        self._arrived = threading.Event()
        self._taken = 0  # transitions received since the start of the run
        self._insert_limit = 0.0
        self._env_steps = 0
        self._weights: tuple[int, bytes] = (-1, b"")
        self._stopping, self._reason = False, ""
        self._failure: BaseException | None = None
        self._context = zmq.Context()
        self._authenticator = keys.start(self._context) if keys else None
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.MAXMSGSIZE, messages.max_message_bytes(self.spec))
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.RCVHWM, 64)
        if keys:
            keys.apply(self._router)
        try:
            self._router.bind(address)
        except zmq.ZMQError as error:
            if self._authenticator:
                self._authenticator.stop()
            self._context.destroy(linger=0)
            raise ConfigError(
                f"Cannot listen on {address}: {os.strerror(error.errno or 0)}; "
                "choose another --bind."
            ) from None
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
        """All chunks that arrived, in order. Raises what killed the I/O thread, if anything."""
        if self._failure:
            raise RuntimeError("the transport thread died") from self._failure
        self._arrived.clear()
        chunks = []
        while self._inbox:
            chunks.append(self._inbox.popleft())
        return chunks

    def wait(self, timeout_seconds: float) -> None:
        """Until a chunk arrives or the time is up."""
        self._arrived.wait(timeout_seconds)

    def publish(self, weights: Weights) -> None:
        """Offer these weights from now on; actors learn of them with their next ACK."""
        self._weights = (weights.version, messages.encode_weights(weights))

    def set_insert_limit(self, transitions: float, env_steps: int) -> None:
        """Never take more than so many transitions in all; env_steps is told to the actors."""
        self._env_steps = env_steps
        if transitions > self._insert_limit:
            self._insert_limit = transitions
            self._wake()

    @property
    def alive(self) -> int:
        return len(self._sessions)

    def stop(self, reason: str = "the run is over") -> None:
        """Say goodbye to every actor and close; a second call does nothing."""
        if self._stopping:
            return
        self._reason = reason
        self._stopping = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        if self._authenticator:
            self._authenticator.stop()
        self._context.destroy(linger=200)
        if self.address.startswith("ipc://"):
            Path(self.address.removeprefix("ipc://")).unlink(missing_ok=True)
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
            while not self._stopping:
                ready = dict(poller.poll(1000))
                if self._wake_reader.fileno() in ready:
                    self._wake_reader.recv(4096)
                if self._router not in ready or self._receive_all():
                    self._drop_silent()  # only once everything they said has been heard
                self._grant()
            for session in self._sessions.values():
                bye = messages.encode(Header(Type.BYE, session.id), self._reason)
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
                self._refuse(f"a message of {len(parts) - 1} frames, expected 1")
                continue
            try:
                self._handle(parts[0].bytes, parts[1].buffer, _user_id(parts[1]))
            except BadMessage as error:
                self._refuse(str(error))
        return False

    def _handle(self, route: bytes, frame: memoryview, user: str) -> None:
        header = messages.decode_header(frame)
        if header.type == Type.HELLO:
            self._hello(route, header.session, messages.decode_hello(frame), user)
            return
        session = self._sessions.get(header.session)
        if session is None or session.user != user:
            self._refuse("a message of an unknown or replaced session")
            if header.session in self._fenced:
                self._reject(route, header.session, _REPLACED, 1)
            return
        session.route, session.last_heard = route, time.monotonic()
        if header.type == Type.CHUNK:
            self._chunk(session, header, frame)
        elif header.type == Type.GET_WEIGHTS:
            version, encoded = self._weights
            if version >= 0:
                self._send(route, encoded)
        elif header.type == Type.PING:
            self._ack(session)
        elif header.type == Type.REPORT:
            self.reports[session.actor_id] = messages.decode_report(frame)
        else:
            raise BadMessage(f"{header.type.name} is not for the learner")

    def _hello(self, route: bytes, session_id: int, hello: Hello, user: str) -> None:
        if hello.agreement_hash != self.config.agreement_hash():
            theirs = hello.agreement
            differ = [k for k, v in self.config.agreement().items() if theirs.get(k) != v]
            name = differ[0] if differ else "agreement"
            ours = self.config.agreement().get(name)
            reason = f"{name} is {theirs.get(name)!r} at the actor, {ours!r} at the learner"
            self._refuse(reason)
            self._reject(route, session_id, reason, _EXIT_MISMATCH)
            return
        session = self._sessions.get(session_id)
        if session is None:
            if session_id in self._fenced:
                self._reject(route, session_id, _REPLACED, 1)
                return
            for old in [s for s in self._sessions.values() if s.actor_id == hello.actor_id]:
                self._fence(old)
            if hello.actor_id in self._seen_actors:
                self.stats.restarts += 1
            self._seen_actors.add(hello.actor_id)
            session = Session(session_id, hello.actor_id, route, user)
            self._sessions[session_id] = session
        elif session.user != user:
            self._refuse("a session is bound to its key")
            return
        session.route, session.last_heard = route, time.monotonic()
        self._grant()
        self._ack(session, Type.WELCOME)

    def _chunk(self, session: Session, header: Header, frame: memoryview) -> None:
        if header.seq <= session.acked_seq:
            self.stats.duplicates += 1
        elif header.seq == session.acked_seq + 1 and header.seq <= session.granted_seq:
            chunk = messages.decode_chunk(frame, self.spec)
            session.acked_seq = header.seq
            self._taken += len(chunk)
            self.stats.chunks += 1
            self.stats.bytes_in += len(frame)
            steps = self.steps_by_actor
            steps[session.actor_id] = steps.get(session.actor_id, 0) + len(chunk)
            self._inbox.append(chunk)
            self._arrived.set()
            self._grant()
        # Out of order: something before it was lost; the ACK tells the actor where to go on.
        self._ack(session)

    def _grant(self) -> None:
        """Hand out credit, one chunk at a time to whoever has least, while the limit allows."""
        room = self._insert_limit - self._taken
        size = self.spec.chunk_transitions
        room -= size * sum(s.granted_seq - s.acked_seq for s in self._sessions.values())
        given: dict[int, Session] = {}
        while room >= size or (room > 0 and self._idle()):
            open_sessions = [
                s
                for s in self._sessions.values()
                if s.granted_seq - s.acked_seq < self.config.window_chunks
            ]
            if not open_sessions:
                break
            session = min(open_sessions, key=lambda s: s.granted_seq - s.acked_seq)
            if session.granted_seq == session.acked_seq:
                given[session.id] = session  # it may be blocked: tell it now
            session.granted_seq += 1
            room -= size
        for session in given.values():
            self._ack(session)

    def _idle(self) -> bool:
        return all(s.granted_seq == s.acked_seq for s in self._sessions.values())

    def _drop_silent(self) -> None:
        oldest = time.monotonic() - self._silent_seconds
        for session in [s for s in self._sessions.values() if s.last_heard < oldest]:
            self._fence(session)

    def _fence(self, session: Session) -> None:
        """The session ends; its unused grants return, its late chunks are refused."""
        del self._sessions[session.id]
        self._fenced.append(session.id)

    def _ack(self, session: Session, kind: Type = Type.ACK) -> None:
        ack = Ack(session.acked_seq, session.granted_seq, self._weights[0], self._env_steps)
        self._send(session.route, messages.encode_ack(kind, session.id, ack))

    def _reject(self, route: bytes, session_id: int, reason: str, exit_code: int) -> None:
        self._send(route, messages.encode_reject(session_id, Reject(reason, exit_code)))

    def _refuse(self, reason: str) -> None:
        self.stats.refused += 1
        self.stats.last_refusal = reason

    def _send(self, route: bytes, message: bytes) -> None:
        # Gone or stuck: every answer is repeated when the actor asks again.
        with contextlib.suppress(zmq.ZMQError):
            self._router.send_multipart([route, message], zmq.NOBLOCK, copy=False)


def _user_id(part: zmq.Frame) -> str:
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        return ""


class ActorEndpoint:
    """The DEALER of one actor, used from its acting loop; no thread of its own.

    on_wait: called at least once a second while waiting, so that the caller can show life.
    """

    def __init__(
        self,
        config: Config,
        address: str,
        actor_id: int,
        weights_size: int,
        keys: ActorKeys | None = None,
        on_wait: Callable[[], None] = lambda: None,
        silent_seconds: float = 120.0,
        reconnect_seconds: float = 8.0,
    ) -> None:
        self.config, self.address, self.actor_id = config, address, actor_id
        self.session = secrets.randbits(63) | 1
        self.env_steps = 0  # of the whole run, as last told
        self._keys, self._on_wait, self._weights_size = keys, on_wait, weights_size
        self._silent_seconds, self._reconnect_seconds = silent_seconds, reconnect_seconds
        self._seq = 0
        self._window: collections.deque[tuple[int, bytes]] = collections.deque()
        self._sent_seq = self._granted_seq = 0  # chunks up to these: transmitted; allowed to be
        self._newest_version = self._asked_version = self._have_version = -1
        self._fresh: Weights | None = None
        self._welcomed = self.said_goodbye = False
        self._last_heard = self._last_asked = self._last_progress = time.monotonic()
        self._resend_seconds = 1.0
        self._context = zmq.Context()
        self._connect()

    def handshake(self, timeout_seconds: float = 60.0) -> None:
        """Until the learner welcomes this session. Raises Refused or LearnerGone."""
        deadline = time.monotonic() + timeout_seconds
        while not self._welcomed:
            self._receive(100)
            self._on_wait()
            if time.monotonic() > deadline:
                hint = "; does it have our key?" if self._keys else ""
                raise LearnerGone(f"no answer from {self.address} in {timeout_seconds:g} s{hint}")
            if time.monotonic() - self._last_asked > 1.0:
                self._hello()

    def send(self, chunk: Chunk) -> None:
        """Take responsibility for a chunk; returns once it is under way or allowed to wait.

        Blocks while the window is full or the learner withholds credit.
        """
        self._seq += 1
        message = messages.encode_chunk(self.session, self._seq, chunk)
        self._window.append((self._seq, message))
        self._receive(0)
        while self._seq > self._granted_seq or len(self._window) > self.config.window_chunks:
            self._receive(200)
            self._on_wait()

    def poll(self) -> Weights | None:
        """Hear what came in. Returns newer weights when there are any, each version once."""
        self._receive(0)
        fresh, self._fresh = self._fresh, None
        return fresh

    def report(self, shares: dict[str, float]) -> None:
        """Tell where the time goes; it may be lost, the next one comes soon."""
        self._transmit(messages.encode_report(self.session, shares))

    @property
    def unacknowledged(self) -> int:
        return len(self._window)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _connect(self) -> None:
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.LINGER, 0)
        limit = messages.max_message_bytes(Spec.of(self.config), self._weights_size)
        self._dealer.setsockopt(zmq.MAXMSGSIZE, limit)
        self._dealer.setsockopt(zmq.RECONNECT_IVL, 100)
        self._dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        if self._keys:
            self._keys.apply(self._dealer)
        self._dealer.connect(self.address)
        self._connected_at = time.monotonic()
        self._hello()

    def _reconnect(self) -> None:
        """A link that went dead without a word (a black hole, a moved learner): start it anew."""
        self._dealer.close(linger=0)
        self._welcomed = False
        self._connect()

    def _hello(self) -> None:
        config = self.config
        hello = Hello(self.actor_id, config.agreement_hash(), config.agreement())
        self._transmit(messages.encode_hello(self.session, hello))
        self._last_asked = time.monotonic()

    def _receive(self, timeout_milliseconds: int) -> None:
        """Handle everything that has arrived, waiting for a first message; then keep house."""
        while self._dealer.poll(timeout_milliseconds):
            timeout_milliseconds = 0
            frame = self._dealer.recv(copy=False).buffer
            try:
                self._handle(messages.decode_header(frame), frame)
            except BadMessage:
                continue  # not from our learner, or damaged; what matters is repeated
        self._keep_house()

    def _handle(self, header: Header, frame: memoryview) -> None:
        if header.session not in (self.session, messages.ANY_SESSION):
            return
        self._last_heard = time.monotonic()
        if header.type in (Type.ACK, Type.WELCOME):
            ack = messages.decode_ack(frame)
            if header.type == Type.WELCOME:
                self._welcome(ack)
            self._acknowledged(ack)
        elif header.type == Type.WEIGHTS:
            weights = messages.decode_weights(frame, self._weights_size)
            if weights.version > self._have_version:
                self._have_version, self._fresh = weights.version, weights
        elif header.type == Type.REJECT:
            reject = messages.decode_reject(frame)
            raise Refused(reject.reason, reject.exit_code)
        elif header.type == Type.BYE:
            self.said_goodbye = True
            raise LearnerGone("the learner has finished")

    def _welcome(self, ack: Ack) -> None:
        oldest = self._window[0][0] if self._window else self._seq + 1
        if ack.acked_seq < oldest - 1:
            raise LearnerGone("the learner was restarted and no longer knows this session")
        self._welcomed = True
        self._sent_seq = ack.acked_seq

    def _acknowledged(self, ack: Ack) -> None:
        while self._window and self._window[0][0] <= ack.acked_seq:
            self._window.popleft()
            self._last_progress, self._resend_seconds = time.monotonic(), 1.0
        self._granted_seq = max(self._granted_seq, ack.granted_seq)
        self._newest_version = max(self._newest_version, ack.weights_version)
        self.env_steps = ack.env_steps

    def _keep_house(self) -> None:
        """What the clock demands: send, ask, ping, resend, reconnect, give up."""
        now = time.monotonic()
        silent = now - self._last_heard
        if silent > self._silent_seconds:
            raise LearnerGone(f"nothing heard of the learner for {self._silent_seconds:g} s")
        if silent > self._reconnect_seconds < now - self._connected_at:
            self._reconnect()
        if not self._welcomed:
            return
        if now - max(self._last_heard, self._last_asked) > 1.0:
            self._last_asked = now
            self._asked_version = self._have_version  # the answer may have been lost
            self._transmit(messages.encode(Header(Type.PING, self.session)))
        if self._newest_version > max(self._have_version, self._asked_version):
            self._asked_version = self._newest_version
            self._transmit(messages.encode(Header(Type.GET_WEIGHTS, self.session)))
        self._send_granted(now)

    def _send_granted(self, now: float) -> None:
        if not self._window or self._window[0][0] > self._granted_seq:
            self._last_progress = now  # nothing is owed an acknowledgement
            return
        if now - self._last_progress > self._resend_seconds:
            self._last_progress, self._resend_seconds = now, min(8.0, 2 * self._resend_seconds)
            self._sent_seq = self._window[0][0] - 1
        for seq, message in self._window:
            if self._sent_seq < seq <= self._granted_seq:
                self._transmit(message)
                self._sent_seq = seq

    def _transmit(self, message: bytes) -> None:
        with contextlib.suppress(zmq.Again):  # no peer, or its queue is full: it is sent again
            self._dealer.send(message, zmq.NOBLOCK, copy=False)
