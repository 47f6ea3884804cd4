"""Convolutions where the screen differs from its background: F.conv2d's values in less work."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import common.foreground as foreground
from common.foreground import FEWEST_SCREENS, LARGEST_SHARE, convolve_foreground, pays_here
from common.network import DQN

SHAPE = (FEWEST_SCREENS, 4, 84, 84)
Layers = list[tuple[Tensor, Tensor, int]]  # as Layer, with a bias


@pytest.fixture(autouse=True)
def _it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground, "pays_here", lambda: True)


def backdrop() -> Tensor:
    return torch.randint(0, 256, (84, 84)).float()


def still(background: Tensor, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Observations that show nothing but the background, channels last."""
    obs = background.to(torch.uint8).expand(shape)
    return obs.contiguous(memory_format=torch.channels_last)


def busy(background: Tensor) -> Tensor:
    """Sprites in the middle and over all four edges, pixels in the corners, one still screen."""
    obs = still(background)
    for image in range(1, len(obs)):
        for _ in range(3):
            y, x = torch.randint(-3, 84, (2,)).tolist()
            obs[image, image % 4, max(y, 0) : y + 5, max(x, 0) : x + 3] += 100
        obs[image, :, 83 * (image % 2), 83 * (image // 2 % 2)] += 1
    return obs


def layers_of(network: str) -> Layers:
    return [
        (c.weight.detach(), c.bias.detach(), c.stride[0])
        for c in DQN(SHAPE[1:], 6, network).modules()
        if isinstance(c, nn.Conv2d) and c.bias is not None
    ]


def leaves(layers: Layers, dtype: torch.dtype) -> Layers:
    return [
        (w.to(dtype, copy=True).requires_grad_(), b.to(dtype, copy=True).requires_grad_(), stride)
        for w, b, stride in layers
    ]


def everywhere(obs: Tensor, background: Tensor, layers: Layers) -> Tensor:
    """The oracle: F.conv2d in float64."""
    x = obs.double() - background.double()
    for weight, bias, stride in layers:
        x = F.relu(F.conv2d(x, weight, bias, stride))
    return x


@pytest.mark.parametrize("network", ["nips", "nature"])
def test_values_and_gradients_are_those_of_convolutions_everywhere(network: str) -> None:
    background = backdrop()
    obs, layers = busy(background), layers_of(network)
    ours, exact = leaves(layers, torch.float32), leaves(layers, torch.float64)
    found = convolve_foreground(obs, background, [*ours])
    assert found is not None
    expected = everywhere(obs, background, exact)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)
    factor = torch.randn(expected.shape)
    (found * factor).sum().backward()  # type: ignore[no-untyped-call]
    (expected * factor.double()).sum().backward()  # type: ignore[no-untyped-call]
    for (weight, bias, _), (exact_weight, exact_bias, _) in zip(ours, exact, strict=True):
        for mine, oracle in ((weight.grad, exact_weight.grad), (bias.grad, exact_bias.grad)):
            assert mine is not None
            assert oracle is not None
            assert torch.allclose(mine.double(), oracle, rtol=1e-3, atol=1e-4 * oracle.abs().max())


def rows_multiplied(monkeypatch: pytest.MonkeyPatch, obs: Tensor, background: Tensor) -> list[int]:
    """Of each layer of the larger network."""
    rows: list[int] = []
    product = foreground._product

    def counted(seen: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows.append(len(seen))
        return product(seen, weight, bias)

    monkeypatch.setattr(foreground, "_product", counted)
    convolve_foreground(obs, background, [*layers_of("nature")])
    return rows


def test_a_still_screen_takes_one_row_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    background = backdrop()
    assert rows_multiplied(monkeypatch, still(background), background) == [1, 1, 1]


@pytest.mark.parametrize(
    ("y", "x", "rows"),
    [
        (0, 0, [2, 2, 2]),  # a corner is seen from one place of each layer
        (41, 41, [5, 10, 26]),  # two by two of the first, three by three, five by five
    ],
)
def test_one_pixel_takes_a_row_for_each_place_that_sees_it(
    monkeypatch: pytest.MonkeyPatch, y: int, x: int, rows: list[int]
) -> None:
    background = backdrop()
    obs = still(background)
    obs[5, 2, y, x] += 1
    network = layers_of("nature")
    seen = torch.zeros(1, 1, 84, 84)
    seen[:, :, y, x] = 1
    for (weight, _, stride), expected in zip(network, rows, strict=True):  # by counting
        kernel = weight.shape[-1]
        seen = (F.conv2d(seen, torch.ones(1, 1, kernel, kernel), stride=stride) > 0).float()
        assert seen.sum() + 1 == expected
    assert rows_multiplied(monkeypatch, obs, background) == rows


@given(st.lists(st.tuples(*(st.integers(0, n - 1) for n in SHAPE)), max_size=20))
def test_a_place_differs_where_any_pixel_that_it_sees_does(
    places: list[tuple[int, int, int, int]],
) -> None:
    background = torch.full((84, 84), 87.0)
    obs = still(background)
    for place in places:
        obs[place] = 88
    screens = obs.permute(0, 2, 3, 1)
    found = foreground._places_that_differ(
        screens, still(background, (1, *SHAPE[1:])).permute(0, 2, 3, 1)
    )
    changed = (obs != 87).any(dim=1, keepdim=True).float()
    assert torch.equal(found, F.max_pool2d(changed, 8, 4).squeeze(1) > 0)


def test_it_is_left_to_conv2d_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    background, layers = backdrop(), [*layers_of("nips")]
    obs = still(background)
    assert convolve_foreground(obs, background, layers) is not None
    assert convolve_foreground(obs[:-1], background, layers) is None  # too few
    assert convolve_foreground(obs.contiguous(), background, layers) is None  # planes
    lines = int(84 * LARGEST_SHARE)
    obs[:, 0, : lines - 8] += 1
    assert convolve_foreground(obs, background, layers) is not None
    obs[:, 0, : lines + 8] += 1
    assert convolve_foreground(obs, background, layers) is None  # too much differs
    (weight, bias, _), *others = layers
    wider = [(weight, bias, 8), *others]
    assert convolve_foreground(still(background), background, wider) is None  # other blocks
    odd = still(torch.zeros(86, 84), (FEWEST_SCREENS, 4, 86, 84))
    assert convolve_foreground(odd, torch.zeros(86, 84), layers) is None  # no whole blocks
    monkeypatch.setattr(foreground, "pays_here", lambda: False)
    assert convolve_foreground(still(background), background, layers) is None


def test_it_was_measured_with_avx2() -> None:
    pays_here.cache_clear()
    assert pays_here() == (torch.backends.cpu.get_cpu_capability() == "AVX2")


@pytest.mark.parametrize("dueling", [False, True])
def test_a_network_gives_the_same_values_either_way(
    monkeypatch: pytest.MonkeyPatch, dueling: bool
) -> None:
    network = DQN(SHAPE[1:], 6, "nips", dueling)
    frames = torch.full((100, 84, 84), 87, dtype=torch.uint8)
    frames[:40, 10:20, 10:20] = 236
    network.standardize(frames)
    obs = busy(network.background)
    calls: list[Tensor | None] = []

    def noted(*arguments: object) -> Tensor | None:
        calls.append(convolve_foreground(*arguments))  # type: ignore[arg-type]
        return calls[-1]

    monkeypatch.setattr("common.network.convolve_foreground", noted)
    here = network(obs)
    assert calls[0] is not None
    monkeypatch.setattr("common.network.convolve_foreground", lambda *_: None)
    assert torch.allclose(here, network(obs), rtol=1e-4, atol=1e-4)
