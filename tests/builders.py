"""Small things that many tests need: configurations, chunks whose every frame can be read back,
screens that differ from a background."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.config import FRAME_SHAPE, STACK, Config
from common.messages import TRANSITION_DTYPE, Chunk, Spec
from common.presets import make_config

CATCH = "tests.catch:Catch-v0"


def config(**overrides: Any) -> Config:
    """A small configuration of the game Catch."""
    small: dict[str, Any] = {
        "env": CATCH,
        "n_actions": 3,
        "confirm_games": 0,
        "actors": 1,
        "envs_per_actor": 2,
        "network": "nips",
        "replay_transitions": 2_000,
        "learning_starts_transitions": 200,
        "chunk_transitions": 16,
        "learner_threads": 1,
        "n_step": 3,
        "prioritized": False,
        "double": True,
        "dueling": True,
    }
    return make_config("pong", **(small | overrides))


def stamped(stamp: int) -> np.ndarray:
    """[84, 84] u8 that says which frame it is (0 to 65,535)."""
    frame = np.zeros(FRAME_SHAPE, np.uint8)
    frame[0, 0], frame[0, 1] = stamp >> 8, stamp & 255
    return frame


def stamp_of(frame: Any) -> int:
    return int(frame[0, 0]) * 256 + int(frame[0, 1])


def chunk_of(spec: Spec, length: int, first_stamp: int, terminal: bool = False) -> Chunk:
    """`length` transitions whose frames are stamped in a row and whose returns say their number."""
    span = np.minimum(spec.n_step, length - np.arange(length)) if terminal else spec.n_step
    transitions = np.zeros(length, TRANSITION_DTYPE)
    transitions["span"] = span
    transitions["action"] = np.arange(length) % spec.n_actions
    transitions["n_step_return"] = first_stamp + np.arange(length)
    transitions["discount"] = spec.discounts()[transitions["span"]]
    count = STACK + int((np.arange(length) + transitions["span"]).max())
    frames = np.stack([stamped(first_stamp + i) for i in range(count)])
    return Chunk(frames, transitions, policy_version=0)


def still_screens(background: Tensor, count: int) -> Tensor:
    """Observations that show nothing but the background [H, W], channels last."""
    obs = background.to(torch.uint8).expand(count, STACK, *background.shape)
    return obs.contiguous(memory_format=torch.channels_last)


def busy_screens(background: Tensor, count: int) -> Tensor:
    """Sprites in the middle and over all four edges, pixels in the corners, one still screen."""
    obs = still_screens(background, count)
    for image in range(1, count):
        for _ in range(3):
            y, x = torch.randint(-3, 84, (2,)).tolist()
            obs[image, image % STACK, max(y, 0) : y + 5, max(x, 0) : x + 3] += 100
        obs[image, :, 83 * (image % 2), 83 * (image // 2 % 2)] += 1
    return obs
