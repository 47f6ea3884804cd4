"""An actor's side of the transport: one DEALER, used from the acting loop, without a thread.

The other side, and what both promise, is `common/router.py`.
"""

import collections
import contextlib
import secrets
import time
from collections.abc import Callable

import zmq

from common import messages
from common.config import Config
from common.errors import AUTHENTICATION, MISMATCH, Refused
from common.keys import ActorKeys, HandshakeWatch
from common.lifeline import AWAY_SECONDS
from common.messages import (
    Ack,
    BadMessage,
    Chunk,
    Header,
    Hello,
    OtherProtocol,
    Spec,
    Type,
    Weights,
)


class LearnerGone(Exception):
    """The learner said goodbye, or nothing was heard of it for too long."""


class ActorEndpoint:
    """The blocking calls of an actor's loop; no thread of its own.

    weights_size: floats of the weights that it will be given; on_wait: called at least once a
    second while waiting, so that the caller can show life; silent_seconds: after which a learner
    that is not heard is gone; reconnect_seconds: after which a connection that is, is begun anew.
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
        self._welcomed = self._ever_welcomed = self.said_goodbye = False
        self._looked = self._last_heard = self._last_asked = self._last_progress = time.monotonic()
        self._resend_seconds = 1.0
        self._context = zmq.Context()
        self._connect()

    def handshake(self, timeout_seconds: float = 300.0) -> None:
        """Until the learner welcomes this session. Raises Refused or LearnerGone."""
        deadline = time.monotonic() + timeout_seconds
        while not self._welcomed:
            self._receive(100)
            self._on_wait()
            if time.monotonic() > deadline:
                raise LearnerGone(
                    f"no answer from {self.address} in {timeout_seconds:g} s; the learner's log, "
                    "in the run folder's logs, may say why"
                )

    def send(self, chunk: Chunk) -> None:
        """Queue one chunk; it is sent again until it is acknowledged.

        Blocks while there is no credit for it, or more than window_chunks are unacknowledged.
        Raises Refused or LearnerGone.
        """
        self._seq += 1
        message = messages.encode_chunk(self.session, self._seq, chunk)
        self._window.append((self._seq, message))
        self._receive(0)
        while self._seq > self._granted_seq or len(self._window) > self.config.window_chunks:
            self._receive(200)
            self._on_wait()

    def poll(self) -> Weights | None:
        """Hear what came in. -> newer weights when there are any, each version once.

        Raises Refused or LearnerGone.
        """
        self._receive(0)
        fresh, self._fresh = self._fresh, None
        return fresh

    def first_weights(self) -> Weights:
        """Wait for the weights to begin with. Raises Refused or LearnerGone."""
        while not (weights := self.poll()):
            self._receive(100)
            self._on_wait()
        return weights

    def report(self, shares: dict[str, float]) -> None:
        """Tell where the time goes; it may be lost, the next one comes soon."""
        self._transmit(messages.encode_report(self.session, shares))

    @property
    def unacknowledged(self) -> int:
        return len(self._window)

    def close(self) -> None:
        self._watch.close()
        self._context.destroy(linger=0)

    def _connect(self) -> None:
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.LINGER, 0)
        limit = messages.max_message_bytes(Spec.of(self.config), self._weights_size)
        self._dealer.setsockopt(zmq.MAXMSGSIZE, limit)
        self._dealer.setsockopt(zmq.IPV6, "[" in self.address)
        self._dealer.setsockopt(zmq.RECONNECT_IVL, 100)
        self._dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        if self._keys:
            self._keys.apply(self._dealer)
        self._watch = HandshakeWatch(self._dealer, keys=self._keys is not None)
        self._dealer.connect(self.address)
        self._connected_at = time.monotonic()
        self._send_hello()

    def _reconnect(self) -> None:
        """A link that went dead without a word (a black hole, a moved learner): start it anew."""
        self._watch.close()
        self._dealer.close(linger=0)
        self._welcomed = False
        self._connect()

    def _send_hello(self) -> None:
        hello = Hello(self.actor_id, self.config.agreement())
        self._transmit(messages.encode_hello(self.session, hello))
        self._last_asked = time.monotonic()

    def _receive(self, timeout_milliseconds: int) -> None:
        """Handle everything that has arrived, waiting for a first message; then keep house."""
        while self._dealer.poll(timeout_milliseconds):
            timeout_milliseconds = 0
            frame = self._dealer.recv(copy=False).buffer
            try:
                self._handle(messages.decode_header(frame), frame)
            except OtherProtocol as error:
                why = f"{error}: install the same version of Volley on both"
                raise self._refusal(why, MISMATCH) from None
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
                self._on_welcome(ack)
            self._on_ack(ack)
        elif header.type == Type.WEIGHTS:
            try:
                weights = messages.decode_weights(frame, self._weights_size)
            except BadMessage as error:  # whole, so meant: asking again would not help
                why = f"actor {self.actor_id} refuses the learner's weights: {error}."
                raise Refused(why, MISMATCH) from None
            if weights.version > self._have_version:
                self._have_version, self._fresh = weights.version, weights
        elif header.type == Type.REJECT:
            reject = messages.decode_reject(frame)
            raise self._refusal(reject.reason, reject.exit_code)
        elif header.type == Type.BYE:
            self.said_goodbye = True
            raise LearnerGone("the learner has finished")

    def _refusal(self, reason: str, exit_code: int) -> Refused:
        return Refused(f"the learner refused actor {self.actor_id}: {reason}.", exit_code)

    def _on_welcome(self, ack: Ack) -> None:
        oldest = self._window[0][0] if self._window else self._seq + 1
        if ack.acked_seq < oldest - 1:
            raise LearnerGone("the learner was restarted and no longer knows this session")
        self._welcomed = self._ever_welcomed = True
        self._watch.close()  # its socket fills where nobody reads it, and libzmq blocks on that
        self._sent_seq = ack.acked_seq

    def _on_ack(self, ack: Ack) -> None:
        while self._window and self._window[0][0] <= ack.acked_seq:
            self._window.popleft()
            self._last_progress, self._resend_seconds = time.monotonic(), 1.0
        self._granted_seq = max(self._granted_seq, ack.granted_seq)
        self._newest_version = max(self._newest_version, ack.weights_version)
        self.env_steps = ack.env_steps

    def _keep_house(self) -> None:
        """What the clock demands: send, ask, ping, resend, reconnect, give up."""
        now = time.monotonic()
        away = now - self._looked > AWAY_SECONDS
        if away:
            self._last_heard = now
        self._looked = now
        silent = now - self._last_heard
        if not self._welcomed and (why := self._watch.refusal(certain=self._ever_welcomed)):
            raise self._refusal(why, AUTHENTICATION)
        if silent > self._silent_seconds and self._ever_welcomed:
            raise LearnerGone(f"nothing heard of the learner for {self._silent_seconds:g} s")
        if min(silent, now - self._connected_at) > self._reconnect_seconds:
            self._reconnect()
        if not self._welcomed:
            if now - self._last_asked > 1.0:
                self._send_hello()
            return
        if away or now - max(self._last_heard, self._last_asked) > 1.0:
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
