"""A run of N actors and one learner, simulated: chunks, credit, acknowledgements, weights.

    actor ─▶ [its link, the learner's link in] ─▶ ZeroMQ's thread ─▶ transport thread ─▶ training
    actor ◀─ [the learner's link out, its link] ◀─ ZeroMQ's thread ◀─┘

Each part follows the code that it stands for and names it; what a part costs is measured
(`benchmarks/costs.py`). An event is a chunk, a message or an update, never an env step.

Left out: games that end inside a chunk, checkpoints, Python's lock (the learner's two Python
threads work side by side here), lost packets, actors that crash.
"""

import collections
import math
from dataclasses import dataclass
from functools import partial

from benchmarks.credit import Account, Credit
from benchmarks.events import Action, Clock, Line, Shared
from benchmarks.scenario import Scenario
from learner.limiter import Limiter

SEND_QUEUE = 16  # common/router.py: SNDHWM, messages to one actor
TURN_MESSAGES = 64  # common/router.py: _receive_all, between two looks at everything else
PING_SECONDS = RESEND_SECONDS = 1.0  # common/dealer.py: _keep_house, _send_granted
RESEND_MOST_SECONDS, RECONNECT_SECONDS = 8.0, 8.0
WAIT_SECONDS = 0.1  # learner/learner.py: learn, when there is nothing to train on
LEAST_PAUSE = 1e-3  # of an actor's clock


class Link:
    """One actor's connection: what it sends, and what is sent to it, each in order."""

    def __init__(self, run: "Run") -> None:
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

    def close(self) -> None:
        self.open = False
        for line in (self._in, self._in_io, self._out_io, self._out):
            line.clear()


class Actor:
    """actors/actor.py and common/dealer.py: play, send, wait for credit, take weights."""

    def __init__(self, run: "Run", account: Account) -> None:
        self.run, self.account = run, account  # the account is the learner's, never read here
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
        costs = self.run.scenario.costs
        steps = self.run.chunk * costs.actor_step
        self.run.actor_cores.begin(steps + costs.actor_chunk + self._extra, self._played)
        self._extra = 0.0

    def _played(self) -> None:
        self.seq += 1
        self.run.played(self.have)
        self._keep_house()
        self._go_on_or_wait()

    def _go_on_or_wait(self) -> None:
        under_way = self.seq - self.acked
        if self.seq <= self.granted and under_way <= self.run.scenario.config.window_chunks:
            if self.waiting_since is not None:
                self.waited += self.run.clock.now - self.waiting_since
                self.waiting_since = None
            self._play()
        elif self.waiting_since is None:
            self.waiting_since = self.run.clock.now
            self.run.starved = True

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
        self._extra += self.run.scenario.costs.actor_weights
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
        self.run.clock.after(max(LEAST_PAUSE, due - now), self._tick)

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
        costs = self.run.scenario.costs
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
        costs = self.run.scenario.costs
        self.link.to_learner(costs.message_bytes, costs.io_message, handle)


class Router:
    """common/router.py: one thread takes messages in turns, announces weights, grants credit."""

    def __init__(self, run: "Run", cores: Shared) -> None:
        self.run, self.taken = run, 0  # transitions
        self.insert_limit, self._announced, self._encoded = 0.0, 0, 0
        self._messages: collections.deque[partial[None]] = collections.deque()
        self._in_turn, self._busy, self._awake = 0, False, False
        self._owing = 0.0  # seconds of work that an effect turned out to take
        self._cores = cores
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
                work = len(self.run.actors) * self.run.scenario.costs.router_ack
                self._work(work, self._announce)
                return
        self._next()

    def _announce(self) -> None:
        self._announced = self.version
        for actor in self.run.actors:
            self.ack(actor)
        self._next()

    def _next(self) -> None:
        if self._messages and self._in_turn < TURN_MESSAGES:
            self._in_turn += 1
            handle = self._messages.popleft()
            self._work(self._cost(handle), partial(self._handled, handle))
            return
        costs, sessions = self.run.scenario.costs, len(self.run.actors)
        fence = 0.0 if self._messages else costs.router_fence
        self._work(sessions * (fence + costs.router_look), self._turned)

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
        costs = self.run.scenario.costs
        if handle.func == self.chunk:
            return costs.router_chunk + len(self.run.actors) * costs.router_look
        if handle.func == self.weights:
            new = self._encoded != self.version
            return costs.router_weights + (costs.router_encode if new else 0.0)
        return costs.router_ping

    # -- what a message does, when it has been paid for -------------------------------------------

    def chunk(self, actor: Actor, seq: int) -> None:
        account = actor.account
        if account.acked_seq < seq <= account.granted_seq and seq == account.acked_seq + 1:
            self.run.credit.taken(account)
            self.taken += self.run.chunk
            self.run.trainer.arrived()
            self._grant()
        else:
            self.run.duplicates += seq <= account.acked_seq
        self.ack(actor)

    def ping(self, actor: Actor) -> None:
        self.ack(actor)

    def hello(self, actor: Actor) -> None:
        account = actor.account
        acked, granted = account.acked_seq, account.granted_seq
        answer = partial(actor.hear_welcome, acked, granted, self.version)
        self._send(actor, self.run.scenario.costs.message_bytes, answer, small=True)

    def weights(self, actor: Actor) -> None:
        self._encoded = self.version
        answer = partial(actor.hear_weights, self.version)
        self._send(actor, self.run.scenario.costs.weights_bytes, answer, small=False)

    def ack(self, actor: Actor) -> None:
        account = actor.account
        answer = partial(actor.hear_ack, account.acked_seq, account.granted_seq, self.version)
        self._send(actor, self.run.scenario.costs.message_bytes, answer, small=True)

    def _send(self, actor: Actor, size: float, answer: partial[None], *, small: bool) -> None:
        costs = self.run.scenario.costs
        io_seconds = costs.io_message if small else costs.io_weights
        self.run.dropped += not actor.link.to_actor(size, io_seconds, answer)

    def _grant(self) -> None:
        costs, sessions = self.run.scenario.costs, len(self.run.actors)
        woken, granted = self.run.credit.grant(self.insert_limit - self.taken)
        self._owing += granted * sessions * costs.router_grant + len(woken) * costs.router_ack
        for account in woken:
            self.ack(self.run.actors[account.actor])


class Trainer:
    """learner/learner.py, `learn`: store what arrived, update if the limiter allows, publish."""

    def __init__(self, run: "Run", cores: Shared) -> None:
        config = run.scenario.config
        self.run, self._cores = run, cores
        self.limiter = Limiter(
            config.samples_per_insert,
            run.scenario.tolerance_samples,
            config.learning_starts_transitions,
        )
        self.inserted, self.sampled, self.updates = 0, 0, 0
        self.stored = 0  # chunks
        self.starved = False  # of data, ever
        self._inbox = 0  # chunks
        self._since: float | None = None  # the turn in progress began
        self._published, self._busy = 0.0, 0.0

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
            self.starved = True
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
            self._published = now
            self.run.versions.append((now, self.updates))
        if publishes or self.insert_limit() > router.insert_limit:
            router.insert_limit = self.insert_limit()
            router.wake()
        self._turn()

    def _due(self) -> bool:
        """After the update that comes."""
        if seconds := self.run.scenario.publish_seconds:
            return self.run.clock.now - self._published >= seconds
        return (self.updates + 1) % self.run.scenario.config.publish_period_updates == 0


class Run:
    """All parts of one scenario, and what they did.

    versions: of each version of the weights, when it was published and after how many updates.
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
        self.credit = Credit(scenario.actors, self.chunk, config.window_chunks)
        self.trainer, self.router = Trainer(self, learner), Router(self, learner)
        self.actors = [Actor(self, account) for account in self.credit.accounts]
        self.produced = 0  # chunks
        self.resent = self.duplicates = self.dropped = self.reconnects = 0
        self.starved = False  # an actor, of credit, ever
        self.use_ages = 0.0  # of the weights, summed over the chunks produced
        self._begin()

    def played(self, version: int) -> None:
        """An actor has finished a chunk, by these weights."""
        self.produced += 1
        self.use_ages += self.clock.now - self.versions[version][0]

    def _begin(self) -> None:
        """Warm-up is over and every actor is welcome; they start one after the other.

        Where training is what is slowest, the actors have run ahead as far as they may.
        """
        scenario, trainer = self.scenario, self.trainer
        ahead = 0.0
        if scenario.learning:
            parts = capacities(scenario)
            if min(parts, key=lambda part: parts[part]) == TRAINING:
                ahead = scenario.tolerance_samples / scenario.config.samples_per_insert
            trainer.inserted = scenario.config.learning_starts_transitions + int(ahead)
        self.router.taken = trainer.inserted
        self.router.insert_limit = trainer.insert_limit()
        self.credit.grant(self.router.insert_limit - self.router.taken)
        step = self.chunk * scenario.costs.actor_step / scenario.actors
        for i, actor in enumerate(self.actors):
            actor.granted = actor.account.granted_seq
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
    weights_age: how old the weights were by which a transition was played; data_age: time from
    playing a transition to storing it; both means, in seconds. dropped: messages per second that
    found an actor's queue full; reconnects: per second, of actors that heard nothing for 8 s.
    """

    actors: int
    env_steps_per_second: float
    updates_per_second: float
    versions_per_second: float
    used: dict[str, float]
    weights_age: float
    data_age: float
    resent: float
    dropped: float
    reconnects: float

    @property
    def bottleneck(self) -> str:
        return max(self.used, key=lambda part: self.used[part])


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
    held = [f["produced"] - (f["env_steps"]) for f in (before, after)]
    steps = gained["env_steps"]
    return Result(
        actors=scenario.actors,
        env_steps_per_second=steps,
        updates_per_second=gained["updates"],
        versions_per_second=gained["versions"],
        used={part: gained[part] / capacity[part] for part in PARTS},
        weights_age=gained["use_ages"] * run.chunk / gained["produced"] if gained["produced"] else 0,
        data_age=sum(held) / 2 / steps if steps else 0.0,
        resent=gained["resent"] * run.chunk / steps if steps else 0.0,
        dropped=gained["dropped"],
        reconnects=gained["reconnects"],
    )


def capacities(scenario: Scenario) -> dict[str, float]:
    """Env steps per second that each part could carry if it were the only limit.

    LINK_OUT and the weights' share of ZeroMQ's thread follow from the updates per env step.
    """
    config, costs, actors = scenario.config, scenario.costs, scenario.actors
    chunk, bandwidth = config.chunk_transitions, scenario.network.bytes_per_second
    updates = config.samples_per_insert / config.batch_size if scenario.learning else 0.0
    copies = actors * updates / config.publish_period_updates  # of the weights, per env step
    router = costs.router_chunk + actors * (2 * costs.router_look + costs.router_grant)
    io = (costs.io_chunk + costs.io_message) / chunk + copies * costs.io_weights
    training = costs.store / chunk + updates * costs.update
    bytes_out = costs.message_bytes / chunk + copies * costs.weights_bytes
    return {
        ACTORS: actors / (costs.actor_step + costs.actor_chunk / chunk),
        LINK_IN: bandwidth * chunk / costs.chunk_bytes,
        IO: 1 / io,
        ROUTER: 1 / (router / chunk + copies * (costs.router_weights + costs.router_ack)),
        TRAINING: 1 / training,
        LINK_OUT: bandwidth / bytes_out,
    }
