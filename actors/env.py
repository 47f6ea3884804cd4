"""The environment wrappers and `make_env`: the readable reference form of what the agent sees.

The stack is that of Lapan, Deep Reinforcement Learning Hands-On (the Pong DQN chapter), itself
after OpenAI Baselines' `atari_wrappers`; `actors/game.py` gives the same frames faster, and the
tests hold the two equal. Every wrapper speaks gymnasium's five-value step. Below the wrappers:
`open_env`, the bare environment of a name, and what is said where there is none to play.
"""

from __future__ import annotations

import collections
import copy
import difflib
import functools
import warnings
from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py.env import AtariEnv
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from common.errors import ConfigError

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # before the first emulator: no banner

Env = gymnasium.Env[Any, Any]
Reset = tuple[Any, dict[str, Any]]
Stepped = tuple[Any, float, bool, bool, dict[str, Any]]

SKIP = 4  # emulator frames per env_step
SCREENS = ((210, 160, 3), (250, 160, 3))  # what ProcessFrame84 is defined on, [rows, columns, RGB]


class NoopResetEnv(gymnasium.Wrapper):
    """Starts an episode with 1..noop_max no-ops, drawn from the environment's own generator."""

    def __init__(self, env: Env, noop_max: int = 30) -> None:
        super().__init__(env)
        self.noop_max = noop_max

    def reset(self, **kwargs: Any) -> Reset:
        obs, info = self.env.reset(**kwargs)
        for _ in range(self.np_random.integers(1, self.noop_max + 1)):
            obs, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                obs, info = self.env.reset()
        return obs, info


class MaxAndSkipEnv(gymnasium.Wrapper):
    """Repeats each action `skip` times; sees the per-pixel maximum of the last two RGB frames.

    The sprites of many games flicker: drawn on every other frame only. Stops where the episode
    ends; the last frame of the step before counts where a step ends on its first.
    """

    def __init__(self, env: Env, skip: int = SKIP) -> None:
        super().__init__(env)
        self.skip = skip
        self._last_two: collections.deque[np.ndarray] = collections.deque(maxlen=2)

    def reset(self, **kwargs: Any) -> Reset:
        obs, info = self.env.reset(**kwargs)
        self._last_two.clear()
        self._last_two.append(obs)
        return obs, info

    def step(self, action: int) -> Stepped:
        total = 0.0
        for _ in range(self.skip):
            obs, reward, terminated, truncated, info = self.env.step(action)
            self._last_two.append(obs)
            total += float(reward)
            if terminated or truncated:
                break
        return np.max(np.stack(self._last_two), axis=0), total, terminated, truncated, info


class EpisodicLifeEnv(gymnasium.Wrapper):
    """Ends the episode, for learning, where a life is lost; the game itself goes on.

    reset() starts a new game only if the last one is over (or a seed asks for one), and else
    leaves the lost life behind with one no-op.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._lives = 0
        self._game_over = True

    def step(self, action: int) -> Stepped:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._game_over = terminated or truncated
        lives = self.env.unwrapped.ale.lives()  # type: ignore[attr-defined]
        lost = 0 < lives < self._lives  # at 0 the game says itself when it is over (Qbert: later)
        self._lives = lives
        return obs, float(reward), terminated or lost, truncated, info

    def reset(self, **kwargs: Any) -> Reset:
        new_game = self._game_over or kwargs.get("seed") is not None
        if not new_game:
            obs, _, terminated, truncated, info = self.env.step(0)
            new_game = terminated or truncated
        if new_game:
            obs, info = self.env.reset(**kwargs)
        self._game_over = False
        self._lives = self.env.unwrapped.ale.lives()  # type: ignore[attr-defined]
        return obs, info


class FireResetEnv(gymnasium.Wrapper):
    """Presses FIRE (action 1), then action 2: for games that wait for FIRE to begin."""

    def reset(self, **kwargs: Any) -> Reset:
        self.env.reset(**kwargs)
        for action in (1, 2):
            obs, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                obs, info = self.env.reset()  # unseeded: the seed has had its one use
        return obs, info


class ProcessFrame84(gymnasium.ObservationWrapper):
    """RGB screen [210 or 250, 160, 3] u8 -> luma [84, 84, 1] u8, the score cut off."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        check_screen(env.observation_space.shape)
        self.observation_space = spaces.Box(0, 255, (84, 84, 1), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return self.process(observation)

    @staticmethod
    def process(rgb: np.ndarray) -> np.ndarray:
        """[210 or 250, 160, 3] u8 -> [84, 84, 1] u8."""
        check_screen(rgb.shape)
        return shrink(luma(rgb), 110, 84)[18:102].astype(np.uint8)[:, :, np.newaxis]


class ImageToPyTorch(gymnasium.ObservationWrapper):
    """Channels first: [84, 84, 1] -> [1, 84, 84] u8."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        height, width, channels = env.observation_space.shape or ()
        self.observation_space = spaces.Box(0, 255, (channels, height, width), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.moveaxis(observation, 2, 0)


class BufferWrapper(gymnasium.Wrapper):
    """Stacks the last n frames, oldest first, zeros before an episode's first.

    [1, 84, 84] or [84, 84] u8 -> [n, 84, 84] u8, a fresh array each time.
    """

    def __init__(self, env: Env, n: int = 4) -> None:
        super().__init__(env)
        shape = (n, *(env.observation_space.shape or ())[-2:])
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self._zeros = np.zeros(shape, np.uint8)
        self._stack = self._zeros

    def reset(self, **kwargs: Any) -> Reset:
        self._stack = self._zeros
        obs, info = self.env.reset(**kwargs)
        return self._push(obs), info

    def step(self, action: int) -> Stepped:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._push(obs), float(reward), terminated, truncated, info

    def _push(self, frame: np.ndarray) -> np.ndarray:
        newest = frame.reshape(1, *self._stack.shape[1:])
        self._stack = np.concatenate([self._stack[1:], newest])
        return self._stack.copy()  # the caller may write into what it gets


class ScaledFloatFrame(gymnasium.ObservationWrapper):
    """u8 in 0..255 -> float32 in [0, 1]."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0.0, 1.0, env.observation_space.shape, np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation.astype(np.float32) / 255.0


class ClipRewardEnv(gymnasium.RewardWrapper):
    """Learns from the sign of the reward alone: -1, 0 or 1."""

    def reward(self, reward: Any) -> float:
        return float(np.sign(reward))


def luma(rgb: np.ndarray) -> np.ndarray:
    """[..., 3] u8 -> [...] float32; each product and sum is float32, left to right."""
    img: np.ndarray = rgb.astype(np.float32)
    red, green, blue = img[..., 0], img[..., 1], img[..., 2]
    weighted: np.ndarray = red * 0.299 + green * 0.587 + blue * 0.114
    return weighted


def shrink(img: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[h, w] float32 -> [rows, columns] float32, each pixel the mean of the area it covers."""
    cv2 = load_opencv()
    resized: np.ndarray = cv2.resize(img, (columns, rows), interpolation=cv2.INTER_AREA)
    return resized


@functools.cache
def load_opencv() -> Any:
    """cv2, which takes 50 ms to import, and which nobody but these wrappers needs."""
    try:
        import cv2
    except ImportError as error:
        if ".so" not in str(error):  # not installed at all
            raise
        raise ConfigError(
            f"OpenCV lacks a system library ({error}): on Debian and Ubuntu `apt-get install "
            "libgl1 libglib2.0-0 libxcb1` brings them, or replace opencv-python by "
            "opencv-python-headless."
        ) from None
    cv2.setNumThreads(0)  # the images are too small for a pool to pay
    return cv2


def check_screen(shape: tuple[int, ...] | None) -> None:
    """Refuses a screen that the 84x84 frame is not defined on."""
    if shape not in SCREENS:
        size = "x".join(map(str, shape or ()))
        raise ConfigError(f"the screen is {size}, and only 210x160x3 and 250x160x3 are supported")


def has_fire(env: AtariEnv) -> bool:
    """Whether FireResetEnv's two actions mean FIRE and something beside it."""
    meanings = env.get_action_meanings()
    return len(meanings) > 2 and meanings[1] == "FIRE"


class SeededAtariEnv(AtariEnv):
    """An AtariEnv that knows from the start the seed of its first reset.

    ALE takes a seed only while it loads a game, which costs 0.15 s: without this every game is
    loaded twice, when it is made and when it is first reset.
    """

    def __init__(self, first_seed: int, **options: Any) -> None:
        self._first_seed: int | None = first_seed
        super().__init__(**options)

    def seed_game(self, seed: int | None = None) -> tuple[int, int]:
        return super().seed_game(self._first_seed if seed is None else seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        loaded, self._first_seed = self._first_seed, None
        return super().reset(seed=None if seed == loaded else seed, options=options)


def open_env(env_id: str, seed: int | None = None) -> Env:
    """The bare environment, checked: an Atari game with a fixed skip, or ready-made frames.

    seed: what its first reset will be given, if that is known: then that reset is quicker.
    """
    if env_id.startswith((".", "/")):
        raise ConfigError(f"{env_id!r} is a path: an environment of your own is module:Id")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is out of date")  # v0 differs from v4, and is wanted
        warnings.filterwarnings("ignore", ".*Using the latest versioned environment")
        try:
            # The checker only warns, at each step's cost.
            env = gymnasium.make(_seeded(env_id, seed), disable_env_checker=True)
        except (gymnasium.error.UnregisteredEnv, ImportError) as error:
            raise ConfigError(_unknown(env_id, error)) from error
        except (gymnasium.error.Error, ValueError) as error:  # of its form, or from the game itself
            raise ConfigError(f"{env_id!r} cannot be made: {error}") from error
    if (bare := emulator_of(env)) is not None:
        check_screen(bare.observation_space.shape)
        if not isinstance(bare._frameskip, int):
            raise ConfigError(
                f"{env_id} repeats actions a random number of frames, which Volley does not "
                "count: choose the game's NoFrameskip-v4 or ALE/...-v5 form"
            )
    else:
        space = env.observation_space
        if space.shape != (84, 84) or space.dtype != np.uint8:
            raise ConfigError(
                f"{env_id} gives observations of shape {space.shape} and type {space.dtype}: "
                "anything but an Atari game as it comes must give uint8 of shape (84, 84)"
            )
    actions = env.action_space
    if not isinstance(actions, spaces.Discrete) or actions.start != 0:
        raise ConfigError(
            f"{env_id} takes actions of {actions}: DQN chooses among n actions, so an environment "
            "must take Discrete(n), numbered from 0"
        )
    return env


def emulator_of(env: Env) -> AtariEnv | None:
    """The Atari game that this is; None where a wrapper or a subclass changes what is played."""
    while isinstance(env, (OrderEnforcing, TimeLimit)):
        env = env.env
    if isinstance(env, AtariEnv) and type(env) in (AtariEnv, SeededAtariEnv):
        return env
    return None


def _seeded(env_id: str, seed: int | None) -> str | EnvSpec:
    """What to make: Atari games that know their seed, anything else as it is registered."""
    spec = gymnasium.registry.get(env_id)
    if seed is None or spec is None or spec.entry_point != "ale_py.env:AtariEnv":
        return env_id
    spec = copy.copy(spec)
    spec.entry_point = functools.partial(SeededAtariEnv, seed)
    return spec


def _unknown(env_id: str, error: Exception) -> str:
    """One sentence on a name that gymnasium does not find, with the names most like it."""
    if isinstance(error, ImportError):
        return f"{env_id!r} cannot be imported: {error}"
    playable = {
        name.lower(): name
        for name, spec in gymnasium.registry.items()
        if not isinstance(spec.kwargs.get("frameskip"), tuple)
    }
    wanted = env_id.rpartition(":")[2].lower()
    close = difflib.get_close_matches(wanted, playable, n=3, cutoff=0.3)
    names = ", ".join(playable[name] for name in close)
    return f"no game is called {env_id!r}" + (f"; the closest are {names}" if names else "")


def make_env(
    env_id: str,
    *,
    noop_max: int = 0,
    episodic_life: bool = False,
    clip_rewards: bool = False,
    scale: bool = False,
) -> Env:
    """The wrapped game: observations [4, 84, 84] u8, or float32 in [0, 1] with `scale`.

    The defaults are the book's stack but for its scaling. Anything but an Atari game as it comes is
    stacked, scaled and clipped only: lives and no-ops are Atari's.
    """
    env = open_env(env_id)
    if (bare := emulator_of(env)) is not None:
        if noop_max:
            env = NoopResetEnv(env, noop_max)
        if bare._frameskip == 1:  # else the emulator skips by itself, as ALE/...-v5 does
            env = MaxAndSkipEnv(env)
        if episodic_life:
            env = EpisodicLifeEnv(env)
        if has_fire(bare):
            env = FireResetEnv(env)
        env = ImageToPyTorch(ProcessFrame84(env))
    env = BufferWrapper(env, 4)
    if scale:
        env = ScaledFloatFrame(env)
    return ClipRewardEnv(env) if clip_rewards else env
