"""Stamped: a game whose every frame says which it is, and that keeps a journal of what was played.

The oracle of the drills. A frame names the game's life, its episode, the number of steps before it
and before the episode, so that what a learner holds can be checked against what was produced: each
transition once, in order, and no stack that mixes lives or episodes. Environment variables, read
when a game is made:
  STAMPED_JOURNAL   folder; each life appends one byte per step to its file <pid>-<life>
  STAMPED_FAULT     raise | hang | segfault | nan, with probability 1 / STAMPED_FAULT_STEPS per step
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from common.config import STACK
from common.messages import Chunk

_STAMP = np.dtype([("life", "<u8"), ("episode", "<u4"), ("begin", "<u8"), ("step", "<u8")])


def reward_of(step: int) -> float:
    return float(step % 7 - 3)


class Stamped(gymnasium.Env[np.ndarray, int]):
    observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self) -> None:
        self.life = int.from_bytes(os.urandom(6), "little") + 1  # a blank frame has life 0
        self.episode = self.steps = 0
        journal = os.environ.get("STAMPED_JOURNAL")
        self.journal = -1
        if journal:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self.journal = os.open(Path(journal) / f"{os.getpid()}-{self.life}", flags)
        self.fault = os.environ.get("STAMPED_FAULT", "")
        self.fault_steps = int(os.environ.get("STAMPED_FAULT_STEPS", "10000"))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.begin = self.steps
        self.left = int(self.np_random.integers(1, 120))
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = reward_of(self.steps)
        if self.fault and self.np_random.integers(self.fault_steps) == 0:
            reward = self._fail()
        self.steps += 1
        self.left -= 1
        if self.journal >= 0:
            os.write(self.journal, b".")
        over, cut = self.left == 0, bool(self.episode % 3 == 0)
        return self._frame(), reward, over and not cut, over and cut, {}

    def _frame(self) -> np.ndarray:
        frame = np.zeros((84, 84), np.uint8)
        stamp = np.array([(self.life, self.episode, self.begin, self.steps)], _STAMP)
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


@dataclass
class Life:
    """What a learner holds of one life: steps 0 to `taken` - 1."""

    taken: int = 0


def check_chunk(chunk: Chunk, lives: dict[int, Life], n_step: int, gamma: float) -> None:
    """Raises AssertionError unless the chunk goes on exactly where its life's last one ended.

    Checked of every transition: the step it stands for, both stacks, the n-step return.
    """
    stamps = chunk.frames.reshape(len(chunk.frames), -1)[:, : _STAMP.itemsize]
    stamp = np.ascontiguousarray(stamps).view(_STAMP)[:, 0]
    newest = stamp[STACK - 1]
    life, episode, first = int(newest["life"]), int(newest["episode"]), int(newest["step"])
    assert life, "a chunk without a life"
    taken = lives.setdefault(life, Life()).taken
    assert first == taken, f"life {life:x}: step {first} came after {taken} steps"
    lives[life].taken += len(chunk)
    steps = first + np.arange(len(stamp)) - (STACK - 1)  # that each frame should show
    inside = steps >= int(newest["begin"])
    assert (stamp["life"] == np.where(inside, life, 0)).all(), "a stack that mixes lives"
    assert (stamp["episode"] == np.where(inside, episode, 0)).all(), "a stack that mixes episodes"
    assert (stamp["step"] == np.where(inside, steps, 0)).all(), "frames out of order"
    for i, transition in enumerate(chunk.transitions):
        span = int(transition["span"])
        expected = sum(gamma**k * reward_of(first + i + k) for k in range(span))
        assert 1 <= span <= n_step
        assert abs(transition["n_step_return"] - expected) < 1e-3, "a wrong return"


def produced(journal: Path) -> dict[int, dict[int, int]]:
    """Steps that each life has played, by the process that it ran in: pid -> life -> steps."""
    found: dict[int, dict[int, int]] = {}
    for path in journal.iterdir():
        pid, life = map(int, path.name.split("-"))
        found.setdefault(pid, {})[life] = path.stat().st_size
    return found
