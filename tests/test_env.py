"""The wrappers against the table written out plainly, and the fast game against the wrappers."""

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
from ale_py.env import AtariEnv
from gymnasium.wrappers import AtariPreprocessing, TransformReward

from actors.env import (
    BufferWrapper,
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
    ProcessFrame84,
    ScaledFloatFrame,
    load_opencv,
    make_env,
    shrink,
)
from actors.game import Game, GymGame, make_game
from actors.player import Player
from actors.screen import Screen, _area_weights
from common.errors import ConfigError
from tests.builders import CATCH, config

PONG = "PongNoFrameskip-v4"
BREAKOUT = "BreakoutNoFrameskip-v4"


# --- the table, written out: plain functions over a bare environment -------------------------


def plain_frame(rgb: np.ndarray) -> np.ndarray:
    """[rows, 160, 3] u8 -> [84, 84] u8."""
    red, green, blue = (rgb[:, :, i].astype(np.float32) for i in range(3))
    img = red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)
    resized = cv2.resize(img, (84, 110), interpolation=cv2.INTER_AREA)
    return resized[18:102, :].astype(np.uint8)


def plain_step(
    env: Any, action: int, seen: list[np.ndarray]
) -> tuple[np.ndarray, float, bool, bool]:
    """Four emulator frames -> maximum of the last two seen, sum of the rewards, the ends."""
    total = 0.0
    for _ in range(4):
        rgb, reward, terminated, truncated, _ = env.step(action)
        seen.append(rgb)
        total += reward
        if terminated or truncated:
            break
    return np.maximum(seen[-2], seen[-1]), total, terminated, truncated


def plain_reset(env: Any, seed: int | None, seen: list[np.ndarray]) -> np.ndarray:
    seen[:] = [env.reset(seed=seed)[0]]
    for action in (1, 2):
        screen, _, terminated, truncated = plain_step(env, action, seen)
        if terminated or truncated:
            screen, _ = env.reset()
            seen[:] = [screen]
    return screen


def test_the_wrappers_give_what_the_table_says_bit_for_bit() -> None:
    plain, wrapped = gymnasium.make(PONG), make_env(PONG)
    rng = np.random.default_rng(0)
    seed: int | None = 7
    stack: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    ends = 0
    for step in range(2_000):
        if not stack:
            stack = [np.zeros((84, 84), np.uint8)] * 3 + [
                plain_frame(plain_reset(plain, seed, seen))
            ]
            obs, _ = wrapped.reset(seed=seed)
            seed = None
            assert np.array_equal(obs, np.stack(stack))
        action = int(rng.integers(6))
        screen, reward, terminated, truncated = plain_step(plain, action, seen)
        stack = [*stack[1:], plain_frame(screen)]
        obs, *scalars, _ = wrapped.step(action)
        assert obs.dtype == np.uint8
        assert np.array_equal(obs, np.stack(stack)), step
        assert scalars == [reward, terminated, truncated], step
        if terminated or truncated or step == 1_500:  # and once amid a game
            stack = []
            ends += 1
    assert ends >= 2


# --- the fast game against the wrappers ------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "options", "steps"),
    [
        (PONG, {}, 3_000),
        (BREAKOUT, {"noop_max": 30, "episodic_life": True}, 3_000),
        ("AirRaidNoFrameskip-v4", {}, 300),  # 250 rows
        ("FreewayNoFrameskip-v4", {"noop_max": 5}, 100),  # no FIRE
        ("ALE/Pong-v5", {}, 400),  # its own skip, sticky actions
    ],
)
def test_the_game_gives_the_newest_frame_rewards_and_ends_of_the_wrappers(
    env_id: str, options: dict[str, Any], steps: int
) -> None:
    game, env = make_game(env_id, **options, seed=3), make_env(env_id, **options)
    rng = np.random.default_rng(1)
    assert game.n_actions == env.action_space.n  # type: ignore[attr-defined]
    assert np.array_equal(game.reset(seed=3), env.reset(seed=3)[0][-1])
    for i in range(steps):
        action = int(rng.integers(game.n_actions))
        step = game.step(action)
        obs, reward, terminated, truncated, _ = env.step(action)
        assert np.array_equal(game.frame(), obs[-1]), i
        assert (step.reward, step.terminated, step.truncated) == (reward, terminated, truncated), i
        assert step.game_over == env.unwrapped.ale.game_over(), i  # type: ignore[attr-defined]
        if terminated or truncated:
            assert np.array_equal(game.reset(), env.reset()[0][-1]), i


@pytest.mark.parametrize(("source", "target"), [(210, 110), (250, 110), (160, 84)])
def test_pixels_are_weighted_as_opencv_weights_them(source: int, target: int) -> None:
    lone = np.eye(source, dtype=np.float32)
    assert (_area_weights(source, target) == shrink(lone, source, target).T).all()


def test_a_seed_gives_the_same_game_whether_it_was_known_beforehand_or_not() -> None:
    known, other = make_game("ALE/Breakout-v5", seed=5), make_game("ALE/Breakout-v5", seed=6)
    seen = []
    for game in (known, known, other, make_game("ALE/Breakout-v5")):
        first = game.reset(seed=5)
        seen.append((first.tobytes(), record(game, 200, seed=1)))
    assert seen.count(seen[0]) == len(seen)
    assert (known.reset(seed=6).tobytes(), record(known, 200, seed=1)) != seen[0]


class Emulator:
    """Shows what it is given: indices [rows, 160] u8, in colours of its own."""

    def __init__(self, screen: np.ndarray, palette: np.ndarray) -> None:
        self.screen, self.palette = screen, palette

    def getScreenDims(self) -> tuple[int, ...]:
        return self.screen.shape

    def getScreen(self, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return self.screen.copy()
        out[:] = self.screen
        return out

    def getScreenRGB(self) -> np.ndarray:
        return self.palette[self.screen]


@pytest.mark.parametrize("rows", [210, 250])
def test_the_frames_are_exact_whatever_changes_on_the_screen(rows: int) -> None:
    rng = np.random.default_rng(rows)
    palette = rng.integers(0, 256, (256, 3)).astype(np.uint8)
    emulator = Emulator(np.zeros((rows, 160), np.uint8), palette)
    screen = Screen(emulator)  # type: ignore[arg-type]
    frames = []
    pair = [emulator.getScreenRGB()] * 2
    for size in np.geomspace(1, 160, 250).astype(int):  # from single pixels to all of it
        for slot in (0, 1):
            top, left = rng.integers(rows), rng.integers(160)
            area = emulator.screen[top : top + size, left : left + size]
            area[:] = rng.integers(0, 256, area.shape) if size % 2 else rng.integers(256)
            screen.capture(slot)
            pair[slot] = emulator.getScreenRGB()
        meant = ProcessFrame84.process(np.maximum(*pair))[:, :, 0]
        frames.append((screen.frame(), meant))
    for made, meant in frames:  # only now: frames given away must not change any more
        assert np.array_equal(made, meant)


@pytest.mark.parametrize("rows", [210, 250])
def test_the_frames_are_exact_where_a_single_pixel_changes(rows: int) -> None:
    """A lone pixel reads out its weights, and whether all that see it are renewed."""
    palette = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    emulator = Emulator(np.full((rows, 160), 1, np.uint8), palette)
    screen = Screen(emulator)  # type: ignore[arg-type]
    assert np.array_equal(screen.frame(), ProcessFrame84.process(emulator.getScreenRGB())[:, :, 0])
    for spot in range(0, rows * 160, 37):  # every column, every row
        emulator.screen.reshape(-1)[spot] = 2 + spot % 254
        screen.capture_as_both()
        meant = ProcessFrame84.process(emulator.getScreenRGB())[:, :, 0]
        assert np.array_equal(screen.frame(), meant), spot


def record(game: Any, steps: int, seed: int) -> list[Any]:
    """What `steps` random steps give, with resets where they are due."""
    rng = np.random.default_rng(seed)
    seen: list[Any] = []
    for _ in range(steps):
        step = game.step(int(rng.integers(game.n_actions)))
        seen.append((game.frame().tobytes(), step.reward, step.terminated, step.game_over))
        if step.terminated or step.truncated:
            seen.append(game.reset().tobytes())
    return seen


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        (PONG, {}),
        (BREAKOUT, {"noop_max": 30, "episodic_life": True}),
        ("ALE/Breakout-v5", {}),
        (CATCH, {}),
    ],
)
def test_a_saved_game_goes_on_bit_for_bit_in_another(env_id: str, options: dict[str, Any]) -> None:
    game, other = make_game(env_id, **options), make_game(env_id, **options)
    game.reset(seed=11)
    record(game, 500, seed=1)
    shown = game.frame()
    state = game.state_dict()
    expected = record(game, 300, seed=2)
    other.load_state_dict(state)
    assert np.array_equal(other.frame(), shown)
    assert record(other, 300, seed=2) == expected
    game.load_state_dict(state)  # and back in the game itself
    assert record(game, 300, seed=2) == expected


def test_a_saved_game_repeats_its_own_last_action_where_actions_are_sticky() -> None:
    game, other = (make_game("ALE/Breakout-v5") for _ in range(2))
    game.reset(seed=11)
    other.reset(seed=12)
    right, left, noop = 2, 3, 0
    for _ in range(100):
        if game.step(right).terminated:
            game.reset()
            game.step(right)
        saved = game.state_dict()
        if other.step(left).terminated:
            other.reset()
        other.load_state_dict(saved)
        for one in (game, other):
            one.step(noop)
        assert other.state_dict()["ale"] == game.state_dict()["ale"]


def test_a_saved_game_that_ends_on_the_next_frame_still_shows_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The maximum of two frames then takes the older one from before it was saved."""
    spec = copy.copy(gymnasium.spec(BREAKOUT))
    spec.kwargs = spec.kwargs | {"max_num_frames_per_episode": 81}
    monkeypatch.setitem(gymnasium.registry, BREAKOUT, spec)
    game, other = make_game(BREAKOUT), make_game(BREAKOUT)
    game.reset(seed=3)  # two env steps of FIRE and of the action after it
    for _ in range(18):
        assert not game.step(2).truncated
    saved, without = game.state_dict(), make_game(BREAKOUT)
    other.load_state_dict(saved)
    without.load_state_dict(saved | {"screen": without.state_dict()["screen"]})
    assert all(one.step(3).truncated for one in (game, other, without))
    assert np.array_equal(other.frame(), game.frame())
    assert not np.array_equal(without.frame(), game.frame())


# --- wrapper by wrapper, on an environment that counts ---------------------------------------


class Lives:
    """Stands for the emulator where only its lives are asked for."""

    def __init__(self, lives: int) -> None:
        self.left = lives

    def lives(self) -> int:
        return self.left


class Counting(gymnasium.Env[np.ndarray, int]):
    """The observation is the number of the step, in each of its values; records its actions."""

    action_space = gymnasium.spaces.Discrete(3)

    def __init__(
        self,
        shape: tuple[int, ...] = (84, 84),
        length: int = 1_000,
        reward: float = 1.0,
        lose_at: tuple[int, ...] = (),
    ) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.length, self.gain, self.lose_at = length, reward, lose_at
        self.actions: list[int] = []
        self.resets: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.count = 0
        self.ale = Lives(3)
        self.resets.append(seed)
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.actions.append(action)
        self.ale.left -= self.count in self.lose_at
        return self._obs(), self.gain, self.count == self.length, False, {}

    def _obs(self) -> np.ndarray:
        return np.full(self.observation_space.shape, self.count, np.uint8)


def test_a_stack_begins_with_zeros_and_is_the_callers_own() -> None:
    env = BufferWrapper(Counting(), 4)
    kept, _ = env.reset()
    assert kept.shape == (4, 84, 84)
    kept += 9
    seen = [env.step(0)[0][:, 0, 0].tolist() for _ in range(5)]
    assert seen[:2] == [[0, 0, 0, 1], [0, 0, 1, 2]]
    assert seen[-1] == [2, 3, 4, 5]
    assert env.reset()[0].max() == 0


def test_a_skip_stops_where_the_episode_ends() -> None:
    env = MaxAndSkipEnv(Counting((210, 160, 3), length=5), 4)
    assert env.reset()[0].max() == 0
    obs, reward, terminated, truncated, _ = env.step(0)
    assert (obs.max(), reward, terminated, truncated) == (4, 4.0, False, False)
    obs, reward, terminated, truncated, _ = env.step(0)
    assert (obs.max(), reward, terminated, truncated) == (5, 1.0, True, False)
    assert env.reset()[0].max() == 0


class Fading(Counting):
    """Darker from frame to frame: the older of two frames is their maximum."""

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return (100 - obs).astype(np.uint8), *rest


def test_a_step_that_ends_on_its_first_frame_still_sees_the_one_before() -> None:
    env = MaxAndSkipEnv(Fading((210, 160, 3), length=5), 4)
    env.reset()
    assert env.step(0)[0].max() == 97  # frames 3 and 4
    assert env.step(0)[0].max() == 96  # frames 4 and 5, the last
    env.reset()
    assert env.step(0)[0].max() == 97


def test_noops_are_between_one_and_the_limit_and_follow_the_seed() -> None:
    drawn = []
    for seed in [*range(200), 5]:
        bare = Counting()
        NoopResetEnv(bare, 30).reset(seed=seed)
        drawn.append(len(bare.actions))
        assert set(bare.actions) == {0}
    assert (min(drawn), max(drawn)) == (1, 30)
    assert drawn[-1] == drawn[5]


def test_noops_that_end_the_game_start_another() -> None:
    bare = Counting(length=1)
    obs, _ = NoopResetEnv(bare, 30).reset(seed=0)
    assert obs.max() == 0
    assert bare.resets == [0] + [None] * len(bare.actions)


@pytest.mark.parametrize(
    ("length", "resets", "count"), [(1_000, [4], 2), (2, [4, None], 0), (1, [4, None, None], 0)]
)
def test_fire_and_action_two_are_pressed_and_an_ended_game_is_reset(
    length: int, resets: list[int | None], count: int
) -> None:
    bare = Counting(length=length)
    obs, _ = FireResetEnv(bare).reset(seed=4)
    assert bare.actions == [1, 2]
    assert bare.resets == resets
    assert obs.max() == count


def test_fire_is_repeated_like_any_action() -> None:
    env = make_env(PONG)
    env.reset(seed=0)
    assert env.unwrapped.ale.getEpisodeFrameNumber() == 8  # type: ignore[attr-defined]


def test_a_lost_life_ends_the_episode_and_not_the_game() -> None:
    bare = Counting(length=6, lose_at=(2, 4, 6))
    env = EpisodicLifeEnv(bare)
    env.reset()
    assert [env.step(1)[2] for _ in range(2)] == [False, True]
    assert env.reset()[0].max() == 3  # one no-op on
    assert bare.actions == [1, 1, 0]
    assert env.step(1)[2]
    env.reset()
    assert env.step(1)[2]  # the last life: the game is over
    assert env.reset()[0].max() == 0
    assert len(bare.resets) == 2


@pytest.mark.parametrize(("raw", "clipped"), [(40.0, 1.0), (0.0, 0.0), (-0.5, -1.0)])
def test_clipped_rewards_are_signs(raw: float, clipped: float) -> None:
    env = ClipRewardEnv(Counting(reward=raw))
    env.reset()
    assert env.step(0)[1] == clipped


def test_scaled_frames_are_float32_from_zero_to_one() -> None:
    env = ScaledFloatFrame(Counting())
    env.reset()
    obs = env.step(0)[0]
    assert obs.dtype == np.float32
    assert obs.max() == np.float32(1 / 255)
    assert make_env(PONG, scale=True).observation_space.dtype == np.float32
    scaled, _ = make_env(PONG, scale=True).reset(seed=1)
    plain, _ = make_env(PONG).reset(seed=1)
    assert np.array_equal(scaled, plain.astype(np.float32) / 255)


def test_make_env_clips_the_rewards_it_is_asked_to() -> None:
    env = make_env("SpaceInvadersNoFrameskip-v4", clip_rewards=True)
    raw = make_game("SpaceInvadersNoFrameskip-v4")
    env.reset(seed=0)
    raw.reset(seed=0)
    rewards = [(env.step(1)[1], raw.step(1).reward) for _ in range(150)]
    assert max(reward for _, reward in rewards) > 1
    assert all(clipped == np.sign(reward) for clipped, reward in rewards)


# --- which environments there are ------------------------------------------------------------


def test_a_cut_off_game_is_truncated_and_not_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gymnasium.spec(PONG)
    kwargs = spec.kwargs | {"max_num_frames_per_episode": 50}
    name = "ShortPongNoFrameskip-v4"
    short = gymnasium.envs.registration.EnvSpec(name, spec.entry_point, kwargs=kwargs)
    monkeypatch.setitem(gymnasium.registry, name, short)
    game, env = make_game(name, episodic_life=True), make_env(name)
    assert np.array_equal(game.reset(seed=0), env.reset(seed=0)[0][-1])
    for _ in range(40):
        step = game.step(0)
        obs, _, terminated, truncated, _ = env.step(0)
        assert np.array_equal(game.frame(), obs[-1])
        if step.game_over:
            break
    assert (step.terminated, step.truncated) == (terminated, truncated) == (False, True)
    assert env.unwrapped.ale.getEpisodeFrameNumber() == 50  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(214, 160, 3), (210, 144, 3), (84, 84)])
def test_a_screen_of_another_size_is_refused_by_its_size(shape: tuple[int, ...]) -> None:
    size = "x".join(map(str, shape))
    with pytest.raises(ValueError, match=size):
        ProcessFrame84.process(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=size):
        ProcessFrame84(Counting(shape))


@pytest.mark.parametrize("make", [make_env, make_game])
class TestBothDoors:
    def test_an_unknown_name_is_answered_with_the_closest(self, make: Callable[..., Any]) -> None:
        with pytest.raises(ConfigError, match=r"^no game is called 'PongNoFramskip-v4'; .*") as got:
            make("PongNoFramskip-v4")
        assert PONG in str(got.value)
        with pytest.raises(ConfigError, match="ALE/Pong-v5"):
            make("pong")
        with pytest.raises(ConfigError, match=r"tests\.nowhere"):
            make("tests.nowhere:Catch-v0")
        with pytest.raises(ConfigError, match=r"^'\./catch:Catch-v0' is a path: .* module:Id$"):
            make("./catch:Catch-v0")

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (ValueError("it needs a level"), "made: it needs a level"),
            (ImportError("no name 'level' in it"), "imported: no name 'level' in it"),
        ],
    )
    def test_an_error_of_the_game_itself_is_not_called_an_unknown_name(
        self,
        make: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        said: str,
    ) -> None:
        def broken() -> gymnasium.Env[Any, Any]:
            raise error

        spec = gymnasium.envs.registration.EnvSpec("Broken-v0", broken)
        monkeypatch.setitem(gymnasium.registry, "Broken-v0", spec)
        with pytest.raises(ConfigError, match=f"'Broken-v0' cannot be {said}"):
            make("Broken-v0")

    def test_an_atari_game_with_continuous_actions_is_refused(
        self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = copy.deepcopy(gymnasium.spec(PONG))
        spec.kwargs["continuous"] = True
        monkeypatch.setitem(gymnasium.registry, "Smooth-v0", spec)
        with pytest.raises(ConfigError, match=r"Box\(.* must take Discrete\(n\)"):
            make("Smooth-v0")

    def test_a_random_skip_is_refused(self, make: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match="Pong-v4 repeats actions a random number"):
            make("Pong-v4")

    def test_an_atari_game_of_another_size_is_refused(self, make: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match="214x160x3"):
            make("CarnivalNoFrameskip-v4")

    def test_other_observations_are_refused_by_shape_and_type(
        self, make: Callable[..., Any]
    ) -> None:
        with pytest.raises(ValueError, match=r"\(4,\) and type float32.*uint8 of shape \(84, 84\)"):
            make("CartPole-v1")

    def test_nothing_is_said_by_the_way(
        self, make: Callable[..., Any], capfd: pytest.CaptureFixture[str]
    ) -> None:
        for env_id in ("PongNoFrameskip-v0", "ALE/Pong-v5", CATCH):
            make(env_id).reset()
        assert capfd.readouterr() == ("", "")


def test_the_emulators_own_skip_is_not_applied_twice() -> None:
    env = make_env("ALE/Pong-v5")
    env.reset(seed=0)
    before = env.unwrapped.ale.getFrameNumber()  # type: ignore[attr-defined]
    env.step(0)
    assert env.unwrapped.ale.getFrameNumber() - before == 4  # type: ignore[attr-defined]


def test_ready_made_frames_are_only_stacked() -> None:
    env, game = make_env(CATCH), make_game(CATCH)
    obs, _ = env.reset(seed=2)
    assert (obs.shape, obs.dtype, obs[:3].max()) == ((4, 84, 84), np.uint8, 0)
    assert isinstance(game, GymGame)
    assert np.array_equal(game.reset(seed=2), obs[-1])
    for _ in range(60):
        obs, reward, terminated, _, _ = env.step(1)
        step = game.step(1)
        assert np.array_equal(game.frame(), obs[-1])
        assert (step.reward, step.game_over) == (reward, terminated)


@pytest.mark.parametrize("make", [make_env, make_game])
@pytest.mark.parametrize("around", ["a wrapper", "a class of its own"])
def test_an_atari_game_that_somebody_has_changed_is_played_as_it_was_registered(
    make: Callable[..., Any], around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Costly(AtariEnv):
        def step(self, action: int) -> Any:
            obs, reward, *rest = super().step(action)
            return obs, 100.0 * float(reward), *rest

    def registered() -> gymnasium.Env[Any, Any]:
        kind = AtariEnv if around == "a wrapper" else Costly
        env = AtariPreprocessing(kind(game="pong", frameskip=1), noop_max=0)
        return TransformReward(env, lambda r: 100.0 * float(r)) if kind is AtariEnv else env

    spec = gymnasium.envs.registration.EnvSpec("Changed-v0", registered)
    monkeypatch.setitem(gymnasium.registry, "Changed-v0", spec)
    game, env = make("Changed-v0"), registered()
    obs, _ = env.reset(seed=4)
    begun = game.reset(seed=4)
    assert np.array_equal(begun if make is make_game else begun[0][-1], obs)
    rewards = set()
    for _ in range(120):
        obs, reward, *_ = env.step(2)
        if make is make_game:
            step = game.step(2)
            assert np.array_equal(game.frame(), obs)
            assert step.reward == reward
        else:
            seen, given, *_ = game.step(2)
            assert np.array_equal(seen[-1], obs)
            assert given == reward
        rewards.add(reward)
    assert rewards == {0.0, -100.0}


class OneArray(gymnasium.Env[np.ndarray, int]):
    """All environments of this kind give their observations in one array, over and over."""

    observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(2)
    obs = np.zeros((84, 84), np.uint8)
    reward = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        self.obs.fill(seed or 0)
        return self.obs, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.obs.fill(100 + action)
        return self.obs, self.reward, False, False, {}


def make_one_array(monkeypatch: pytest.MonkeyPatch) -> Game:
    spec = gymnasium.envs.registration.EnvSpec("OneArray-v0", OneArray)
    monkeypatch.setitem(gymnasium.registry, "OneArray-v0", spec)
    return make_game("OneArray-v0")


def test_an_environment_may_write_its_next_observation_over_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    games = [make_one_array(monkeypatch) for _ in range(2)]
    first = [game.reset(seed) for seed, game in enumerate(games, 1)]
    assert [frame.max() for frame in first] == [1, 2]
    for action, game in enumerate(games):
        game.step(action)
    assert [game.frame().max() for game in games] == [100, 101]


@pytest.mark.parametrize(
    "obs", [np.zeros((84, 84)), np.zeros(84, np.uint8), np.zeros((1, 84, 84), np.uint8)]
)
def test_observations_that_are_not_what_was_declared_are_refused(
    obs: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = make_one_array(monkeypatch)
    monkeypatch.setattr(OneArray, "obs", obs)
    with pytest.raises(ConfigError, match="OneArray gave an observation of shape"):
        game.reset(1)


@pytest.mark.parametrize("reward", [math.nan, -math.inf])
def test_rewards_that_cannot_be_learned_from_are_refused(
    reward: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = make_one_array(monkeypatch)
    game.reset(1)
    monkeypatch.setattr(OneArray, "reward", reward)
    with pytest.raises(ConfigError, match=f"OneArray gave a reward of {reward}, expected"):
        game.step(0)


@pytest.mark.parametrize(
    "space", [gymnasium.spaces.Discrete(2, start=1), gymnasium.spaces.Box(0, 1, (2,))]
)
def test_actions_that_are_not_numbered_from_0_are_refused(
    space: gymnasium.Space[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OneArray, "action_space", space)
    with pytest.raises(ConfigError, match=r"must take Discrete\(n\), numbered from 0"):
        make_one_array(monkeypatch)


def test_a_time_limit_is_saved_with_a_game_and_no_state_is_said_plainly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_game(CATCH)
    catch = gymnasium.spec("Catch-v0")
    for name, entry in (("CutCatch-v0", catch.entry_point), ("Counting-v0", Counting)):
        spec = gymnasium.envs.registration.EnvSpec(name, entry, max_episode_steps=10)
        monkeypatch.setitem(gymnasium.registry, name, spec)
    game, other = make_game("CutCatch-v0"), make_game("CutCatch-v0")
    game.reset(seed=0)
    record(game, 7, seed=0)
    other.load_state_dict(game.state_dict())
    ends = [other.step(1) for _ in range(3)]
    assert [step.truncated for step in ends] == [False, False, True]
    assert not ends[-1].terminated
    with pytest.raises(ConfigError, match="Counting cannot be played in lock-step"):
        make_game("Counting-v0").state_dict()


def test_a_missing_libgl_is_named_with_its_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == "cv2":
                raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "cv2")
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    load_opencv.cache_clear()
    with pytest.raises(ConfigError, match=r"libGL.so.1.*apt-get install libgl1.*-headless"):
        load_opencv()


def test_an_atari_game_limited_in_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pong = gymnasium.spec(PONG)
    name = "LimitedPong-v4"
    spec = gymnasium.envs.registration.EnvSpec(
        name, pong.entry_point, max_episode_steps=9, kwargs=pong.kwargs
    )
    monkeypatch.setitem(gymnasium.registry, name, spec)
    with pytest.raises(ValueError, match="max_num_frames_per_episode"):
        make_game(name)


@pytest.mark.parametrize("episodic_life", [False, True])
def test_the_score_of_a_game_is_every_reward_of_it(episodic_life: bool) -> None:
    """Also those that fall while an episode begins, which no step tells of."""
    game = make_game(BREAKOUT, episodic_life=episodic_life)
    ale, rng, total, games = game._ale, np.random.default_rng(4), 0, 0  # type: ignore[attr-defined]
    real = ale.act
    earned: list[float] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(ale, name)

        def act(self, action: Any) -> int:
            nonlocal total
            reward = real(action)
            total += reward
            return int(reward)

        def reset_game(self) -> None:
            nonlocal total
            total = 0
            ale.reset_game()

    game._ale = Counting()  # type: ignore[attr-defined]
    game.reset(seed=1)
    while games < 3:
        step = game.step(int(rng.integers(game.n_actions)))
        if step.game_over:
            earned.append(total)
            games, total = games + 1, 0
        if step.terminated or step.truncated:
            game.reset()
    assert game.scores[:3] == earned
    assert sum(earned) > 0


def test_a_game_that_ends_while_an_episode_begins_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    player = Player(config(chunk_transitions=16, envs_per_actor=1), [1])
    game = player.games[0]
    real = game.reset

    def reset(seed: int | None = None) -> np.ndarray:
        game.scores.append(7.0)
        return real(seed)

    monkeypatch.setattr(game, "reset", reset)
    chunks = [chunk for _ in range(200) for chunk in player.step(1.0)]
    told = [chunk.episode.score for chunk in chunks if chunk.episode]
    assert told.count(7.0) >= 2
    assert len(told) > told.count(7.0)  # and the game before it


def test_lives_and_no_ops_of_a_configuration_reach_its_games() -> None:
    options: dict[str, Any] = {"noop_max": 30, "episodic_life": True}
    player = Player(config(env=BREAKOUT, n_actions=4, envs_per_actor=1, **options), [1])
    game, twin = player.games[0], make_game(BREAKOUT, **options)
    twin.reset(player._game_seeds[0])
    assert game.state_dict()["rng"] == twin.state_dict()["rng"]  # as many no-ops were drawn
    assert record(game, 500, seed=1) == record(twin, 500, seed=1)  # lives end episodes alike
    assert record(make_game(BREAKOUT), 500, seed=1) != record(twin, 500, seed=1)
