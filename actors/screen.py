"""From the emulator's palette indices to an 84x84 frame, touching only what changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ale_py
import numpy as np

from actors.env import luma
from common.compiled import compiled
from common.config import FRAME_SHAPE

LEAST_SHARE = 1e-3  # of a pixel: what OpenCV takes for an error of rounding
WORD = 8  # pixels that are compared at once
ALL = np.uint32(2**32 - 1)  # words of a row


class Screen:
    """A game's last two screens, and the 84x84 luma of their per-pixel maximum.

    Bit for bit what the wrappers in `actors/env.py` make of them (on x86-64, where OpenCV rounds
    each product; tests/test_env.py), but where nothing changed nothing is computed again.
    """

    def __init__(self, ale: ale_py.ALEInterface) -> None:
        self._ale = ale
        rows, columns = ale.getScreenDims()
        seen = slice(18 * rows // 110, -(-102 * rows // 110))  # what rows 18:102 are made of
        self._now = np.zeros((rows, columns), np.uint8)  # palette indices
        self._words = self._now[seen].view(np.uint64)
        self._pair = np.zeros((2, *self._words.shape), np.uint64)
        self._changed = np.full(len(self._words), ALL)  # of each row a bit for each word
        self._picture = np.zeros((len(self._words), columns), np.float32)
        self._down = _taps(_area_weights(rows, 110)[18:102, seen])  # of each row of the frame, ...
        self._across = _taps(_area_weights(columns, 84))  # ... and of each column
        self._frame = np.zeros(FRAME_SHAPE, np.uint8)

        self._palette = np.zeros((256, 3), np.uint8)  # RGB, learned from the emulator
        self._known = np.zeros(256, np.bool_)  # the indices learned
        self._luma_of = np.zeros((256, 256), np.float32)  # of the RGB maximum of two indices
        self._learn()
        ale.getScreen(self._now)
        # Without a compiled loop: whoever only asks how many actions there are needs no compiler.
        self._pair[:] = self._words

    def fetch(self) -> None:
        """Takes the emulator's screen in case the game ends on the next one."""
        self._ale.getScreen(self._now)

    def capture(self, slot: int) -> None:
        """Takes the emulator's screen for one of the two; both slots count the same."""
        self._ale.getScreen(self._now)
        self.store(slot)

    def store(self, slot: int) -> None:
        """Makes the screen last taken one of the two."""
        if not _take_changes(self._words, self._pair[slot], self._changed, self._known):
            self._learn()

    def capture_as_both(self) -> None:
        """Takes the emulator's screen for both: there is no second one to take a maximum with."""
        self.capture(0)
        self.store(1)

    def frame(self) -> np.ndarray:
        """-> [84, 84] u8, fresh."""
        _renew_luma(self._pair, self._changed, self._luma_of, self._picture)
        _renew_frame(self._picture, self._changed, *self._down, *self._across, self._frame)
        self._changed[:] = 0
        return self._frame.copy()

    def _learn(self) -> None:
        """Reads the colours now shown. Known ones stay as they are, and so does what was made."""
        shown = self._ale.getScreen()
        self._know(shown, self._ale.getScreenRGB())

    def _know(self, indices: np.ndarray, colours: np.ndarray) -> None:
        """indices: u8 of any shape; colours: RGB of each."""
        self._palette[indices] = colours
        self._known[indices] = True
        self._luma_of = luma(np.maximum(self._palette[:, np.newaxis], self._palette))

    def state_dict(self) -> dict[str, Any]:
        known = np.flatnonzero(self._known).astype(np.uint8)
        return {
            "pair": self._pair.tobytes(),
            "known": known.tobytes(),
            "rgb": self._palette[known].tobytes(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        colours = np.frombuffer(state["rgb"], np.uint8).reshape(-1, 3)
        self._know(np.frombuffer(state["known"], np.uint8), colours)
        self._pair[:] = np.frombuffer(state["pair"], np.uint64).reshape(self._pair.shape)
        self._changed[:] = ALL


@compiled
def _take_changes(new: np.ndarray, old: np.ndarray, changed: np.ndarray, known: np.ndarray) -> bool:
    """Brings a screen up to a newer one, [rows, words] u64, and notes which words of each row
    changed. -> whether all that is new in them are known indices."""
    all_known = True
    rows, words = new.shape
    for row in range(rows):
        differ = np.uint64(0)
        for word in range(words):
            differ |= new[row, word] ^ old[row, word]
        if differ == 0:
            continue
        for word in range(words):
            if new[row, word] != old[row, word]:
                old[row, word] = new[row, word]
                changed[row] |= np.uint32(1 << word)
                for pixel in range(WORD):
                    all_known &= known[new[row, word] >> np.uint64(8 * pixel) & np.uint64(255)]
    return all_known


@compiled
def _renew_luma(
    pair: np.ndarray, changed: np.ndarray, luma_of: np.ndarray, picture: np.ndarray
) -> None:
    """The luma of what changed in a pair of screens -> picture [rows, columns] f32."""
    first, second = pair[0].view(np.uint8), pair[1].view(np.uint8)
    for row in range(len(changed)):
        if changed[row]:
            for column in range(picture.shape[1]):
                if changed[row] >> np.uint32(column // WORD) & np.uint32(1):
                    picture[row, column] = luma_of[first[row, column], second[row, column]]


@compiled
def _renew_frame(
    picture: np.ndarray,
    changed: np.ndarray,
    first_row: np.ndarray,
    row_weights: np.ndarray,
    first_column: np.ndarray,
    column_weights: np.ndarray,
    frame: np.ndarray,
) -> None:
    """The frame where it sees what changed. Sums are made in OpenCV's order: first along a row."""
    for y in range(frame.shape[0]):
        rows = range(first_row[y], first_row[y] + row_weights.shape[1])
        bits = np.uint32(0)
        for row in rows:
            bits |= changed[row]
        if bits == 0:
            continue
        for x in range(frame.shape[1]):
            first, last = first_column[x], first_column[x] + column_weights.shape[1] - 1
            if (bits >> np.uint32(first // WORD) | bits >> np.uint32(last // WORD)) & np.uint32(1):
                value = np.float32(0)
                for i in range(row_weights.shape[1]):
                    along = np.float32(0)
                    for j in range(column_weights.shape[1]):
                        along += picture[first_row[y] + i, first + j] * column_weights[x, j]
                    value += along * row_weights[y, i]
                frame[y, x] = np.uint8(value)


def _area_weights(source: int, target: int) -> np.ndarray:
    """[target, source] f32: what the `shrink` of `actors/env.py` makes each pixel of, which is the
    mean of what it covers."""
    scale, pixel = source / target, np.arange(source)
    first = scale * np.arange(target)[:, np.newaxis]
    covered = np.minimum(first + scale, pixel + 1) - np.maximum(first, pixel)
    return (np.where(covered > LEAST_SHARE, covered, 0) / scale).astype(np.float32)


def _taps(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n, source] -> of each the first that is not 0 [n] i64, and from there on [n, taps]."""
    taps = int((weights > 0).sum(axis=1).max())
    first = np.minimum((weights > 0).argmax(axis=1), weights.shape[1] - taps)
    return first, np.take_along_axis(weights, first[:, np.newaxis] + np.arange(taps), axis=1)
