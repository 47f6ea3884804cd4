"""Stamped: a game whose every frame says which it is, and that keeps a journal of what was played.

The oracle of the drills. A frame names the game's life, its episode, where that begins and ends and
the number of steps before it, so that what a learner holds can be checked against what was
produced: each transition once, in order, and no stack that mixes lives or episodes. Environment
variables, read when a game is made:
  STAMPED_JOURNAL   folder; each life appends one byte per step, the action, to <pid>-<life>
  STAMPED_FAULT     raise | hang | segfault | nan, with probability 1 / STAMPED_FAULT_STEPS per step
The process that plays writes down what its transport does too, into the same folder:
  <pid>.sent        one _SENT for every chunk, before it is sent
  <pid>.acked       the number of the newest chunk known to be acknowledged, each time it rises
What was written outlives a kill -9: it is in the kernel's hands.
"""

import os
import signal
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from common.config import STACK
from common.dealer import ActorEndpoint
from common.messages import Ack, Chunk

_STAMP = np.dtype(
    [("life", "<u8"), ("episode", "<u4"), ("begin", "<u8"), ("end", "<u8"), ("step", "<u8")]
)
_SENT = np.dtype(
    [("number", "<u8"), ("life", "<u8"), ("first", "<u8"), ("length", "<u4"), ("crc", "<u4")]
)


def reward_of(step: int) -> float:
    return float(step % 7 - 3)


def is_cut(episode: int) -> bool:
    """Does this episode end by truncation?"""
    return episode % 3 == 0


class Stamped(gymnasium.Env[np.ndarray, int]):
    observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self) -> None:
        self.life = int.from_bytes(os.urandom(6), "little") + 1  # a blank frame has life 0
        self.episode = self.steps = 0
        journal = os.environ.get("STAMPED_JOURNAL")
        self.journal = -1
        if journal:
            self.journal = _open(Path(journal) / f"{os.getpid()}-{self.life}")
        self.fault = os.environ.get("STAMPED_FAULT", "")
        self.fault_steps = int(os.environ.get("STAMPED_FAULT_STEPS", "10000"))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.begin = self.steps
        self.end = self.steps + int(self.np_random.integers(1, 120))
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = reward_of(self.steps)
        if self.fault and self.np_random.integers(self.fault_steps) == 0:
            reward = self._fail()
        self.steps += 1
        if self.journal >= 0:
            os.write(self.journal, bytes([action]))
        over, cut = self.steps == self.end, is_cut(self.episode)
        return self._frame(), reward, over and not cut, over and cut, {}

    def _frame(self) -> np.ndarray:
        frame = np.zeros((84, 84), np.uint8)
        stamp = np.array([(self.life, self.episode, self.begin, self.end, self.steps)], _STAMP)
        frame.reshape(-1)[: _STAMP.itemsize] = stamp.view(np.uint8)
        return frame

    def _fail(self) -> float:
        if self.fault == "nan":
            return float("nan")
        if self.fault == "raise":
            raise RuntimeError("the game broke, as it was asked to")
        if self.fault == "hang":
            time.sleep(1e6)
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0.0

    def close(self) -> None:
        if self.journal >= 0:
            os.close(self.journal)
            self.journal = -1


gymnasium.register("Stamped-v0", Stamped)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _journal_transport(folder: Path) -> None:
    """From now on this process writes down which chunks it sends and which were acknowledged."""
    send, acknowledged = ActorEndpoint.send, ActorEndpoint._on_ack
    sent = _open(folder / f"{os.getpid()}.sent")
    acked = _open(folder / f"{os.getpid()}.acked")

    def journalled_send(self: ActorEndpoint, chunk: Chunk) -> None:
        os.write(sent, sent_record(self._seq + 1, chunk).tobytes())
        send(self, chunk)

    def journalled_acknowledged(self: ActorEndpoint, ack: Ack) -> None:
        before = self.unacknowledged
        acknowledged(self, ack)
        if self.unacknowledged < before:
            os.write(acked, ack.acked_seq.to_bytes(8, "little"))

    ActorEndpoint.send = journalled_send  # type: ignore[method-assign]
    ActorEndpoint._on_ack = journalled_acknowledged  # type: ignore[method-assign]


if os.environ.get("STAMPED_JOURNAL"):
    _journal_transport(Path(os.environ["STAMPED_JOURNAL"]))


def sent_record(number: int, chunk: Chunk) -> np.ndarray:
    """What tells this chunk from every other; number: of its process, from 1."""
    stamp = _stamps(chunk)[STACK - 1]
    crc = zlib.crc32(chunk.transitions.tobytes(), zlib.crc32(chunk.frames.tobytes()))
    return np.array([(number, stamp["life"], stamp["step"], len(chunk), crc)], _SENT)


def _stamps(chunk: Chunk) -> np.ndarray:
    """[frames] of _STAMP"""
    heads = chunk.frames.reshape(len(chunk.frames), -1)[:, : _STAMP.itemsize]
    return np.ascontiguousarray(heads).view(_STAMP)[:, 0]


@dataclass(frozen=True)
class Produced:
    """What one process has written down. actions: by life, one byte per step."""

    actions: dict[int, bytes]
    sent: np.ndarray
    acked: int

    @property
    def steps(self) -> int:
        return sum(map(len, self.actions.values()))


def produced(journal: Path) -> dict[int, Produced]:
    """By pid."""
    actions: dict[int, dict[int, bytes]] = {}
    for path in journal.glob("*-*"):
        pid, life = map(int, path.name.split("-"))
        actions.setdefault(pid, {})[life] = path.read_bytes()
    return {
        pid: Produced(
            lives,
            np.frombuffer((journal / f"{pid}.sent").read_bytes(), _SENT),
            int(np.frombuffer((journal / f"{pid}.acked").read_bytes(), "<u8").max(initial=0)),
        )
        for pid, lives in actions.items()
    }


def life_of(chunk: Chunk) -> int:
    return int(_stamps(chunk)[STACK - 1]["life"])


def check_gapless(one: Produced) -> None:
    """Raises AssertionError unless the chunks that were sent of a life go on from each other."""
    for life in one.actions:
        chunks = one.sent[one.sent["life"] == life]
        ends = np.cumsum(chunks["length"])
        assert np.array_equal(chunks["first"], ends - chunks["length"]), "a gap between chunks"


def check_chunk(chunk: Chunk, actions: bytes, n_step: int, gamma: float) -> None:
    """Raises AssertionError unless every transition is what its life played.

    Checked: both stacks, the action, the n-step return and its span, the discount. actions: of the
    chunk's life, as journalled.
    """
    stamp = _stamps(chunk)
    newest = stamp[STACK - 1]
    life, episode, first = int(newest["life"]), int(newest["episode"]), int(newest["step"])
    begin, end = int(newest["begin"]), int(newest["end"])
    steps = first + np.arange(len(stamp)) - (STACK - 1)  # that each frame should show
    inside = steps >= begin
    assert (stamp["life"] == np.where(inside, life, 0)).all(), "a stack that mixes lives"
    assert (stamp["episode"] == np.where(inside, episode, 0)).all(), "a stack that mixes episodes"
    assert (stamp["step"] == np.where(inside, steps, 0)).all(), "frames out of order"
    for step, transition in enumerate(chunk.transitions, first):
        span = min(n_step, end - step)
        ends = step + span == end and not is_cut(episode)
        expected = sum(gamma**k * reward_of(step + k) for k in range(span))
        assert transition["action"] == actions[step], "an action that was not taken"
        assert transition["span"] == span, "a wrong successor"
        assert abs(transition["discount"] - (0.0 if ends else gamma**span)) < 1e-6
        assert abs(transition["n_step_return"] - expected) < 1e-3, "a wrong return"
