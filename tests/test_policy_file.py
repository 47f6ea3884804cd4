"""A policy file: what it holds comes back, and anything else is refused in a sentence."""

import collections
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from actors.evaluator import evaluate
from actors.game import NOOP, AtariGame, Step
from common.config import Config
from common.errors import ConfigError, Mismatch
from common.network import network_for
from common.policy_file import Policy, load_policy, mean_score_of, save_policy
from tests.builders import CATCH, config
from tests.catch import Catch


def weights_of(settings: Config) -> dict[str, torch.Tensor]:
    """Of a fresh network, as a file has them."""
    return {name: t.contiguous() for name, t in network_for(settings).state_dict().items()}


def test_a_policy_comes_back_with_its_configuration(tmp_path: Path) -> None:
    of_this_run = {"run_dir": "/somewhere", "run_id": "1f", "bind": "tcp://[::1]:5", "keys": "k"}
    path, settings = tmp_path / "best.safetensors", config(**of_this_run)
    network = network_for(settings)
    save_policy(path, network, settings, {"mean_score_100": 19.54, "games": 255})
    policy = load_policy(path)
    assert policy.config == config(run_dir="", run_id="", bind="", keys="")
    for name, tensor in network.state_dict().items():
        assert torch.equal(policy.network.state_dict()[name], tensor)
    assert mean_score_of(path) == 19.54
    assert list(tmp_path.iterdir()) == [path]


def test_a_game_that_is_not_atari_is_the_policys_own_from_its_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(env=CATCH, n_actions=3, dueling=False)
    network = network_for(settings)
    with torch.no_grad():  # of the three, it always takes the last
        network.advantage[-1].weight.zero_()
        network.advantage[-1].bias.copy_(torch.arange(3.0))
    play, taken = Catch.step, set()

    def step(self: Catch, action: int) -> Any:
        taken.add(action)
        return play(self, action)

    monkeypatch.setattr(Catch, "step", step)
    assert len(evaluate(Policy(network, settings), games=3, seed=1)) == 3
    assert taken == {2}


@pytest.mark.parametrize("about", [{"mean_score_100": 21.0, "games": 99}, {}])
def test_a_mean_of_too_few_games_is_none(tmp_path: Path, about: dict[str, float]) -> None:
    save_policy(tmp_path / "p.safetensors", network_for(config()), config(), about)
    assert mean_score_of(tmp_path / "p.safetensors") == -math.inf
    assert mean_score_of(tmp_path / "no such file") == -math.inf


def test_what_is_not_a_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    for content in (b"", b"junk" * 100):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is not a policy "):
            load_policy(path)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, r"p\.safetensors is not a policy of ours: it has no configuration\."),
        ({"config": "[]"}, r"p\.safetensors is not a configuration\."),
        (
            {"config": json.dumps({**json.loads(config().to_json()), "gamma": 1.5})},
            r"p\.safetensors is not a configuration: --gamma is 1\.5, expected 0 to 1\.$",
        ),
    ],
)
def test_a_policy_whose_configuration_is_none_is_refused_in_a_sentence(
    tmp_path: Path, metadata: dict[str, str], told: str
) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(save(weights_of(config()), metadata))
    with pytest.raises(ConfigError, match=told):
        load_policy(path)


def test_a_policy_that_does_not_fit_its_configuration_is_a_mismatch(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_policy(path, network_for(config(dueling=False)), config(dueling=True), {})
    with pytest.raises(Mismatch, match=r"does not fit the network .*value\.0\.weight"):
        load_policy(path)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"episodic_life": None}, False),  # which decides what its games are
        ({"log_period_seconds": None}, True),  # which nobody plays by
        ({"noisy": True}, False),  # who knows
    ],
    ids=str,
)
def test_a_policy_of_another_version_is_played_where_all_is_known_that_play_depends_on(
    tmp_path: Path, change: dict[str, Any], fits: bool
) -> None:
    path = tmp_path / "p.safetensors"
    theirs = {**json.loads(config().to_json()), **change}
    known = {name: value for name, value in theirs.items() if value is not None}
    path.write_bytes(save(weights_of(config()), {"config": json.dumps(known)}))
    if fits:
        assert load_policy(path).config.env == CATCH
        known |= {"reward": 1e9}  # with which today's step size would not go together
        del known["learning_rate_final"]
        path.write_bytes(save(weights_of(config()), {"config": json.dumps(known)}))
        assert load_policy(path).config.env == CATCH
    else:
        with pytest.raises(Mismatch, match=rf"p\.safetensors is of another .*{next(iter(change))}"):
            load_policy(path)


def test_a_checkpoint_of_another_version_is_played_where_all_is_known_too(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-000000000001"
    folder.mkdir(parents=True)
    tensors = {f"policy.{n}": t for n, t in weights_of(config()).items()}
    (folder / "model.safetensors").write_bytes(save(tensors))
    theirs = json.loads(config().to_json())
    del theirs["idle_max_env_steps"]
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    assert load_policy(folder / "model.safetensors").config.env == CATCH
    del theirs["policy_average_updates"]  # which says what of it is the policy
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    with pytest.raises(Mismatch, match="lacks 'policy_average_updates'"):
        load_policy(folder / "model.safetensors")


class Watched:
    """A game whose every pixel is its number; its score too, once it has lasted as long."""

    n_actions, frames_per_env_step = 4, 1

    def __init__(self, number: int) -> None:
        self.number, self.actions, self.scores = number, list[int](), list[float]()

    def reset(self, seed: int | None = None) -> np.ndarray:
        return self.frame()

    def step(self, action: int) -> Step:
        self.actions.append(action)
        over = len(self.actions) == 2 + self.number
        self.scores += [float(self.number)] * over
        return Step(0.0, over, False, over)

    def frame(self) -> np.ndarray:
        return np.full((84, 84), self.number, np.uint8)

    def close(self) -> None: ...


def test_each_game_is_played_by_what_it_shows_itself_also_when_others_are_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    games: list[Watched] = []

    def make(*_: Any) -> Watched:
        games.append(Watched([2, 0, 3, 1][len(games)]))
        return games[-1]

    class OfItsPixels(torch.nn.Module):
        n_actions = 4

        def forward(self, obs: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(obs[:, -1, 0, 0].long(), 4)

    monkeypatch.setattr("actors.evaluator.game_for", make)
    policy = Policy(OfItsPixels(), config(n_actions=4))  # type: ignore[arg-type]
    assert evaluate(policy, games=4, seed=1) == [2.0, 0.0, 3.0, 1.0]
    for game in games:
        assert game.actions == [game.number] * (2 + game.number)


def test_greedy_games_can_be_ended_and_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed, turns = [], itertools.count(1)

    def end_at_the_fifth() -> None:  # two games are made, and two steps of each were played
        if next(turns) == 5:
            raise KeyError("enough")

    monkeypatch.setattr("actors.evaluator.game_for", lambda *_: Watched(9))
    monkeypatch.setattr(Watched, "close", lambda self: closed.append(len(self.actions)))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError, match="enough"):
            evaluate(always(config(dueling=False), 2), 2, 1, end_at_the_fifth)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert closed == [2, 2]


def always(settings: Config, action: int) -> Policy:
    """Takes one action, whatever it sees."""
    network = network_for(settings)
    with torch.no_grad():
        network.advantage[-1].weight.zero_()
        network.advantage[-1].bias.zero_()[action] = 1.0
    return Policy(network, settings)


def test_greedy_atari_games_begin_with_idle_steps_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played: dict[AtariGame, list[int]] = collections.defaultdict(list)
    play = AtariGame.step

    def step(self: AtariGame, action: int) -> Any:
        played[self].append(action)
        if len(played[self]) == 42:
            self.scores.append(0.0)  # it is over
        return play(self, action)

    monkeypatch.setattr(AtariGame, "step", step)
    settings = config(env="PongNoFrameskip-v4", n_actions=6, dueling=False)
    evaluate(always(settings, 2), games=4, seed=1)
    idle = []
    for actions in played.values():
        after_reset = actions[2:]  # which presses FIRE and 2
        idle.append(after_reset.count(0))
        assert after_reset == [0] * idle[-1] + [2] * (40 - idle[-1])
    assert len(played) == 4 and max(idle) <= 30 and len(set(idle)) > 1


def test_a_lost_life_begins_an_episode_in_evaluation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int | None] = []
    idle: list[int] = []  # of each life; the first is lost while nobody moves
    steps, begin, play = itertools.count(), AtariGame.reset, AtariGame.step

    def reset(self: AtariGame, seed: int | None = None) -> Any:
        begun.append(seed)
        idle.append(0)
        return begin(self, seed)

    def step(self: AtariGame, action: int) -> Any:
        assert next(steps) < 5_000, "nobody serves"
        idle[-1] += action == NOOP
        return play(self, action)

    monkeypatch.setattr("actors.evaluator.idle_env_steps", lambda *_: 30)
    monkeypatch.setattr(AtariGame, "reset", reset)
    monkeypatch.setattr(AtariGame, "step", step)
    game = {"env": "BreakoutNoFrameskip-v4", "n_actions": 4, "episodic_life": True}
    assert len(evaluate(always(config(**game, dueling=False), 2), games=1, seed=1)) == 1
    assert len(begun) == 5  # the game, and four of its five lives
    assert 0 < idle[0] < 30 and idle[1:] == [0] * 4
