"""The replay: frames stored once each in a ring, whole chunks in, whole chunks out.

A chunk's frames lie side by side in the ring; a transition remembers where its own begin. Live
transitions have consecutive ids (the newest is `end_id - 1`), a chunk is evicted as a whole when
its room is needed, so a stack can never mix episodes, actors or the ring's write head.
"""

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from common.compiled import compiled
from common.config import FRAME_SHAPE, STACK, Config
from common.errors import ConfigError
from common.foreground import PIXEL
from common.messages import TRANSITION_DTYPE, Chunk, Spec

FRAME_BYTES = FRAME_SHAPE[0] * FRAME_SHAPE[1]
FRAMES = np.arange(STACK)  # of a stack, from its first one on


@dataclass(frozen=True, slots=True)
class TransitionBatch:
    """B transitions on the learner's device; the loss needs nothing else.

    obs, next_obs: [B, STACK, 84, 84] u8, channels last in memory; action: [B] i64;
    n_step_return, discount, weight: [B] f32 (weight: importance weights, all 1 when sampling is
    uniform).
    """

    obs: Tensor
    action: Tensor
    n_step_return: Tensor
    discount: Tensor
    next_obs: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "TransitionBatch":
        if self.obs.device == device:
            return self
        # Pinned, or the host would wait until all that the GPU was given before is done.
        pinned = (getattr(self, name).pin_memory() for name in self.__slots__)
        return TransitionBatch(*(tensor.to(device, non_blocking=True) for tensor in pinned))


class Sampler(Protocol):
    """Chooses which live transitions to train on."""

    def sample(self, first_id: int, end_id: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """-> ids [count] i64 in [first_id, end_id), importance weights [count] f32."""
        ...

    def added(self, first_id: int, end_id: int) -> None:
        """Transitions first_id to end_id - 1 are in the replay from now on."""
        ...

    def evicted(self, first_id: int, end_id: int) -> None:
        """Transitions first_id to end_id - 1, the oldest, have left it."""
        ...

    def update(self, ids: np.ndarray, td_errors: np.ndarray) -> None:
        """ids: [B] i64, as sampled; td_errors: [B] f32, y - q of the loss for each."""
        ...

    def state_dict(self, first_id: int, end_id: int) -> dict[str, Any]:
        """first_id, end_id: the live transitions."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """After the replay's chunks are back."""
        ...


class UniformSampler:
    """Every live transition equally likely, none twice in a batch."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def sample(self, first_id: int, end_id: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        ids = first_id + self.rng.choice(end_id - first_id, size=count, replace=False)
        return ids, np.ones(count, np.float32)

    def added(self, first_id: int, end_id: int) -> None:
        pass

    def evicted(self, first_id: int, end_id: int) -> None:
        pass

    def update(self, ids: np.ndarray, td_errors: np.ndarray) -> None:
        pass

    def state_dict(self, first_id: int, end_id: int) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """Where a chunk lies: its transitions' ids and its frames' places in the ring."""

    first_id: int
    length: int
    frame_start: int
    frame_count: int

    @property
    def end_id(self) -> int:
        return self.first_id + self.length


class Replay:
    """Ring of chunks. `add` copies; `sample` gathers onto `device`.

    config: `replay_transitions` (N) is the most that is held; there is room for the frames of N
    transitions in full chunks. device: where the frames lie.
    """

    def __init__(self, config: Config, sampler: Sampler, device: str | torch.device = "cpu"):
        self.capacity = config.replay_transitions
        self.sampler = sampler
        self.device = torch.device(device)
        frames = planned_frames(config)
        self.frames = empty_frames(frames, self.device)
        self._flat_frames = self.frames.view(frames, FRAME_BYTES)
        # The transition with id i, and the place of its first frame, stand at i % capacity.
        self.transitions = np.zeros(self.capacity, TRANSITION_DTYPE)
        self.frame_start = np.zeros(self.capacity, np.int64)
        self.chunks: collections.deque[StoredChunk] = collections.deque()
        self.end_id = 0
        self._head = 0  # where the next chunk's frames go

    @property
    def first_id(self) -> int:
        """Oldest live transition."""
        return self.chunks[0].first_id if self.chunks else self.end_id

    def __len__(self) -> int:
        return self.end_id - self.first_id

    @property
    def bytes(self) -> int:
        return self.frames.numel() + self.transitions.nbytes + self.frame_start.nbytes

    def add(self, chunk: Chunk) -> None:
        stored = self._make_room(len(chunk), len(chunk.frames))
        self._store(stored, chunk)

    def restore(self, stored: StoredChunk, chunk: Chunk) -> None:
        """Put a chunk back where a checkpoint says it lay; chunks come in their old order."""
        self._head = stored.frame_start + stored.frame_count
        self._store(stored, chunk)

    def clear(self) -> None:
        """Forget everything."""
        while self.chunks:
            self._evict()
        self.end_id = self._head = 0

    def _store(self, stored: StoredChunk, chunk: Chunk) -> None:
        place = slice(stored.frame_start, stored.frame_start + stored.frame_count)
        if self.device.type == "cpu":
            self.frames.numpy()[place] = chunk.frames
        else:
            pinned = torch.empty(chunk.frames.shape, dtype=torch.uint8, pin_memory=True)
            pinned.numpy()[:] = chunk.frames
            self.frames[place].copy_(pinned, non_blocking=True)
        at = np.arange(stored.first_id, stored.end_id) % self.capacity
        self.frame_start[at] = stored.frame_start + np.arange(len(chunk))
        self.transitions[at] = chunk.transitions
        self.chunks.append(stored)
        self.end_id = stored.end_id
        self.sampler.added(stored.first_id, stored.end_id)

    def sample(self, batch_size: int) -> tuple[TransitionBatch, np.ndarray]:
        """-> batch on the replay's device, ids [B] for `sampler.update`."""
        ids, weight = self.sampler.sample(self.first_id, self.end_id, batch_size)
        at = ids % self.capacity
        drawn, start = self.transitions[at], self.frame_start[at]
        starts = np.concatenate([start, start + drawn["span"]])
        columns = (
            drawn["action"].astype(np.int64),
            drawn["n_step_return"].copy(),
            drawn["discount"].copy(),
            weight,
        )
        if self.device.type == "cpu":
            stacks, tensors = self._stacks(starts), [torch.from_numpy(column) for column in columns]
        else:
            places, *tensors = in_one_transfer(
                [starts[:, np.newaxis] + FRAMES, *columns], self.device
            )
            stacks = as_pixels(self._flat_frames[places].transpose(1, 2).contiguous())
        obs, next_obs = stacks.chunk(2)
        action, n_step_return, discount, weights = tensors
        return TransitionBatch(obs, action, n_step_return, discount, next_obs, weights), ids

    def spread_frames(self, count: int) -> Tensor:
        """Up to `count` stored frames, evenly spread over the live chunks: [F, 84, 84] u8."""
        places = np.concatenate(
            [
                np.arange(c.frame_start + STACK - 1, c.frame_start + c.frame_count)
                for c in self.chunks
            ]
        )
        chosen = places[np.linspace(0, len(places) - 1, min(count, len(places))).astype(np.int64)]
        return self.frames[torch.from_numpy(chosen).to(self.device)]

    def read_chunk(self, stored: StoredChunk) -> Chunk:
        """The chunk as it was added (less what only the wire needs), while it lives.

        Its frames are the ring's own where the ring lies in main memory: later chunks change them.
        """
        place = slice(stored.frame_start, stored.frame_start + stored.frame_count)
        at = np.arange(stored.first_id, stored.end_id) % self.capacity
        return Chunk(self.frames[place].cpu().numpy(), self.transitions[at], -1)

    def _stacks(self, starts: np.ndarray) -> Tensor:
        """The stacks that begin at these frames, from a ring in main memory."""
        stacks = np.empty((len(starts), FRAME_BYTES), PIXEL)
        _gather(self._flat_frames.numpy(), starts, stacks)
        return as_pixels(torch.from_numpy(stacks.view(np.uint8)))

    def _make_room(self, length: int, frame_count: int) -> StoredChunk:
        """Evict the oldest chunks until the new one fits; frames never wrap around the end."""
        start = self._head
        if start + frame_count > len(self.frames):
            while self.chunks and self.chunks[0].frame_start >= start:
                self._evict()
            start = 0
        end = start + frame_count
        while self.chunks and (
            len(self) + length > self.capacity or self._reaches(self.chunks[0], start, end)
        ):
            self._evict()
        self._head = end
        return StoredChunk(self.end_id, length, start, frame_count)

    @staticmethod
    def _reaches(chunk: StoredChunk, start: int, end: int) -> bool:
        return chunk.frame_start < end and start < chunk.frame_start + chunk.frame_count

    def _evict(self) -> None:
        oldest = self.chunks.popleft()
        self.sampler.evicted(oldest.first_id, oldest.end_id)


@compiled
def _gather(frames: np.ndarray, starts: np.ndarray, stacks: np.ndarray) -> None:
    """[F, FRAME_BYTES] u8 -> stacks [N, FRAME_BYTES] PIXEL, those that begin at frames `starts`."""
    for i in range(len(starts)):
        start = starts[i]
        for pixel in range(frames.shape[1]):
            stack = PIXEL(0)
            for j in range(STACK):
                stack |= PIXEL(frames[start + j, pixel]) << PIXEL(8 * j)
            stacks[i, pixel] = stack


def as_pixels(stacks: Tensor) -> Tensor:
    """[N, FRAME_BYTES, STACK] u8 -> [N, STACK, 84, 84], channels last in memory, the layout that
    convolutions read fastest."""
    return stacks.view(-1, *FRAME_SHAPE, STACK).permute(0, 3, 1, 2)


def in_one_transfer(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copies on the device; the host does not wait for them. arrays: those of wider types first."""
    packed = torch.from_numpy(np.concatenate([a.reshape(-1).view(np.uint8) for a in arrays]))
    if device.type == "cuda":
        packed = packed.pin_memory()  # which PyTorch keeps until the transfer is over
    there, tensors, begin = packed.to(device, non_blocking=True), [], 0
    for array in arrays:
        part = there[begin : begin + array.nbytes].view(torch.from_numpy(array).dtype)
        tensors.append(part.view(array.shape))
        begin += array.nbytes
    return tensors


def empty_frames(count: int, device: torch.device) -> Tensor:
    """[count, 84, 84] u8. Unwritten: memory comes as the ring fills, and is never zeroed first."""
    shape = (count, *FRAME_SHAPE)
    if device.type == "cpu":  # NumPy asks the system for huge pages: a draw reads all over the ring
        return torch.from_numpy(np.empty(shape, np.uint8))
    return torch.empty(shape, dtype=torch.uint8, device=device)


def planned_frames(config: Config) -> int:
    """Frames in the ring: what `replay_transitions` need in full chunks, and one chunk spare."""
    chunks = -(-config.replay_transitions // config.chunk_transitions) + 1
    return chunks * Spec.of(config).max_frames


def planned_bytes(config: Config) -> int:
    per_transition = TRANSITION_DTYPE.itemsize + np.dtype(np.int64).itemsize
    return planned_frames(config) * FRAME_BYTES + config.replay_transitions * per_transition


def bytes_beside(config: Config) -> int:
    """What the rest of the run needs where the replay lies, by estimate: on a GPU networks, batches
    and libraries; else the learner itself and its actors, with their games and the frames of the
    chunks in the making."""
    if config.replay_device == "cuda":
        return 1 << 30
    chunk_bytes = Spec.of(config).max_frames * FRAME_BYTES
    games = config.games_per_actor * (chunk_bytes + (1 << 20))
    processes = (512 + 300 * config.actors_in_all) << 20
    return processes + max(config.actors_in_all, 1) * games


def check_fits(config: Config, available_bytes: int, where: str, *, resume: bool) -> None:
    """Raises ConfigError when the replay cannot fit into what is available.

    where: what that is, for the message. resume: a run goes on, so its replay's size is given.
    """
    need, beside = planned_bytes(config), bytes_beside(config)
    if need + beside <= available_bytes:
        return
    most = int(config.replay_transitions * (available_bytes - beside) / need * 0.95)
    if resume:
        advice = (
            "a run goes on with the replay that it has, so free some, or give it another "
            "--replay-device or machine"
        )
    elif most > 0:
        advice = f"use --replay-transitions {most} or fewer"
    else:
        advice = "free some"
    raise ConfigError(
        f"A replay of {config.replay_transitions:,} transitions takes {need / 2**30:.1f} GiB and "
        f"the rest of the run some {beside / 2**30:.1f}, {available_bytes / 2**30:.1f} GiB of "
        f"{where} are free: {advice}."
    )
