"""Steps of one game become n-step transitions, transitions become chunks.

A transition carries `discount`, not `done`: 0 where the episode terminated within its span,
gamma^span otherwise, so a truncated episode bootstraps from its last observation and the loss
needs neither n nor gamma.
"""

from typing import Any

import numpy as np

from common.config import FRAME_SHAPE, STACK
from common.errors import ConfigError
from common.messages import MAX_RETURN, TRANSITION_DTYPE, Chunk, Spec

_NO_FRAME = np.zeros(FRAME_SHAPE, np.uint8)


class Accumulator:
    """The unsent steps of one game.

    Step i of the buffer saw frames[i : i + STACK], took actions[i], earned rewards[i].
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._discounts = spec.discounts()
        self._frames: list[np.ndarray] = []
        self._actions: list[int] = []
        self._rewards: list[float] = []
        self._versions: list[int] = []

    def begin(self, frame: np.ndarray) -> None:
        """An episode starts with `frame` [84, 84] u8; the stack before it is empty."""
        self._frames = [_NO_FRAME] * (STACK - 1) + [frame]
        self._actions, self._rewards, self._versions = [], [], []

    def append(
        self,
        action: int,
        reward: float,
        frame: np.ndarray,
        terminated: bool,
        truncated: bool,
        policy_version: int,
    ) -> list[Chunk]:
        """One step and the frame it led to; returns the chunks that it completes (mostly none).

        After `terminated` or `truncated` call `begin` before the next step. Raises ConfigError when
        a return is too large to learn from.
        """
        self._frames.append(frame)
        self._actions.append(action)
        self._rewards.append(reward)
        self._versions.append(policy_version)
        if terminated or truncated:
            return self._flush(terminated)
        if len(self._actions) == self.spec.chunk_transitions + self.spec.n_step - 1:
            return [self._emit(self.spec.chunk_transitions, terminated=False)]
        return []

    def _flush(self, terminated: bool) -> list[Chunk]:
        """The episode is over: everything goes, in as many chunks as it takes."""
        chunks = []
        while self._actions:
            count = min(len(self._actions), self.spec.chunk_transitions)
            chunks.append(self._emit(count, terminated))
        return chunks

    def _emit(self, count: int, terminated: bool) -> Chunk:
        """Cut the first `count` transitions off the buffer."""
        n, steps = self.spec.n_step, len(self._actions)
        start = np.arange(count)
        span = np.minimum(n, steps - start)
        rewards = np.zeros(count + n)
        rewards[: min(steps, count + n)] = self._rewards[: count + n]
        transitions = np.zeros(count, TRANSITION_DTYPE)
        transitions["action"] = self._actions[:count]
        transitions["span"] = span
        for k in range(n):
            transitions["n_step_return"] += (self.spec.gamma**k * rewards[k : k + count]).astype(
                np.float32
            )
        largest = np.abs(transitions["n_step_return"]).max()
        if not largest <= MAX_RETURN:  # inf - inf is no number, and not larger
            raise ConfigError(
                f"The rewards of {n} step(s) add up to {largest:g} in size, expected at most "
                f"{MAX_RETURN:g}: divide the game's rewards, or clip them with --clip-rewards."
            )
        transitions["discount"] = self._discounts[span]
        if terminated:
            transitions["discount"][start + span == steps] = 0.0
        frames = np.stack(self._frames[: STACK + int((start + span).max())])
        chunk = Chunk(frames, transitions, self._versions[0])
        for steps_of in (self._frames, self._actions, self._rewards, self._versions):
            del steps_of[:count]
        return chunk

    def state_dict(self) -> dict[str, Any]:
        """Everything unsent (the spec is the caller's)."""
        return {
            "frames": np.stack(self._frames).tobytes(),
            "actions": list(self._actions),
            "rewards": list(self._rewards),
            "versions": list(self._versions),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        frames = np.frombuffer(state["frames"], np.uint8).reshape(-1, *FRAME_SHAPE)
        self._frames = list(frames)
        self._actions, self._rewards = list(state["actions"]), list(state["rewards"])
        self._versions = list(state["versions"])
