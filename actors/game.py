"""What an actor steps: its frames are bit for bit the newest ones of `make_env`'s stack.

`AtariGame` does what the wrappers do on the emulator's palette indices instead of its RGB, and
only where the screen changed. The wrappers in `actors/env.py` say what is meant; this is fast.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ale_py
import gymnasium
import numpy as np
from ale_py.env import AtariEnv
from gymnasium.wrappers import TimeLimit

from actors.env import SKIP, Env, emulator_of, has_fire, open_env
from actors.screen import Screen
from common.config import FRAME_SHAPE, Config
from common.errors import ConfigError, Mismatch

NOOP = 0  # Atari's action of doing nothing
STICKIEST_FRAMES = 30  # after so many of one action an emulator that repeats one in four has it


@dataclass(frozen=True, slots=True)
class Step:
    """What one env_step gave."""

    reward: float
    """Raw, unclipped, summed over the skipped frames."""
    terminated: bool
    """The episode ended for learning: game over, or a life lost with episodic_life."""
    truncated: bool
    """Cut off by a time limit: the learner bootstraps."""
    game_over: bool
    """The whole game ended, either way: its score and length are final."""


class Game(Protocol):
    """One game in play. A step that ended the episode is followed by reset()."""

    n_actions: int
    frames_per_env_step: int
    scores: list[float]
    """Raw scores of whole games that are over, oldest first; whoever reads them takes them out.

    Rewards that fall while an episode begins (a no-op, FIRE) count too, and a game may even end
    there: so a score is the game's to tell, not the sum of its steps' rewards."""

    def reset(self, seed: int | None = None) -> np.ndarray:
        """The first frame of an episode, [84, 84] u8. A seed starts a new game (and is slow)."""

    def step(self, action: int) -> Step:
        """Plays one env_step. What it led to is to be asked for: frame()."""

    def frame(self) -> np.ndarray:
        """What the last reset() or step() led to, [84, 84] u8: the caller's own."""

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit, in plain values and bytes (but see
        `AtariGame.load_state_dict`)."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, in a game made the same way."""

    def close(self) -> None:
        """Lets go of the emulator."""


def make_game(
    env_id: str,
    *,
    noop_max: int = 0,
    episodic_life: bool = False,
    seed: int | None = None,
) -> Game:
    """The game that `make_env` wraps; no-ops and lives are Atari's.

    seed: what the first reset() will be given, if that is known: then that reset is quicker.

    Raises ConfigError when there is no such game to play.
    """
    env = open_env(env_id, seed=seed)
    if (bare := emulator_of(env)) is None:
        return GymGame(env)
    if env.spec is not None and env.spec.max_episode_steps is not None:
        raise ConfigError(
            f"{env_id} is limited by max_episode_steps: an Atari game takes its limit as "
            "max_num_frames_per_episode"
        )
    return AtariGame(bare, noop_max=noop_max, episodic_life=episodic_life)


def game_for(config: Config, seed: int) -> Game:
    """The game that a configuration describes, to be begun by reset(seed).

    Raises Mismatch when it has another number of actions than the configuration says.
    """
    game = make_game(
        config.env,
        noop_max=config.noop_max,
        episodic_life=config.episodic_life,
        seed=seed,
    )
    if game.n_actions != config.n_actions:
        game.close()
        raise Mismatch(
            f"{config.env} has {game.n_actions} actions here, the configuration says "
            f"{config.n_actions}: it was made with another game of this name."
        )
    return game


def idle_env_steps(game: Game, most: int, rng: np.random.Generator) -> int:
    """How many env steps of NOOP a game is to begin with: 0 to `most`; none where it is not Atari,
    as action 0 may be a move there."""
    return int(rng.integers(most + 1)) if isinstance(game, AtariGame) and most else 0


def game_seed(sequence: np.random.SeedSequence) -> int:
    """What reset() takes: 31 bits."""
    return int(sequence.generate_state(1)[0]) >> 1


class AtariGame:
    """NoopResetEnv, MaxAndSkipEnv, EpisodicLifeEnv, FireResetEnv and ProcessFrame84 in one."""

    def __init__(
        self,
        env: AtariEnv,
        *,
        noop_max: int = 0,
        episodic_life: bool = False,
    ) -> None:
        self._env = env
        self._ale = env.ale
        self._screen = Screen(env.ale)
        self._actions = env._action_set
        self.n_actions = len(self._actions)
        # Over the last two frames of our own skip; else the emulator skips, and shows one.
        self._max_pools = env._frameskip == 1
        self._skip = SKIP if self._max_pools else int(env._frameskip)  # type: ignore[arg-type]
        self.frames_per_env_step = self._skip
        self.scores: list[float] = []
        self._score = 0.0  # of the game in progress
        self._fire = has_fire(env)
        self._noop_max = noop_max
        self._episodic_life = episodic_life
        self._lives = 0
        self._game_over = True
        self._last = self._actions[0]  # that the emulator was told, since a game began
        self._sticky = env.ale.getFloat("repeat_action_probability") > 0.0

    def reset(self, seed: int | None = None) -> np.ndarray:
        self._begin(seed)
        for action in (1, 2) if self._fire else ():
            step = self.step(action)
            if step.terminated or step.truncated:
                self._begin()
        return self.frame()

    def step(self, action: int) -> Step:
        reward = self._play(action)
        ale = self._ale
        game_over = ale.game_over()
        lives = ale.lives()
        lost = self._episodic_life and 0 < lives < self._lives
        self._lives = lives
        self._game_over = game_over
        terminated = lost or ale.game_over(with_truncation=False)
        return Step(float(reward), terminated, ale.game_truncated(), game_over)

    def frame(self) -> np.ndarray:
        return self._screen.frame()

    def _play(self, action: int) -> int:
        """One action for one env_step, entered into the score. -> its reward."""
        reward = self._act(action)
        self._score += reward
        if self._ale.game_over():
            self.scores.append(self._score)
            self._score = 0.0
        return reward

    def _act(self, action: int) -> int:
        """The same without the book-keeping; leaves on the screen the frames that count."""
        ale, screen = self._ale, self._screen
        code = self._last = self._actions[action]
        reward = 0
        if not self._max_pools:
            for _ in range(self._skip):
                reward += ale.act(code)
            screen.capture_as_both()
            return reward
        for frame in range(self._skip):
            reward += ale.act(code)
            ended = ale.game_over()
            if ended and 0 < frame < self._skip - 1:
                # The frame before turns out to count. It is gone: a colour first shown in it,
                # and in it alone, cannot be learned any more and counts as black.
                screen.store(1 - frame % 2)
            if ended or frame >= self._skip - 2:
                screen.capture(frame % 2)
            else:
                screen.fetch()
            if ended:
                break
        return reward

    def _begin(self, seed: int | None = None) -> None:
        """EpisodicLifeEnv.reset over NoopResetEnv.reset."""
        new_game = self._game_over or not self._episodic_life or seed is not None
        if not new_game:
            self._play(0)
            new_game = self._ale.game_over()
        if new_game:
            self._env.reset(seed=seed)
            self._last = self._actions[0]
            self._score = 0.0
            if self._noop_max:
                self._noops()
            self._screen.capture_as_both()
        self._game_over = False
        self._lives = self._ale.lives()

    def _noops(self) -> None:
        skip = 1 if self._max_pools else self._skip
        for _ in range(self._env.np_random.integers(1, self._noop_max + 1)):
            for _ in range(skip):
                self._score += self._ale.act(self._actions[0])
            if self._ale.game_over():  # nobody played it: it does not count
                self._ale.reset_game()
                self._score = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "ale": self._ale.cloneState(include_rng=True).serialize(),
            # As text: its integers have 128 bits, more than other readers of JSON hold.
            "rng": json.dumps(self._env.np_random.bit_generator.state),
            "lives": self._lives,
            "game_over": self._game_over,
            "score": self._score,
            "last": self._last.value,
            "screen": self._screen.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Where actions are sticky, one game in a thousand goes on another way: the emulator's
        state does not hold what it repeats, which need not be what it was told last."""
        self._last = ale_py.Action(state["last"])
        for _ in range(STICKIEST_FRAMES if self._sticky else 0):
            self._ale.act(self._last)
        self._ale.restoreState(ale_py.ALEState(state["ale"]))
        self._env.np_random.bit_generator.state = json.loads(state["rng"])
        self._lives = state["lives"]
        self._game_over = state["game_over"]
        self._score = state["score"]
        self._screen.load_state_dict(state["screen"])
        self.scores.clear()  # of a game that was over while this one was made

    def close(self) -> None:
        self._env.close()


class GymGame:
    """Any other gymnasium environment that gives [84, 84] u8 by itself.

    To be saved it needs `get_state()` and `set_state(state)`, in plain values and with all its
    randomness; the steps of its time limit are kept here.
    """

    def __init__(self, env: Env) -> None:
        self._env = env
        self._limit = _time_limit(env)
        self.frames_per_env_step = 1
        self.scores: list[float] = []
        self._score = 0.0
        self.n_actions = int(env.action_space.n)  # type: ignore[attr-defined]
        self._obs = np.zeros(FRAME_SHAPE, np.uint8)

    def reset(self, seed: int | None = None) -> np.ndarray:
        self._score = 0.0
        obs, _ = self._env.reset(seed=seed)
        self._take(obs)
        return self.frame()

    def step(self, action: int) -> Step:
        obs, reward, terminated, truncated, _ = self._env.step(action)
        self._take(obs)
        if not math.isfinite(float(reward)):
            name = type(self._env.unwrapped).__name__
            raise ConfigError(f"{name} gave a reward of {reward}, expected a finite one.")
        over = bool(terminated or truncated)
        self._score += float(reward)
        if over:
            self.scores.append(self._score)
        return Step(float(reward), bool(terminated), bool(truncated), over)

    def _take(self, obs: np.ndarray) -> None:
        """A copy: the environment may write the next one over it."""
        if obs.shape != FRAME_SHAPE or obs.dtype != np.uint8:
            name = type(self._env.unwrapped).__name__
            raise ConfigError(
                f"{name} gave an observation of shape {obs.shape} and type {obs.dtype}, not what "
                "its observation_space says: uint8 of shape (84, 84)."
            )
        self._obs[:] = obs

    def frame(self) -> np.ndarray:
        return self._obs.copy()

    def state_dict(self) -> dict[str, Any]:
        steps = self._limit._elapsed_steps if self._limit else None
        return {
            "env": self._saving_env().get_state(),
            "limit_env_steps": steps,
            "score": self._score,
            "obs": self._obs.tobytes(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        bare = self._saving_env()
        self._env.reset()  # gymnasium refuses to step an environment that was never reset
        bare.set_state(state["env"])
        if self._limit:
            self._limit._elapsed_steps = state["limit_env_steps"]
        self._score = state["score"]
        self.scores.clear()
        self._obs[:] = np.frombuffer(state["obs"], np.uint8).reshape(FRAME_SHAPE)

    def _saving_env(self) -> Any:
        bare = self._env.unwrapped
        if hasattr(bare, "get_state") and hasattr(bare, "set_state"):
            return bare
        name = type(bare).__name__
        raise ConfigError(
            f"{name} cannot be played in lock-step, where games are saved too: give it get_state() "
            "and set_state(state), or use --actors 1."
        )

    def close(self) -> None:
        self._env.close()


def _time_limit(env: Env) -> TimeLimit | None:
    """The layer of `env` that counts its steps, if one does."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return env
        env = env.env
    return None
