"""When a run is over: its hundred games, the greedy ones that confirm them, its minutes."""

import dataclasses
import math

import pytest

from common.metrics import Scores
from learner.ending import Ending
from tests.builders import config


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one number is the time."""
    now = [100.0]
    monkeypatch.setattr("learner.ending.time.monotonic", lambda: now[0])
    return now


def play(ending: Ending, score: float, env_steps: int) -> None:
    ending.scores.add(score)
    ending.look(env_steps)


def with_100_games(confirm_games: int) -> Ending:
    """Of a run that a hundred games have solved, but for so many greedy ones."""
    ending = Ending(config(reward=19.5, confirm_games=confirm_games), Scores(), 0.0, None)
    for i in range(100):
        play(ending, 20.0, env_steps=10 * (i + 1))
    return ending


def test_a_run_that_was_solved_stays_so_whatever_comes_in_before_it_ends() -> None:
    ending = with_100_games(confirm_games=0)
    for i in range(10):
        play(ending, -21.0, env_steps=1_010 + 10 * i)
    assert not ending.scores.solved(19.5)
    assert ending.reached(1_100) == (20.0, 1_000)
    assert ending.finished(1_100, "Told to stop.") == "Solved in 1,000 env steps!"


def test_a_run_is_solved_when_greedy_games_confirm_it_and_since_its_hundred_games(
    clock: list[float],
) -> None:
    ending = with_100_games(confirm_games=3)
    assert ending.looks_solved and not ending.solved
    assert ending.finished(1_000, "") == ""
    clock[0] = 130.0
    assert ending.confirm(20.0)  # 19.5 rounded up
    assert ending.solved and not ending.looks_solved
    assert ending.wall_seconds == 100.0
    clock[0] = 140.0
    play(ending, -21.0, env_steps=1_100)
    assert ending.finished(1_100, "") == "Solved in 1,000 env steps!"
    assert (ending.wall_seconds, ending.confirmed_seconds) == (100.0, 130.0)


@pytest.mark.parametrize("greedy_mean", [19.9, math.nan])
def test_a_run_that_greedy_games_do_not_confirm_goes_on_for_fifty_games_at_least(
    clock: list[float], greedy_mean: float
) -> None:
    ending = with_100_games(confirm_games=3)
    clock[0] = 130.0
    assert not ending.confirm(greedy_mean)
    assert ending.finished(1_000, "") == ""
    assert ending.wall_seconds == 130.0  # they count, since they did not help
    saved, scores = ending.state_dict(), ending.scores
    less = dataclasses.replace(ending.config, reward=18.5)  # which is another question
    assert not Ending(less, scores, 0.0, saved).in_doubt
    ending = Ending(ending.config, scores, 0.0, saved)  # after a resume
    for game in range(50):
        assert ending.in_doubt and not ending.looks_solved, game
        play(ending, 20.0, env_steps=2_000)
    assert ending.looks_solved and not ending.in_doubt


@pytest.mark.parametrize("before", [0.0, 50.0])
def test_a_run_ends_with_its_minutes_those_before_a_resume_included(
    clock: list[float], before: float
) -> None:
    saved = Ending(config(), Scores(), clock[0] - before, None).state_dict()
    ending = Ending(config(max_minutes=1.0), Scores(), clock[0], saved)
    clock[0] = 159.0 - before
    assert ending.finished(0, "") == ""
    clock[0] = 160.0 - before
    assert ending.finished(0, "") == "Stopped at --max-minutes 1."
