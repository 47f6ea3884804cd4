"""Convolutions where a screen differs from the usual one: F.conv2d's values in less work."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import common.foreground as foreground
from common.foreground import (
    FEWEST_SCREENS,
    LARGEST_SHARE,
    ROWS,
    Places,
    convolve_foreground,
    pays_here,
    usual_screen,
)
from common.network import DQN
from tests.builders import busy_screens, still_screens

SHAPE = (32, 4, 84, 84)
Layers = list[tuple[Tensor, Tensor, int]]  # as Layer, with a bias


@pytest.fixture(autouse=True)
def _it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground, "pays_here", lambda factor: True)


def backdrop() -> Tensor:
    return torch.randint(0, 256, (84, 84)).float()


def field() -> Tensor:
    """What screens of a game show: large areas, and things that stay where they are."""
    screen = torch.full((84, 84), 87.0)
    screen[:10], screen[40:50, 30:41], screen[:, 80] = 236, 17, 52
    return screen


def usual_and_background(measured: bool) -> tuple[Tensor, Tensor]:
    """A background that has not been measured is 0, and nothing is usual but what is shown."""
    return (screen := backdrop(), screen) if measured else (field(), torch.zeros(84, 84))


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


def rounding() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("network", ["nips", "nature"])
def test_values_and_gradients_are_those_of_convolutions_everywhere(
    network: str, measured: bool
) -> None:
    usual, background = usual_and_background(measured)
    obs, layers = busy_screens(usual, SHAPE[0]), layers_of(network)
    ours, exact = leaves(layers, torch.float32), leaves(layers, torch.float64)
    places = convolve_foreground(obs, background, [*ours])
    assert places is not None
    found, expected = places.images(), everywhere(obs, background, exact)
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


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("network", ["nips", "nature"])
def test_in_bfloat16_they_are_as_exact_as_those_of_convolutions_in_bfloat16(
    network: str, measured: bool
) -> None:
    usual, background = usual_and_background(measured)
    obs, layers = busy_screens(usual, SHAPE[0]), layers_of(network)
    ours, theirs = (leaves(layers, torch.float32) for _ in range(2))
    exact = leaves(layers, torch.float64)
    with rounding():
        places = convolve_foreground(obs, background, [*ours])
        rounded = (obs.float() - background).to(memory_format=torch.channels_last)
        for weight, bias, stride in theirs:
            rounded = F.relu(F.conv2d(rounded, weight, bias, stride))
    assert places is not None
    found = places.images()
    assert found.dtype == rounded.dtype == torch.bfloat16
    expected = everywhere(obs, background, exact)
    factor = torch.randn(expected.shape)
    for values in (found, rounded, expected):
        (values * factor.to(values.dtype)).sum().backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def error(values: Tensor | None, oracle: Tensor | None) -> float:
        assert values is not None
        assert oracle is not None
        return ((values.double() - oracle).norm() / oracle.norm()).item()

    assert error(found, expected) < 1.2 * error(rounded, expected)
    for mine, other, oracle in zip(ours, theirs, exact, strict=True):
        for which in range(2):  # weight and bias
            allowed = 1.5 * error(other[which].grad, oracle[which].grad)
            assert error(mine[which].grad, oracle[which].grad) < allowed


def test_in_bfloat16_gradients_of_all_places_that_do_not_differ_are_added_up_exactly() -> None:
    background = backdrop()
    (weight, bias, stride), *_ = leaves(layers_of("nips"), torch.float32)
    with torch.no_grad():
        bias.fill_(1.0)
    with rounding():
        places = convolve_foreground(
            still_screens(background, SHAPE[0]), background, [(weight, bias, stride)]
        )
    assert places is not None
    places.images().sum().backward()  # type: ignore[no-untyped-call]
    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.full_like(bias, SHAPE[0] * 20 * 20))


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
    monkeypatch.setattr(foreground, "ROWS", 1)
    background = backdrop()
    assert rows_multiplied(monkeypatch, still_screens(background, SHAPE[0]), background) == [
        1,
        1,
        1,
    ]


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
    monkeypatch.setattr(foreground, "ROWS", 1)
    background = backdrop()
    obs = still_screens(background, SHAPE[0])
    obs[5, 2, y, x] += 1
    network = layers_of("nature")
    seen = torch.zeros(1, 1, 84, 84)
    seen[:, :, y, x] = 1
    for (weight, _, stride), expected in zip(network, rows, strict=True):  # by counting
        kernel = weight.shape[-1]
        seen = (F.conv2d(seen, torch.ones(1, 1, kernel, kernel), stride=stride) > 0).float()
        assert seen.sum() + 1 == expected
    assert rows_multiplied(monkeypatch, obs, background) == rows


def test_where_no_background_is_taken_off_neighbours_that_are_alike_share_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foreground, "ROWS", 1)
    nothing, usual = torch.zeros(84, 84), torch.full((84, 84), 87.0)
    obs = still_screens(usual, SHAPE[0])
    assert rows_multiplied(monkeypatch, obs, nothing) == [1, 1, 1]
    usual[:, 40:] = 52  # what sees only this side, only the other, or so much of both
    assert rows_multiplied(monkeypatch, still_screens(usual, SHAPE[0]), nothing) == [3, 4, 6]


def test_the_usual_screen_shows_of_each_pixel_the_median_of_five_screens() -> None:
    five = torch.randint(0, 256, (5, 84, 84, 4), dtype=torch.uint8)
    others = torch.randint(0, 256, (5, 5, 84, 84, 4), dtype=torch.uint8)
    screens = torch.cat([five[:, None], others], dim=1).flatten(0, 1)
    for some in (five, screens[:30], screens[:29]):
        expected = some[:: len(some) // 5][:5, ..., -1].median(dim=0).values
        assert torch.equal(usual_screen(some), expected)


def test_products_have_few_different_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    background = backdrop()
    found = {
        n
        for _ in range(5)
        for n in rows_multiplied(monkeypatch, busy_screens(background, SHAPE[0]), background)
    }
    assert all(n % ROWS == 0 for n in found)
    assert max(found) > ROWS


def test_blocks_are_what_screens_show_less_their_background_whatever_is_usual() -> None:
    usual, background = field(), backdrop()
    screens = busy_screens(usual, SHAPE[0]).permute(0, 2, 3, 1)
    found = foreground.find_blocks(screens, background, usual)
    assert found is not None
    rows, _, less = found
    blocks = torch.from_numpy(less[rows[1:]]).view(SHAPE[0], 21, 21, 4, 4, 4)
    shown = blocks.transpose(2, 3).reshape(SHAPE[0], 84, 84, 4)
    assert torch.equal(shown, screens.short() - background.short()[..., None])


@given(st.lists(st.tuples(*(st.integers(0, n - 1) for n in SHAPE)), max_size=20))
def test_a_place_differs_where_any_pixel_that_it_sees_does(
    places: list[tuple[int, int, int, int]],
) -> None:
    background = torch.full((84, 84), 87.0)
    obs = still_screens(background, SHAPE[0])
    for place in places:
        obs[place] = 88
    blocks = foreground.find_blocks(obs.permute(0, 2, 3, 1), background, background)
    assert blocks is not None
    rows, _, _ = foreground.find_windows(*blocks[:2], 2, 1)
    changed = (obs != 87).any(dim=1, keepdim=True).float()
    assert torch.equal(torch.from_numpy(rows[1:] > 0), F.max_pool2d(changed, 8, 4).squeeze(1) > 0)


def test_it_is_left_to_conv2d_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    background, layers = backdrop(), [*layers_of("nips")]
    obs = still_screens(background, SHAPE[0])
    assert convolve_foreground(obs, background, layers) is not None
    assert convolve_foreground(obs[:FEWEST_SCREENS], background, layers) is not None
    assert convolve_foreground(obs[: FEWEST_SCREENS - 1], background, layers) is None  # too few
    assert convolve_foreground(obs.contiguous(), background, layers) is None  # planes
    lines = int(84 * LARGEST_SHARE)
    obs[:, 0, : lines - 4] += 1
    assert convolve_foreground(obs, background, layers) is not None
    obs[:, 0, : lines + 8] += 1
    assert convolve_foreground(obs, background, layers) is None  # too much differs
    dots = still_screens(background, SHAPE[0])
    dots[:, :, ::12, ::12] += 1  # a ninth of the blocks, which four ninths of the places see
    assert convolve_foreground(dots, background, layers) is None
    (weight, bias, _), *others = layers
    wider = [(weight, bias, 8), *others]
    assert (
        convolve_foreground(still_screens(background, SHAPE[0]), background, wider) is None
    )  # other blocks
    odd = still_screens(torch.zeros(86, 84), SHAPE[0])
    assert convolve_foreground(odd, torch.zeros(86, 84), layers) is None  # no whole blocks
    monkeypatch.setattr(foreground, "pays_here", lambda factor: False)
    assert convolve_foreground(still_screens(background, SHAPE[0]), background, layers) is None


@pytest.mark.parametrize(
    ("capability", "float32", "bfloat16"),
    [("AVX2", True, False), ("AVX512", True, True), ("DEFAULT", False, False)],
)
def test_it_is_used_where_it_was_measured(
    monkeypatch: pytest.MonkeyPatch, capability: str, float32: bool, bfloat16: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    measured = pays_here.__wrapped__
    assert (measured(torch.float32), measured(torch.bfloat16)) == (float32, bfloat16)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("measured", [True, False])
def test_a_network_gives_the_same_values_either_way(
    monkeypatch: pytest.MonkeyPatch, dueling: bool, bfloat16: bool, measured: bool
) -> None:
    network = DQN(SHAPE[1:], 6, "nips", dueling, bfloat16)
    frames = field().to(torch.uint8).repeat(100, 1, 1)
    frames[:40, 10:20, 10:20] = 17
    if measured:
        network.standardize(frames)
    obs = busy_screens(field(), SHAPE[0])
    calls: list[Places | None] = []

    def noted(*arguments: object) -> Places | None:
        calls.append(convolve_foreground(*arguments))  # type: ignore[arg-type]
        return calls[-1]

    monkeypatch.setattr("common.network.convolve_foreground", noted)
    here = network(obs)
    assert calls[0] is not None
    monkeypatch.setattr("common.network.convolve_foreground", lambda *_: None)
    tolerance = 1e-2 if bfloat16 else 1e-4
    assert torch.allclose(here, network(obs), rtol=tolerance, atol=tolerance)
