"""The games of one actor: who joins when, and what is saved of them."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from actors.game import NOOP, AtariGame, GymGame, Step
from actors.player import Player
from actors.policy import epsilon_greedy
from common.errors import Mismatch
from common.messages import Chunk, EpisodeStats, Spec, decode_chunk, encode_chunk
from tests.builders import config
from tests.catch import Catch

CHUNK, N_STEP = 16, 3
PONG, BREAKOUT = "PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"


def player(games: int, n_step: int = N_STEP) -> Player:
    return Player(config(envs_per_actor=games, chunk_transitions=CHUNK, n_step=n_step), [1])


def test_the_first_chunk_is_made_before_a_second_game_is_loaded() -> None:
    playing = player(games=4)
    chunks: list[Chunk] = []
    while not chunks:
        assert len(playing.games) == 1
        chunks = playing.step(1.0)
    assert [len(chunk) for chunk in chunks] == [CHUNK]


@pytest.mark.parametrize("games", [1, 2, 4, 5, 3 * CHUNK])
def test_all_games_join_one_at_a_time(games: int) -> None:
    playing = player(games)
    seen = [len(playing.games)]
    for _ in range(CHUNK * 3 + games):
        playing.step(1.0)
        seen.append(len(playing.games))
    assert seen[-1] == games
    assert set(np.diff(seen)) <= {0, 1}
    assert playing.obs.shape[0] == games


@pytest.mark.parametrize("n_step", [1, 3, CHUNK // 4])
def test_chunks_of_different_games_arrive_a_fraction_of_a_chunk_apart(n_step: int) -> None:
    playing = player(4, n_step)
    counts = [len(playing.step(1.0)) for _ in range(59)]  # Catch's games have 60 env steps
    arrivals = np.flatnonzero(counts)
    assert max(counts) == 1
    assert (np.diff(arrivals[-3:]) == CHUNK // 4).all()


@pytest.mark.parametrize("saved_after", [5, CHUNK + N_STEP + 6, 60])
def test_saved_while_games_are_still_joining_it_goes_on_alike(saved_after: int) -> None:
    straight, resumed = player(games=4), player(games=4)
    for _ in range(saved_after):
        straight.step(0.5)
    resumed.games[0].scores.append(99.0)  # of games that were over while these were made
    resumed._over.append(EpisodeStats(99.0, 1))
    resumed.load_state_dict(straight.state_dict())
    resumed.network.load_state_dict(straight.network.state_dict())
    for _ in range(80):
        ours, theirs = straight.step(0.5), resumed.step(0.5)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert (one.frames == other.frames).all()
            assert (one.transitions == other.transitions).all()
            assert one.episode == other.episode
        assert (straight.obs == resumed.obs).all()
    assert len(resumed.games) == 4


def test_the_network_sees_the_newest_frames_of_the_episode_in_progress_and_nothing_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each frame here says its episode and step; what is fed to the network is looked at."""
    begin, play, episodes = Catch.reset, Catch.step, iter(range(1, 100))

    def stamp(game: Any, obs: np.ndarray) -> np.ndarray:
        obs = obs.copy()
        obs[0, :2] = game.episode, game.age
        return obs

    def reset(self: Any, **options: Any) -> Any:
        self.episode, self.age = next(episodes), 1
        obs, info = begin(self, **options)
        return stamp(self, obs), info

    def step(self: Any, action: int) -> Any:
        self.age += 1
        obs, *rest = play(self, action)
        return stamp(self, obs), *rest

    monkeypatch.setattr(Catch, "reset", reset)
    monkeypatch.setattr(Catch, "step", step)
    playing, seen = player(games=2), set()
    for _ in range(150):  # a game has 60 env steps
        playing.step(1.0)
        for stack in playing.obs:
            episode, age = stack[-1, 0, :2].tolist()
            expected = [[episode, n] if n > 0 else [0, 0] for n in range(age - 3, age + 1)]
            assert stack[:, 0, :2].tolist() == expected
            seen.add((episode, age))
    assert len({episode for episode, _ in seen}) >= 4
    assert {age for _, age in seen} >= {1, 2, 3, 4}


def test_rewards_are_clipped_for_learning_and_scores_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play = Catch.step

    def step(self: Catch, action: int) -> Any:
        obs, reward, *rest = play(self, action)
        return obs, 3 * reward, *rest

    monkeypatch.setattr(Catch, "step", step)
    settings = config(envs_per_actor=1, chunk_transitions=CHUNK, n_step=1, clip_rewards=True)
    playing = Player(settings, [1])
    chunks = [chunk for _ in range(150) for chunk in playing.step(1.0)]
    rewards = np.concatenate([chunk.transitions["n_step_return"] for chunk in chunks])
    assert set(rewards.tolist()) == {-1.0, 0.0, 1.0}
    episodes = [chunk.episode for chunk in chunks if chunk.episode]
    assert len(episodes) == 2
    for i, episode in enumerate(episodes):
        assert episode.score == 3 * rewards[60 * i : 60 * (i + 1)].sum()
        assert episode.length_env_steps == 60


def test_a_game_that_is_over_while_it_is_begun_is_told_of_with_a_length_that_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where no-ops at the start of a game lose all of it."""
    begin, resets = GymGame.reset, itertools.count()

    def reset(self: GymGame, seed: int | None = None) -> np.ndarray:
        frame = begin(self, seed)
        if next(resets) == 1:
            self.scores.append(-7.0)
        return frame

    monkeypatch.setattr(GymGame, "reset", reset)
    playing = player(games=1)
    spec = Spec.of(playing.config)
    chunks = [chunk for _ in range(130) for chunk in playing.step(1.0)]
    sent = [decode_chunk(memoryview(encode_chunk(1, 1, chunk)), spec) for chunk in chunks]
    told = [chunk.episode for chunk in sent if chunk.episode]
    assert [game.length_env_steps for game in told] == [60, 1, 60]
    assert told[1].score == -7.0


class Preferring:
    """Takes the action that the first pixel names."""

    n_actions = 4

    def __call__(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(obs[:, -1, 0, 0].long(), 4)


def test_each_row_acts_at_random_with_probability_epsilon_and_else_as_its_own_values_say() -> None:
    rng, obs = np.random.default_rng(0), np.zeros((1_000, 4, 84, 84), np.uint8)
    preferred = rng.integers(4, size=len(obs))
    obs[:, -1, 0, 0] = preferred
    for epsilon in (0.0, 0.3, 1.0):
        actions = epsilon_greedy(Preferring(), obs, epsilon, rng)  # type: ignore[arg-type]
        others = (actions != preferred).mean()  # a random action is the preferred one in 1 of 4
        assert abs(others - 0.75 * epsilon) <= 5 * (0.75 * epsilon * 0.25 / len(obs)) ** 0.5
        differing = actions[actions != preferred]
        assert epsilon == 0 or set(differing.tolist()) == {0, 1, 2, 3}


def test_a_game_with_other_actions_than_the_configuration_says_so() -> None:
    with pytest.raises(Mismatch, match="Catch-v0 has 3 actions here, the configuration says 6"):
        Player(config(n_actions=6), [1])


def always_two(network: Any, obs: np.ndarray, *_: Any) -> np.ndarray:
    return np.full(len(obs), 2)


def test_atari_games_begin_with_idle_steps_of_their_own_and_only_a_new_game_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twenty games of two lives each, 20 env steps a life: some are still idle when it is lost."""
    monkeypatch.setattr("actors.player.epsilon_greedy", always_two)
    actions: list[int] = []

    def step(self: AtariGame, action: int) -> Step:
        actions.append(action)
        game_over = len(actions) % 40 == 0
        if game_over:
            self.scores.append(0.0)
        return Step(0.0, len(actions) % 20 == 0, False, game_over)

    playing = Player(config(env=BREAKOUT, n_actions=4, envs_per_actor=1), [1])
    monkeypatch.setattr(AtariGame, "reset", lambda self, seed=None: self.frame())
    monkeypatch.setattr(AtariGame, "step", step)
    for _ in range(800):
        playing.step(0.0)
    lives = np.reshape(actions, (20, 2, 20))
    idle = (lives == NOOP).sum(axis=2)
    for life, count in zip(lives.reshape(40, 20), idle.flat, strict=True):
        assert life.tolist() == [NOOP] * count + [2] * (20 - count)
    of_games, of_second_lives = idle.T.tolist()
    assert set(of_second_lives) == {0}
    assert max(of_games) == 20 and len(set(of_games)) > 5


def test_a_game_that_is_not_atari_is_played_from_its_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.player.epsilon_greedy", always_two)
    playing = Player(config(envs_per_actor=1, chunk_transitions=CHUNK), [1])
    chunks = [chunk for _ in range(150) for chunk in playing.step(0.0)]  # a game has 60 env steps
    assert {int(a) for chunk in chunks for a in chunk.transitions["action"]} == {2}


def test_a_game_saved_while_it_idles_goes_on_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.player.epsilon_greedy", always_two)
    monkeypatch.setattr("actors.player.idle_env_steps", lambda *_: 20)
    settings = config(envs_per_actor=1, chunk_transitions=CHUNK, n_step=1)
    straight, resumed = Player(settings, [1]), Player(settings, [1])
    for _ in range(7):
        straight.step(0.0)
    resumed.load_state_dict(straight.state_dict())
    chunks = [chunk for _ in range(40) for chunk in resumed.step(0.0)]
    actions = [int(a) for chunk in chunks for a in chunk.transitions["action"]]
    assert actions[:32] == [NOOP] * 20 + [2] * 12


def test_games_that_join_in_a_resumed_player_draw_nothing_from_the_policys_numbers() -> None:
    settings = config(env=PONG, n_actions=6, envs_per_actor=3, chunk_transitions=CHUNK)
    straight, resumed = Player(settings, [1]), Player(settings, [1])
    while len(straight.games) < 3:
        straight.step(0.5)
    saved = straight.state_dict()
    assert any(saved["idle"])
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == saved
