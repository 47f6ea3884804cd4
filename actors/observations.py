"""The last four frames of every game, as the network sees them."""

import numpy as np

from common.config import FRAME_SHAPE, STACK


class Observations:
    """Of k games. obs: [k, STACK, 84, 84] u8, newest frame last, zeros before an episode's first.

    In memory the channels come last, the layout that convolutions read fastest: rearranging four
    planes for a forward pass takes longer than all else that is done to a frame here.
    """

    def __init__(self, games: int) -> None:
        self._pixels = np.zeros((games, *FRAME_SHAPE, STACK), np.uint8)
        self._bytes = self._pixels.reshape(games, -1)
        self.obs = self._pixels.transpose(0, 3, 1, 2)

    def begin(self, game: int, frame: np.ndarray) -> None:
        """An episode starts with `frame` [84, 84] u8."""
        self._bytes[game] = 0
        self._pixels[game, :, :, -1] = frame

    def push(self, game: int, frame: np.ndarray) -> None:
        """The game shows a new frame [84, 84] u8, its oldest one goes."""
        one = self._bytes[game]
        one[:-1] = one[1:]  # each plane becomes the one before it; the newest is written next
        one[STACK - 1 :: STACK] = frame.reshape(-1)
