"""The hidden layer where most of its inputs are zero: F.linear's values and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common.hidden
from common.foreground import Places
from common.hidden import LARGEST_SHARE, multiply_few
from common.linear import Linear
from common.network import DQN
from tests.builders import busy_screens

HEIGHT, WIDTH, ROWS, CHANNELS, UNITS = 3, 4, 17, 6, 19


def places_of(share: float, dtype: torch.dtype = torch.float32, images: int = 5) -> Places:
    """Behind a ReLU: of the numbers of each row so many are not zero; row 0 is seen often."""
    generator = np.random.default_rng(7)
    rows = generator.integers(0, ROWS, (images, HEIGHT, WIDTH))
    rows[0, :2] = 0
    kept = torch.zeros(ROWS, CHANNELS)
    for row in range(ROWS):
        kept[row, generator.permutation(CHANNELS)[: round(share * CHANNELS)]] = 1
    return Places(rows, (kept * (0.1 + torch.rand(ROWS, CHANNELS))).to(dtype).requires_grad_())


def gradient_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 1 / 6])
@pytest.mark.parametrize("images", [1, 5])
def test_values_and_gradients_are_those_of_a_linear_layer_behind_a_relu(
    images: int, share: float, dtype: torch.dtype
) -> None:
    places = places_of(share, dtype, images)
    layers = [Linear(CHANNELS * HEIGHT * WIDTH, UNITS + i) for i in range(2)]
    before = [layer.bias.detach().clone() for layer in layers]
    found = multiply_few(places, layers)
    assert found is not None
    assert all(torch.equal(layer.bias, bias) for layer, bias in zip(layers, before, strict=True))
    values = places.values.detach().double().requires_grad_()
    exact = F.relu(values)[torch.from_numpy(places.rows)].permute(0, 3, 1, 2).flatten(1)
    total, expected = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    twins = []
    for y, layer in zip(found, layers, strict=True):
        twin = nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
        twin.load_state_dict(layer.state_dict())
        twins.append(twin)
        oracle, factor = twin(exact), torch.randn(y.shape)
        assert y.dtype == torch.float32
        assert torch.allclose(y.double(), oracle, rtol=1e-5, atol=1e-5)
        total = total + (y * factor).sum()
        expected = expected + (oracle * factor.double()).sum()
    total.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    of_values = gradient_of(places.values)
    assert of_values.dtype == dtype
    assert torch.allclose(of_values.double(), gradient_of(values), rtol=tolerance, atol=tolerance)
    for layer, twin in zip(layers, twins, strict=True):
        for name, parameter in layer.named_parameters():
            mine, theirs = gradient_of(parameter), gradient_of(twin.get_parameter(name))
            assert mine.stride() == parameter.stride()
            assert torch.allclose(mine.double(), theirs, rtol=1e-4, atol=1e-4), name


def test_it_is_left_to_a_library_where_much_is_not_zero() -> None:
    layers = [Linear(CHANNELS * HEIGHT * WIDTH, UNITS)]
    assert multiply_few(places_of(1 / 6), layers) is not None
    assert multiply_few(places_of(2 / 6), layers) is None
    # By what is seen, not by what there is: of two rows one is full, and seen by so many places.
    values = torch.ones(2, CHANNELS)
    values[1] = 0
    rows = np.ones((1, 10, 10), np.int64)
    layers = [Linear(100 * CHANNELS, UNITS)]
    most = int(100 * LARGEST_SHARE)
    rows.flat[:most] = 0
    assert multiply_few(Places(rows, values), layers) is not None
    rows.flat[most] = 0
    assert multiply_few(Places(rows, values), layers) is None


def values_and_gradients(network: DQN, obs: Tensor, factor: Tensor) -> list[Tensor]:
    network.zero_grad()
    q = network(obs)
    (q * factor).sum().backward()
    return [q.detach(), *(gradient_of(p).clone() for p in network.parameters())]


@pytest.mark.parametrize("network", ["nips", "nature"])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_network_is_as_exact_with_it_as_with_a_library(
    monkeypatch: pytest.MonkeyPatch, network: str, dueling: bool, bfloat16: bool
) -> None:
    monkeypatch.setattr("common.foreground.pays_here", lambda factor: True)
    exact, made = (DQN((4, 84, 84), 6, network, dueling, rounds) for rounds in (False, bfloat16))
    frames = torch.full((100, 84, 84), 87, dtype=torch.uint8)
    frames[:40, 10:20, 10:20] = 236
    exact.standardize(frames)
    made.load_state_dict(exact.state_dict())
    obs, factor = busy_screens(made.background, 32), torch.randn(32, 6)
    found = []
    for share, twin in ((1.0, made), (-1.0, made), (-1.0, exact)):  # with it, and without
        monkeypatch.setattr(common.hidden, "LARGEST_SHARE", share)
        found.append(values_and_gradients(twin, obs, factor))
    for mine, library, oracle in zip(*found, strict=True):
        mine_off, library_off = ((x - oracle).norm() / oracle.norm() for x in (mine, library))
        assert mine_off <= (1.5 * library_off if bfloat16 else 1e-4)
