"""The learner of the simulation: its transport thread and its training thread."""

from __future__ import annotations

import collections
import math
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.scaling.actor_model import Actor
from benchmarks.scaling.events import Action, Shared
from learner.limiter import Limiter

if TYPE_CHECKING:
    from benchmarks.scaling.simulation import Run

TURN_MESSAGES = 64  # common/router.py: _receive_all, between two looks at everything else


class Router:
    """common/router.py: one thread takes messages in turns, announces weights, grants credit."""

    def __init__(self, run: Run, cores: Shared) -> None:
        self.run, self.taken = run, 0  # transitions
        self.insert_limit, self._announced, self._encoded = 0.0, 0, 0
        self._messages: collections.deque[partial[None]] = collections.deque()
        self._in_turn, self._busy, self._awake = 0, False, False
        self._owing = 0.0  # seconds of work that an effect turned out to take
        self._cores, self._costs = cores, run.scenario.costs
        self._busy_seconds, self._since = 0.0, 0.0

    def busy_seconds(self) -> float:
        return self._busy_seconds + (self.run.clock.now - self._since if self._busy else 0.0)

    @property
    def version(self) -> int:
        return len(self.run.versions) - 1

    def message(self, handle: partial[None]) -> None:
        self._messages.append(handle)
        self._go()

    def wake(self) -> None:
        """By the training thread: a version or a limit is new."""
        self._awake = True
        self._go()

    def _go(self) -> None:
        if not self._busy:
            self._busy, self._since = True, self.run.clock.now
            self._turn()

    def _turn(self) -> None:
        """`_run`: first the wake-up, then messages, at the end credit."""
        self._in_turn = 0
        if self._awake:
            self._awake = False
            if self.version > self._announced:
                work = len(self.run.actors) * self._costs.router_ack
                self._work(work, self._announce)
                return
        self._next()

    def _announce(self) -> None:
        self._announced = self.version
        answers: list[Action] = []
        for actor in self.run.actors:
            if actor.link.idle:
                answers.append(self._answer(actor))
            else:
                self.ack(actor)
        if answers:
            self.run.broadcast(answers)
        self._next()

    def _next(self) -> None:
        if self._messages and self._in_turn < TURN_MESSAGES:
            self._in_turn += 1
            handle = self._messages.popleft()
            self._work(self._cost(handle), partial(self._handled, handle))
            return
        if self._owing:
            self._work(0.0, self._turned)
        else:
            self._turned()

    def _handled(self, handle: partial[None]) -> None:
        handle()
        self._next()

    def _turned(self) -> None:
        self._grant()
        if self._messages or self._awake or self._owing:
            self._turn()
        else:
            self._busy = False
            self._busy_seconds += self.run.clock.now - self._since

    def _work(self, seconds: float, done: Action) -> None:
        seconds, self._owing = seconds + self._owing, 0.0
        self._cores.begin(seconds, done)

    def _cost(self, handle: partial[None]) -> float:
        costs = self._costs
        if handle.func == self.chunk:
            return costs.router_chunk
        if handle.func == self.weights:
            new = self._encoded != self.version
            return costs.router_weights + (costs.router_encode if new else 0.0)
        return costs.router_ping

    # -- what a message does, when it has been paid for -------------------------------------------

    def chunk(self, actor: Actor, seq: int) -> None:
        session = actor.session
        if session.acked_seq < seq <= session.granted_seq and seq == session.acked_seq + 1:
            self.run.sessions.took(session)
            self.taken += self.run.chunk
            self.run.trainer.arrived()
            self._grant()
        else:
            self.run.duplicates += seq <= session.acked_seq
        self.ack(actor)

    def ping(self, actor: Actor) -> None:
        self.ack(actor)

    def hello(self, actor: Actor) -> None:
        session = actor.session
        acked, granted = session.acked_seq, session.granted_seq
        answer = partial(actor.hear_welcome, acked, granted, self.version)
        self._send(actor, self._costs.message_bytes, answer, small=True)

    def weights(self, actor: Actor) -> None:
        self._encoded = self.version
        answer = partial(actor.hear_weights, self.version)
        self._send(actor, self._costs.weights_bytes, answer, small=False)

    def ack(self, actor: Actor) -> None:
        self._send(actor, self._costs.message_bytes, self._answer(actor), small=True)

    def _answer(self, actor: Actor) -> partial[None]:
        session = actor.session
        return partial(actor.hear_ack, session.acked_seq, session.granted_seq, self.version)

    def _send(self, actor: Actor, size: float, answer: partial[None], *, small: bool) -> None:
        io_seconds = self._costs.io_message if small else self._costs.io_weights
        self.run.dropped += not actor.link.to_actor(size, io_seconds, answer)

    def _grant(self) -> None:
        woken = self.run.sessions.grant(self.insert_limit - self.taken)
        self._owing += len(woken) * self._costs.router_ack
        for session in woken:
            self.ack(self.run.actors[session.actor_id])


class Trainer:
    """learner/process.py, `learn`: store what arrived, update if the limiter allows, publish."""

    def __init__(self, run: Run, cores: Shared) -> None:
        config = run.scenario.config
        self.run, self._cores = run, cores
        self.limiter = Limiter(
            config.samples_per_insert,
            run.scenario.tolerance_samples,
            config.learning_starts_transitions,
        )
        self.inserted, self.sampled, self.updates = 0, 0, 0
        self.stored = 0  # chunks
        self._inbox = 0  # chunks
        self._since: float | None = None  # the turn in progress began
        self._next_publish, self._busy = 0.0, 0.0
        self._published = 0  # periods of updates, at the newest version

    def busy_seconds(self) -> float:
        return self._busy + (0.0 if self._since is None else self.run.clock.now - self._since)

    def begin(self) -> None:
        self._turn()

    def arrived(self) -> None:
        self._inbox += 1
        if self._since is None:
            self._turn()

    def insert_limit(self) -> float:
        return self.limiter.insert_limit(self.sampled) if self.run.scenario.learning else math.inf

    def _turn(self) -> None:
        costs = self.run.scenario.costs
        chunks, self._inbox = self._inbox, 0
        self.inserted += chunks * self.run.chunk
        self.stored += chunks
        learns = self.run.scenario.learning and self.limiter.may_sample(self.inserted, self.sampled)
        publishes = learns and self._due()
        seconds = chunks * costs.store
        seconds += (costs.update if learns else 0.0) + (costs.publish if publishes else 0.0)
        if not seconds:
            return
        self._since = self.run.clock.now
        self._cores.begin(seconds, partial(self._turned, learns, publishes))

    def _turned(self, learns: bool, publishes: bool) -> None:
        assert self._since is not None
        now, router = self.run.clock.now, self.run.router
        self._busy += now - self._since
        self._since = None
        if learns:
            self.sampled += self.run.scenario.config.batch_size
            self.updates += 1
        if publishes:
            self._next_publish = now + self.run.scenario.publish_seconds
            self._published = self._period(self.updates)
            self.run.versions.append((now, self.updates))
        router.insert_limit = self.insert_limit()
        demand = self.run.sessions.demand
        if publishes or (
            demand.without_credit and demand.met_by(router.insert_limit - router.taken)
        ):
            router.wake()
        self._turn()

    def _due(self) -> bool:
        """After the update that comes."""
        new = self._period(self.updates + 1) > self._published
        return new and self.run.clock.now >= self._next_publish

    def _period(self, updates: int) -> int:
        return updates // self.run.scenario.config.publish_period_updates
