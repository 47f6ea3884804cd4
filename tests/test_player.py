"""The games of one actor: who joins when, and what is saved of them."""

import numpy as np
import pytest

from actors.player import Player
from common.errors import ConfigError
from common.messages import Chunk
from tests.builders import config

CHUNK, N_STEP = 16, 3


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
    resumed.load_state_dict(straight.state_dict())
    resumed.network.load_state_dict(straight.network.state_dict())
    for _ in range(80):
        ours, theirs = straight.step(0.5), resumed.step(0.5)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert (one.frames == other.frames).all()
            assert (one.transitions == other.transitions).all()
        assert (straight.obs == resumed.obs).all()
    assert len(resumed.games) == 4


def test_a_game_with_other_actions_than_the_configuration_says_so() -> None:
    with pytest.raises(ConfigError, match="Catch-v0 has 3 actions here, the configuration says 6"):
        Player(config(n_actions=6), [1])
