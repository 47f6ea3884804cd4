"""The limiter keeps its published promise and never deadlocks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.limiter import Limiter


@settings(max_examples=200, deadline=None)
@given(
    ratio=st.floats(0.01, 64),
    slack=st.floats(1, 50),
    starts=st.integers(1, 2_000),
    batch=st.integers(1, 512),
    chunk=st.integers(1, 64),
    seed=st.integers(0, 1_000),
)
def test_whatever_the_order_of_events_the_bounds_hold_and_someone_may_go_on(
    ratio: float, slack: float, starts: int, batch: int, chunk: int, seed: int
) -> None:
    tolerance = slack * (batch + ratio * chunk)  # the least that Config accepts, and more
    limiter = Limiter(ratio, tolerance, starts)
    rng = np.random.default_rng(seed)
    inserted = sampled = 0
    for _ in range(400):
        may_insert = inserted + chunk <= limiter.insert_limit(sampled)
        may_sample = limiter.may_sample(inserted, sampled)
        assert may_insert or may_sample, "deadlock"
        if may_insert and (not may_sample or rng.random() < 0.5):
            inserted += chunk
        else:
            sampled += batch
        earned = ratio * (inserted - starts)
        assert sampled <= max(0.0, earned) + batch
        if inserted >= starts:
            assert earned - sampled <= tolerance * (1 + 1e-9)


def test_the_book_trains_once_per_env_step_after_10_000() -> None:
    limiter = Limiter(32.0, 64.0, 10_000)
    sampled = 0
    for inserted in range(9_990, 10_050):
        updates = 0
        while limiter.may_sample(inserted, sampled):
            sampled += 32
            updates += 1
        assert updates == (inserted >= 10_000)
