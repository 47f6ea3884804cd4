"""What a simulated system is made of: a clock, work that shares a resource, work that queues.

Exact where it can be: nothing is random, nothing is rounded to a time step, and equal inputs give
equal results. Times are in seconds; work is in whatever a resource does per second.
"""

import collections
import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], None]
_CLOSE_SECONDS = 1e-9  # moments so close are one: floating point can tell them apart no better


class Clock:
    """Simulated time, and what is to happen when. Simultaneous events keep their order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, action: Action) -> None:
        self.at(self.now + seconds, action)

    def at(self, moment: float, action: Action) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), action))

    def run(self, until: float) -> None:
        """Let everything happen that is due by then."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, action = heapq.heappop(events)
            action()
        self.now = until


class Shared:
    """A resource that works on everything at once, in equal parts: cores, a network link.

    capacity: work per second in all; each: the most that one task gets, all of it if left out.
    Every active task has received the same amount since it began, so one number, `_given`, says
    how far all are: a task is done when that has grown by the task's work since its beginning.
    """

    def __init__(self, clock: Clock, capacity: float, each: float | None = None) -> None:
        self.clock, self.capacity = clock, capacity
        self._each = capacity if each is None else each
        self._tasks: list[tuple[float, int, int, Action]] = []
        self._cancelled: set[int] = set()
        self._numbers = itertools.count()
        self._active = 0
        self._given, self._done, self._looked = 0.0, 0.0, clock.now
        self._wake_at = float("inf")

    def begin(self, work: float, done: Action, together: int = 1) -> int:
        """done: called when so much work has been given to it. -> number to cancel it by.

        together: so many tasks of this work each, begun and done at once; not to be cancelled.
        """
        self._catch_up()
        number = next(self._numbers)
        heapq.heappush(self._tasks, (self._given + work, number, together, done))
        self._active += together
        self._plan()
        return number

    def cancel(self, number: int) -> None:
        """Of a task that is not done."""
        self._catch_up()
        self._cancelled.add(number)
        self._active -= 1
        self._plan()

    def done_work(self) -> float:
        """Since the beginning."""
        self._catch_up()
        return self._done

    def _catch_up(self) -> None:
        now = self.clock.now
        if self._active and now > self._looked:
            given = (now - self._looked) * self._rate()
            self._given += given
            self._done += given * self._active
        self._looked = now

    def _rate(self) -> float:
        return min(self._each, self.capacity / self._active)

    def _plan(self) -> None:
        """See to it that the next task to be done is noticed. To come too early does no harm."""
        while self._tasks and self._tasks[0][1] in self._cancelled:
            self._cancelled.remove(heapq.heappop(self._tasks)[1])
        if not self._tasks:
            self._given = 0.0  # small numbers are exact ones
            return
        left = self._tasks[0][0] - self._given
        moment = self.clock.now + max(0.0, left) / self._rate()
        if moment < self._wake_at:
            self._wake_at = moment
            self.clock.at(moment, self._wake)

    def _wake(self) -> None:
        if self.clock.now < self._wake_at:
            return  # an earlier plan, overtaken
        self._wake_at = float("inf")
        self._catch_up()
        limit = self._given + (self._rate() * _CLOSE_SECONDS if self._active else 0.0)
        finished = []
        while self._tasks and self._tasks[0][0] <= limit:
            _, number, together, done = heapq.heappop(self._tasks)
            if number in self._cancelled:
                self._cancelled.remove(number)
            else:
                self._active -= together
                finished.append(done)
        self._plan()
        for done in finished:
            done()


class Line:
    """Work that a resource is given piece by piece, in order: a thread, one connection's bytes."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._waiting: collections.deque[tuple[float, Action]] = collections.deque()
        self._task: int | None = None
        self._done: Action | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (self._done is not None)

    def put(self, work: float, done: Action) -> None:
        if self._done is None:
            self._start(work, done)
        else:
            self._waiting.append((work, done))

    def clear(self) -> None:
        """Drop what waits and what is under way."""
        self._waiting.clear()
        if self._done is not None and self._task is not None:
            self._shared.cancel(self._task)
        self._task = self._done = None

    def _start(self, work: float, done: Action) -> None:
        self._done = done
        self._task = self._shared.begin(work, self._finish)

    def _finish(self) -> None:
        done, self._done = self._done, None
        if self._waiting:
            self._start(*self._waiting.popleft())
        if done:
            done()
