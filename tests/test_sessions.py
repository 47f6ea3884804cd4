"""Credit: never more than the limit or a window, never a deadlock, never a favourite."""

import hypothesis.strategies as st
from hypothesis import given, settings

from common.sessions import Sessions


def sessions_of(actors: int, chunk: int = 10, window: int = 4) -> Sessions:
    sessions = Sessions(chunk, window)
    for i in range(actors):
        sessions.open(100 + i, i, b"route", "")
    return sessions


def test_credit_goes_round() -> None:
    sessions = sessions_of(3)
    woken = sessions.grant(20)
    assert [s.actor_id for s in woken] == [0, 1]
    assert [s.credit for s in sessions if s.actor_id == 2] == [0]
    assert [s.actor_id for s in sessions.grant(30)] == [2]
    assert sessions.grant(30) == []


def test_a_remainder_smaller_than_a_chunk_is_granted_once_nothing_is_under_way() -> None:
    sessions = sessions_of(2)
    assert len(sessions.grant(15)) == 1
    assert sessions.grant(15) == []
    (busy,) = [s for s in sessions if s.credit]
    sessions.took(busy)
    assert len(sessions.grant(5)) == 1
    assert sessions.grant(0) == []


def test_a_new_life_fences_the_old_and_its_credit_returns() -> None:
    sessions = sessions_of(1)
    old = sessions.get(100)
    assert old and sessions.grant(40) == [old] and old.credit == 4
    new = sessions.open(200, 0, b"route", "")
    assert sessions.get(100) is None and sessions.was_fenced(100)
    assert sessions.restarts == 1 and len(sessions) == 1
    assert sessions.grant(10) == [new]


def test_nobody_is_silent_while_nobody_listened() -> None:
    sessions = sessions_of(2)
    began = min(s.last_heard for s in sessions)
    sessions.excuse(40.0)
    sessions.fence_silent(began + 39.0)
    assert len(sessions) == 2
    sessions.fence_silent(began + 41.0)
    assert len(sessions) == 0


def test_the_silent_are_fenced_and_only_they() -> None:
    sessions = sessions_of(2)
    silent, heard = sessions
    silent.last_heard, heard.last_heard = 5.0, 10.0
    sessions.fence_silent(since=7.0)
    assert list(sessions) == [heard]


@settings(max_examples=200)
@given(
    actors=st.integers(1, 6),
    chunk=st.integers(1, 20),
    window=st.integers(1, 5),
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("limit"), st.integers(0, 100)),
            st.tuples(st.just("arrives"), st.integers(0, 5), st.integers(1, 20)),
            st.tuples(st.just("dies"), st.integers(0, 5)),
        ),
        max_size=60,
    ),
)
def test_what_is_taken_stays_within_the_limit_and_always_reaches_it(
    actors: int, chunk: int, window: int, moves: list[tuple[object, ...]]
) -> None:
    sessions = sessions_of(actors, chunk, window)
    limit = taken = 0
    next_id = 1_000
    for move in moves:
        live = list(sessions)
        if move[0] == "limit":
            limit += int(str(move[1]))
        elif move[0] == "arrives":
            session = live[int(str(move[1])) % actors]
            if session.credit:
                sessions.took(session)
                taken += min(chunk, int(str(move[2])))
        else:
            next_id += 1
            sessions.open(next_id, live[int(str(move[1])) % actors].actor_id, b"", "")
        sessions.grant(limit - taken)
        owed = [s.credit for s in sessions]
        for more in range(2 * chunk):  # what another thread makes of the demand that is left
            room = limit + more - taken - chunk * sum(owed)
            goes = min(owed) < window and (room >= chunk or (room > 0 and not sum(owed)))
            assert sessions.demand.met_by(limit + more - taken) == goes
        assert not sessions.demand.met_by(limit - taken)
        assert sessions.demand.without_credit == (min(owed) == 0)
        owed = sum(s.credit for s in sessions)
        assert all(0 <= s.credit <= window for s in sessions)
        # One chunk may be under way for a remainder that is smaller.
        assert taken + chunk * owed <= limit or owed <= 1
        assert taken < limit + chunk
        assert owed or taken >= limit, "nobody may send although the limit is not reached"


@settings(max_examples=50)
@given(actors=st.integers(1, 64), scarce=st.integers(1, 3))
def test_scarce_credit_is_shared_fairly(actors: int, scarce: int) -> None:
    sessions = sessions_of(actors, chunk=1, window=16)
    taken = 0
    for _ in range(20 * actors):
        sessions.grant(scarce)
        for session in sessions:
            if session.credit:
                sessions.took(session)
                taken += 1
    served = [s.acked_seq for s in sessions]
    assert min(served) >= 0.5 * max(served)
