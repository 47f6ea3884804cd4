"""Who may send what: the learner's book of sessions, and the credit it gives them. No sockets.

A session is one life of one actor. A chunk is granted only while all that was taken or granted
stays within the insert limit, so the limiter's promise holds however many actors there are.
"""

import collections
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Session:
    """One life of one actor. Chunks up to acked_seq are taken, up to granted_seq may be sent; only
    `Sessions` counts them up."""

    id: int
    actor_id: int
    route: bytes  # where ZeroMQ finds it
    user: str  # key that CURVE authenticated, "" without CURVE
    acked_seq: int = 0
    granted_seq: int = 0
    last_heard: float = field(default_factory=time.monotonic)
    report: dict[str, float] = field(default_factory=dict)  # where the actor's time goes, in shares

    @property
    def credit(self) -> int:
        """Chunks granted and not yet taken."""
        return self.granted_seq - self.acked_seq


@dataclass(frozen=True, slots=True)
class Demand:
    """What could be granted, at one moment: for other threads to look at."""

    chunk_transitions: int
    granted_chunks: int  # and not yet taken, of all sessions
    wants_credit: bool  # some window has room for one more chunk
    without_credit: bool  # some actor is blocked

    def met_by(self, transitions: float) -> bool:
        """Would `Sessions.grant` of so many give any credit?"""
        room = transitions - self.chunk_transitions * self.granted_chunks
        whole = room >= self.chunk_transitions
        return self.wants_credit and (whole or (room > 0 and not self.granted_chunks))


class Sessions:
    """The sessions that count. One that ended is fenced: nothing of it is taken any more."""

    def __init__(self, chunk_transitions: int, window_chunks: int) -> None:
        self.restarts = 0  # actors that came back with a new session
        self._chunk_transitions = chunk_transitions
        self._live: dict[int, Session] = {}
        self._of_actor: dict[int, Session] = {}
        # By their credit in chunks, within it the longest waiting first: the next one to serve is
        # found without a search.
        self._by_credit: list[collections.OrderedDict[int, Session]] = [
            collections.OrderedDict() for _ in range(window_chunks + 1)
        ]
        self._granted_chunks = 0
        self._fenced: collections.deque[int] = collections.deque(maxlen=4096)
        self._seen_actors: set[int] = set()
        self.demand = self._look()  # as the last `grant` left it

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._live.values()))

    def get(self, session_id: int) -> Session | None:
        return self._live.get(session_id)

    def was_fenced(self, session_id: int) -> bool:
        return session_id in self._fenced

    def open(self, session_id: int, actor_id: int, route: bytes, user: str) -> Session:
        """A new life of an actor; the one before, if it still counts, is fenced."""
        if old := self._of_actor.get(actor_id):
            self.fence(old)
        self.restarts += actor_id in self._seen_actors
        self._seen_actors.add(actor_id)
        session = Session(session_id, actor_id, route, user)
        self._live[session_id] = self._of_actor[actor_id] = session
        self._by_credit[0][session_id] = session
        return session

    def took(self, session: Session) -> None:
        """The next of its granted chunks has arrived."""
        del self._by_credit[session.credit][session.id]
        session.acked_seq += 1
        self._by_credit[session.credit][session.id] = session
        self._granted_chunks -= 1

    def fence(self, session: Session) -> None:
        """It ends: its unused credit returns, its late chunks are refused."""
        del self._live[session.id], self._of_actor[session.actor_id]
        del self._by_credit[session.credit][session.id]
        self._granted_chunks -= session.credit
        self._fenced.append(session.id)

    def fence_silent(self, since: float) -> None:
        """Fence those of whom nothing was heard since then (time.monotonic())."""
        for session in self:
            if session.last_heard < since:
                self.fence(session)

    def excuse(self, seconds: float) -> None:
        """For so long nobody listened: what was not heard then is not held against them."""
        for session in self:
            session.last_heard += seconds

    def grant(self, transitions: float) -> list[Session]:
        """Give credit, a chunk at a time to whoever has least, the longest waiting first.

        transitions: how many more may be taken in all, those already granted included. What is
        left of them may be less than a chunk: then one chunk goes out once nothing else is under
        way, or the last of them would never come. -> sessions that had no credit and now have.
        """
        woken: list[Session] = []
        while (demand := self._look()).met_by(transitions):
            neediest = next(sessions for sessions in self._by_credit if sessions)
            _, session = neediest.popitem(last=False)
            if not session.credit:
                woken.append(session)
            session.granted_seq += 1
            self._by_credit[session.credit][session.id] = session
            self._granted_chunks += 1
        self.demand = demand
        return woken

    def _look(self) -> Demand:
        wants_credit, without_credit = any(self._by_credit[:-1]), bool(self._by_credit[0])
        return Demand(self._chunk_transitions, self._granted_chunks, wants_credit, without_credit)
