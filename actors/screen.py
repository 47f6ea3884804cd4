"""From the emulators' palette indices to 84x84 frames, touching only what changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ale_py
import numpy as np

from actors.env import luma, shrink

TILES = 36  # of a picture: 9 rows of 4


class Screens:
    """The last two screens of k games, and the 84x84 luma of each pair's per-pixel maximum.

    What did not change is not computed again: the luma is kept and renewed in words of eight
    pixels, the resized picture in tiles. INTER_AREA from 210 (or 250) rows to 110 and from 160
    columns to 84 maps each tile of 21 (25) rows and 40 columns onto 11 x 21 pixels of its own,
    with the same weights everywhere: so the tiles that changed, of whichever game, are resized one
    above the other, in one call, bit for bit as within the whole picture (tests/test_env.py).

    All k games must be of one kind: they share a palette. Room for all is laid out with the first.

    games: k, the most that will be added.
    """

    def __init__(self, games: int) -> None:
        self.games = games
        self.added = 0

    def add(self, ale: ale_py.ALEInterface) -> Screen:
        """The next game's."""
        if not self.added:
            self._lay_out(*ale.getScreenDims())
        self.added += 1
        return Screen(self, self.added - 1, ale)

    def _lay_out(self, rows: int, columns: int) -> None:
        """pair: [2, k, words] u64, palette indices; changed: which [k * words] of either half."""
        height = rows // 10  # of a tile, 11 rows resized; the first row of tiles is never seen
        self.seen = slice(18 * rows // 110, -(-102 * rows // 110))  # what rows 18:102 are made of
        words = (self.seen.stop - self.seen.start) * columns // 8
        self.pair = np.zeros((2, self.games, words), np.uint64)

        game, word = np.divmod(np.arange(self.games * words), words)
        row, word = np.divmod(word, columns // 8)
        down, row = np.divmod(row + self.seen.start - height, height)
        across, word = np.divmod(word, 5)
        self._tile_of_word = (game * 9 + down) * 4 + across
        self._place_of_word = (self._tile_of_word * height + row) * 5 + word
        self._luma = np.zeros((self.games * TILES, height, 40), np.float32)  # tile by tile
        self._luma_words = self._luma.reshape(-1, 8)
        self._small = np.zeros((self.games * TILES, 11, 21), np.uint8)  # the same tiles, resized
        self.changed: list[np.ndarray] = []  # indices of words, an array per look

        self._palette = np.zeros((256, 3), np.uint8)  # RGB, learned from the emulator
        self.known = b""  # the indices learned
        self._luma_of = np.empty(0, np.float32)  # [65536], of the RGB maximum of two indices

    def frames(self) -> np.ndarray:
        """-> [k, 84, 84] u8, fresh, in the order added; zeros for those still to be added."""
        self._renew()
        return _assemble(self._small)

    def frame(self, game: int) -> np.ndarray:
        """-> [84, 84] u8, fresh: one of them."""
        self._renew()
        frame: np.ndarray = _assemble(self._small[game * TILES : (game + 1) * TILES])[0]
        return frame

    def _renew(self) -> None:
        """Brings luma and tiles up to what changed."""
        if not self.changed:
            return
        words = np.concatenate(self.changed)
        self.changed.clear()
        first, second = self.pair.reshape(2, -1).take(words, axis=1).view(np.uint8)  # [n * 8]
        code = first.astype(np.uint16) << 8 | second
        self._luma_words[self._place_of_word.take(words)] = self._luma_of.take(code).reshape(-1, 8)
        tiles = np.bincount(self._tile_of_word.take(words)).nonzero()[0]
        if len(tiles):
            img = self._luma.take(tiles, axis=0).reshape(-1, 40)  # one above the other
            small = shrink(img, 11 * len(tiles), 21).reshape(-1, 11, 21)
            self._small[tiles] = small  # f32 -> u8, cut off

    def learn(self, ale: ale_py.ALEInterface) -> None:
        """Reads the colours now shown. Known ones stay as they are, and so does what was made."""
        shown = ale.getScreen()
        self._know(shown, ale.getScreenRGB())

    def _know(self, indices: np.ndarray, colours: np.ndarray) -> None:
        """indices: u8 of any shape; colours: RGB of each."""
        self._palette[indices] = colours
        self.known = bytes(set(self.known) | set(indices.tobytes()))
        self._luma_of = luma(np.maximum(self._palette[:, np.newaxis], self._palette)).reshape(-1)

    def colours(self) -> dict[str, bytes]:
        """What was learned of them."""
        known = np.frombuffer(self.known, np.uint8)
        return {"known": self.known, "rgb": self._palette[known].tobytes()}

    def load_colours(self, saved: Mapping[str, bytes]) -> None:
        """Adds what was learned elsewhere."""
        colours = np.frombuffer(saved["rgb"], np.uint8).reshape(-1, 3)
        self._know(np.frombuffer(saved["known"], np.uint8), colours)


def _assemble(small: np.ndarray) -> np.ndarray:
    """Tiles [k * TILES, 11, 21] -> frames [k, 84, 84], fresh."""
    in_place = small.reshape(-1, 9, 4, 11, 21).transpose(0, 1, 3, 2, 4)
    return in_place.reshape(-1, 99, 84)[:, 7:91]  # rows 18:102 of the 110


class Screen:
    """One game's among all `Screens`."""

    def __init__(self, screens: Screens, index: int, ale: ale_py.ALEInterface) -> None:
        self._all, self._index, self._ale = screens, index, ale
        self._now = np.zeros(ale.getScreenDims(), np.uint8)  # palette indices
        self._words = self._now[screens.seen].reshape(-1).view(np.uint64)
        self._first_word = index * self._words.size
        ale.getScreen(self._now)
        screens.learn(ale)
        self._show(self._words)

    def fetch(self) -> None:
        """Takes the emulator's screen in case the game ends on the next one."""
        self._ale.getScreen(self._now)

    def capture(self, slot: int) -> None:
        """Takes the emulator's screen for one of the two; both slots count the same."""
        self._ale.getScreen(self._now)
        self.store(slot)

    def store(self, slot: int) -> None:
        """Makes the screen last taken one of the two."""
        old = self._all.pair[slot, self._index]
        changed = (self._words != old).nonzero()[0]
        new = self._words.take(changed)
        if new.tobytes().translate(None, self._all.known):
            self._all.learn(self._ale)
        old[changed] = new
        self._all.changed.append(changed + self._first_word)

    def capture_as_both(self) -> None:
        """Takes the emulator's screen for both: there is no second one to take a maximum with."""
        self.capture(0)
        self.capture(1)

    def frame(self) -> np.ndarray:
        """-> [84, 84] u8, fresh."""
        return self._all.frame(self._index)

    def state_dict(self) -> dict[str, Any]:
        pair = self._all.pair[:, self._index]
        return {"pair": pair.tobytes(), **self._all.colours()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._all.load_colours(state)
        self._show(np.frombuffer(state["pair"], np.uint64).reshape(2, -1))

    def _show(self, pair: np.ndarray) -> None:
        """[2, words] u64, or one row for both: all of it counts as changed."""
        self._all.pair[:, self._index] = pair
        self._all.changed.append(self._first_word + np.arange(self._words.size))
