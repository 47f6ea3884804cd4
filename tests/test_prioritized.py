"""The sum tree against plain arithmetic, the sampler against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.prioritized import PrioritizedSampler, SumTree

writes_of_several = st.lists(
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 10)), min_size=1, max_size=9),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60)
@given(writes_of_several)
def test_the_tree_equals_a_plain_array(writes: list[list[tuple[int, int]]]) -> None:
    tree, plain = SumTree(1_000), np.zeros(1_000)
    for write in writes:
        leaves, priorities = np.array(write).T
        tree.set(leaves, priorities.astype(np.float64))
        for leaf, priority in write:
            plain[leaf] = priority
        assert (tree.get(np.arange(1_000)) == plain).all()
        assert tree.total == plain.sum()
        draws = np.arange(plain.sum())
        owners = np.searchsorted(plain.cumsum(), draws, side="right")
        assert (tree.find(draws) == owners).all()


def test_a_prefix_sum_finds_the_leaf_that_owns_it() -> None:
    tree = SumTree(6)
    tree.set(np.arange(6), np.array([1.0, 0.0, 2.0, 3.0, 0.0, 4.0]))
    sums = np.array([0.0, 0.99, 1.0, 2.99, 3.0, 5.99, 6.0, 9.99, 10.0])
    assert tree.find(sums).tolist() == [0, 0, 2, 2, 3, 3, 5, 5, 5]


@settings(max_examples=60)
@given(st.integers(1, 5_000), st.integers(0, 2**32 - 1))
def test_in_a_tree_of_any_size_draws_land_where_plain_sums_say(capacity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    priorities = rng.integers(4, size=capacity) * (rng.random(capacity) < 0.3)  # sums are exact
    priorities[rng.integers(capacity)] = 1
    tree = SumTree(capacity)
    tree.set(np.arange(capacity), priorities.astype(np.float64))
    draws = np.append(rng.integers(priorities.sum(), size=50), priorities.sum())
    owners = np.searchsorted(priorities.cumsum(), draws, side="right")
    owners[-1] = priorities.nonzero()[0][-1]  # what rounding may lead to belongs to the last
    assert tree.find(draws.astype(np.float64)).tolist() == owners.tolist()


@settings(max_examples=100)
@given(st.integers(1, 600), st.integers(0, 2**32 - 1))
def test_however_sums_round_no_draw_ends_at_an_empty_leaf(capacity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    priorities = 10.0 ** rng.uniform(-12, 3, capacity) * (rng.random(capacity) < 0.3)
    priorities[rng.integers(capacity)] = 0.1
    tree = SumTree(capacity)
    for leaves in np.array_split(rng.permutation(capacity), -(-capacity // 5)):
        tree.set(leaves, priorities[leaves])
    assert np.isclose(tree.total, priorities.sum())
    ends = np.append(priorities.cumsum(), tree.total)
    draws = np.concatenate([ends, np.nextafter(ends, 0), np.nextafter(ends, np.inf)])
    assert (tree.get(tree.find(draws)) > 0).all()


@pytest.mark.parametrize("priority", [0.0, np.nan, np.inf])
def test_nothing_is_found_where_priorities_do_not_add_up_to_a_number(priority: float) -> None:
    tree = SumTree(100)
    tree.set(np.array([7]), np.array([priority]))
    with pytest.raises(ValueError, match="the priorities add up to"):
        tree.find(np.zeros(1))


def test_each_draw_comes_from_its_own_equal_share_of_the_total() -> None:
    sampler = PrioritizedSampler(64, alpha=1.0, beta=0.4, rng=np.random.default_rng(0))
    sampler.added(0, 40)
    sampler.update(np.arange(40), np.arange(40.0))
    priorities = sampler.tree.get(np.arange(40))
    ends, edges = priorities.cumsum(), np.arange(17) / 16 * sampler.tree.total
    for _ in range(50):
        ids, _ = sampler.sample(0, 40, 16)
        assert (ends[ids] - priorities[ids] <= edges[1:] + 1e-9).all()
        assert (ends[ids] >= edges[:-1] - 1e-9).all()


def test_sampling_follows_priorities_and_weights_undo_it() -> None:
    sampler = PrioritizedSampler(64, alpha=1.0, beta=1.0, rng=np.random.default_rng(0))
    sampler.added(100, 140)
    sampler.update(np.arange(100, 140), np.arange(40) + 1.0)
    counts = np.zeros(40)
    for _ in range(3_000):
        ids, weights = sampler.sample(100, 140, 16)
        np.add.at(counts, ids - 100, 1)
        priority = ids - 99 + sampler.EPSILON
        assert np.allclose(weights * priority, weights[0] * priority[0], rtol=1e-4)
    share = (np.arange(40) + 1.0) / np.sum(np.arange(40) + 1.0)
    assert np.abs(counts / counts.sum() - share).max() < 0.004


def test_priorities_and_weights_are_those_of_the_paper() -> None:
    alpha, beta = 0.6, 0.4
    sampler = PrioritizedSampler(8, alpha, beta, np.random.default_rng(0))
    sampler.added(0, 4)
    sampler.update(np.arange(4), np.array([-0.5, 3.0, 0.0, -1.0]))
    priorities = (np.array([0.5, 3.0, 0.0, 1.0]) + sampler.EPSILON) ** alpha
    assert np.allclose(sampler.tree.get(np.arange(4)), priorities)
    weights = (4 * priorities / priorities.sum()) ** -beta
    for count in (1, 3, 16):
        ids, found = sampler.sample(0, 4, count)
        assert np.allclose(found, weights[ids] / weights[ids].max())
        assert found.max() == 1.0
    sampler.added(4, 6)  # as likely as the most surprising one so far
    assert np.allclose(sampler.tree.get(np.array([4, 5])), priorities.max())
    sampler.update(np.array([1]), np.array([0.1]))
    sampler.added(6, 7)
    assert np.allclose(sampler.tree.get(np.array([6])), priorities.max())


def test_evicted_transitions_are_never_drawn() -> None:
    sampler = PrioritizedSampler(32, 0.6, 0.4, np.random.default_rng(0))
    sampler.added(0, 32)
    sampler.evicted(0, 16)
    sampler.evicted(16, 16)  # nothing
    sampler.added(32, 48)
    for _ in range(200):
        ids, _ = sampler.sample(16, 48, 8)
        assert ids.min() >= 16
        assert ids.max() < 48


def test_the_sampler_goes_on_after_saving_and_loading() -> None:
    a, b = (PrioritizedSampler(32, 0.6, 0.4, np.random.default_rng(i)) for i in range(2))
    a.added(10, 40)
    a.update(np.arange(12, 20), np.linspace(0, 5, 8))
    b.load_state_dict(a.state_dict(10, 40))
    for _ in range(5):
        for one, other in zip(a.sample(10, 40, 8), b.sample(10, 40, 8), strict=True):
            assert (one == other).all()
