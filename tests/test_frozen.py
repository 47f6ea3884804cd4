"""A network that is only played gives the values of the one that learns, in less work."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import common.frozen
from common.foreground import FEWEST_SCREENS, LARGEST_SHARE
from common.network import DQN, load_state_vector, state_vector
from tests.builders import busy_screens

SCREENS = 5


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each call whether it was done so, or left to libraries."""
    calls: list[bool] = []
    call = common.frozen.Frozen.__call__

    def noted(self: common.frozen.Frozen, obs: Tensor) -> Tensor | None:
        hidden = call(self, obs)
        calls.append(hidden is not None)
        return hidden

    monkeypatch.setattr(common.frozen.Frozen, "__call__", noted)
    yield calls


def standardized(network: str = "nips", dueling: bool = False, bfloat16: bool = False) -> DQN:
    """Its biases are large enough to count, its background is another one everywhere."""
    made = DQN((4, 84, 84), 6, network, dueling, bfloat16)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(-0.5, 0.5)
    frames = torch.randint(0, 256, (84, 84), dtype=torch.uint8).expand(100, 84, 84).clone()
    frames[:40, 10:20, 10:20] += 100
    made.standardize(frames)
    return made


def busy(network: DQN, count: int = SCREENS) -> Tensor:
    return busy_screens(network.background, count)


def playing(network: str, learns: DQN, bfloat16: bool = False) -> DQN:
    plays = DQN((4, 84, 84), 6, network, learns.dueling, bfloat16).for_inference()
    load_state_vector(plays, state_vector(learns))
    return plays


@pytest.mark.parametrize("network", ["nips", "nature"])
@pytest.mark.parametrize("dueling", [False, True])
@torch.no_grad()
def test_values_are_those_of_the_whole_network(
    computed: list[bool], network: str, dueling: bool
) -> None:
    learns = standardized(network, dueling)
    plays = playing(network, learns)
    for count in (1, SCREENS, FEWEST_SCREENS - 1):
        obs = busy(learns, count)
        assert torch.allclose(plays(obs), learns(obs), rtol=1e-4, atol=1e-4)
    assert computed == [True] * 3


@torch.no_grad()
def test_nothing_is_rounded_to_bfloat16(computed: list[bool]) -> None:
    learns = standardized(bfloat16=True)
    plays = playing("nips", learns, bfloat16=True)
    exact = DQN((4, 84, 84), 6, "nips")
    load_state_vector(exact, state_vector(learns))
    obs = busy(learns)
    assert torch.allclose(plays(obs), exact(obs), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plays(obs), learns(obs), rtol=1e-4, atol=1e-4)
    assert computed == [True] * 2


@torch.inference_mode()
def values_of(network: DQN, obs: Tensor) -> Tensor:
    """As an actor asks for them."""
    values: Tensor = network(obs)
    return values


@pytest.mark.parametrize(("dueling", "bfloat16"), [(False, False), (True, False), (False, True)])
def test_weights_count_as_soon_as_they_are_loaded(
    computed: list[bool], dueling: bool, bfloat16: bool
) -> None:
    first, second = (standardized(dueling=dueling) for _ in range(2))
    plays = playing("nips", first, bfloat16)
    tolerance = 2e-2 if bfloat16 else 1e-4

    def same(learns: DQN) -> bool:
        obs = busy(learns)
        return torch.allclose(values_of(plays, obs), learns(obs), rtol=tolerance, atol=tolerance)

    for learns in (second, first):
        load_state_vector(plays, state_vector(learns))
        assert same(learns)
    for learns in (second, first):
        plays.load_state_dict(learns.state_dict())
        assert same(learns)
    with torch.no_grad():
        for name, parameter in plays.named_parameters():
            parameter.mul_(1.5)
            first.get_parameter(name).mul_(1.5)
            assert same(first), name
    assert all(computed)


@torch.no_grad()
def test_libraries_do_it_where_they_are_faster(computed: list[bool]) -> None:
    learns = standardized()
    plays = playing("nips", learns)
    obs = busy(learns)
    obs[:, 0, : int(84 * LARGEST_SHARE) + 8] += 1
    assert torch.allclose(plays(obs), learns(obs), rtol=1e-4, atol=1e-4)
    planes = busy(learns).contiguous()
    assert torch.allclose(plays(planes), learns(planes), rtol=1e-4, atol=1e-4)
    small = DQN((4, 86, 84), 6, "nips").for_inference()  # no whole blocks
    assert small(torch.zeros(2, 4, 86, 84, dtype=torch.uint8)).shape == (2, 6)
    many = busy(learns, FEWEST_SCREENS)
    assert torch.allclose(plays(many), learns(many), rtol=1e-4, atol=1e-4)
    assert computed == [False] * 4
