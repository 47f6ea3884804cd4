"""The actor's loop: whose weights it plays by, with which epsilon, and what it hands on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.actor import run_actor
from common.dealer import LearnerGone
from common.messages import Weights
from common.schedules import ladder_epsilon
from common.timings import Timings
from tests.builders import config


class Endpoint:
    """An actor's endpoint whose learner ends after three steps."""

    said_goodbye, env_steps = True, 5_000

    def __init__(self, events: list[Any]) -> None:
        self.events, self.newer = events, iter([None, Weights(9, np.full(3, 9.0, np.float32))])

    def handshake(self) -> None:
        self.events.append("handshake")

    def first_weights(self) -> Weights:
        return Weights(7, np.full(3, 7.0, np.float32))

    def poll(self) -> Weights | None:
        return next(self.newer, None)

    def send(self, chunk: str) -> None:
        self.events.append(chunk)
        if chunk == "chunk of step 3":
            raise LearnerGone("the learner has finished")

    def report(self, shares: dict[str, float]) -> None:
        self.events.append("report")

    def close(self) -> None:
        self.events.append("closed")


class Player:
    """Plays nothing, and makes a chunk of every step."""

    def __init__(self, events: list[Any]) -> None:
        self.events, self.steps, self.timings = events, 0, Timings()

    def load_weights(self, version: int, vector: np.ndarray) -> None:
        assert vector.tolist() == [version] * 3
        self.events.append(f"weights {version}")

    def step(self, epsilon: float) -> list[str]:
        self.steps += 1
        self.events.append(epsilon)
        return [f"chunk of step {self.steps}"]


@pytest.mark.parametrize(
    ("settings", "epsilon"),
    [
        ({"epsilon_decay_env_steps": 10_000}, 0.5),  # of the env steps of the whole run
        ({"epsilon_ladder": True, "actors": 4}, ladder_epsilon(2, 4)),
    ],
)
def test_an_actor_plays_by_the_newest_weights_from_its_first_step_on_with_its_own_epsilon(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], epsilon: float
) -> None:
    events: list[Any] = []
    monkeypatch.setattr("actors.actor.ActorEndpoint", lambda *_, **__: Endpoint(events))
    monkeypatch.setattr("actors.actor.Player", lambda *_: Player(events))
    monkeypatch.setattr("actors.actor.signal.signal", lambda *_: None)
    beats: list[None] = []
    code = run_actor(config(**settings), Path("/run"), 2, 0, lambda: beats.append(None))
    first, second, third = (f"chunk of step {i}" for i in (1, 2, 3))
    assert events == [
        *("handshake", "weights 7", epsilon, first),
        *("weights 9", epsilon, second),
        *(epsilon, third, "closed"),
    ]
    assert code == 10 and len(beats) == 3


def test_an_actor_tells_where_its_time_goes_once_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr("actors.actor.ActorEndpoint", lambda *_, **__: Endpoint(events))
    monkeypatch.setattr("actors.actor.Player", lambda *_: Player(events))
    monkeypatch.setattr("actors.actor.signal.signal", lambda *_: None)
    ages = iter([0.1, 0.3])
    monkeypatch.setattr(Timings, "age_seconds", property(lambda _: next(ages)))
    run_actor(config(log_period_seconds=0.2), Path("/run"), 0, 0, lambda: None)
    assert events.count("report") == 1
    assert events[events.index("report") - 1] == "chunk of step 2"
