"""The stacks that actors keep, against frames put one after another by hand."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.observations import Observations
from common.config import FRAME_SHAPE, STACK


def frame(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(1, 256, size=FRAME_SHAPE, dtype=np.uint8)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40), st.integers(0, 2**32 - 1)
)
def test_every_game_shows_its_last_four_frames_of_this_episode(
    moves: list[tuple[int, bool]], seed: int
) -> None:
    rng, seen = np.random.default_rng(seed), Observations(3)
    episodes = [[frame(rng)] for _ in range(3)]
    for game, (first,) in enumerate(episodes):
        seen.begin(game, first)
    for game, ends in moves:
        new = frame(rng)
        if ends:
            episodes[game] = [new]
            seen.begin(game, new)
        else:
            episodes[game].append(new)
            seen.push(game, new)
        for obs, frames in zip(seen.obs, episodes, strict=True):
            last = frames[-STACK:]
            assert (obs[STACK - len(last) :] == np.stack(last)).all()
            assert not obs[: STACK - len(last)].any()


def test_a_forward_pass_has_nothing_to_rearrange() -> None:
    obs = Observations(3).obs
    for seen in (obs, obs[np.array([True, False, True])], obs[np.array([2, 0])]):
        assert torch.from_numpy(seen).is_contiguous(memory_format=torch.channels_last)
