"""An actor of the simulation: `actors/actor.py` and `common/dealer.py`, chunk by chunk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.scaling.events import Line
from common.sessions import Session

if TYPE_CHECKING:
    from benchmarks.scaling.simulation import Run

SEND_QUEUE = 16  # common/router.py: SNDHWM, messages to one actor
PING_SECONDS = RESEND_SECONDS = 1.0  # common/dealer.py: _keep_house, _send_granted
RESEND_MOST_SECONDS, RECONNECT_SECONDS = 8.0, 8.0
LEAST_PAUSE_SECONDS = 1e-3  # of an actor's clock


class Link:
    """One actor's connection: what it sends, and what is sent to it, each in order."""

    def __init__(self, run: Run) -> None:
        self._run, self.open = run, True
        self._in, self._in_io = Line(run.link_in), Line(run.io)
        self._out_io, self._out = Line(run.io), Line(run.link_out)
        self._queued = 0  # messages to the actor

    def to_learner(self, size: float, io_seconds: float, handle: partial[None]) -> None:
        """handle: a message, put before the transport thread once it has come through."""
        clock, latency = self._run.clock, self._run.latency

        def crossed() -> None:
            clock.after(latency, lambda: self._in_io.put(io_seconds, arrived))

        def arrived() -> None:
            if self.open:
                self._run.router.message(handle)

        self._in.put(size, crossed)

    def to_actor(self, size: float, io_seconds: float, handle: partial[None]) -> bool:
        """False where the queue is full: `_send` drops what it cannot send."""
        if self._queued >= SEND_QUEUE:
            return False
        self._queued += 1
        clock, latency = self._run.clock, self._run.latency

        def written() -> None:
            self._out.put(size, crossed)

        def crossed() -> None:
            self._queued -= 1
            clock.after(latency, arrived)

        def arrived() -> None:
            if self.open:
                handle()

        self._out_io.put(io_seconds, written)
        return True

    @property
    def idle(self) -> bool:
        """Nothing is on its way to the actor."""
        return not self._queued

    def close(self) -> None:
        self.open = False
        for line in (self._in, self._in_io, self._out_io, self._out):
            line.clear()


class Actor:
    """actors/actor.py and common/dealer.py: play, send, wait for credit, take weights."""

    def __init__(self, run: Run, session: Session) -> None:
        self.run, self.session = run, session  # the session is the learner's, never read here
        self.costs, self._window = run.scenario.costs, run.scenario.config.window_chunks
        self.link = Link(run)
        self.seq = self.acked = self.granted = self.sent = 0
        self.have = self.asked = self.newest = 0  # versions
        self.waiting_since: float | None = None
        self.waited = 0.0  # seconds without credit
        self._extra = 0.0  # work besides playing: weights that arrived
        self._welcomed = True
        self._heard = self._progress = self._pinged = self._connected = run.clock.now
        self._resend = RESEND_SECONDS

    def start(self) -> None:
        self._play()
        self.run.clock.after(PING_SECONDS, self._tick)

    def _play(self) -> None:
        work = self.run.chunk * self.costs.actor_step + self.costs.actor_chunk + self._extra
        self.run.actor_cores.begin(work, self._played)
        self._extra = 0.0

    def _played(self) -> None:
        self.seq += 1
        self.run.played(self.have)
        self._keep_house()
        self._go_on_or_wait()

    def _go_on_or_wait(self) -> None:
        under_way = self.seq - self.acked
        if self.seq <= self.granted and under_way <= self._window:
            if self.waiting_since is not None:
                self.waited += self.run.clock.now - self.waiting_since
                self.waiting_since = None
            self._play()
        elif self.waiting_since is None:
            self.waiting_since = self.run.clock.now

    def hear_ack(self, acked: int, granted: int, version: int) -> None:
        self._heard = self.run.clock.now
        if acked > self.acked:
            self.acked, self._progress, self._resend = acked, self._heard, RESEND_SECONDS
        self.granted, self.newest = max(self.granted, granted), max(self.newest, version)
        self._heard_something()

    def hear_welcome(self, acked: int, granted: int, version: int) -> None:
        self._welcomed, self.sent = True, acked
        self.hear_ack(acked, granted, version)

    def hear_weights(self, version: int) -> None:
        self._heard = self.run.clock.now
        self._extra += self.costs.actor_weights
        self.have = max(self.have, version)
        self._heard_something()

    def _heard_something(self) -> None:
        self._keep_house()
        if self.waiting_since is not None:
            self._go_on_or_wait()

    def _tick(self) -> None:
        """`_keep_house` runs at every step; it has to act only when one of its times is up."""
        self._keep_house()
        now = self.run.clock.now
        due = max(self._heard, self._pinged) + PING_SECONDS
        if self.acked < self.sent:
            due = min(due, self._progress + self._resend)
        self.run.clock.after(max(LEAST_PAUSE_SECONDS, due - now), self._tick)

    def _keep_house(self) -> None:
        run, now = self.run, self.run.clock.now
        if now - self._heard > RECONNECT_SECONDS < now - self._connected:
            self._reconnect()
        if not self._welcomed:
            if now - self._pinged >= PING_SECONDS:
                self._hello()
            return
        if now - max(self._heard, self._pinged) >= PING_SECONDS:
            self._pinged, self.asked = now, self.have
            self._say(partial(run.router.ping, self))
        if self.newest > max(self.have, self.asked):
            self.asked = self.newest
            self._say(partial(run.router.weights, self))
        self._send_granted(now)

    def _send_granted(self, now: float) -> None:
        if self.acked == self.seq or self.acked + 1 > self.granted:
            self._progress = now
            return
        if now - self._progress >= self._resend:
            self._progress, self._resend = now, min(RESEND_MOST_SECONDS, 2 * self._resend)
            self.run.resent += self.sent - self.acked
            self.sent = self.acked
        costs = self.costs
        for seq in range(self.sent + 1, min(self.seq, self.granted) + 1):
            handle = partial(self.run.router.chunk, self, seq)
            self.link.to_learner(costs.chunk_bytes, costs.io_chunk, handle)
            self.sent = seq

    def _reconnect(self) -> None:
        self.run.reconnects += 1
        self.link.close()
        self.link = Link(self.run)
        self._welcomed, self._connected = False, self.run.clock.now
        self._hello()

    def _hello(self) -> None:
        self._pinged = self.run.clock.now
        self._say(partial(self.run.router.hello, self))

    def _say(self, handle: partial[None]) -> None:
        if self.run.gathering is not None:
            self.run.gathering.append(handle)
            return
        costs = self.costs
        self.link.to_learner(costs.message_bytes, costs.io_message, handle)
