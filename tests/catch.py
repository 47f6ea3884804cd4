"""Catch: a small pixel game for tests. A ball falls, a paddle at the bottom must be under it.

Seven columns and rows of 12 pixels; 3 actions (left, stay, right); +1 caught, -1 missed; a game is
ten balls, so scores run from -10 to +10 and random play scores about -7.
"""

from typing import Any

import gymnasium
import numpy as np

CELLS, CELL, BALLS = 7, 12, 10


class Catch(gymnasium.Env[np.ndarray, int]):
    observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.balls, self.paddle = 0, CELLS // 2
        self._drop()
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.paddle = int(np.clip(self.paddle + action - 1, 0, CELLS - 1))
        self.row += 1
        reward = 0.0
        if self.row == CELLS - 1:
            reward = 1.0 if self.column == self.paddle else -1.0
            self.balls += 1
            self._drop()
        return self._frame(), reward, self.balls == BALLS, False, {}

    def get_state(self) -> dict[str, Any]:
        rng = self.np_random.bit_generator.state
        return {"game": [self.balls, self.paddle, self.row, self.column], "rng": rng}

    def set_state(self, state: dict[str, Any]) -> None:
        self.balls, self.paddle, self.row, self.column = state["game"]
        self.np_random.bit_generator.state = state["rng"]

    def _drop(self) -> None:
        self.row, self.column = 0, int(self.np_random.integers(CELLS))

    def _frame(self) -> np.ndarray:
        cells = np.full((CELLS, CELLS), 87, np.uint8)
        cells[self.row, self.column] = 236
        cells[CELLS - 1, self.paddle] = 147
        return cells.repeat(CELL, 0).repeat(CELL, 1)


gymnasium.register("Catch-v0", Catch)
