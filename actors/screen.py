"""From the emulator's palette indices to the 84x84 frame, touching only what changed."""

from __future__ import annotations

import ale_py
import numpy as np

from actors.env import luma, shrink


class Screen:
    """The emulator's last two screens, and the 84x84 luma of their per-pixel maximum.

    What did not change is not computed again: the luma is kept and renewed in words of eight
    pixels, the resized picture in tiles. INTER_AREA from 210 (or 250) rows to 110 and from 160
    columns to 84 maps each tile of 21 (25) rows and 40 columns onto 11 x 21 pixels of its own,
    with the same weights everywhere: so the tiles that changed are resized one above the other,
    in one call, bit for bit as within the whole picture (tests/test_env.py).
    """

    def __init__(self, ale: ale_py.ALEInterface) -> None:
        self._ale = ale
        rows, columns = ale.getScreenDims()
        height = rows // 10  # of a tile, 11 rows resized; the first row of tiles is never seen
        self._now = np.zeros((rows, columns), np.uint8)  # palette indices
        seen = slice(18 * rows // 110, -(-102 * rows // 110))  # what rows 18:102 are made of
        self._words = self._now[seen].reshape(-1).view(np.uint64)
        self._pair = np.zeros((2, self._words.size), np.uint64)  # the last two screens

        row, word = np.divmod(np.arange(self._words.size), columns // 8)
        down, row = np.divmod(row + seen.start - height, height)
        across, word = np.divmod(word, 5)
        self._tile_of_word = down * 4 + across
        self._place_of_word = (self._tile_of_word * height + row) * 5 + word
        self._luma = np.zeros((36, height, 40), np.float32)  # tile by tile
        self._luma_words = self._luma.reshape(-1, 8)
        self._small = np.zeros((36, 11, 21), np.uint8)  # the same tiles, resized
        self._changed_words = [np.arange(self._words.size)]  # one array per look

        self._palette = np.zeros((256, 3), np.uint8)  # RGB, learned from the emulator
        self._known = b""  # the indices learned
        self._luma_of = np.empty(0, np.float32)  # [65536], of the RGB maximum of two indices
        ale.getScreen(self._now)
        self._learn()
        self._pair[:] = self._words

    def glance(self) -> None:
        """Takes the emulator's screen in case the game ends on the next one."""
        self._ale.getScreen(self._now)

    def look(self, slot: int) -> None:
        """Takes the emulator's screen for one of the two; both slots count the same."""
        self._ale.getScreen(self._now)
        self.compare(slot)

    def compare(self, slot: int) -> None:
        """Makes the screen last taken one of the two."""
        old = self._pair[slot]
        changed = (self._words != old).nonzero()[0]
        new = self._words.take(changed)
        if new.tobytes().translate(None, self._known):
            self._learn()
        old[changed] = new
        self._changed_words.append(changed)

    def look_once(self) -> None:
        """Takes the emulator's screen for both: there is no second one to take a maximum with."""
        self.look(0)
        self.look(1)

    def frame(self) -> np.ndarray:
        """-> [84, 84] u8, fresh."""
        words = np.concatenate(self._changed_words)
        self._changed_words.clear()
        if words.size:
            first, second = self._pair.take(words, axis=1).view(np.uint8)  # [n * 8] u8
            code = first.astype(np.uint16) << 8 | second
            changed = self._luma_of.take(code).reshape(-1, 8)
            self._luma_words[self._place_of_word.take(words)] = changed
            tiles = np.bincount(self._tile_of_word.take(words)).nonzero()[0]
            img = self._luma.take(tiles, axis=0).reshape(-1, 40)  # one above the other
            small = shrink(img, 11 * len(tiles), 21).reshape(-1, 11, 21)
            self._small[tiles] = small  # f32 -> u8, cut off
        picture = self._small.reshape(9, 4, 11, 21).transpose(0, 2, 1, 3).reshape(99, 84)
        return picture[7:91]  # rows 18:102 of the 110

    def _learn(self) -> None:
        """Reads the colours now shown. Known ones stay as they are, and so does what was made."""
        shown = self._ale.getScreen()
        self._palette[shown] = self._ale.getScreenRGB()
        self._known = bytes(set(self._known) | set(shown.tobytes()))
        self._luma_of = luma(np.maximum(self._palette[:, np.newaxis], self._palette)).reshape(-1)
