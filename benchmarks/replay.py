"""Rows 10 and 11: what a transition costs in memory, and what priorities cost in time."""

import statistics
import time

import numpy as np
import torch

from benchmarks.measure import Form, Goal, Row, Side, Step, alternate
from benchmarks.peers.environment import Peers
from benchmarks.worker import Worker
from common.config import FRAME_SHAPE, STACK, Config
from common.machine import available_memory_bytes
from common.messages import TRANSITION_DTYPE, Chunk, Spec
from common.presets import make_config
from launch import learner_environment
from learner.learner import make_sampler
from learner.prioritized import PrioritizedSampler
from learner.replay import (
    FRAME_BYTES,
    Replay,
    Sampler,
    StoredChunk,
    UniformSampler,
    planned_bytes,
)

TRANSITIONS, BATCH = 1_000_000, 256
CACHES_BYTES = 64 << 20  # more than a core has
EPISODE_ENV_STEPS = 900  # a game of Pong that is lost as fast as it can be


def preset(**overrides: object) -> Config:
    return make_config("pong", n_actions=6, **overrides)


def chunk_of(spec: Spec, length: int) -> Chunk:
    """Noise, in the shape of the last chunk of an episode if it is shorter than a full one."""
    full = length == spec.chunk_transitions
    transitions = np.zeros(length, TRANSITION_DTYPE)
    spans = np.full(length, spec.n_step) if full else np.arange(length, 0, -1)
    transitions["span"] = np.minimum(spans, spec.n_step)
    transitions["discount"] = spec.discounts()[transitions["span"]]
    count = STACK + int((np.arange(length) + transitions["span"]).max())
    frames = np.random.default_rng(0).integers(256, size=(count, *FRAME_SHAPE), dtype=np.uint8)
    return Chunk(frames, transitions, policy_version=0)


# -- sides ----------------------------------------------------------------------------------------


def memory_sides() -> dict[str, Side]:
    """Bytes per transition: as planned for full chunks, and of a ring that has turned over."""
    config = preset()
    spec = Spec.of(config)
    replay = Replay(config, make_sampler(config))
    full = chunk_of(spec, spec.chunk_transitions)
    last = chunk_of(spec, EPISODE_ENV_STEPS % spec.chunk_transitions)
    while replay.end_id < 2 * replay.capacity:
        for _ in range(EPISODE_ENV_STEPS // spec.chunk_transitions):
            replay.add(full)
        replay.add(last)
    assert isinstance(replay.sampler, PrioritizedSampler)
    in_all = replay.bytes + replay.sampler.tree.bytes
    return {
        "planned": lambda _: planned_bytes(config) / config.replay_transitions,
        "filled": lambda _: in_all / len(replay),
    }


def million() -> Config:
    return preset(replay_transitions=TRANSITIONS, batch_size=BATCH)


def sampling_sides(real_chunks: int) -> dict[str, Side]:
    """Milliseconds per batch, its frames included: uniform, and prioritized with its update.

    real_chunks: so many have frames of their own, the others share them.
    """
    torch.set_num_threads(1)
    config = million()
    rng = np.random.default_rng(0)
    prioritized = PrioritizedSampler(TRANSITIONS, config.priority_alpha, config.priority_beta, rng)
    replay = Replay(config, prioritized)
    fill(replay, chunk_of(Spec.of(config), config.chunk_transitions), real_chunks)
    replay.sampler.update(np.arange(TRANSITIONS), rng.exponential(size=TRANSITIONS))
    td_errors = rng.exponential(size=BATCH)

    def with_priorities() -> int:
        _, ids = replay.sample(BATCH)
        replay.sampler.update(ids, td_errors)
        return 1

    def without() -> int:
        replay.sample(BATCH)
        return 1

    other = np.zeros(CACHES_BYTES, np.uint8)

    def timed(sampler: Sampler, step: Step) -> Side:
        def measure(seconds: float) -> float:
            replay.sampler = sampler
            taken: list[float] = []
            end = time.perf_counter() + seconds
            while not taken or time.perf_counter() < end:
                np.add(other, 1, out=other)  # as an update, which has the caches for itself
                began = time.perf_counter()
                step()
                taken.append(time.perf_counter() - began)
            return 1000 * statistics.median(taken)

        return measure

    return {
        "prioritized": timed(prioritized, with_priorities),
        "uniform": timed(UniformSampler(rng), without),
    }


def chunks_that_fit(config: Config) -> int:
    """Chunks whose frames may be real: all of them, or what half of the free memory holds."""
    chunks = config.replay_transitions // config.chunk_transitions
    per_chunk = Spec.of(config).max_frames * FRAME_BYTES
    return min(chunks, available_memory_bytes() // 2 // per_chunk)


def fill(replay: Replay, chunk: Chunk, real_chunks: int) -> None:
    """Every transition live, the frames of so many chunks written."""
    for i in range(replay.capacity // len(chunk)):
        at = i % real_chunks * len(chunk.frames)
        replay.restore(StoredChunk(replay.end_id, len(chunk), at, len(chunk.frames)), chunk)


# -- rows -----------------------------------------------------------------------------------------


def memory(form: Form, peers: Peers) -> list[Row]:
    """Row 10: bytes per transition against the bytes of one frame."""
    with Worker("benchmarks.replay:memory_sides") as worker:
        seen = alternate(worker.sides, 1, form.seconds)
    notes = {
        "planned": "planned",
        "filled": "ring turned over, with priorities",
    }
    return [
        Row(
            10,
            "replay per transition",
            "B",
            "one frame",
            Goal(1.15, at_most=True),
            seen[name],
            [float(FRAME_BYTES)],
            note,
        )
        for name, note in notes.items()
    ]


def sampling(form: Form, peers: Peers) -> list[Row]:
    """Row 11: a prioritized batch against a uniform one."""
    config = million()
    real = chunks_that_fit(config)
    share = real * config.chunk_transitions / TRANSITIONS
    environment = learner_environment(config.resolved())  # what a batch frees is kept for the next
    sides = "benchmarks.replay:sampling_sides"
    with Worker(sides, environment=environment, real_chunks=real) as worker:
        seen = alternate(worker.sides, form.rounds, form.seconds)
    what = f"prioritized batch, {BATCH} of {TRANSITIONS:,}"
    note = "" if share == 1 else f"{share:.0%} of the frames are real, others share them"
    against, goal = "uniform batch", Goal(1.15, at_most=True)
    return [Row(11, what, "ms", against, goal, seen["prioritized"], seen["uniform"], note)]
