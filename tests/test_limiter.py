"""The limiter keeps its published promise and never deadlocks."""

import hypothesis
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.sessions import Sessions
from learner.limiter import Limiter
from tests.builders import config


@hypothesis.settings(max_examples=200)
@given(
    ratio=st.floats(0.001, 1_000),
    lower=st.floats(0.01, 1),
    changes=st.sampled_from([0.0, 0.02, 0.3]),
    tolerance=st.one_of(st.just(0.0), st.floats(1, 1e6)),
    starts=st.integers(1, 3_000),
    batch=st.integers(1, 512),
    chunk=st.integers(1, 1_024),
    window=st.integers(1, 16),
    actors=st.integers(1, 4),
    seed=st.integers(0, 1_000),
)
def test_no_accepted_setting_deadlocks_and_the_bounds_hold(
    ratio: float,
    lower: float,
    changes: float,
    tolerance: float,
    starts: int,
    batch: int,
    chunk: int,
    window: int,
    actors: int,
    seed: int,
) -> None:
    """Learner and actors in any order, credit as it is given, chunks full or cut short, and the
    ratio falling to `lower` of itself and back at any moment."""
    try:
        settings = config(
            samples_per_insert=ratio,
            samples_per_insert_tolerance=tolerance,
            learning_starts_transitions=starts,
            batch_size=batch,
            chunk_transitions=chunk,
            window_chunks=window,
            actors=actors,
            replay_transitions=20_000,
        )
    except ConfigError:
        assume(False)
    limiter = Limiter(ratio, settings.tolerance_samples, starts)
    sessions = Sessions(chunk, window)
    for i in range(actors):
        sessions.open(100 + i, i, b"route", "")
    rng = np.random.default_rng(seed)
    inserted = sampled = 0
    earned, now, ever_lower = 0.0, ratio, False
    for _ in range(300):
        if rng.random() < changes:
            now = ratio * lower if now == ratio else ratio
            ever_lower = True
            limiter = limiter.at_ratio(now, inserted)
        sessions.grant(limiter.insert_limit(sampled) - inserted)
        sending = [session for session in sessions if session.credit]
        may_sample = limiter.may_sample(inserted, sampled)
        assert sending or may_sample, "deadlock"
        if sending and (not may_sample or rng.random() < 0.5):
            sessions.took(sending[rng.integers(len(sending))])
            before = max(inserted, starts)
            inserted += int(rng.integers(1, chunk + 1)) if rng.random() < 0.3 else chunk
            earned += now * max(inserted - before, 0)
        else:
            sampled += batch
        assert sampled <= earned * (1 + 1e-9) + batch
        ahead = settings.tolerance_samples
        if ever_lower:  # what was granted at the lower ratio stays granted
            granted = ratio * actors * window * chunk
            ahead = min((ahead + batch) / lower, ahead + granted)
        assert earned - sampled <= (ahead + ratio * chunk) * (1 + 1e-9)


def test_the_book_trains_once_per_env_step_after_10_000() -> None:
    limiter = Limiter(32.0, 64.0, 10_000)
    sampled = 0
    for inserted in range(9_990, 10_050):
        updates = 0
        while limiter.may_sample(inserted, sampled):
            sampled += 32
            updates += 1
        assert updates == (inserted >= 10_000)


def test_what_was_earned_at_one_ratio_stays_earned_at_another() -> None:
    before = Limiter(2.0, 64.0, 100)
    after = before.at_ratio(0.5, 300)  # 400 samples are earned
    assert before.may_sample(300, 400) and after.may_sample(300, 400)
    assert not before.may_sample(300, 401) and not after.may_sample(300, 401)
    assert before.insert_limit(400) == 300 + 64 / 2
    assert after.insert_limit(400) == 300 + 64 / 0.5
    assert after.may_sample(310, 405) and not after.may_sample(310, 406)
    assert after.at_ratio(2.0, 310).may_sample(320, 425)
    assert not after.at_ratio(2.0, 310).may_sample(320, 426)


def test_a_ratio_that_changes_in_warm_up_earns_nothing_there() -> None:
    assert Limiter(2.0, 64.0, 100).at_ratio(0.5, 40) == Limiter(0.5, 64.0, 100)
