"""The ring against a plain list: whatever is added, no stack mixes and nothing is lost early."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import STACK
from common.errors import ConfigError
from common.messages import Chunk, Spec
from learner.learner import learner_device
from learner.replay import (
    Replay,
    UniformSampler,
    check_fits,
    in_one_transfer,
    planned_bytes,
)
from tests.builders import chunk_of, config, stamp_of


def make_replay(capacity: int = 64, chunk: int = 16, n_step: int = 3) -> tuple[Replay, Spec]:
    small = config(
        replay_transitions=capacity,
        learning_starts_transitions=40,
        chunk_transitions=chunk,
        n_step=n_step,
        batch_size=4,
    )
    return Replay(small, UniformSampler(np.random.default_rng(0))), Spec.of(small)


def check_against(replay: Replay, model: list[tuple[int, Chunk]]) -> None:
    """Every live transition is exactly what was added under its id."""
    live = [(first, c) for first, c in model if first >= replay.first_id]
    frames = replay.frames.numpy()
    assert sum(len(c) for _, c in live) == len(replay)
    for first, chunk in live:
        for i, t in enumerate(chunk.transitions):
            at = (first + i) % replay.capacity
            start = replay.frame_start[at]
            span = int(t["span"])
            for offset in (0, span):
                got = frames[start + offset : start + offset + STACK]
                assert (got == chunk.frames[i + offset : i + offset + STACK]).all()
            assert replay.transitions[at] == t


@settings(max_examples=40)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 16), st.booleans()), min_size=1, max_size=40),
    n_step=st.integers(1, 5),
)
def test_the_ring_equals_a_plain_list_after_every_step(
    lengths: list[tuple[int, bool]], n_step: int
) -> None:
    replay, spec = make_replay(n_step=n_step)
    model: list[tuple[int, Chunk]] = []
    total = 0
    for length, terminal in lengths:
        chunk = chunk_of(spec, length, first_stamp=(total * 7) % 60_000, terminal=terminal)
        replay.add(chunk)
        model.append((total, chunk))
        total += length
        assert replay.end_id == total
        assert len(replay) <= replay.capacity
        check_against(replay, model)


def test_full_chunks_fill_the_capacity_exactly() -> None:
    replay, spec = make_replay(capacity=64, chunk=16)
    for i in range(20):
        replay.add(chunk_of(spec, 16, 16 * i))
        assert len(replay) == min(64, 16 * (i + 1))


def test_a_batch_holds_what_was_stored_and_no_transition_twice() -> None:
    replay, spec = make_replay()
    for i in range(9):
        replay.add(chunk_of(spec, 16, 16 * i))
    for _ in range(50):
        batch, ids = replay.sample(32)
        assert len(set(ids.tolist())) == 32
        assert ids.min() >= replay.first_id
        assert ids.max() < replay.end_id
        assert batch.action.dtype == torch.int64
        assert (batch.weight == 1).all()
        for stacks in (batch.obs, batch.next_obs):
            assert stacks.is_contiguous(memory_format=torch.channels_last)
        for row, i in enumerate(ids.tolist()):
            assert batch.n_step_return[row] == i
            stored = replay.transitions[i % replay.capacity]
            assert batch.action[row] == stored["action"]
            assert batch.discount[row] == stored["discount"] != 1
            chunk, offset = divmod(i, 16)
            first = 16 * chunk + offset
            assert [stamp_of(f) for f in batch.obs[row]] == [first + k for k in range(4)]
            assert [stamp_of(f) for f in batch.next_obs[row]] == [first + 3 + k for k in range(4)]


def test_the_last_transitions_of_an_episode_bootstrap_from_where_it_ended() -> None:
    replay, spec = make_replay(n_step=3)
    for i in range(3):
        replay.add(chunk_of(spec, 16, 1_000 * (i + 1), terminal=True))
    batch, ids = replay.sample(48)
    assert sorted(ids.tolist()) == list(range(48))
    for row, (chunk, offset) in enumerate(zip(*np.divmod(ids, 16), strict=True)):
        obs = 1_000 * (chunk + 1) + offset
        next_obs = min(obs + 3, 1_000 * (chunk + 1) + 16)
        assert [stamp_of(f) for f in batch.obs[row]] == [obs + k for k in range(4)]
        assert [stamp_of(f) for f in batch.next_obs[row]] == [next_obs + k for k in range(4)]
        span = next_obs - obs
        assert batch.discount[row] == spec.discounts()[span]


def test_a_batch_carries_the_weights_of_its_sampler() -> None:
    class Weighing(UniformSampler):
        def sample(self, first_id: int, end_id: int, count: int) -> tuple[np.ndarray, np.ndarray]:
            ids, _ = super().sample(first_id, end_id, count)
            return ids, np.float32(1) / (1 + ids.astype(np.float32))

    replay, spec = make_replay()
    replay.sampler = Weighing(np.random.default_rng(0))
    for i in range(3):
        replay.add(chunk_of(spec, 16, 16 * i))
    batch, ids = replay.sample(8)
    assert np.array_equal(batch.weight.numpy(), np.float32(1) / (1 + ids.astype(np.float32)))


def test_what_goes_in_one_transfer_arrives_as_it_was() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 2**40, (6, 4)), rng.integers(0, 9, 3), rng.random(3, np.float32)]
    for tensor, array in zip(in_one_transfer(arrays, torch.device("cpu")), arrays, strict=True):
        assert tensor.dtype == torch.from_numpy(array).dtype
        assert np.array_equal(tensor.numpy(), array)


def test_uniform_sampling_reaches_every_live_transition_equally() -> None:
    replay, spec = make_replay()
    for i in range(6):
        replay.add(chunk_of(spec, 16, 16 * i))
    counts = np.zeros(96)
    for _ in range(4_000):
        counts[replay.sampler.sample(replay.first_id, replay.end_id, 16)[0]] += 1
    assert (counts[:32] == 0).all()
    expected = 4_000 * 16 / 64
    assert np.abs(counts[32:] - expected).max() < 5 * np.sqrt(expected)


def test_chunks_read_back_as_they_were_added() -> None:
    replay, spec = make_replay()
    added = [chunk_of(spec, 5 + i, 50 * i, terminal=i % 2 == 0) for i in range(12)]
    for chunk in added:
        replay.add(chunk)
    for stored, chunk in zip(reversed(replay.chunks), reversed(added), strict=False):
        read = replay.read_chunk(stored)
        assert (read.frames == chunk.frames).all()
        assert (read.transitions == chunk.transitions).all()


def test_planned_bytes_are_what_is_allocated_within_a_percent() -> None:
    big = config(replay_transitions=20_000, chunk_transitions=64)
    replay = Replay(big, UniformSampler(np.random.default_rng(0)))
    assert replay.bytes == pytest.approx(planned_bytes(big), rel=0.01)


def test_a_replay_larger_than_memory_is_refused_with_a_size_that_fits() -> None:
    big, free = config(replay_transitions=1_000_000), 4 << 30
    with pytest.raises(ConfigError, match=r"--replay-transitions (\d+) or fewer") as told:
        check_fits(big, free, "memory", resume=False)
    fitting = re.search(r"--replay-transitions (\d+)", str(told.value))
    assert fitting
    smaller = config(replay_transitions=int(fitting[1]))
    check_fits(smaller, free, "memory", resume=False)
    with pytest.raises(ConfigError, match="goes on with the replay that it has"):
        check_fits(big, free, "memory", resume=True)
    check_fits(big, 1 << 40, "memory", resume=True)


@pytest.mark.parametrize(
    ("settings", "beside"),
    [
        ({"actors": 8}, 2.9),
        ({"actors": 1, "actors_mastered": 8}, 2.9),
        ({"actors": 1, "envs_per_actor": 1024}, 1.9),
        ({"cuda": True, "replay_device": "cuda"}, 1.0),
    ],
)
def test_a_replay_leaves_room_for_the_rest_of_the_run(
    settings: dict[str, Any], beside: float
) -> None:
    wanted = config(**settings)
    check_fits(wanted, planned_bytes(wanted) + int(beside * 2**30) + 2**27, "memory", resume=False)
    with pytest.raises(ConfigError, match=f"the rest of the run some {beside:.1f},"):
        check_fits(wanted, planned_bytes(wanted) + 2**29, "memory", resume=False)
    with pytest.raises(ConfigError, match=r"are free: free some\.$"):
        check_fits(wanted, 2**29, "memory", resume=False)


def test_spread_frames_are_stored_frames() -> None:
    replay, spec = make_replay()
    for i in range(3):
        replay.add(chunk_of(spec, 16, 1_000 * (i + 1)))
    frames = replay.spread_frames(20)
    assert frames.dtype == torch.uint8
    chunk, place = np.divmod([stamp_of(f) for f in frames], 1_000)
    assert np.bincount(chunk).tolist() == [0, 7, 6, 7]  # of the whole warm-up
    assert (place >= STACK - 1).all()  # what an episode starts with may be blank
    assert len(replay.spread_frames(1_000)) == 3 * (16 + 3)  # none twice


def test_the_learners_gpu_is_called_what_tensors_on_it_call_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    device = learner_device(config(cuda=True))
    assert device == torch.device("cuda:0")  # what the tensors of a replay there say of themselves
    assert learner_device(config()) == torch.device("cpu")
