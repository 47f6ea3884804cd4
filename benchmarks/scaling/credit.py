"""The learner's book of credit for ten thousand actors: `common/sessions.py` without its cost.

Gives exactly what `Sessions.grant` gives (`tests/test_scaling.py` compares them), from a heap
instead of looking through all sessions for every chunk.
"""

import heapq
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Account:
    """What `common.sessions.Session` counts, of one actor. stamp: rises whenever it is granted."""

    actor: int
    stamp: int
    acked_seq: int = 0
    granted_seq: int = 0

    @property
    def owed(self) -> int:
        return self.granted_seq - self.acked_seq


class Credit:
    """Credit a chunk at a time to whoever has least, the longest waiting first."""

    def __init__(self, actors: int, chunk_transitions: int, window_chunks: int) -> None:
        self.accounts = [Account(actor, actor) for actor in range(actors)]
        self.owed = 0  # chunks, by all
        self._chunk, self._window = chunk_transitions, window_chunks
        self._stamp = actors
        self._order = [(0, account.stamp, account.actor) for account in self.accounts]

    def taken(self, account: Account) -> None:
        """One of its granted chunks has arrived."""
        account.acked_seq += 1
        self.owed -= 1
        self._enter(account)

    def grant(self, transitions: float) -> tuple[list[Account], int]:
        """transitions: how many more may be taken in all, those already granted included.

        -> those who had no credit and now have; chunks granted.
        """
        woken, granted = [], 0
        while self._goes(transitions) and (account := self._neediest()):
            if not account.owed:
                woken.append(account)
            account.granted_seq += 1
            self._stamp += 1
            account.stamp = self._stamp
            self.owed += 1
            self._enter(account)
            granted += 1
        return woken, granted

    def wakes(self, transitions: float) -> bool:
        """Would `grant` of so many give credit to somebody who has none?"""
        least = self._neediest()
        return self._goes(transitions) and least is not None and not least.owed

    def _goes(self, transitions: float) -> bool:
        room = transitions - self._chunk * self.owed
        return room >= self._chunk or (room > 0 and not self.owed)

    def _neediest(self) -> Account | None:
        """Entries that are no longer true are dropped on the way."""
        while self._order:
            owed, stamp, actor = self._order[0]
            account = self.accounts[actor]
            if account.owed == owed and account.stamp == stamp and owed < self._window:
                return account
            heapq.heappop(self._order)
        return None

    def _enter(self, account: Account) -> None:
        if account.owed < self._window:
            heapq.heappush(self._order, (account.owed, account.stamp, account.actor))
