"""Starts, watches, restarts and ends the processes of a run: one learner, N actors."""

from __future__ import annotations

import itertools
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

from common.errors import GOODBYE, INTERRUPTED, USER_ERRORS
from common.lifeline import AWAY_SECONDS, ECHO_SECONDS, Heartbeats, stop_signals

GAVE_UP = 1
ACTOR_GRACE_SECONDS = 3.0
BACKOFF_LIMIT_SECONDS = 8.0
HEALTHY_LIFE_SECONDS = 10.0  # an actor that lived this long starts again at the first backoff
LOOK_PERIOD_SECONDS = 1.0
KILL_WAIT_SECONDS = 5.0


@dataclass(frozen=True)
class ChildSpec:
    """How to start one child; `env` is added to this process's environment."""

    name: str
    argv: list[str]
    slot: int | None = None
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class _Child:
    """A place in the run, and the process that fills it now."""

    make: Callable[[int], ChildSpec]  # incarnation -> spec
    process: subprocess.Popen[bytes] | None = None
    start_at: float | None = 0.0  # inf: not yet; None: running, or not to be started again
    late: bool = False
    incarnation: int = 0
    started: float = 0.0
    backoff_seconds: float = 0.0
    deaths: list[float] = field(default_factory=list)
    silence_seconds: float = 0.0  # after which it was judged stuck
    hung_seconds: float = 0.0  # of all its lives
    name: str = ""
    slot: int | None = None
    log: Path = Path()

    def start(self, spec: ChildSpec, logs: Path, *, to_console: bool) -> None:
        self.name, self.slot = spec.name, spec.slot
        self.log = _unused(logs, spec.name)
        with _open_log(self.log) as log:  # a file, since a full pipe would block the child
            self.process = subprocess.Popen(
                spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=None if to_console else log,
                stderr=log,
                env={**os.environ, **spec.env},
                start_new_session=True,  # the terminal's Ctrl-C is the supervisor's alone
            )
        self.started, self.start_at, self.silence_seconds = time.monotonic(), None, 0.0

    def terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        """SIGKILL for the child and all it started; reaches stopped processes too."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """The exit code, once, if it has died; what it had started itself dies with it."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.kill()
        self.process = None
        return code


@dataclass
class Supervisor:
    """One learner, N actors, no orphan: run() returns the exit code of the whole program."""

    learner: ChildSpec
    actor: Callable[[int, int], ChildSpec]  # (actor_id, incarnation)
    actors: int
    heartbeats: Heartbeats
    _: KW_ONLY
    logs: Path
    log: Callable[[str], None]
    first_actors: int = sys.maxsize  # start at once, the others when these have shown life
    others_wait_seconds: float = 10.0  # for that, at most
    late_actors: int = 0  # the last ones, which wait until they are called
    late_are_called: Callable[[], bool] = lambda: False
    stall_seconds: float = 30.0
    start_seconds: float = 120.0  # from the start of a child to its first beat
    backoff_seconds: float = 0.5
    max_deaths: int = 5
    death_window_seconds: float = 60.0
    grace_seconds: float = 60.0  # what the ending learner gets from its last sign of life
    restarts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._learner = _Child(lambda incarnation: self.learner)
        self._actors = [_Child(partial(self.actor, i)) for i in range(self.actors)]
        early = self.actors - self.late_actors
        for i, actor in enumerate(self._actors):
            actor.late = i >= early
            if actor.late or i >= self.first_actors:
                actor.start_at = math.inf
        self._asked_to_stop, self._ctrl_cs, self._last_ctrl_c = False, 0, -math.inf
        self._ending: int | None = None  # the exit code, decided before the learner has gone
        self._deadline = math.inf  # of the ending
        self._looked = self._awake = -math.inf  # at what is watched; since this moment
        self._shown = ""

    @property
    def alive(self) -> int:
        """Actors running now."""
        return sum(actor.process is not None for actor in self._actors)

    @property
    def learner_began(self) -> bool:
        """Has it ever shown life? From then on there may be something to save."""
        return self._learner.started > 0 and self._has_beaten(self._learner)

    @property
    def _ending_learner(self) -> str:
        return "the learner saves and ends" if self.learner_began else "the learner had not begun"

    def run(self) -> int:
        """Blocks until all is over; main thread only, for the signals and for PR_SET_PDEATHSIG.

        From its return on nothing can stop what is still to be put in order: the signals that ask
        for an end are ignored. Where it raises they are what they were.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with _wakeups(self._on_stop) as wakeups:
            try:
                self._looked = self._awake = time.monotonic()
                self._start(self._learner)
                while (code := self._look()) is None:
                    _wait(wakeups, self._next_deadline())
                self._end_actors(wakeups)
                return code
            finally:
                self._kill_all()

    def _on_stop(self, signum: int, frame: FrameType | None) -> None:
        self._asked_to_stop = True  # SIGTERM and SIGHUP may come often: terminals, schedulers
        now = time.monotonic()
        if signum == signal.SIGINT and now - self._last_ctrl_c >= ECHO_SECONDS:
            self._ctrl_cs, self._last_ctrl_c = self._ctrl_cs + 1, now

    def _look(self) -> int | None:
        """One look at everything: act on what is due; the exit code when nothing is left to do."""
        before, self._looked = self._looked, time.monotonic()
        if self._looked - before > AWAY_SECONDS:  # and so were the others, perhaps: not their fault
            self._awake = self._looked
        if self._ctrl_cs > 1:
            return INTERRUPTED
        if self._asked_to_stop:
            kills = "; a second Ctrl-C kills it" if self.learner_began else ""
            self._end(INTERRUPTED, f"interrupted: {self._ending_learner}{kills}")
        if (code := self._learner.reap()) is not None:  # first: its end explains the actors'
            return self._learner_left(code)
        for actor in self._actors:
            if (code := actor.reap()) is not None:
                self._actor_left(actor, code)
        now = time.monotonic()
        self._let_others_start(now)
        for actor in self._actors:
            if actor.start_at is not None and actor.start_at <= now:
                self._start_actor(actor)
        self._check_stalls()
        if now >= self._deadline and self._silence(self._learner) >= self.grace_seconds:
            self._say(f"the learner did not end within {self.grace_seconds:.0f} s: killed")
            self._learner.kill()
            return self._learner_left(-signal.SIGKILL)
        return None

    def _let_others_start(self, now: float) -> None:
        """Once the first actors have imported what they need and wait for the learner, or are gone:
        until then the cores are theirs, so that the first env step comes the sooner. The late ones
        once they are called."""
        first = [actor for actor in self._actors[: self.first_actors] if not actor.late]
        starting = any(a.started == 0.0 or (a.process and not self._has_beaten(a)) for a in first)
        if starting and now - self._learner.started < self.others_wait_seconds:
            return
        called = self.late_are_called()
        for actor in self._actors:
            if actor.start_at == math.inf and (called or not actor.late):
                actor.start_at = now

    def _next_deadline(self) -> float:
        starts = (actor.start_at for actor in self._actors if actor.start_at is not None)
        return min([time.monotonic() + LOOK_PERIOD_SECONDS, *starts])

    def _start(self, child: _Child) -> None:
        spec = child.make(child.incarnation)
        if spec.slot is not None:
            self.heartbeats.reset(spec.slot)
        child.start(spec, self.logs, to_console=child is self._learner)

    def _start_actor(self, actor: _Child) -> None:
        try:
            self._start(actor)
            self.restarts += actor.incarnation > 0
        except OSError as error:  # no memory, no disk: the learner may still be able to save
            self._end(GAVE_UP, f"an actor cannot be started: {error}; {self._ending_learner}")

    def _check_stalls(self) -> None:
        for child in (self._learner, *self._actors):
            if child.process is None or child.slot is None:
                continue
            silence = self._silence(child)
            limit = self.stall_seconds if self._has_beaten(child) else self.start_seconds
            if silence <= limit:
                child.silence_seconds = 0.0
            elif not child.silence_seconds:
                child.silence_seconds = silence
                if child is self._learner:  # it holds the run's memory: never ours to kill
                    begun = _silent(silence) if self.learner_began else "is still starting"
                    self._say(f"the learner {begun}; waiting for it")
                else:
                    child.kill()

    def _end(self, code: int, why: str) -> None:
        """Ask everyone to leave; what happens later cannot change the code decided here, but that
        a learner that was done has done it, and an interruption yields to whatever it ends with."""
        if self._ending is not None:
            return
        self._say(why)
        self._ending, self._deadline = code, time.monotonic() + self.grace_seconds
        if self.learner_began:
            self._learner.terminate()
        else:
            self._learner.kill()
        for actor in self._actors:  # at once: the saving learner gets their cores
            actor.start_at = None
            actor.terminate()

    def _learner_left(self, code: int) -> int:
        clean = code in (0, INTERRUPTED)
        if self._ending is not None and not self.learner_began:
            return self._ending
        if code < 0:
            self._say(f"the learner was {_describe(code)}")
        elif not clean and code not in USER_ERRORS:
            self._say(f"the learner {_describe(code)}")
        if not clean:
            self._show(self._learner)
        # It may have been done before it was asked.
        if code == 0 or self._ending in (None, INTERRUPTED):
            return code if code >= 0 else 128 - code  # as shells tell a signal
        return self._ending

    def _actor_left(self, actor: _Child, code: int) -> None:
        if code == GOODBYE or self._ending is not None:  # told to stop
            return
        silence = actor.silence_seconds
        what = f"{actor.name} {_silent(silence) if silence else _describe(code)}"
        if code in USER_ERRORS:
            self._say(f"{what}; it is not restarted")
            self._show(actor)
            called = [a for a in self._actors if a.started or not a.late]
            if not any(a.process or a.start_at is not None for a in called):
                self._end(code, f"no actor is left: {self._ending_learner}")
            return
        now = time.monotonic()
        actor.hung_seconds += silence
        played = now - actor.hung_seconds  # or one that only hangs would never be given up
        if self._has_beaten(actor):  # failed starts count however long each one took
            actor.deaths = [t for t in actor.deaths if played - t < self.death_window_seconds]
        actor.deaths.append(played)
        if len(actor.deaths) >= self.max_deaths:
            self._shown = ""  # the reason to give up is shown even where it was before
            self._show(actor)
            self._end(GAVE_UP, f"{what}; dead {self.max_deaths} times: giving up")
            return
        healthy = now - actor.started - silence >= HEALTHY_LIFE_SECONDS or not actor.backoff_seconds
        backoff = self.backoff_seconds if healthy else 2 * actor.backoff_seconds
        actor.backoff_seconds = min(backoff, BACKOFF_LIMIT_SECONDS)
        actor.start_at = now + actor.backoff_seconds
        actor.incarnation += 1
        self._say(f"{what}; restarted in {actor.backoff_seconds:g} s")
        self._show(actor)

    def _has_beaten(self, child: _Child) -> bool:
        return child.slot is None or self.heartbeats.age_seconds(child.slot) < math.inf

    def _silence(self, child: _Child) -> float:
        """Seconds since its last sign of life, in which it could have given one."""
        if child.slot is None:
            return math.inf
        awake = time.monotonic() - max(child.started, self._awake)
        return min(awake, self.heartbeats.age_seconds(child.slot))

    def _end_actors(self, wakeups: int) -> None:
        """The learner has gone: its actors get a short time to leave by themselves."""
        deadline = time.monotonic() + ACTOR_GRACE_SECONDS
        for actor in self._actors:
            actor.terminate()
        while self.alive and self._ctrl_cs < 2 and time.monotonic() < deadline:
            _wait(wakeups, deadline)
            for actor in self._actors:
                actor.reap()

    def _kill_all(self) -> None:
        left = [(child, child.process) for child in (self._learner, *self._actors) if child.process]
        for child, _ in left:
            child.kill()
        for child, process in left:
            try:
                process.wait(KILL_WAIT_SECONDS)
                child.process = None
            except subprocess.TimeoutExpired:  # held inside a system call, by a driver perhaps
                self._say(f"{child.name} (pid {process.pid}) does not die of SIGKILL")

    def _show(self, child: _Child) -> None:
        """Its last words, unless they are what was shown last: eight actors, one reason."""
        words = last_words(child.log)
        if words and words != self._shown:
            self._say(words)
            self._shown = words

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a closed terminal must not cost the learner its save
            self.log(text)


def _silent(seconds: float) -> str:
    return f"made no progress for {seconds:.1f} s"


def _unused(logs: Path, name: str) -> Path:
    """Its next log: what an earlier life said, or an earlier part of the run, is kept."""
    numbered = (logs / f"{name}.{number}.log" for number in itertools.count())
    return next(path for path in numbered if not os.path.lexists(path))


def _open_log(path: Path) -> IO[bytes]:
    """The file, or nothing on a disk that takes no more: a child is worth more than words."""
    try:
        return path.open("wb")
    except OSError:
        return Path(os.devnull).open("wb")


def last_words(log: Path, lines: int = 40, tail_bytes: int = 1 << 16) -> str:
    """The end of a child's log, from its last traceback, and those that led to it, on."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - tail_bytes))
            text = file.read().decode(errors="replace").strip()
    except OSError as error:
        return f"(its log cannot be read: {error})"
    links = "direct cause of the following exception:", "another exception occurred:"
    start = text.rfind("Traceback (most recent call last)")
    while start > 0 and text[:start].rstrip().endswith(links):
        start = text.rfind("Traceback (most recent call last)", 0, start)
    return "\n".join(text[max(start, 0) :].splitlines()[-lines:])


def _describe(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"killed by {({s.value: s.name for s in signal.Signals}).get(-code, f'signal {-code}')}"


@contextmanager
def _wakeups(on_stop: Callable[[int, FrameType | None], None]) -> Iterator[int]:
    """Yields a descriptor that turns readable at each signal of interest, so none can be missed."""
    stops = stop_signals()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = {s: signal.getsignal(s) for s in (*stops, signal.SIGCHLD)}
    fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        for stop in stops:
            signal.signal(stop, on_stop)
        yield reader
        before |= dict.fromkeys(stops, signal.SIG_IGN)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(fd_before)
        os.close(reader)
        os.close(writer)


def _wait(wakeups: int, deadline: float) -> None:
    """Until a signal or the deadline; one that came since the last call ends the wait at once."""
    select.select([wakeups], [], [], max(0.0, deadline - time.monotonic()))
    with suppress(BlockingIOError):
        os.read(wakeups, 4096)
